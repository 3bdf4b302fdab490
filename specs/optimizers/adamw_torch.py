from generator.language import *

exp_avg, exp_avg_sq, max_exp_avg_sq, second, denom = names(
    "exp_avg exp_avg_sq max_exp_avg_sq second denom")


@optimizer("AdamWTorch")
def adamw_torch(lr: NonNegative = 1e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
                eps: NonNegative = 1e-8, weight_decay: NonNegative = 1e-2, amsgrad: bool = False):
    """Adam with decoupled weight decay, as PyTorch defines it.

    Source: torch.optim.AdamW, PyTorch 2.13, torch/optim/adamw.py and its documentation.
    Note: the maximum of amsgrad is of the second moment before its correction, which follows it.
    Note: torch shrinks the parameters first; here one number is subtracted, which is the same but for
        rounding.

    Args:
        lr: step size, about the largest change of a parameter in a step.
        beta1: decay of the average of gradients, per step.
        beta2: decay of the average of squared gradients, per step.
        eps: added to the corrected root of the second moment, in units of the gradient.
        weight_decay: rate at which parameters shrink, times lr.
        amsgrad: whether the second moment never falls.
    """
    exp_avg[0] = exp_avg_sq[0] = 0
    exp_avg[t] = beta1 * exp_avg[t-1] + (1 - beta1) * g[t]
    exp_avg_sq[t] = beta2 * exp_avg_sq[t-1] + (1 - beta2) * g[t]**2
    with when(amsgrad):
        max_exp_avg_sq[0] = 0
        max_exp_avg_sq[t] = maximum(max_exp_avg_sq[t-1], exp_avg_sq[t])
        second[t] = max_exp_avg_sq[t]
    with otherwise():
        second[t] = exp_avg_sq[t]
    denom[t] = sqrt(second[t]) / sqrt(1 - beta2**t) + eps
    theta[t] = theta[t-1] - lr * (exp_avg[t] / (1 - beta1**t) / denom[t] + weight_decay * theta[t-1])
