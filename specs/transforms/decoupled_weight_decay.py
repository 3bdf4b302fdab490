from generator.language import *

u = names("u")


@transform("DecoupledWeightDecay")
def decoupled_weight_decay(lr: NonNegative, weight_decay: NonNegative):
    """Let the parameters decay beside the step, untouched by the optimizer's scaling.

    Here g[t] is not a gradient but the update of the preceding step, a change that is added to
    theta, and so is u[t].

    Source: Loshchilov & Hutter, ICLR 2019, section 2. arXiv:1711.05101
    Note: stands after the optimizer; the decay is multiplied by lr, as in adamw. optax's
        add_decayed_weights stands before the scaling with lr and has the other sign.

    Args:
        lr: step size of the optimizer that this stands behind.
        weight_decay: part of a parameter that a step takes away, per unit of lr.
    """
    u[t] = g[t] - lr * weight_decay * theta[t-1]
