from generator.language import *


@optimizer("SGDL2")
def sgd_l2(lr: NonNegative = 1e-2, weight_decay: NonNegative = 1e-4):
    """Gradient descent with an L2 penalty.

    Source: Krogh & Hertz, A Simple Weight Decay Can Improve Generalization, NIPS 1991.
    Note: the same as weight_decay in torch's SGD; keras' weight_decay shrinks the parameters before
        the step, which gives the same equation with other roundings.

    Args:
        lr: step size.
        weight_decay: strength of the penalty: weight_decay / 2 times the sum of squares.
    """
    theta[t] = theta[t-1] - lr * (g[t] + weight_decay * theta[t-1])
