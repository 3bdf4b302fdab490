from generator.language import *

z = names("z")


@schedule("WarmupLinear")
def warmup_linear(base_lr: NonNegative, warmup: Count, total: PositiveCount,
                  end: NonNegative = 0.0):
    """Linear warm-up, then linear decay.

    It is 0 at 0, base_lr at n = warmup, end at n = total and after that; with warmup = 0 it starts
    at base_lr.

    Source: Devlin, Chang, Lee & Toutanova, NAACL 2019, appendix A.2. arXiv:1810.04805
    Note: the first step has lr 0, as in transformers' get_linear_schedule_with_warmup.

    Args:
        base_lr: highest learning rate.
        warmup: length of the warm-up, in steps.
        total: length with the warm-up, in steps.
        end: learning rate at the end.
    """
    require(warmup <= total)
    z[n] = (n - warmup) / (total - warmup)
    lr[n] = where(
        n < warmup,
        base_lr * (n / warmup),
        where(n < total, base_lr + (end - base_lr) * z[n], end),
    )
