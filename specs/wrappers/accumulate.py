from generator.language import *

total = names("total")


@wrapper
def accumulate(k: PositiveCount = 4):
    """Do one step for every k gradients, with their mean.

    Source: Goyal et al., Accurate, Large Minibatch SGD, 2017, section 3. arXiv:1706.02677
    Note: the wrapped optimizer counts its own steps, one for every k gradients.

    Args:
        k: gradients to a step.
    """
    total[0] = 0
    with when(equal(t % k, 0)):
        inner = update((total[t-1] + g[t]) / k)
        total[t] = 0
        theta[t] = inner
    with otherwise():
        total[t] = total[t-1] + g[t]
        theta[t] = theta[t-1]
