from generator.language import *

u = names("u")


@transform("WeightDecay")
def weight_decay(weight_decay: NonNegative):
    """Add the gradient of an L2 penalty to the gradient.

    Source: Krogh & Hertz, A Simple Weight Decay Can Improve Generalization, NIPS 1991.
    Note: stands before the optimizer, as weight_decay in torch's Adam and SGD; adaptive optimizers
        then divide the decay, too, by their second moment. For adamw's decay use
        decoupled_weight_decay.

    Args:
        weight_decay: strength of the penalty: weight_decay / 2 times the sum of squares.
    """
    u[t] = g[t] + weight_decay * theta[t-1]
