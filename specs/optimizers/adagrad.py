from generator.language import *

v = names("v")


@optimizer
def adagrad(lr: NonNegative = 1e-2, eps: NonNegative = 1e-10):
    """Gradient divided by the root of the sum of all squared gradients.

    Source: Duchi, Hazan & Singer, JMLR 12:2121-2159, 2011, diagonal form.
    Note: v starts at 0 and eps stands outside the root, as in torch; optax and keras start at 0.1
        with eps 1e-7 inside the root.

    Args:
        lr: step size, the change of each parameter in the first step.
        eps: added to the root of the sum, in units of the gradient.
    """
    v[0] = 0
    v[t] = v[t-1] + g[t]**2
    theta[t] = theta[t-1] - lr * (g[t] / (sqrt(v[t]) + eps))
