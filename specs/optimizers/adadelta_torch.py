from generator.language import *

d, square_avg, acc_delta, delta = names("d square_avg acc_delta delta")


@optimizer("AdadeltaTorch")
def adadelta_torch(lr: NonNegative = 1.0, rho: Decay = 0.9, eps: NonNegative = 1e-6,
                   weight_decay: NonNegative = 0.0):
    """Steps as large as the last ones have been, as PyTorch defines it.

    Source: torch.optim.Adadelta, PyTorch 2.13, torch/optim/adadelta.py and its documentation.
    Note: keras has lr 1e-3, rho 0.95 and eps 1e-7; optax's decay has torch's place.
    Note: torch takes a rho of 1, too, with which nothing would ever enter an average.

    Args:
        lr: multiple of a step that is taken.
        rho: decay of both averages, per step.
        eps: added to both averages under their roots; the first steps are of its size.
        weight_decay: multiple of the parameters that is added to the gradient.
    """
    square_avg[0] = acc_delta[0] = 0
    d[t] = g[t] + weight_decay * theta[t-1]
    square_avg[t] = rho * square_avg[t-1] + (1 - rho) * d[t]**2
    delta[t] = sqrt(acc_delta[t-1] + eps) / sqrt(square_avg[t] + eps) * d[t]
    acc_delta[t] = rho * acc_delta[t-1] + (1 - rho) * delta[t]**2
    theta[t] = theta[t-1] - lr * delta[t]
