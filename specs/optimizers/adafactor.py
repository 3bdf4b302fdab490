from generator.language import *

beta, q, R, C, w, V, u, rate = names("beta q R C w V u rate")


@optimizer("Adafactor")
def adafactor(lr: NonNegative = 1e-2, eps1: NonNegative = 1e-30, eps2: NonNegative = 1e-3,
              clip: Positive = 1.0):
    """Adam without momentum whose second moment of a matrix is a product of a row and a column.

    Source: Shazeer & Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost,
        ICML 2018, Algorithms 4 to 6. arXiv:1804.04235
    Note: means in place of sums, which gives the same V; the quotient first, since R * C underflows.
    Note: tensors of more than two axes are stacks of matrices, those of the last two axes.

    Args:
        lr: largest step size, relative to the root mean square of the parameter.
        eps1: added to the squared gradient.
        eps2: smallest root mean square that a parameter counts as having.
        clip: largest root mean square of an update.
    """
    beta[t] = 1 - t**(-0.8)
    q[t] = g[t]**2 + eps1
    with case(matrix):
        R[0] = C[0] = 0
        R[t] = beta[t] * R[t-1] + (1 - beta[t]) * row_mean(q[t])
        C[t] = beta[t] * C[t-1] + (1 - beta[t]) * col_mean(q[t])
        V[t] = R[t] / col_mean(R[t]) * C[t]
    with case(vector):
        w[0] = 0
        w[t] = beta[t] * w[t-1] + (1 - beta[t]) * q[t]
        V[t] = w[t]
    u[t] = g[t] / sqrt(V[t])
    rate[t] = maximum(eps2, rms(theta[t-1])) * minimum(lr, 1 / sqrt(t))
    theta[t] = theta[t-1] - rate[t] * (u[t] / maximum(1, rms(u[t]) / clip))
