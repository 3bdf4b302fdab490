from generator.language import *

factor, u = names("factor u")


@transform
def clip_by_global_norm(max_norm: Positive = 1.0):
    """Scale all gradients together so that their common norm is bounded.

    Source: Pascanu, Mikolov & Bengio, On the difficulty of training recurrent neural networks,
        ICML 2013, Algorithm 1.
    Note: nothing is added to the norm; where it is within the bound, gradients keep their bits.

    Args:
        max_norm: largest norm over all gradients together, in units of the gradient.
    """
    factor[t] = max_norm / maximum(max_norm, global_norm(g[t]))
    u[t] = g[t] * factor[t]
