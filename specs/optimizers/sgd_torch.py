from generator.language import *

d, fresh, momentum_buffer, u = names("d fresh momentum_buffer u")


@optimizer("SGDTorch")
def sgd_torch(lr: NonNegative = 1e-3, momentum: Decay = 0.0, dampening: Real = 0.0,
              weight_decay: NonNegative = 0.0, nesterov: bool = False):
    """Gradient descent with momentum, as PyTorch defines it.

    Source: torch.optim.SGD, PyTorch 2.13, torch/optim/sgd.py and its documentation.
    Note: the first gradient enters the momentum undampened, as in torch.
    Note: lr stands outside the momentum; in keras inside. optax's sgd has no dampening.
    Note: torch takes a momentum of 1 and above, too, which is refused here.

    Args:
        lr: step size.
        momentum: decay of the momentum, per step; 0: none is kept.
        dampening: what a gradient lacks of entering the momentum whole.
        weight_decay: multiple of the parameters that is added to the gradient.
        nesterov: whether to look ahead along the momentum.
    """
    require(~nesterov | (momentum > 0) & equal(dampening, 0))
    d[t] = g[t] + weight_decay * theta[t-1]
    fresh[t] = where(equal(t, 1), 1, 1 - dampening)
    with when(momentum > 0):
        momentum_buffer[0] = 0
        momentum_buffer[t] = momentum * momentum_buffer[t-1] + fresh[t] * d[t]
        with when(nesterov):
            u[t] = d[t] + momentum * momentum_buffer[t]
        with otherwise():
            u[t] = momentum_buffer[t]
    with otherwise():
        u[t] = d[t]
    theta[t] = theta[t-1] - lr * u[t]
