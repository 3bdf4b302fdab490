from generator.language import *

m, v, m_hat, v_hat = names("m v m_hat v_hat")


@optimizer("AdaBelief")
def adabelief(lr: NonNegative = 1e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
              eps: NonNegative = 1e-16):
    """Adam with the variance of the gradient around its average for a second moment.

    Source: Zhuang et al., NeurIPS 2020, Algorithm 2, from version 2 on. arXiv:2010.07468
    Note: eps is added twice, into the stored v in every step and to its root, as in the source;
        optax has two names for it, eps_root and eps.

    Args:
        lr: step size.
        beta1: decay of the average of gradients, per step.
        beta2: decay of the average of squared deviations, per step.
        eps: added to the second moment and to its root.
    """
    m[0] = v[0] = 0
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    v[t] = beta2 * v[t-1] + (1 - beta2) * (g[t] - m[t])**2 + eps
    m_hat[t] = m[t] / (1 - beta1**t)
    v_hat[t] = v[t] / (1 - beta2**t)
    theta[t] = theta[t-1] - lr * (m_hat[t] / (sqrt(v_hat[t]) + eps))
