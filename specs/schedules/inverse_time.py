from generator.language import *


@schedule("InverseTime")
def inverse_time(base_lr: NonNegative, decay: NonNegative, steps: PositiveCount,
                 staircase: bool = False):
    """Falling with the inverse of time.

    It is base_lr at 0 and base_lr / (1 + decay * k) at n = k * steps; it never ends.

    Source: Bottou, Stochastic Gradient Descent Tricks, Springer 2012.
    Note: as keras' InverseTimeDecay; the source ties decay to lr and to the L2 penalty.

    Args:
        base_lr: learning rate at the start.
        decay: growth of the denominator for each `steps` steps.
        steps: time unit of the decay, in steps.
        staircase: whether the denominator grows in jumps, at multiples of `steps`.
    """
    lr[n] = base_lr / (1 + where(staircase, decay * (n // steps), decay * n / steps))
