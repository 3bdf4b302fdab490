from generator.language import *

slow = names("slow")


@wrapper
def lookahead(k: PositiveCount = 5, alpha: NonNegative = 0.5):
    """Every k steps, go back part of the way to where the last k began.

    Source: Zhang, Lucas, Hinton & Ba, Lookahead Optimizer, NeurIPS 2019, Algorithm 1.
        arXiv:1907.08610
    Note: the states of the wrapped optimizer are kept over the jump, as in the authors' code.

    Args:
        k: steps between two jumps.
        alpha: part of the way that remains.
    """
    slow[0] = theta[0]
    inner = update(g[t])
    with when(equal(t % k, 0)):
        slow[t] = slow[t-1] + alpha * (inner - slow[t-1])
        theta[t] = slow[t]
    with otherwise():
        theta[t] = inner
