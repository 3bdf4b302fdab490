from generator.language import *

d, square_avg, grad_avg, avg, momentum_buffer, u = names("d square_avg grad_avg avg momentum_buffer u")


@optimizer("RMSpropTorch")
def rmsprop_torch(lr: NonNegative = 1e-2, alpha: Decay = 0.99, eps: NonNegative = 1e-8,
                  weight_decay: NonNegative = 0.0, momentum: Decay = 0.0, centered: bool = False):
    """Gradient divided by a running root mean square of itself, as PyTorch defines it.

    Source: torch.optim.RMSprop, PyTorch 2.13, torch/optim/rmsprop.py and its documentation.
    Note: eps is added to the root; in optax, keras and the spec rmsprop it stands inside.
    Note: lr stands outside the momentum; in optax and keras inside.
    Note: a centered average that rounding has left below 0 counts as 0; in torch it is NaN.
    Note: torch takes an alpha or a momentum of 1 and above, too, which is refused here.

    Args:
        lr: step size.
        alpha: decay of the averages, per step.
        eps: added to the root of the average, in units of the gradient.
        weight_decay: multiple of the parameters that is added to the gradient.
        momentum: decay of the momentum, per step; 0: none is kept.
        centered: whether to divide by the standard deviation instead.
    """
    square_avg[0] = 0
    d[t] = g[t] + weight_decay * theta[t-1]
    square_avg[t] = alpha * square_avg[t-1] + (1 - alpha) * d[t]**2
    with when(centered):
        grad_avg[0] = 0
        grad_avg[t] = alpha * grad_avg[t-1] + (1 - alpha) * d[t]
        avg[t] = sqrt(maximum(square_avg[t] - grad_avg[t]**2, 0)) + eps
    with otherwise():
        avg[t] = sqrt(square_avg[t]) + eps
    with when(momentum > 0):
        momentum_buffer[0] = 0
        momentum_buffer[t] = momentum * momentum_buffer[t-1] + d[t] / avg[t]
        u[t] = momentum_buffer[t]
    with otherwise():
        u[t] = d[t] / avg[t]
    theta[t] = theta[t-1] - lr * u[t]
