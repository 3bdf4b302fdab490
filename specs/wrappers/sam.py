from generator.language import *

size, scale, h = names("size scale h")


@wrapper("SAM")
def sam(rho: NonNegative = 0.05):
    """Sharpness-aware minimization: the gradient is taken where the loss is higher nearby.

    Source: Foret, Kleiner, Mobahi & Neyshabur, ICLR 2021, Algorithm 1. arXiv:2010.01412
    Note: where all gradients are 0, the second one is taken at theta, too.

    Args:
        rho: distance to the point of the second gradient.
    """
    size[t] = global_norm(g[t])
    scale[t] = where(size[t] > 0, rho / size[t], 0)
    h[t] = grad(theta[t-1] + scale[t] * g[t])
    inner = update(h[t])
    theta[t] = inner
