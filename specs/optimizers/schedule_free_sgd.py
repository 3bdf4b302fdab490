from generator.language import *

z, w, c, x = names("z w c x")


@optimizer("ScheduleFreeSGD")
def schedule_free_sgd(lr: NonNegative = 1.0, beta: Decay = 0.9):
    """Gradient descent that averages its iterates and needs no schedule.

    Source: Defazio et al., The Road Less Scheduled, NeurIPS 2024, equations 3 to 5.
        arXiv:2405.15682
    Note: theta is the paper's y, where gradients are taken; evaluate the model at x.
    Note: x is weighted by squares of lr, as in the authors' code, so a warm-up counts less.

    Args:
        lr: step size of z; hold it constant after a warm-up.
        beta: how far y lies from z towards x.
    """
    x[0] = z[0] = theta[0]
    w[0] = 0
    z[t] = z[t-1] - lr * g[t]
    w[t] = w[t-1] + lr**2
    c[t] = where(w[t] > 0, lr**2 / w[t], 0)
    x[t] = (1 - c[t]) * x[t-1] + c[t] * z[t]
    theta[t] = (1 - beta) * z[t] + beta * x[t]
    evaluate(x[t])
