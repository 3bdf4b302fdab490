from generator.language import *

d, exp_avg, exp_avg_sq, max_exp_avg_sq, second, denom, u = names(
    "d exp_avg exp_avg_sq max_exp_avg_sq second denom u")


@optimizer("AdamTorch")
def adam_torch(lr: NonNegative = 1e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
               eps: NonNegative = 1e-8, weight_decay: NonNegative = 0.0, amsgrad: bool = False,
               decoupled_weight_decay: bool = False):
    """Adam, as PyTorch defines it.

    Source: torch.optim.Adam, PyTorch 2.13, torch/optim/adam.py and its documentation.
    Note: the maximum of amsgrad is of the second moment before its correction, which follows it, as
        in torch and keras; in optax and the spec amsgrad the maximum is of the corrected moment.
    Note: torch shrinks the parameters first where the decay is decoupled; here one number is
        subtracted, which is the same but for rounding.

    Args:
        lr: step size, about the largest change of a parameter in a step.
        beta1: decay of the average of gradients, per step.
        beta2: decay of the average of squared gradients, per step.
        eps: added to the corrected root of the second moment, in units of the gradient.
        weight_decay: multiple of the parameters that is added to the gradient.
        amsgrad: whether the second moment never falls.
        decoupled_weight_decay: whether the decay goes beside the gradient instead, times lr.
    """
    exp_avg[0] = exp_avg_sq[0] = 0
    with when(decoupled_weight_decay):
        d[t] = g[t]
    with otherwise():
        d[t] = g[t] + weight_decay * theta[t-1]
    exp_avg[t] = beta1 * exp_avg[t-1] + (1 - beta1) * d[t]
    exp_avg_sq[t] = beta2 * exp_avg_sq[t-1] + (1 - beta2) * d[t]**2
    with when(amsgrad):
        max_exp_avg_sq[0] = 0
        max_exp_avg_sq[t] = maximum(max_exp_avg_sq[t-1], exp_avg_sq[t])
        second[t] = max_exp_avg_sq[t]
    with otherwise():
        second[t] = exp_avg_sq[t]
    denom[t] = sqrt(second[t]) / sqrt(1 - beta2**t) + eps
    with when(decoupled_weight_decay):
        u[t] = exp_avg[t] / (1 - beta1**t) / denom[t] + weight_decay * theta[t-1]
    with otherwise():
        u[t] = exp_avg[t] / (1 - beta1**t) / denom[t]
    theta[t] = theta[t-1] - lr * u[t]
