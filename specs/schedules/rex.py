from generator.language import *

z = names("z")


@schedule("REX")
def rex(base_lr: NonNegative, total: PositiveCount):
    """Reflected exponential: slow at first, steep at the end.

    It is base_lr at 0, 2/3 of it at n = total / 2, 0 at n = total and after that.

    Source: Chen, Wolfe & Kyrillidis, REX, MLSys 2022. arXiv:2107.04197
    Note: pytorch_optimizer's REXScheduler has a lowest value besides.

    Args:
        base_lr: learning rate at the start.
        total: length, in steps.
    """
    z[n] = minimum(n, total) / total
    lr[n] = base_lr * (1 - z[n]) / (0.5 + 0.5 * (1 - z[n]))
