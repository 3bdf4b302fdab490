from generator.language import *

d, exp_avg, exp_avg_sq, mu, mu_next, mu_product, denom, m_bar, u = names(
    "d exp_avg exp_avg_sq mu mu_next mu_product denom m_bar u")


@optimizer("NAdamTorch")
def nadam_torch(lr: NonNegative = 2e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
                eps: NonNegative = 1e-8, weight_decay: NonNegative = 0.0,
                momentum_decay: NonNegative = 4e-3, decoupled_weight_decay: bool = False):
    """Adam with Nesterov momentum and a momentum schedule, as PyTorch defines it.

    Source: torch.optim.NAdam, PyTorch 2.13, torch/optim/nadam.py and its documentation.
    Note: torch adds the gradient's part and the average's to the parameters one after the other, and
        shrinks them first where the decay is decoupled; here it is one number that is subtracted.

    Args:
        lr: step size.
        beta1: decay of the average of gradients, per step, and limit of the momentum mu.
        beta2: decay of the average of squared gradients, per step.
        eps: added to the corrected root of the second moment, in units of the gradient.
        weight_decay: multiple of the parameters that is added to the gradient.
        momentum_decay: how fast the momentum grows: beta1 - mu shrinks by 0.96**momentum_decay.
        decoupled_weight_decay: whether the decay goes beside the gradient instead, times lr.
    """
    exp_avg[0] = exp_avg_sq[0] = 0
    mu_product[0] = 1
    mu[t] = beta1 * (1 - 0.5 * 0.96**(t * momentum_decay))
    mu_next[t] = beta1 * (1 - 0.5 * 0.96**((t + 1) * momentum_decay))
    mu_product[t] = mu_product[t-1] * mu[t]
    with when(decoupled_weight_decay):
        d[t] = g[t]
    with otherwise():
        d[t] = g[t] + weight_decay * theta[t-1]
    exp_avg[t] = beta1 * exp_avg[t-1] + (1 - beta1) * d[t]
    exp_avg_sq[t] = beta2 * exp_avg_sq[t-1] + (1 - beta2) * d[t]**2
    denom[t] = sqrt(exp_avg_sq[t] / (1 - beta2**t)) + eps
    m_bar[t] = (mu_next[t] / (1 - mu_product[t] * mu_next[t]) * exp_avg[t]
                + (1 - mu[t]) / (1 - mu_product[t]) * d[t])
    with when(decoupled_weight_decay):
        u[t] = m_bar[t] / denom[t] + weight_decay * theta[t-1]
    with otherwise():
        u[t] = m_bar[t] / denom[t]
    theta[t] = theta[t-1] - lr * u[t]
