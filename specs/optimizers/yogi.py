from generator.language import *

m, v = names("m v")


@optimizer
def yogi(lr: NonNegative = 1e-2, beta1: Decay = 0.9, beta2: Decay = 0.999,
         eps: NonNegative = 1e-3, initial_accumulator: NonNegative = 1e-6):
    """Adam with a second moment that moves by steps of controlled size.

    Source: Zaheer, Reddi, Sachan, Kale & Kumar, NeurIPS 2018, Algorithm 2.
    Note: no bias correction, as in the source; optax corrects both moments and starts m, too, at
        the initial accumulator.

    Args:
        lr: step size.
        beta1: decay of the average of gradients, per step.
        beta2: 1 minus the part of the squared gradient by which the second moment moves.
        eps: added to the root of the second moment, in units of the gradient.
        initial_accumulator: second moment before the first step, in units of the squared gradient.
    """
    m[0] = 0
    v[0] = initial_accumulator
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    v[t] = v[t-1] - (1 - beta2) * sign(v[t-1] - g[t]**2) * g[t]**2
    theta[t] = theta[t-1] - lr * (m[t] / (sqrt(v[t]) + eps))
