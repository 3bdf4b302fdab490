from generator.language import *

z = names("z")


@schedule("WarmupCosine")
def warmup_cosine(base_lr: NonNegative, warmup: Count, total: PositiveCount,
                  lr_min: NonNegative = 0.0):
    """Linear warm-up, then cosine decay.

    It is lr_min at 0, base_lr at n = warmup, lr_min at n = total and after that; with warmup = 0 it
    starts at base_lr.

    Source: He et al., Bag of Tricks, CVPR 2019, sections 3.1 and 5.1. arXiv:1812.01187
    Note: total counts the warm-up, as in optax; keras' decay_steps does not, and timm's cosine runs
        from step 0 under the warm-up.
    Note: starts at lr_min; optax has its own init_value for that.

    Args:
        base_lr: highest learning rate.
        warmup: length of the warm-up, in steps.
        total: length with the warm-up, in steps.
        lr_min: learning rate at both ends.
    """
    require(warmup <= total)
    z[n] = (n - warmup) / (total - warmup)
    lr[n] = where(
        n < warmup,
        lr_min + (base_lr - lr_min) * (n / warmup),
        where(n < total, lr_min + 0.5 * (base_lr - lr_min) * (1 + cos(pi * z[n])), lr_min),
    )
