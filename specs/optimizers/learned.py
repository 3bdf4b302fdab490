from generator.language import *

m1, m2, m3, v1, v2, u1, u2 = names("m1 m2 m3 v1 v2 u1 u2")
x, h1, h2, z, a, b = names("x h1 h2 z a b")

TINY = 1e-16


@optimizer
def learned(lr: NonNegative = 1e-3):
    """A small network over each parameter, whose weights were learnt on tasks like the one at hand.

    Its inputs are the gradient, three averages of it, the gradient over two of its root mean squares, and
    the parameter, each divided by its root mean square over the tensor, and the time. Two hidden layers
    of 16 give a step a and a factor b.

    Source: after Andrychowicz et al., Learning to Learn by Gradient Descent by Gradient Descent,
        NeurIPS 2016, arXiv:1606.04474, and Metz et al., Tasks, Stability, Architecture, and Compute,
        2020, arXiv:2009.11243.
    Note: neither paper has this very network; the weights are the caller's, and examples/learned.py
        learns some. An optimizer with the weights of another family of tasks may well diverge.
    Note: 1e-16 is added to each divisor, so that a gradient or a parameter that is 0 everywhere gives
        features that are 0.

    Args:
        lr: what the network's step is multiplied by.
    """
    W1 = meta("W1", (16, 8))
    b1 = meta("b1", (16,))
    W2 = meta("W2", (16, 16))
    b2 = meta("b2", (16,))
    W3 = meta("W3", (2, 16))
    b3 = meta("b3", (2,))
    m1[0] = m2[0] = m3[0] = v1[0] = v2[0] = 0
    m1[t] = 0.5 * m1[t-1] + 0.5 * g[t]
    m2[t] = 0.9 * m2[t-1] + 0.1 * g[t]
    m3[t] = 0.99 * m3[t-1] + 0.01 * g[t]
    v1[t] = 0.99 * v1[t-1] + 0.01 * g[t]**2
    v2[t] = 0.999 * v2[t-1] + 0.001 * g[t]**2
    u1[t] = g[t] / (sqrt(v1[t]) + TINY)
    u2[t] = g[t] / (sqrt(v2[t]) + TINY)
    x[t] = stack(
        g[t] / (rms(g[t]) + TINY),
        m1[t] / (rms(m1[t]) + TINY),
        m2[t] / (rms(m2[t]) + TINY),
        m3[t] / (rms(m3[t]) + TINY),
        u1[t] / (rms(u1[t]) + TINY),
        u2[t] / (rms(u2[t]) + TINY),
        theta[t-1] / (rms(theta[t-1]) + TINY),
        1 / sqrt(t),
    )
    h1[t] = maximum(dense(W1, b1, x[t]), 0)
    h2[t] = maximum(dense(W2, b2, h1[t]), 0)
    z[t] = dense(W3, b3, h2[t])
    a[t] = entry(z[t], 1)
    b[t] = entry(z[t], 2)
    theta[t] = theta[t-1] - lr * (a[t] * (1 + b[t] / (1 + abs(b[t]))))
