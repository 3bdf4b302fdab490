from generator.language import *

m, v, m_hat, v_hat = names("m v m_hat v_hat")


@optimizer("AdamW")
def adamw(lr: NonNegative = 1e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
          eps: NonNegative = 1e-8, weight_decay: NonNegative = 1e-2):
    """Adam with decoupled weight decay.

    Source: Loshchilov & Hutter, ICLR 2019, Algorithm 2. arXiv:1711.05101
    Note: the decay is multiplied by lr, as in torch, optax and keras; in the source only by the
        schedule's multiplier.
    Note: decay and step are subtracted together, as in the source and optax; torch and keras shrink
        the parameters first. Default decays: torch 1e-2, optax 1e-4, keras 4e-3.

    Args:
        lr: step size, about the largest change of a parameter in a step.
        beta1: decay of the average of gradients, per step.
        beta2: decay of the average of squared gradients, per step.
        eps: added to the root of the second moment, in units of the gradient.
        weight_decay: part of a parameter that a step takes away, per unit of lr.
    """
    m[0] = v[0] = 0
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    v[t] = beta2 * v[t-1] + (1 - beta2) * g[t]**2
    m_hat[t] = m[t] / (1 - beta1**t)
    v_hat[t] = v[t] / (1 - beta2**t)
    theta[t] = theta[t-1] - lr * (m_hat[t] / (sqrt(v_hat[t]) + eps) + weight_decay * theta[t-1])
