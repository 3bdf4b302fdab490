from generator.language import *

rate = names("rate")


@schedule
def piecewise(base_lr: NonNegative, boundaries: tuple[PositiveCount, ...],
              values: tuple[NonNegative, ...]):
    """Constant pieces.

    It is base_lr from 0, the i-th value from the i-th boundary on, and stays at the last value.

    Source: Goyal et al., 2017, section 5.1. arXiv:1706.02677
    Note: there are as many values as boundaries; keras has base_lr as one more, first value, and
        changes one step later (n > boundary). torch's MultiStepLR and optax take factors.
    Note: boundaries are given in increasing order.

    Args:
        base_lr: learning rate before the first boundary.
        boundaries: where the pieces begin, in steps.
        values: learning rate from each boundary on.
    """
    require(equal(length(boundaries), length(values)))
    rate[0] = base_lr
    for k in iterate(length(boundaries)):
        rate[k] = where(n < boundaries[k], rate[k-1], values[k])
    lr[n] = rate[length(boundaries)]
