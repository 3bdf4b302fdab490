from generator.language import *


@schedule
def cyclical(base_lr: NonNegative, lr_min: NonNegative, period: PositiveCount):
    """A triangular wave that starts at its top.

    It is base_lr at 0, lr_min at n = period, base_lr at 2 * period, and so on for ever.

    Source: Smith, WACV 2017, the triangular policy half a cycle later. arXiv:1506.01186
    Note: the source and torch's CyclicLR start at the bottom, and their base_lr is the lowest
        value: see triangular.

    Args:
        base_lr: highest learning rate.
        lr_min: lowest learning rate.
        period: time from the top to the bottom, half a cycle, in steps.
    """
    lr[n] = lr_min + (base_lr - lr_min) * (abs(n % (2 * period) - period) / period)
