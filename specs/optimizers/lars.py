from generator.language import *

v, norm_theta, norm_g, ratio = names("v norm_theta norm_g ratio")


@optimizer("LARS")
def lars(lr: NonNegative = 0.1, mu: Decay = 0.9, weight_decay: NonNegative = 5e-4,
         trust: Positive = 1e-3):
    """Layer-wise adaptive rate scaling: momentum with a rate for each tensor.

    Source: You, Gitman & Ginsburg, Large Batch Training of Convolutional Networks, 2017,
        Algorithm 1. arXiv:1708.03888
    Note: the ratio is 1 where a norm is 0, so a tensor of zeros takes steps 1 / trust times as
        large as others. Leave biases and norms to another optimizer.

    Args:
        lr: step size, multiplied by the ratio of norms.
        mu: decay of the sum of steps, per step.
        weight_decay: decay added to the gradient, times theta.
        trust: how large a step is, measured by the tensor's norm.
    """
    v[0] = 0
    norm_theta[t] = norm(theta[t-1])
    norm_g[t] = norm(g[t])
    ratio[t] = where((norm_theta[t] > 0) & (norm_g[t] > 0),
                     trust * norm_theta[t] / (norm_g[t] + weight_decay * norm_theta[t]), 1)
    v[t] = mu * v[t-1] + lr * ratio[t] * (g[t] + weight_decay * theta[t-1])
    theta[t] = theta[t-1] - v[t]
