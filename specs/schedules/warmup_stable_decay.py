from generator.language import *

z = names("z")


@schedule("WarmupStableDecay")
def warmup_stable_decay(base_lr: NonNegative, warmup: Count, stable: Count, total: PositiveCount,
                        end: NonNegative = 0.0):
    """Linear warm-up, a plateau, linear decay.

    It is 0 at 0, base_lr from n = warmup to n = stable, end at n = total and after that; with
    warmup = 0 it starts at base_lr.

    Source: Hu et al., MiniCPM, COLM 2024, section 4. arXiv:2404.06395
    Note: all three lengths count from step 0.
    Note: the decay is linear; the source decays exponentially.

    Args:
        base_lr: learning rate of the plateau.
        warmup: where the warm-up ends, in steps.
        stable: where the plateau ends, in steps.
        total: where the decay ends, in steps.
        end: learning rate at the end.
    """
    require(warmup <= stable)
    require(stable <= total)
    z[n] = (n - stable) / (total - stable)
    lr[n] = where(
        n < warmup,
        base_lr * (n / warmup),
        where(
            n < stable, base_lr, where(n < total, base_lr + (end - base_lr) * z[n], end)
        ),
    )
