from generator.language import *

u = names("u")


@transform("ClipByValue")
def clip_by_value(c: NonNegative):
    """Clip each entry of the gradient to an interval around 0.

    Source: Mikolov, Statistical Language Models Based on Neural Networks, PhD thesis, Brno 2012.
    Note: as torch.nn.utils.clip_grad_value_, optax's clip and keras' clipvalue; NaN stays NaN.

    Args:
        c: largest absolute value that an entry keeps, in units of the gradient.
    """
    u[t] = minimum(maximum(g[t], -c), c)
