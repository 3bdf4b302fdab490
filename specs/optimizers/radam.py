from generator.language import *

m, v, m_hat, v_hat = names("m v m_hat v_hat")
rho_inf, rho, known, r, step = names("rho_inf rho known r step")


@optimizer("RAdam")
def radam(lr: NonNegative = 1e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
          eps: NonNegative = 1e-8):
    """Adam, rectified for the variance of its first steps.

    Source: Liu et al., ICLR 2020, Algorithm 2. arXiv:1908.03265
    Note: rectified where rho > 4, as in the source; torch wants rho > 5 and optax rho >= 5, so with
        beta2 = 0.999 they begin one step later. Until then all take steps of momentum.
    Note: the source has no eps; it is added to the corrected root, as in optax.

    Args:
        lr: step size.
        beta1: decay of the average of gradients, per step.
        beta2: decay of the average of squared gradients, per step.
        eps: added to the root of the second moment, in units of the gradient.
    """
    m[0] = v[0] = 0
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    v[t] = beta2 * v[t-1] + (1 - beta2) * g[t]**2
    m_hat[t] = m[t] / (1 - beta1**t)
    v_hat[t] = v[t] / (1 - beta2**t)
    rho_inf[t] = 2 / (1 - beta2) - 1
    rho[t] = rho_inf[t] - 2 * t * beta2**t / (1 - beta2**t)
    # rho where it is used, else a value with r = 1: r is never NaN, so that derivatives are not.
    known[t] = where(rho[t] > 4, rho[t], rho_inf[t])
    r[t] = sqrt((known[t] - 4) * (known[t] - 2) * rho_inf[t]
                / ((rho_inf[t] - 4) * (rho_inf[t] - 2) * known[t]))
    step[t] = lr * r[t] * (m_hat[t] / (sqrt(v_hat[t]) + eps))
    theta[t] = theta[t-1] - where(rho[t] > 4, step[t], lr * m_hat[t])
