from generator.language import *

d, exp_avg, exp_avg_sq, m_hat, adapted, step, u = names("d exp_avg exp_avg_sq m_hat adapted step u")
rho_inf, rho, known, rect = names("rho_inf rho known rect")


@optimizer("RAdamTorch")
def radam_torch(lr: NonNegative = 1e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
                eps: NonNegative = 1e-8, weight_decay: NonNegative = 0.0,
                decoupled_weight_decay: bool = False):
    """Adam, rectified for the variance of its first steps, as PyTorch defines it.

    Source: torch.optim.RAdam, PyTorch 2.13, torch/optim/radam.py and its documentation.
    Note: rectified where rho > 5; in the spec radam, as in the paper, where rho > 4.
    Note: eps is added to the root before its correction; in optax after it.

    Args:
        lr: step size.
        beta1: decay of the average of gradients, per step.
        beta2: decay of the average of squared gradients, per step.
        eps: added to the root of the second moment, in units of the gradient.
        weight_decay: multiple of the parameters that is added to the gradient.
        decoupled_weight_decay: whether the decay goes beside the gradient instead, times lr.
    """
    exp_avg[0] = exp_avg_sq[0] = 0
    with when(decoupled_weight_decay):
        d[t] = g[t]
    with otherwise():
        d[t] = g[t] + weight_decay * theta[t-1]
    exp_avg[t] = beta1 * exp_avg[t-1] + (1 - beta1) * d[t]
    exp_avg_sq[t] = beta2 * exp_avg_sq[t-1] + (1 - beta2) * d[t]**2
    m_hat[t] = exp_avg[t] / (1 - beta1**t)
    rho_inf[t] = 2 / (1 - beta2) - 1
    rho[t] = rho_inf[t] - 2 * t * beta2**t / (1 - beta2**t)
    # rho where it is used, else a value with rect = 1: it is never NaN, so that derivatives are not.
    known[t] = where(rho[t] > 5, rho[t], rho_inf[t])
    rect[t] = sqrt((known[t] - 4) * (known[t] - 2) * rho_inf[t]
                   / ((rho_inf[t] - 4) * (rho_inf[t] - 2) * known[t]))
    adapted[t] = rect[t] * sqrt(1 - beta2**t) * (m_hat[t] / (sqrt(exp_avg_sq[t]) + eps))
    step[t] = where(rho[t] > 5, adapted[t], m_hat[t])
    with when(decoupled_weight_decay):
        u[t] = step[t] + weight_decay * theta[t-1]
    with otherwise():
        u[t] = step[t]
    theta[t] = theta[t-1] - lr * u[t]
