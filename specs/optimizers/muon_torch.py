from generator.language import *

momentum_buffer, u, U, Y, A, B, X, Z, scale = names("momentum_buffer u U Y A B X Z scale")


@optimizer("MuonTorch")
def muon_torch(lr: NonNegative = 1e-3, weight_decay: NonNegative = 0.1, momentum: Decay = 0.95,
               nesterov: bool = True, ns_coefficients: tuple[Real, ...] = (3.4445, -4.775, 2.0315),
               eps: NonNegative = 1e-7, ns_steps: PositiveCount = 5,
               adjust_lr_fn: Optional[Choice["original", "match_rms_adamw"]] = None):
    """Momentum whose step is made orthogonal, as PyTorch defines it.

    Source: torch.optim.Muon, PyTorch 2.13, torch/optim/_muon.py and its documentation.
    Note: computed in the parameter's own precision; torch iterates in bfloat16.
    Note: ns_steps is 5; torch takes other numbers, too.
    Note: a tensor of more than two axes is a stack of matrices, those of the last two axes; torch
        refuses it.

    Args:
        lr: step size: how large the singular values of a step are, before they are adjusted.
        weight_decay: rate at which parameters shrink, times lr.
        momentum: decay of the average of gradients, per step.
        nesterov: whether to look ahead along the average.
        ns_coefficients: what the powers 1, 3 and 5 of the singular values are multiplied by.
        eps: smallest norm that a gradient counts as having.
        ns_steps: how often that is repeated.
        adjust_lr_fn: how steps follow the shape of a matrix: `original`, also None, by
            sqrt(max(1, rows / cols)), `match_rms_adamw` by 0.2 sqrt(max(rows, cols)).
    """
    require(matrix)
    require(equal(length(ns_coefficients), 3))
    require(equal(ns_steps, 5))
    momentum_buffer[0] = 0
    momentum_buffer[t] = momentum * momentum_buffer[t-1] + (1 - momentum) * g[t]
    with when(nesterov):
        u[t] = (1 - momentum) * g[t] + momentum * momentum_buffer[t]
    with otherwise():
        u[t] = momentum_buffer[t]
    U[t] = u[t] / maximum(sqrt(row_sum(col_sum(u[t]**2))), eps)
    with case(rows > cols):
        Y[t] = U[t].T
    with case(rows <= cols):
        Y[t] = U[t]
    X[0] = Y[t]
    for k in iterate(5):
        A[k] = X[k-1] @ X[k-1].T
        B[k] = ns_coefficients[2] * A[k] + ns_coefficients[3] * (A[k] @ A[k])
        X[k] = ns_coefficients[1] * X[k-1] + B[k] @ X[k-1]
    with case(rows > cols):
        Z[t] = X[5].T
    with case(rows <= cols):
        Z[t] = X[5]
    with when(equal(adjust_lr_fn, "match_rms_adamw")):
        scale[t] = 0.2 * sqrt(maximum(rows, cols))
    with otherwise():
        scale[t] = sqrt(maximum(1, rows / cols))
    theta[t] = theta[t-1] - lr * (scale[t] * Z[t] + weight_decay * theta[t-1])
