from generator.language import *


@schedule
def constant(base_lr: NonNegative):
    """The same learning rate throughout.

    It is base_lr at 0 and at every n; it never ends.

    Source: Robbins & Monro, Annals of Mathematical Statistics 22(3), 1951: the case without decay.
    Note: torch's ConstantLR is something else, a factor for the first steps.

    Args:
        base_lr: the learning rate.
    """
    lr[n] = base_lr
