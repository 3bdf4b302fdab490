from generator.language import *

v = names("v")


@optimizer
def nesterov(lr: NonNegative = 1e-2, beta: Decay = 0.9):
    """Nesterov's accelerated gradient, taken at the look-ahead point.

    Source: Sutskever, Martens, Dahl & Hinton, ICML 2013, equations 3 and 4 (v with the other sign).
    Note: compute the gradient at the look-ahead point, evaluate the model at theta; the two are
        equal before the first step.
    Note: torch and optax call the look-ahead point the parameters and never give theta; their
        iterates are these look-ahead points as long as lr is constant.
    Note: lr stands inside the velocity, as in the source and keras; in torch and optax outside.

    Args:
        lr: step size.
        beta: momentum, the part of the velocity that a step keeps.
    """
    v[0] = 0
    g[t] = grad(theta[t-1] - beta * v[t-1])
    v[t] = beta * v[t-1] + lr * g[t]
    theta[t] = theta[t-1] - v[t]
