from generator.language import *

v = names("v")


@optimizer("RMSprop")
def rmsprop(lr: NonNegative = 1e-3, gamma: Decay = 0.9, eps: NonNegative = 1e-8):
    """Gradient divided by a running root mean square of itself.

    Source: Tieleman & Hinton, Neural Networks for Machine Learning, lecture 6.5, Coursera 2012.
    Note: eps stands inside the root, as in optax and keras (eps 1e-7); torch adds it outside.
    Note: gamma is 0.9, as in optax and keras; torch calls it alpha, with 0.99 and lr 1e-2.
    Note: the source has no eps.

    Args:
        lr: step size.
        gamma: decay of the average of squared gradients, per step.
        eps: added to the average under the root, in units of the squared gradient.
    """
    v[0] = 0
    v[t] = gamma * v[t-1] + (1 - gamma) * g[t]**2
    theta[t] = theta[t-1] - lr * (g[t] / sqrt(v[t] + eps))
