from generator.language import *

z = names("z")


@schedule
def polynomial(base_lr: NonNegative, total: PositiveCount, power: Positive = 1.0,
               end: NonNegative = 0.0):
    """A power of the remaining fraction.

    It is base_lr at 0, end at n = total, and end after that.

    Source: Chen et al., IEEE TPAMI 2018, the poly policy. arXiv:1606.00915
    Note: as optax's polynomial_schedule; keras ends at 1e-4 by default, torch always at 0.
        The source's power is 0.9, timm's default 0.5.

    Args:
        base_lr: learning rate at the start.
        total: length, in steps.
        power: exponent of the remaining fraction.
        end: learning rate at the end.
    """
    z[n] = minimum(n, total) / total
    lr[n] = end + (base_lr - end) * (1 - z[n])**power
