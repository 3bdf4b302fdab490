from generator.language import *

m, v, m_hat, v_hat, u, norm_theta, norm_u, ratio = names(
    "m v m_hat v_hat u norm_theta norm_u ratio")


@optimizer("LAMB")
def lamb(lr: NonNegative = 1e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
         eps: NonNegative = 1e-6, weight_decay: NonNegative = 1e-2):
    """Adam with decoupled weight decay and a rate for each tensor, for large batches.

    Source: You et al., Large Batch Optimization for Deep Learning, ICLR 2020, Algorithm 2.
        arXiv:1904.00962
    Note: phi(z) = z, norms are not clipped; the ratio is 1 where a norm is 0.

    Args:
        lr: step size, measured by the tensor's norm.
        beta1: decay of the average of gradients, per step.
        beta2: decay of the average of squared gradients, per step.
        eps: added to the root of the second moment, in units of the gradient.
        weight_decay: decay beside the gradient's part, times theta.
    """
    m[0] = v[0] = 0
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    v[t] = beta2 * v[t-1] + (1 - beta2) * g[t]**2
    m_hat[t] = m[t] / (1 - beta1**t)
    v_hat[t] = v[t] / (1 - beta2**t)
    u[t] = m_hat[t] / (sqrt(v_hat[t]) + eps) + weight_decay * theta[t-1]
    norm_theta[t] = norm(theta[t-1])
    norm_u[t] = norm(u[t])
    ratio[t] = where((norm_theta[t] > 0) & (norm_u[t] > 0), norm_theta[t] / norm_u[t], 1)
    theta[t] = theta[t-1] - lr * (ratio[t] * u[t])
