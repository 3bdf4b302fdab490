from generator.language import *

m, v, m_hat, v_hat = names("m v m_hat v_hat")


@optimizer
def adam(lr: NonNegative = 1e-3, beta1: Decay = 0.9, beta2: Decay = 0.999, eps: NonNegative = 1e-8):
    """Adam: steps from bias-corrected first and second moments.

    Source: Kingma & Ba, ICLR 2015, Algorithm 1. arXiv:1412.6980
    Note: eps is added to the corrected root, as in torch and optax; keras adds it (1e-7) before the
        correction, which is eps / sqrt(1 - beta2**t) here: 32 times larger at the first step.

    Args:
        lr: step size, about the largest change of a parameter in a step.
        beta1: decay of the average of gradients, per step.
        beta2: decay of the average of squared gradients, per step.
        eps: added to the root of the second moment, in units of the gradient.
    """
    m[0] = v[0] = 0
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    v[t] = beta2 * v[t-1] + (1 - beta2) * g[t]**2
    m_hat[t] = m[t] / (1 - beta1**t)
    v_hat[t] = v[t] / (1 - beta2**t)
    theta[t] = theta[t-1] - lr * (m_hat[t] / (sqrt(v_hat[t]) + eps))
