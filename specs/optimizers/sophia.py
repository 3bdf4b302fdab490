from generator.language import *

m, h, u = names("m h u")


@optimizer
def sophia(lr: NonNegative = 1e-4, beta1: Decay = 0.96, beta2: Decay = 0.99, gamma: Positive = 0.01,
           eps: Positive = 1e-12, weight_decay: NonNegative = 0.2, period: PositiveCount = 10):
    """Second-order clipped steps: momentum over an estimate of the Hessian's diagonal.

    Source: Liu, Li, Hall, Liang & Ma, ICLR 2024, Algorithm 3. arXiv:2305.14342
    Note: the estimate, by Hutchinson's method or by Gauss, Newton and Bartlett's, is the caller's; it is
        read in step 1, period + 1, ...
    Note: the decay is subtracted together with the step, as in adamw; the paper decays first.

    Args:
        lr: learning rate, the most that a number moves in a step.
        beta1: decay of the momentum.
        beta2: decay of the estimates.
        gamma: part of the diagonal that the momentum is divided by.
        eps: the least that the momentum is divided by.
        weight_decay: decay of the parameters, multiplied by lr.
        period: steps from one estimate to the next.
    """
    m[0] = h[0] = 0
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    with when(equal((t - 1) % period, 0)):
        hessian_diagonal = oracle("hessian_diagonal")
        h[t] = beta2 * h[t-1] + (1 - beta2) * hessian_diagonal
    u[t] = minimum(maximum(m[t] / maximum(gamma * h[t], eps), -1), 1)
    theta[t] = theta[t-1] - lr * (u[t] + weight_decay * theta[t-1])
