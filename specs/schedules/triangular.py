from generator.language import *


@schedule
def triangular(base_lr: NonNegative, lr_min: NonNegative, period: PositiveCount):
    """A triangular wave that starts at its bottom.

    It is lr_min at 0, base_lr at n = period, lr_min at 2 * period, and so on for ever.

    Source: Smith, WACV 2017, the triangular policy. arXiv:1506.01186
    Note: base_lr is the highest value here, as in all schedules; in the source and in torch's
        CyclicLR that name is the lowest value, and the highest is max_lr.

    Args:
        base_lr: highest learning rate.
        lr_min: lowest learning rate.
        period: time from the bottom to the top, half a cycle, in steps.
    """
    lr[n] = lr_min + (base_lr - lr_min) * (1 - abs(n % (2 * period) - period) / period)
