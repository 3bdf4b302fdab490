from generator.language import *

m = names("m")


@optimizer
def lion(lr: NonNegative = 1e-4, beta1: Decay = 0.9, beta2: Decay = 0.99,
         weight_decay: NonNegative = 0.0):
    """Sign of an interpolation between momentum and gradient.

    Source: Chen et al., NeurIPS 2023, Algorithm 2. arXiv:2302.06675
    Note: weight_decay is 0 here and 1e-3 in optax; keras' default lr is 1e-3.
    Note: each step moves every parameter by lr; take a third to a tenth of an lr for adamw, and a
        weight_decay larger by as much.

    Args:
        lr: step size, the change of each parameter in a step.
        beta1: part of the momentum in the interpolation whose sign is taken.
        beta2: decay of the average of gradients, per step.
        weight_decay: part of a parameter that a step takes away, per unit of lr.
    """
    m[0] = 0
    theta[t] = theta[t-1] - lr * (sign(beta1 * m[t-1] + (1 - beta1) * g[t])
                                  + weight_decay * theta[t-1])
    m[t] = beta2 * m[t-1] + (1 - beta2) * g[t]
