from generator.language import *

d, square_sum, clr = names("d square_sum clr")


@optimizer("AdagradTorch")
def adagrad_torch(lr: NonNegative = 1e-2, lr_decay: NonNegative = 0.0,
                  weight_decay: NonNegative = 0.0, initial_accumulator_value: NonNegative = 0.0,
                  eps: NonNegative = 1e-10):
    """Gradient divided by the root of the sum of its squares, as PyTorch defines it.

    Source: torch.optim.Adagrad, PyTorch 2.13, torch/optim/adagrad.py and its documentation.
    Note: square_sum is torch's state sum, a word of the language here.
    Note: eps is added to the root; in optax and keras it stands inside, and the sum starts at 0.1.

    Args:
        lr: step size.
        lr_decay: how fast the step size falls: after t steps it is lr / (1 + lr_decay t).
        weight_decay: multiple of the parameters that is added to the gradient.
        initial_accumulator_value: where the sum of squared gradients starts.
        eps: added to the root of the sum, in units of the gradient.
    """
    square_sum[0] = initial_accumulator_value
    d[t] = g[t] + weight_decay * theta[t-1]
    clr[t] = lr / (1 + (t - 1) * lr_decay)
    square_sum[t] = square_sum[t-1] + d[t]**2
    theta[t] = theta[t-1] - clr[t] * (d[t] / (sqrt(square_sum[t]) + eps))
