from generator.language import *

v, a, delta = names("v a delta")


@optimizer
def adadelta(lr: NonNegative = 1.0, rho: Decay = 0.9, eps: NonNegative = 1e-6):
    """Steps with the units of the parameters: a ratio of two running root mean squares.

    Source: Zeiler, 2012, Algorithm 1. arXiv:1212.5701
    Note: the source has no lr, that is lr = 1, as in torch; keras' default is 1e-3 and rho 0.95.
        optax without a learning rate returns the step with the wrong sign.
    Note: eps decides the size of the first steps, because a starts at 0.

    Args:
        lr: factor on the step.
        rho: decay of both averages, per step.
        eps: added to both averages under the root.
    """
    v[0] = a[0] = 0
    v[t] = rho * v[t-1] + (1 - rho) * g[t]**2
    delta[t] = sqrt(a[t-1] + eps) / sqrt(v[t] + eps) * g[t]
    a[t] = rho * a[t-1] + (1 - rho) * delta[t]**2
    theta[t] = theta[t-1] - lr * delta[t]
