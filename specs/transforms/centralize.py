from generator.language import *

u = names("u")


@transform("Centralize")
def centralize(outputs: Choice["first", "last"]):
    """Take from the gradient its mean over all axes but that of the outputs.

    Source: Yong, Huang, Hua & Zhang, Gradient Centralization: A New Optimization Technique for Deep
        Neural Networks, ECCV 2020, equation 1. arXiv:2004.01461
    Note: for parameters with two axes or more; the gradients of others pass.

    Args:
        outputs: the axis that counts them: the last in Keras' and JAX' kernels, the first in torch's
            weights.
    """
    with case(matrix):
        with when(equal(outputs, "last")):
            u[t] = g[t] - mean_but_last(g[t])
        with otherwise():
            u[t] = g[t] - mean_but_first(g[t])
    with case(vector):
        u[t] = g[t]
