from generator.language import *

d, prev, step_size, turn, factor = names("d prev step_size turn factor")


@optimizer("RpropTorch")
def rprop_torch(lr: NonNegative = 1e-2,
                etaminus: Annotated[float, Domain(0, 1, low_open=True, high_open=True)] = 0.5,
                etaplus: Annotated[float, Domain(1, float("inf"), low_open=True, high_open=True)] = 1.2,
                step_size_min: NonNegative = 1e-6, step_size_max: NonNegative = 50.0):
    """Steps by the sign of the gradient, of sizes that grow until it turns, as PyTorch defines it.

    Source: torch.optim.Rprop, PyTorch 2.13, torch/optim/rprop.py and its documentation.
    Note: after a turn a parameter stays where it is for a step, and forgets that it has turned.
    Note: sizes are kept between their bounds from the first step on, as in torch; optax's first may be
        beyond them, and each of its steps comes one step late.

    Args:
        lr: size of the first step of each number.
        etaminus: factor of a step size whose gradient has turned.
        etaplus: factor of a step size whose gradient has not.
        step_size_min: smallest step size.
        step_size_max: largest step size.
    """
    prev[0] = 0
    step_size[0] = lr
    turn[t] = g[t] * prev[t-1]
    factor[t] = where(turn[t] > 0, etaplus, where(turn[t] < 0, etaminus, 1))
    step_size[t] = minimum(maximum(step_size[t-1] * factor[t], step_size_min), step_size_max)
    d[t] = where(turn[t] < 0, 0, g[t])
    prev[t] = d[t]
    theta[t] = theta[t-1] - step_size[t] * sign(d[t])
