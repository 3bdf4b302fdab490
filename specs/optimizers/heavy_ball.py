from generator.language import *

v = names("v")


@optimizer("HeavyBall")
def heavy_ball(lr: NonNegative = 1e-2, mu: Decay = 0.9):
    """Gradient descent with heavy-ball momentum.

    Source: Polyak, Some methods of speeding up the convergence of iteration methods, 1964.
    Note: lr stands outside the velocity, as in torch's SGD and optax's sgd; in keras and in
        Polyak's difference form inside. They part when lr changes.

    Args:
        lr: step size.
        mu: momentum, the part of the velocity that a step keeps.
    """
    v[0] = 0
    v[t] = mu * v[t-1] + g[t]
    theta[t] = theta[t-1] - lr * v[t]
