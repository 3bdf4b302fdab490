from generator.language import *

m = names("m")


@optimizer
def signum(lr: NonNegative = 1e-4, beta: Decay = 0.9):
    """Sign of the momentum.

    Source: Bernstein, Wang, Azizzadenesheli & Anandkumar, ICML 2018, Algorithm 2. arXiv:1802.04434
    Note: the same as optax's signum; where the average is 0 the parameter stays.

    Args:
        lr: step size, the change of each parameter in a step.
        beta: decay of the average of gradients, per step.
    """
    m[0] = 0
    m[t] = beta * m[t-1] + (1 - beta) * g[t]
    theta[t] = theta[t-1] - lr * sign(m[t])
