from generator.language import *


@schedule("StepDecay")
def step_decay(base_lr: NonNegative, decay: Positive, step: PositiveCount):
    """Multiplication by a factor at regular intervals.

    It is base_lr at 0, base_lr * decay**k from n = k * step on; it never ends.

    Source: Ge, Kakade, Kidambi & Netrapalli, NeurIPS 2019. arXiv:1904.12838
    Note: as torch's StepLR (gamma and step_size), computed from n and not from the last value.

    Args:
        base_lr: learning rate at the start.
        decay: factor at each interval's end.
        step: length of an interval, in steps.
    """
    lr[n] = base_lr * decay**(n // step)
