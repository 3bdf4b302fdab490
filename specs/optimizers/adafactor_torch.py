from generator.language import *

least, fresh, row_var, col_var, variance, V, u, rate = names(
    "least fresh row_var col_var variance V u rate")


@optimizer("AdafactorTorch")
def adafactor_torch(lr: NonNegative = 1e-2,
                    beta2_decay: Annotated[float, Domain(float("-inf"), 0, low_open=True)] = -0.8,
                    eps1: Optional[NonNegative] = None, eps2: NonNegative = 1e-3,
                    d: Annotated[float, Domain(1, float("inf"), high_open=True)] = 1.0,
                    weight_decay: NonNegative = 0.0):
    """Adam without momentum, its second moment a row and a column, as PyTorch defines it.

    Source: torch.optim.Adafactor, PyTorch 2.13, torch/optim/_adafactor.py and its documentation.
    Note: eps1 bounds the second moment from below; the source's, and the spec adafactor's, is added to
        the squared gradient. None is float32's 2**-23; in torch it is that of the first parameter's dtype.
    Note: weights decay by lr, not by the smaller step size that the time leaves of it.
    Note: tensors of more than two axes are stacks of matrices, those of the last two axes.

    Args:
        lr: largest step size, relative to the root mean square of the parameter.
        beta2_decay: power of the time that a new gradient counts with in the second moment.
        eps1: smallest root of the second moment.
        eps2: smallest root mean square that a parameter counts as having.
        d: largest root mean square of an update.
        weight_decay: rate at which parameters shrink, times lr.
    """
    with when(equal(eps1, None)):
        least[t] = 2.0**-23
    with otherwise():
        least[t] = eps1
    fresh[t] = t**beta2_decay
    with case(matrix):
        row_var[0] = col_var[0] = 0
        row_var[t] = (1 - fresh[t]) * row_var[t-1] + fresh[t] * row_mean(g[t]**2)
        col_var[t] = (1 - fresh[t]) * col_var[t-1] + fresh[t] * col_mean(g[t]**2)
        V[t] = row_var[t] / maximum(col_mean(row_var[t]), least[t]) * col_var[t]
    with case(vector):
        variance[0] = 0
        variance[t] = (1 - fresh[t]) * variance[t-1] + fresh[t] * g[t]**2
        V[t] = variance[t]
    u[t] = g[t] / sqrt(maximum(V[t], least[t]**2))
    rate[t] = maximum(eps2, rms(theta[t-1])) * minimum(lr, 1 / sqrt(t))
    theta[t] = theta[t-1] - (rate[t] * (u[t] / maximum(1, rms(u[t]) / d)) + lr * weight_decay * theta[t-1])
