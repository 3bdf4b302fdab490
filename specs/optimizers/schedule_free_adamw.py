from generator.language import *

v, v_hat, z, w, c, x = names("v v_hat z w c x")


@optimizer("ScheduleFreeAdamW")
def schedule_free_adamw(lr: NonNegative = 2.5e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
                        eps: NonNegative = 1e-8, weight_decay: NonNegative = 0.0):
    """AdamW that averages its iterates and needs no schedule.

    Source: Defazio et al., The Road Less Scheduled, NeurIPS 2024, Algorithm 1. arXiv:2405.15682
    Note: theta is the paper's y, where gradients are taken; evaluate the model at x.
    Note: the correction for the start divides v, as in the authors' code; in Algorithm 1 it
        multiplies lr, and so weighs x and the decay, too.

    Args:
        lr: step size of z; hold it constant after a warm-up.
        beta1: how far y lies from z towards x; takes the place of momentum.
        beta2: decay of the average of squared gradients, per step.
        eps: added to the root of the second moment, in units of the gradient.
        weight_decay: decay of z beside the gradient's part, times theta.
    """
    v[0] = w[0] = 0
    x[0] = z[0] = theta[0]
    v[t] = beta2 * v[t-1] + (1 - beta2) * g[t]**2
    v_hat[t] = v[t] / (1 - beta2**t)
    z[t] = z[t-1] - lr * (g[t] / (sqrt(v_hat[t]) + eps) + weight_decay * theta[t-1])
    w[t] = w[t-1] + lr**2
    c[t] = where(w[t] > 0, lr**2 / w[t], 0)
    x[t] = (1 - c[t]) * x[t-1] + c[t] * z[t]
    theta[t] = (1 - beta1) * z[t] + beta1 * x[t]
    evaluate(x[t])
