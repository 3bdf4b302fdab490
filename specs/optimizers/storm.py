from generator.language import *

last, h, d = names("last h d")


@optimizer("STORM")
def storm(lr: NonNegative = 1e-2, a: Annotated[float, Domain(0, 1)] = 0.1):
    """Stochastic recursive momentum: an average of gradients that moves with the parameters.

    Source: Cutkosky & Orabona, NeurIPS 2019, Algorithm 1. arXiv:1905.10018
    Note: lr and a are constant; the paper's adapt to the size of the gradients.
    Note: both gradients of a step are of the same batch.

    Args:
        lr: learning rate.
        a: weight of the new gradient.
    """
    last[0] = theta[0]
    d[0] = first(g)
    h[t] = grad(last[t-1])
    d[t] = g[t] + (1 - a) * (d[t-1] - h[t])
    last[t] = theta[t-1]
    theta[t] = theta[t-1] - lr * d[t]
