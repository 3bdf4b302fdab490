from generator.language import *

change, mask = names("change mask")


@wrapper
def cautious(least: Positive = 1e-3):
    """Leave out where an update and the gradient disagree in sign, and take the rest larger.

    Source: Liang et al., Cautious Optimizers, 2024, Algorithm 1. arXiv:2411.16085
    Note: divided by the mean of the mask, at least `least`, as in the authors' code; in the paper
        by (count + 1) / size.
    Note: the whole update is masked, a decoupled weight decay included.

    Args:
        least: smallest mean of the mask that is divided by.
    """
    inner = update(g[t])
    change[t] = inner - theta[t-1]
    mask[t] = where(change[t] * g[t] < 0, 1, 0)
    theta[t] = theta[t-1] + change[t] * (mask[t] / maximum(mean(mask[t]), least))
