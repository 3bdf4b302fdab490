from generator.language import *

rate = names("rate")


@schedule
def join(schedules: tuple[Schedule, ...], boundaries: tuple[PositiveCount, ...]):
    """Schedules one after another, each with a clock of its own.

    It is the first schedule from 0, and from the i-th boundary on the next one, whose clock starts
    there; the last never ends.

    Source: Loshchilov & Hutter, SGDR, ICLR 2017, restarts in general. arXiv:1608.03983
    Note: the same as optax's join_schedules and torch's SequentialLR.
    Note: there is one schedule more than there are boundaries, and these are in increasing order.

    Args:
        schedules: the parts.
        boundaries: where each part but the first begins, in steps.
    """
    require(equal(length(schedules), length(boundaries) + 1))
    rate[0] = schedules[1](n)
    for k in iterate(length(boundaries)):
        rate[k] = where(
            n < boundaries[k], rate[k-1], schedules[k+1](maximum(n - boundaries[k], 0))
        )
    lr[n] = rate[length(boundaries)]
