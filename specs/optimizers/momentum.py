from generator.language import *

v = names("v")


@optimizer
def momentum(lr: NonNegative = 1e-2, beta: Decay = 0.9):
    """Gradient descent along an exponential average of the gradients.

    Source: Polyak, 1964, in the averaged form of Liu, Gao & Yin, NeurIPS 2020. arXiv:2007.07989
    Note: v is an average, so steps are 1 - beta times those of heavy_ball, torch, optax and keras
        at the same lr; lr = 0.1 and beta = 0.9 here are lr = 0.01 there.
    Note: torch's SGD with dampening = beta is the same but for its first step, which is not damped.

    Args:
        lr: step size.
        beta: decay of the average of gradients, per step.
    """
    v[0] = 0
    v[t] = beta * v[t-1] + (1 - beta) * g[t]
    theta[t] = theta[t-1] - lr * v[t]
