from generator.language import *

peak, start, final, rise, fall = names("peak start final rise fall")


@schedule("OneCycle")
def one_cycle(base_lr: NonNegative, total: PositiveCount, up: Decay = 0.3,
              start_factor: Positive = 25.0, final_factor: Positive = 1e4):
    """One cosine up, one cosine down.

    It is base_lr / start_factor at 0, base_lr at n = up * total, and
    base_lr / start_factor / final_factor at n = total and after that.

    Source: Smith & Topin, Super-Convergence, 2017. arXiv:1708.07120
    Note: two cosines, as torch's default and optax's cosine_onecycle_schedule; the source has
        straight lines up and down, then a third phase of annihilation.
    Note: the top is at up * total, whole or not; torch has it at up * total - 1 and ends at
        total - 1, optax rounds it down.
    Note: only the learning rate moves; torch's OneCycleLR also cycles momentum unless told not to.

    Args:
        base_lr: highest learning rate.
        total: length, in steps.
        up: fraction of the length that is spent rising.
        start_factor: ratio of the highest learning rate to the one at the start.
        final_factor: ratio of the learning rate at the start to the one at the end.
    """
    peak[n] = up * total
    start[n] = base_lr / start_factor
    final[n] = start[n] / final_factor
    rise[n] = n / peak[n]
    fall[n] = (minimum(n, total) - peak[n]) / (total - peak[n])
    lr[n] = where(
        n < peak[n],
        start[n] + (base_lr - start[n]) * (0.5 * (1 - cos(pi * rise[n]))),
        final[n] + (base_lr - final[n]) * (0.5 * (1 + cos(pi * fall[n]))),
    )
