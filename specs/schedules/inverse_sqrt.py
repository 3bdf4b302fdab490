from generator.language import *


@schedule("InverseSqrt")
def inverse_sqrt(base_lr: NonNegative, scale: PositiveCount):
    """Constant at first, then falling with the square root of time.

    It is base_lr from 0 to n = scale, half of it at n = 4 * scale; it never ends.

    Source: Raffel et al., JMLR 21(140), 2020, section 3.1.2. arXiv:1910.10683
    Note: the source fixes base_lr at 1 / sqrt(scale).
    Note: the schedule of Vaswani et al. (noam) rises linearly before `scale`; put warmup in front.

    Args:
        base_lr: learning rate at the start.
        scale: when the decay begins, in steps.
    """
    lr[n] = base_lr * sqrt(scale / maximum(n, scale))
