from generator.language import *

snapshot, mu, h, d = names("snapshot mu h d")


@optimizer("SVRG")
def svrg(lr: NonNegative = 1e-2, period: PositiveCount = 100):
    """Stochastic variance-reduced gradient.

    Source: Johnson & Zhang, NeurIPS 2013, Figure 1.
    Note: both gradients of a step are of the same batch; full_gradient is that of all data where the
        parameters are, read when a snapshot is taken: in step 1, period + 1, ...

    Args:
        lr: learning rate.
        period: steps from one snapshot to the next.
    """
    snapshot[0] = theta[0]
    mu[0] = 0
    with when(equal((t - 1) % period, 0)):
        full_gradient = oracle("full_gradient")
        snapshot[t] = theta[t-1]
        mu[t] = full_gradient
    h[t] = grad(snapshot[t])
    d[t] = g[t] - h[t] + mu[t]
    theta[t] = theta[t-1] - lr * d[t]
