from generator.language import *

start, span, restart, passed = names("start span restart passed")


@schedule("CosineRestarts")
def cosine_restarts(base_lr: NonNegative, first: PositiveCount, factor: PositiveCount,
                    end: NonNegative = 0.0):
    """Cosine decay with warm restarts.

    It is base_lr at 0 and at each restart, the first at n = first; each cycle is `factor` times as
    long as the one before and falls towards end, which it would reach where the next one starts.
    It never ends.

    Source: Loshchilov & Hutter, SGDR, ICLR 2017, equation 5. arXiv:1608.03983
    Note: cycle lengths are integers, as in torch (T_0, T_mult); keras computes the cycle from a
        logarithm, so that a restart may come a step off. Its default factor is 2, torch's 1.
    Note: n counts steps; the source lets its clock run within epochs.

    Args:
        base_lr: learning rate at the start of each cycle.
        first: length of the first cycle, in steps.
        factor: ratio of one cycle's length to the one before.
        end: learning rate that each cycle falls to.
    """
    start[0] = 0
    span[0] = first
    for k in iterate(32):
        restart[k] = start[k-1] + span[k-1]
        start[k] = where(n < restart[k], start[k-1], restart[k])
        span[k] = where(n < restart[k], span[k-1], factor * span[k-1])
    passed[n] = where(equal(factor, 1), n % first, n - start[32])
    lr[n] = end + (base_lr - end) * (0.5 * (1 + cos(pi * (passed[n] / span[32]))))
