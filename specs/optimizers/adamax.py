from generator.language import *

m, u_inf = names("m u_inf")


@optimizer
def adamax(lr: NonNegative = 2e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
           eps: NonNegative = 1e-8):
    """Adam with the infinity norm for its second moment.

    Source: Kingma & Ba, ICLR 2015, section 7.1, Algorithm 2. arXiv:1412.6980
    Note: eps is added to the norm against 0/0, as in keras (1e-7); torch and optax add it to the
        absolute gradient, inside the maximum. The source has none.

    Args:
        lr: step size, about the largest change of a parameter in a step.
        beta1: decay of the average of gradients, per step.
        beta2: decay of the norm, per step.
        eps: added to the norm, in units of the gradient.
    """
    m[0] = u_inf[0] = 0
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    u_inf[t] = maximum(beta2 * u_inf[t-1], abs(g[t]))
    theta[t] = theta[t-1] - lr / (1 - beta1**t) * (m[t] / (u_inf[t] + eps))
