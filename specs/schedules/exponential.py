from generator.language import *


@schedule
def exponential(base_lr: NonNegative, decay: Positive, steps: PositiveCount,
                staircase: bool = False):
    """Multiplication by the same factor in equal times.

    It is base_lr at 0 and base_lr * decay**k at n = k * steps; it never ends.

    Source: Li & Arora, An Exponential Learning Rate Schedule, ICLR 2020. arXiv:1910.07454
    Note: as optax's exponential_decay and keras' ExponentialDecay; torch's ExponentialLR has
        steps = 1.
    Note: with staircase it has the bits of step_decay.

    Args:
        base_lr: learning rate at the start.
        decay: factor for each `steps` steps.
        steps: time in which the factor applies once, in steps.
        staircase: whether the factor applies in jumps, at multiples of `steps`.
    """
    lr[n] = base_lr * where(staircase, decay**(n // steps), decay**(n / steps))
