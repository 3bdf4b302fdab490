from generator.language import *

M, u, U, Y, A, X, Z, scale = names("M u U Y A X Z scale")


@optimizer
def muon(lr: NonNegative = 2e-2, mu: Decay = 0.95):
    """Momentum whose step is made orthogonal, all of its singular values about as large.

    Source: Jordan et al., Muon: An Optimizer for Hidden Layers in Neural Networks, 2024.
        https://kellerjordan.github.io/posts/muon/
    Note: for matrices only; route(muon, adamw), built in as muon_adamw, has another for the rest.
    Note: a tensor of more than two axes is a stack of matrices, those of the last two axes; each is
        made orthogonal by itself. Reshape the kernel of a convolution to a matrix.
    Note: computed in the parameter's own precision. torch.optim.Muon iterates in bfloat16, decays by
        0.1 unless told otherwise, averages the momentum (which is the same but for the 1e-7) and
        takes the larger of the norm and 1e-7.
    Note: rows are outputs, as torch has it; where they are inputs, as in flax and Keras, the factor
        sqrt(max(1, rows / cols)) is that of the transposed matrix.

    Args:
        lr: step size: how large the singular values of a step are.
        mu: decay of the momentum, per step.
    """
    require(matrix)
    M[0] = 0
    M[t] = mu * M[t-1] + g[t]
    u[t] = g[t] + mu * M[t]
    U[t] = u[t] / (sqrt(row_sum(col_sum(u[t]**2))) + 1e-7)
    with case(rows > cols):
        Y[t] = U[t].T
    with case(rows <= cols):
        Y[t] = U[t]
    X[0] = Y[t]
    for k in iterate(5):
        A[k] = X[k-1] @ X[k-1].T
        X[k] = 3.4445 * X[k-1] + (-4.775 * A[k] + 2.0315 * (A[k] @ A[k])) @ X[k-1]
    with case(rows > cols):
        Z[t] = X[5].T
    with case(rows <= cols):
        Z[t] = X[5]
    scale[t] = sqrt(maximum(1, rows / cols))
    theta[t] = theta[t-1] - lr * scale[t] * Z[t]
