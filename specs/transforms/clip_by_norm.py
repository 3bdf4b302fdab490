from generator.language import *

factor, u = names("factor u")


@transform
def clip_by_norm(max_norm: Positive = 1.0):
    """Scale the gradient of each tensor so that its norm is bounded.

    Source: Pascanu, Mikolov & Bengio, On the difficulty of training recurrent neural networks,
        ICML 2013, Algorithm 1, tensor by tensor.
    Note: nothing is added to the norm; where it is within the bound, gradients keep their bits.

    Args:
        max_norm: largest norm of a tensor's gradient, in units of the gradient.
    """
    factor[t] = max_norm / maximum(max_norm, norm(g[t]))
    u[t] = g[t] * factor[t]
