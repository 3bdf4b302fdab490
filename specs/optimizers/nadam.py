from generator.language import *

m, v, v_hat, mu, mu_next, Pi, m_bar = names("m v v_hat mu mu_next Pi m_bar")


@optimizer("NAdam")
def nadam(lr: NonNegative = 2e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
          eps: NonNegative = 1e-8, psi: NonNegative = 4e-3):
    """Adam with Nesterov momentum and a momentum schedule.

    Source: Dozat, Incorporating Nesterov Momentum into Adam, Stanford CS229 report, 2015,
        Algorithm 8; in short, ICLR 2016 workshop.
    Note: moments as in the report, torch and keras; the workshop paper averages m with mu[t] in
        place of beta1 and multiplies the corrected v by beta2.
    Note: keras has psi = 1, so that its momentum is at full strength 250 times sooner; optax's
        nadam has no momentum schedule at all.

    Args:
        lr: step size.
        beta1: decay of the average of gradients, per step, and limit of the momentum mu.
        beta2: decay of the average of squared gradients, per step.
        eps: added to the root of the second moment, in units of the gradient.
        psi: how fast the momentum grows, per step: beta1 - mu shrinks by 0.96**psi.
    """
    m[0] = v[0] = 0
    Pi[0] = 1
    mu[t] = beta1 * (1 - 0.5 * 0.96**(psi * t))
    mu_next[t] = beta1 * (1 - 0.5 * 0.96**(psi * (t + 1)))
    Pi[t] = Pi[t-1] * mu[t]
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    v[t] = beta2 * v[t-1] + (1 - beta2) * g[t]**2
    v_hat[t] = v[t] / (1 - beta2**t)
    m_bar[t] = mu_next[t] * m[t] / (1 - Pi[t] * mu_next[t]) + (1 - mu[t]) * g[t] / (1 - Pi[t])
    theta[t] = theta[t-1] - lr * (m_bar[t] / (sqrt(v_hat[t]) + eps))
