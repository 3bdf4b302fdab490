from generator.language import *

deviation, u = names("deviation u")


@transform("AddNoise")
def add_noise(eta0: NonNegative = 0.01, gamma: NonNegative = 0.55):
    """Add normal noise to the gradient, less of it as training goes on.

    Source: Neelakantan et al., Adding Gradient Noise Improves Learning for Very Deep Networks, 2015,
        section 3. arXiv:1511.06807
    Note: steps are counted from 1; optax's add_noise has the variance eta / t**gamma and other
        random numbers.

    Args:
        eta0: scale of the noise's variance, in squared units of the gradient.
        gamma: how fast the variance falls.
    """
    xi = noise("xi")
    deviation[t] = sqrt(eta0 / (1 + t)**gamma)
    u[t] = g[t] + deviation[t] * xi
