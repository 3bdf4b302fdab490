from generator.language import *


@schedule
def warmup(warmup: Count, schedule: Schedule):
    """Linear warm-up in front of any schedule.

    It is 0 at 0, the schedule's first value at n = warmup, and then the schedule, whose clock
    starts there; with warmup = 0 it is the schedule.

    Source: Goyal et al., 2017, section 2.2, gradual warm-up. arXiv:1706.02677
    Note: rises from 0; the source rises from the lr of one worker.

    Args:
        warmup: length of the warm-up, in steps.
        schedule: what follows the warm-up.
    """
    lr[n] = where(
        n < warmup,
        schedule(0) * (n / warmup),
        schedule(maximum(n - warmup, 0)),
    )
