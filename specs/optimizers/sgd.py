from generator.language import *


@optimizer("SGD")
def sgd(lr: NonNegative = 1e-2):
    """Stochastic gradient descent.

    Source: Robbins & Monro, Annals of Mathematical Statistics 22(3), 1951.
    Note: the same as SGD without momentum in torch, optax and keras; torch's default lr is 1e-3.

    Args:
        lr: step size.
    """
    theta[t] = theta[t-1] - lr * g[t]
