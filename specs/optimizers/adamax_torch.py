from generator.language import *

d, exp_avg, exp_inf = names("d exp_avg exp_inf")


@optimizer("AdamaxTorch")
def adamax_torch(lr: NonNegative = 2e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
                 eps: NonNegative = 1e-8, weight_decay: NonNegative = 0.0):
    """Adam with a running maximum in place of the second moment, as PyTorch defines it.

    Source: torch.optim.Adamax, PyTorch 2.13, torch/optim/adamax.py and its documentation.
    Note: eps is added to the gradient's absolute value inside the maximum, as in optax; in keras and
        the spec adamax to the maximum.

    Args:
        lr: step size, the largest change of a parameter in a step.
        beta1: decay of the average of gradients, per step.
        beta2: decay of the maximum of absolute gradients, per step.
        eps: added to the absolute gradient, in units of the gradient.
        weight_decay: multiple of the parameters that is added to the gradient.
    """
    exp_avg[0] = exp_inf[0] = 0
    d[t] = g[t] + weight_decay * theta[t-1]
    exp_avg[t] = beta1 * exp_avg[t-1] + (1 - beta1) * d[t]
    exp_inf[t] = maximum(beta2 * exp_inf[t-1], abs(d[t]) + eps)
    theta[t] = theta[t-1] - lr / (1 - beta1**t) * (exp_avg[t] / exp_inf[t])
