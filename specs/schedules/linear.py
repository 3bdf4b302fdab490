from generator.language import *


@schedule
def linear(base_lr: NonNegative, total: PositiveCount, end: NonNegative = 0.0):
    """A straight line.

    It is base_lr at 0, end at n = total, and end after that.

    Source: Defazio, Cutkosky, Mehta & Mishchenko, 2023, linear decay. arXiv:2310.07831
    Note: as optax's linear_schedule; torch's LinearLR has factors of the group's lr for both ends.

    Args:
        base_lr: learning rate at the start.
        total: length, in steps.
        end: learning rate at the end.
    """
    lr[n] = base_lr + (end - base_lr) * (minimum(n, total) / total)
