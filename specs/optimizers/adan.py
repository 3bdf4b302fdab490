from generator.language import *

d, m, v, w, m_hat, v_hat, w_hat = names("d m v w m_hat v_hat w_hat")


@optimizer
def adan(lr: NonNegative = 1e-3, beta1: Decay = 0.98, beta2: Decay = 0.92, beta3: Decay = 0.99,
         eps: NonNegative = 1e-8, weight_decay: NonNegative = 0.0):
    """Adaptive Nesterov momentum from the difference of two gradients.

    Source: Xie, Zhou, Li, Lin & Yan, IEEE TPAMI 2024, Algorithm 1. arXiv:2208.06677
    Note: betas are decays, as everywhere here; those of the source are 1 minus these.
    Note: moments start at 0, are bias-corrected, and eps stands outside the root, as in the
        authors' code; the source starts at the first gradient, without correction, eps inside.
    Note: optax mixes the difference in with 1 - beta2, not beta2, and adds the decay to the step.

    Args:
        lr: step size.
        beta1: decay of the average of gradients, per step.
        beta2: decay of the average of differences, per step.
        beta3: decay of the average of squares, per step.
        eps: added to the root of the second moment, in units of the gradient.
        weight_decay: a step divides the parameters by 1 + lr * weight_decay.
    """
    g[0] = first(g)
    m[0] = v[0] = w[0] = 0
    d[t] = g[t] - g[t-1]
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    v[t] = beta2 * v[t-1] + (1 - beta2) * d[t]
    w[t] = beta3 * w[t-1] + (1 - beta3) * (g[t] + beta2 * d[t])**2
    m_hat[t] = m[t] / (1 - beta1**t)
    v_hat[t] = v[t] / (1 - beta2**t)
    w_hat[t] = w[t] / (1 - beta3**t)
    theta[t] = ((theta[t-1] - lr * ((m_hat[t] + beta2 * v_hat[t]) / (sqrt(w_hat[t]) + eps)))
                / (1 + lr * weight_decay))
