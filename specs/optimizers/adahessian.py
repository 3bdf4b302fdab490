from generator.language import *

m, v, m_hat, v_hat = names("m v m_hat v_hat")


@optimizer("AdaHessian")
def adahessian(lr: NonNegative = 0.15, beta1: Decay = 0.9, beta2: Decay = 0.999,
               eps: NonNegative = 1e-4):
    """Adam with the diagonal of the Hessian in place of the gradient in the second moment.

    Source: Yao et al., AAAI 2021, Algorithm 1. arXiv:2006.00719
    Note: hessian_diagonal, averaged over neighbours or not, is the caller's; the Hessian power is 1.
    Note: eps is added against 0/0, as in the authors' code.
    """
    hessian_diagonal = oracle("hessian_diagonal")
    m[0] = v[0] = 0
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    v[t] = beta2 * v[t-1] + (1 - beta2) * hessian_diagonal**2
    m_hat[t] = m[t] / (1 - beta1**t)
    v_hat[t] = v[t] / (1 - beta2**t)
    theta[t] = theta[t-1] - lr * (m_hat[t] / (sqrt(v_hat[t]) + eps))
