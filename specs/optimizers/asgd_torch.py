from generator.language import *

d, rate, mu, ax = names("d rate mu ax")


@optimizer("ASGDTorch")
def asgd_torch(lr: NonNegative = 1e-2, lambd: NonNegative = 1e-4, alpha: NonNegative = 0.75,
               t0: NonNegative = 1e6, weight_decay: NonNegative = 0.0):
    """Gradient descent with an average of its parameters beside them, as PyTorch defines it.

    Source: torch.optim.ASGD, PyTorch 2.13, torch/optim/asgd.py and its documentation; after Polyak &
        Juditsky, Acceleration of stochastic approximation by averaging, 1992.
    Note: ax, the average of the parameters after step t0, is what the model is evaluated with inside
        of an evaluation; until then it is the parameters. torch leaves that to its users.
    Note: rate is torch's state eta, which is the letter of lr here.
    Note: a step is as large as the learning rate of the step before says, as in torch.

    Args:
        lr: size of the first step.
        lambd: how fast parameters shrink, and step sizes with them.
        alpha: power of the time by which step sizes fall.
        t0: step after which parameters are averaged.
        weight_decay: multiple of the parameters that is added to the gradient.
    """
    rate[0] = lr
    mu[0] = 1
    ax[0] = 0
    d[t] = g[t] + weight_decay * theta[t-1]
    theta[t] = theta[t-1] - rate[t-1] * (d[t] + lambd * theta[t-1])
    # While mu[t-1] is 1 the average is the parameters.
    ax[t] = where(t - t0 > 2, ax[t-1] + mu[t-1] * (theta[t] - ax[t-1]), theta[t])
    rate[t] = lr / (1 + lambd * lr * t)**alpha
    mu[t] = 1 / maximum(1, t - t0)
    evaluate(ax[t])
