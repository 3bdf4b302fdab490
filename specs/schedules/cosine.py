from generator.language import *

z = names("z")


@schedule
def cosine(base_lr: NonNegative, total: PositiveCount, end: NonNegative = 0.0):
    """Half a period of a cosine.

    It is base_lr at 0, half-way to end at n = total / 2, end at n = total, and end after that.

    Source: Loshchilov & Hutter, SGDR, ICLR 2017, equation 5, one period. arXiv:1608.03983
    Note: end is a learning rate; optax and keras call it alpha, as a fraction of base_lr.
    Note: stays at end, as in optax and keras; torch's CosineAnnealingLR rises again after T_max.

    Args:
        base_lr: learning rate at the start.
        total: length, in steps.
        end: learning rate at the end.
    """
    z[n] = minimum(n, total) / total
    lr[n] = end + (base_lr - end) * (0.5 * (1 + cos(pi * z[n])))
