from generator.language import *

m, v, w, m_hat, v_hat = names("m v w m_hat v_hat")


@optimizer("AMSGrad")
def amsgrad(lr: NonNegative = 1e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
            eps: NonNegative = 1e-8):
    """Adam with a second moment that never falls.

    Source: Reddi, Kale & Kumar, ICLR 2018, Algorithm 2. arXiv:1904.09237
    Note: moments are bias-corrected and w is the maximum of the corrected v, as in optax; torch and
        keras take the maximum of v itself and correct it afterwards. The source corrects neither.
    Note: the source has no eps.

    Args:
        lr: step size, about the largest change of a parameter in a step.
        beta1: decay of the average of gradients, per step.
        beta2: decay of the average of squared gradients, per step.
        eps: added to the root of the second moment, in units of the gradient.
    """
    m[0] = v[0] = w[0] = 0
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    v[t] = beta2 * v[t-1] + (1 - beta2) * g[t]**2
    m_hat[t] = m[t] / (1 - beta1**t)
    v_hat[t] = v[t] / (1 - beta2**t)
    w[t] = maximum(w[t-1], v_hat[t])
    theta[t] = theta[t-1] - lr * (m_hat[t] / (sqrt(w[t]) + eps))
