"""Every algorithm of the catalogue in plain float64 NumPy, written from its paper.

In: starting parameters and gradients (arrays), or a step count. Out: the parameters after each
step, or a learning rate. Must not know: the specs, the generator, the generated code. That is the
point of this file: it states the paper's equations a second time, in textbook style, so that a spec
which says something else is found out. Rounding differs from a spec's; only values agree.

An optimizer is `name(theta, grads, *, hyperparameters)` with the names of its spec; those that choose
where a gradient is taken get a list of functions of a point in place of arrays, and what else a spec
reads is a list of such functions under its name. A schedule is `name(n, *, hyperparameters)`.

Sources of the optimizers:
    sgd                 Robbins & Monro, Annals of Mathematical Statistics 22(3), 1951
    momentum            Liu, Gao & Yin, NeurIPS 2020, arXiv:2007.07989
    heavy_ball          Polyak, 1964
    nesterov            Sutskever et al., ICML 2013, equations 3 and 4
    sgd_l2              Krogh & Hertz, NIPS 1991
    rmsprop             Tieleman & Hinton, Coursera lecture 6.5, 2012 (eps inside the root)
    adam, adamax        Kingma & Ba, ICLR 2015, Algorithms 1 and 2, arXiv:1412.6980
    adamw               Loshchilov & Hutter, ICLR 2019, Algorithm 2, arXiv:1711.05101
    amsgrad             Reddi et al., ICLR 2018, arXiv:1904.09237 (maximum of the corrected moment)
    adagrad             Duchi et al., JMLR 12, 2011
    adadelta            Zeiler, 2012, Algorithm 1, arXiv:1212.5701
    radam               Liu et al., ICLR 2020, Algorithm 2, arXiv:1908.03265
    nadam               Dozat, CS229 report, 2015, Algorithm 8
    adabelief           Zhuang et al., NeurIPS 2020, Algorithm 2, arXiv:2010.07468
    yogi                Zaheer et al., NeurIPS 2018, Algorithm 2
    lion                Chen et al., NeurIPS 2023, Algorithm 2, arXiv:2302.06675
    adan                Xie et al., TPAMI 2024, arXiv:2208.06677, as in the authors' code
    signum              Bernstein et al., ICML 2018, Algorithm 2, arXiv:1802.04434
    muon                Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/
    lars                You et al., 2017, Algorithm 1, arXiv:1708.03888
    lamb                You et al., ICLR 2020, Algorithm 2, arXiv:1904.00962
    adafactor           Shazeer & Stern, ICML 2018, Algorithms 4 to 6, arXiv:1804.04235
    svrg                Johnson & Zhang, NeurIPS 2013, Figure 1
    storm               Cutkosky & Orabona, NeurIPS 2019, Algorithm 1, arXiv:1905.10018
    sam                 Foret et al., ICLR 2021, Algorithm 1, arXiv:2010.01412
    sophia              Liu et al., ICLR 2024, Algorithm 3, arXiv:2305.14342
    learned             after Andrychowicz et al., NeurIPS 2016, arXiv:1606.04474
    adahessian          Yao et al., AAAI 2021, Algorithm 1, arXiv:2006.00719
    schedule_free_*     Defazio et al., NeurIPS 2024, equations 3 to 5, Algorithm 1, arXiv:2405.15682
    *_torch             PyTorch 2.13, the documentation of torch.optim
    *_hd, *_hd_beta     Baydin et al., ICLR 2018, section 3, arXiv:1703.04782
Sources of the schedules and transforms stand beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath
import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Rate = Callable[[int], float]


def _path(theta: Array, steps: Sequence[Array]) -> list[Array]:
    """The parameters after each of these changes."""
    return [theta + moved for moved in np.cumsum(steps, axis=0)]


def _average(beta: float, values: Sequence[Array]) -> list[Array]:
    """Exponential averages from zero: the sum of (1 - beta) beta^(t-i) x_i, written out."""
    averages = []
    for t in range(1, len(values) + 1):
        weights = [(1 - beta) * beta ** (t - i) for i in range(1, t + 1)]
        averages.append(np.sum([w * x for w, x in zip(weights, values, strict=False)], axis=0))
    return averages


def _corrected(beta: float, values: Sequence[Array]) -> list[Array]:
    """Exponential averages without their bias: the weights add up to 1."""
    return [x / (1 - beta**t) for t, x in enumerate(_average(beta, values), 1)]


def _squares(grads: Sequence[Array]) -> list[Array]:
    return [np.square(g) for g in grads]


# --------------------------------------------------------------------------------------------------
# Optimizers


def sgd(theta: Array, grads: Sequence[Array], *, lr: float) -> list[Array]:
    """Steps against the gradient."""
    return _path(theta, [-lr * g for g in grads])


def momentum(theta: Array, grads: Sequence[Array], *, lr: float, beta: float) -> list[Array]:
    """Steps against the average gradient."""
    return _path(theta, [-lr * v for v in _average(beta, grads)])


def heavy_ball(theta: Array, grads: Sequence[Array], *, lr: float, mu: float) -> list[Array]:
    """Polyak's own form: x_{t+1} = x_t - lr g + mu (x_t - x_{t-1})."""
    path = [theta, theta]
    for g in grads:
        path.append(path[-1] - lr * g + mu * (path[-1] - path[-2]))
    return path[2:]


def nesterov(
    theta: Array, grads: Sequence[Callable[[Array], Array]], *, lr: float, beta: float
) -> list[Array]:
    """Velocity v' = beta v - lr grad(theta + beta v), theta' = theta + v'."""
    velocity, path = np.zeros_like(theta), []
    for grad in grads:
        velocity = beta * velocity - lr * grad(theta + beta * velocity)
        theta = theta + velocity
        path.append(theta)
    return path


def sgd_l2(theta: Array, grads: Sequence[Array], *, lr: float, weight_decay: float) -> list[Array]:
    """Steps against the gradient of loss + weight_decay / 2 |theta|^2."""
    path = []
    for g in grads:
        theta = (1 - lr * weight_decay) * theta - lr * g
        path.append(theta)
    return path


def rmsprop(
    theta: Array, grads: Sequence[Array], *, lr: float, gamma: float, eps: float
) -> list[Array]:
    """The gradient over its running root mean square."""
    mean_squares = _average(gamma, _squares(grads))
    return _path(
        theta, [-lr * g / np.sqrt(q + eps) for g, q in zip(grads, mean_squares, strict=True)]
    )


def adam(
    theta: Array, grads: Sequence[Array], *, lr: float, beta1: float, beta2: float, eps: float
) -> list[Array]:
    """The corrected mean over the root of the corrected mean square."""
    means, mean_squares = _corrected(beta1, grads), _corrected(beta2, _squares(grads))
    pairs = zip(means, mean_squares, strict=True)
    return _path(theta, [-lr * m / (np.sqrt(v) + eps) for m, v in pairs])


def adamw(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> list[Array]:
    """Adam's step on parameters that have shrunk by lr weight_decay."""
    means, mean_squares = _corrected(beta1, grads), _corrected(beta2, _squares(grads))
    path = []
    for m, v in zip(means, mean_squares, strict=True):
        theta = (1 - lr * weight_decay) * theta - lr * m / (np.sqrt(v) + eps)
        path.append(theta)
    return path


def amsgrad(
    theta: Array, grads: Sequence[Array], *, lr: float, beta1: float, beta2: float, eps: float
) -> list[Array]:
    """Adam with the largest corrected mean square so far."""
    means, mean_squares = _corrected(beta1, grads), _corrected(beta2, _squares(grads))
    largest = np.maximum.accumulate(mean_squares)
    pairs = zip(means, largest, strict=True)
    return _path(theta, [-lr * m / (np.sqrt(w) + eps) for m, w in pairs])


def adagrad(theta: Array, grads: Sequence[Array], *, lr: float, eps: float) -> list[Array]:
    """The gradient over the root of the sum of all squares."""
    sums = np.cumsum(_squares(grads), axis=0)
    return _path(theta, [-lr * g / (np.sqrt(s) + eps) for g, s in zip(grads, sums, strict=True)])


def adadelta(
    theta: Array, grads: Sequence[Array], *, lr: float, rho: float, eps: float
) -> list[Array]:
    """The step -RMS[steps] / RMS[g] g."""
    mean_g2, mean_x2, path = np.zeros_like(theta), np.zeros_like(theta), []
    for g in grads:
        mean_g2 = rho * mean_g2 + (1 - rho) * g**2
        delta = -np.sqrt((mean_x2 + eps) / (mean_g2 + eps)) * g
        mean_x2 = rho * mean_x2 + (1 - rho) * delta**2
        theta = theta + lr * delta
        path.append(theta)
    return path


def radam(
    theta: Array, grads: Sequence[Array], *, lr: float, beta1: float, beta2: float, eps: float
) -> list[Array]:
    """Adam's step times the rectification, or the corrected mean while rho <= 4."""
    means, mean_squares = _corrected(beta1, grads), _corrected(beta2, _squares(grads))
    rho_inf, steps = 2 / (1 - beta2) - 1, []
    for t, (m, v) in enumerate(zip(means, mean_squares, strict=True), 1):
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 4:
            now, limit = (rho - 4) * (rho - 2) / rho, (rho_inf - 4) * (rho_inf - 2) / rho_inf
            steps.append(-lr * math.sqrt(now / limit) * m / (np.sqrt(v) + eps))
        else:
            steps.append(-lr * m)
    return _path(theta, steps)


def adamax(
    theta: Array, grads: Sequence[Array], *, lr: float, beta1: float, beta2: float, eps: float
) -> list[Array]:
    """The corrected mean over the largest |g_i| beta2^(t-i)."""
    steps = []
    for t, m in enumerate(_corrected(beta1, grads), 1):
        norm = np.max([beta2 ** (t - i) * np.abs(g) for i, g in enumerate(grads[:t], 1)], axis=0)
        steps.append(-lr * m / (norm + eps))
    return _path(theta, steps)


def nadam(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    psi: float,
) -> list[Array]:
    """Adam with (1 - mu_t) g / (1 - prod mu) + mu_{t+1} m / (1 - prod mu, next included)."""
    count = len(grads)
    mu = [beta1 * (1 - 0.96 ** (psi * t) / 2) for t in range(1, count + 2)]
    products = np.cumprod(mu)
    means, mean_squares = _average(beta1, grads), _corrected(beta2, _squares(grads))
    steps = []
    for i in range(count):
        g_hat = grads[i] / (1 - products[i])
        m_hat = means[i] / (1 - products[i + 1])
        m_bar = (1 - mu[i]) * g_hat + mu[i + 1] * m_hat
        steps.append(-lr * m_bar / (np.sqrt(mean_squares[i]) + eps))
    return _path(theta, steps)


def adabelief(
    theta: Array, grads: Sequence[Array], *, lr: float, beta1: float, beta2: float, eps: float
) -> list[Array]:
    """Adam with squared deviations from the mean; eps joins the average in every step."""
    means = _average(beta1, grads)
    belief, path = np.zeros_like(theta), []
    for t, (g, m) in enumerate(zip(grads, means, strict=True), 1):
        belief = beta2 * belief + (1 - beta2) * (g - m) ** 2 + eps
        m_hat, s_hat = m / (1 - beta1**t), belief / (1 - beta2**t)
        theta = theta - lr * m_hat / (np.sqrt(s_hat) + eps)
        path.append(theta)
    return path


def yogi(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    initial_accumulator: float,
) -> list[Array]:
    """The second moment goes up or down by (1 - beta2) g^2, towards g^2."""
    means = _average(beta1, grads)
    second, path = np.full_like(theta, initial_accumulator), []
    for g, m in zip(grads, means, strict=True):
        change = (1 - beta2) * g**2
        below, above = second < g**2, second > g**2
        second = np.where(below, second + change, np.where(above, second - change, second))
        theta = theta - lr * m / (np.sqrt(second) + eps)
        path.append(theta)
    return path


def lion(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> list[Array]:
    """The sign of an interpolation between the last mean and the gradient."""
    means = [np.zeros_like(theta), *_average(beta2, grads)]
    path = []
    for g, m in zip(grads, means, strict=False):
        direction = np.sign(g + beta1 * (m - g))
        theta = (1 - lr * weight_decay) * theta - lr * direction
        path.append(theta)
    return path


def adan(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    beta3: float,
    eps: float,
    weight_decay: float,
) -> list[Array]:
    """Means of g, of its differences and of (g + beta2 difference)^2; a proximal decay."""
    differences = [g - h for g, h in zip(grads, [grads[0], *grads[:-1]], strict=True)]
    mixed = [g + beta2 * d for g, d in zip(grads, differences, strict=True)]
    means, slopes = _corrected(beta1, grads), _corrected(beta2, differences)
    path = []
    for m, v, q in zip(means, slopes, _corrected(beta3, _squares(mixed)), strict=True):
        rates = lr / (np.sqrt(q) + eps)
        theta = (theta - rates * (m + beta2 * v)) / (1 + weight_decay * lr)
        path.append(theta)
    return path


def signum(theta: Array, grads: Sequence[Array], *, lr: float, beta: float) -> list[Array]:
    """Steps of lr against the sign of the mean."""
    return _path(theta, [-lr * np.sign(m) for m in _average(beta, grads)])


def _learnt(
    theta: Array,
    grads: Sequence[Array],
    directions: Sequence[Array],
    *,
    lr: float,
    kappa: float,
    weight_decay: float = 0.0,
) -> list[Array]:
    """alpha_t = alpha_{t-1} - beta g_t . u_{t-1}, then theta_t = theta_{t-1} + alpha_t u_t."""
    last, path = np.zeros_like(theta), []
    for g, direction in zip(grads, directions, strict=True):
        lr -= kappa * np.vdot(g, last)
        last = direction - weight_decay * theta
        theta = theta + lr * last
        path.append(theta)
    return path


def sgd_hd(theta: Array, grads: Sequence[Array], *, lr: float, kappa: float) -> list[Array]:
    """SGD-HD: a rate that grows with the product of two gradients in a row."""
    return _learnt(theta, grads, [-g for g in grads], lr=lr, kappa=kappa)


def momentum_hd(
    theta: Array, grads: Sequence[Array], *, lr: float, beta: float, kappa: float
) -> list[Array]:
    """The same along an average."""
    return _learnt(theta, grads, [-v for v in _average(beta, grads)], lr=lr, kappa=kappa)


def _adam_directions(grads: Sequence[Array], beta1: float, beta2: float, eps: float) -> list[Array]:
    means, mean_squares = _corrected(beta1, grads), _corrected(beta2, _squares(grads))
    return [-m / (np.sqrt(v) + eps) for m, v in zip(means, mean_squares, strict=True)]


def adam_hd(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    kappa: float,
) -> list[Array]:
    """Adam-HD."""
    return _learnt(theta, grads, _adam_directions(grads, beta1, beta2, eps), lr=lr, kappa=kappa)


def adamw_hd(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    kappa: float,
) -> list[Array]:
    """The same with a decay, which is multiplied by the rate."""
    directions = _adam_directions(grads, beta1, beta2, eps)
    return _learnt(theta, grads, directions, lr=lr, kappa=kappa, weight_decay=weight_decay)


def lion_hd(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    kappa: float,
) -> list[Array]:
    """The same along a sign."""
    means = [np.zeros_like(theta), *_average(beta2, grads)]
    signs = [-np.sign(g + beta1 * (m - g)) for g, m in zip(grads, means, strict=False)]
    return _learnt(theta, grads, signs, lr=lr, kappa=kappa, weight_decay=weight_decay)


def momentum_hd_beta(
    theta: Array, grads: Sequence[Array], *, lr: float, beta: float, kappa: float
) -> list[Array]:
    """A decay that is learnt; the slope of a step by a complex difference, which is exact."""
    v, slope, path = np.zeros_like(theta), np.zeros_like(theta), []
    for g in grads:
        beta -= kappa * np.vdot(g, slope)
        tiny = 1e-100
        slope = (-lr * ((beta + 1j * tiny) * v + (1 - (beta + 1j * tiny)) * g)).imag / tiny
        v = beta * v + (1 - beta) * g
        theta = theta - lr * v
        path.append(theta)
    return path


def lars(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    mu: float,
    weight_decay: float,
    trust: float,
) -> list[Array]:
    """A rate for each layer from the norms of weights and gradients."""
    path, v = [], np.zeros_like(theta)
    for g in grads:
        w, d = math.sqrt(np.vdot(theta, theta)), math.sqrt(np.vdot(g, g))
        local = trust * w / (d + weight_decay * w) if w > 0 and d > 0 else 1.0
        v = mu * v + lr * local * (g + weight_decay * theta)
        theta = theta - v
        path.append(theta)
    return path


def lamb(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> list[Array]:
    """The direction of adam with decay, as long as the weights are."""
    moments = zip(_corrected(beta1, grads), _corrected(beta2, [g**2 for g in grads]), strict=True)
    path = []
    for m, v in moments:
        r = m / (np.sqrt(v) + eps) + weight_decay * theta
        w, d = np.linalg.norm(theta.ravel()), np.linalg.norm(r.ravel())
        theta = theta - lr * (w / d if w > 0 and d > 0 else 1.0) * r
        path.append(theta)
    return path


def muon(theta: Array, grads: Sequence[Array], *, lr: float, mu: float) -> list[Array]:
    """Momentum with a look-ahead; its singular values, of norm 1, through an odd polynomial five times."""
    m, path = np.zeros_like(theta), []
    rows, cols = theta.shape[-2:]
    for g in grads:
        m = mu * m + g
        left, s, right = np.linalg.svd(g + mu * m, full_matrices=False)
        s = s / (np.linalg.norm(s, axis=-1, keepdims=True) + 1e-7)
        for _ in range(5):
            s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
        theta = theta - lr * np.sqrt(max(1.0, rows / cols)) * (left * s[..., None, :]) @ right
        path.append(theta)
    return path


def muon_adamw(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    mu: float,
    adamw_lr_ratio: float,
    adamw_beta1: float,
    adamw_beta2: float,
    adamw_eps: float,
    adamw_weight_decay: float,
) -> list[Array]:
    """Muon for matrices, AdamW with a rate in proportion for everything else."""
    if theta.ndim >= 2:
        return muon(theta, grads, lr=lr, mu=mu)
    given = {"beta1": adamw_beta1, "beta2": adamw_beta2, "eps": adamw_eps}
    rate = lr * adamw_lr_ratio
    return adamw(theta, grads, lr=rate, weight_decay=adamw_weight_decay, **given)


def adafactor(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    eps1: float,
    eps2: float,
    clip: float,
) -> list[Array]:
    """The second moment of a matrix as the outer product of sums of rows and columns."""
    path = []
    rows = columns = full = 0.0
    for t, g in enumerate(grads, 1):
        rho, beta = min(lr, 1 / math.sqrt(t)), 1 - t**-0.8
        squares = g**2 + eps1
        if g.ndim == 2:
            n, m = g.shape
            rows = beta * rows + (1 - beta) * squares @ np.ones((m, 1))
            columns = beta * columns + (1 - beta) * np.ones((1, n)) @ squares
            v = rows @ columns / (np.ones((1, n)) @ rows)
        else:
            v = full = beta * full + (1 - beta) * squares
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / clip)
        theta = theta - max(eps2, np.sqrt(np.mean(theta**2))) * rho * u
        path.append(theta)
    return path


def sgd_torch(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> list[Array]:
    """Momentum that begins with the first gradient, whole; later ones are dampened."""
    buffer, path = None, []
    for g in grads:
        g = g + weight_decay * theta
        if momentum:
            buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
            g = g + momentum * buffer if nesterov else buffer
        theta = theta - lr * g
        path.append(theta)
    return path


def adam_torch(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    decoupled_weight_decay: bool,
) -> list[Array]:
    """Adam on the penalty's gradient or on shrunken parameters; a maximum is taken before the correction."""
    m, v, top, path = 0.0, 0.0, np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        if decoupled_weight_decay:
            theta = theta * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * theta
        m, v = m + (1 - beta1) * (g - m), v + (1 - beta2) * (g * g - v)
        top = np.maximum(top, v)
        root = np.sqrt((top if amsgrad else v) / (1 - beta2**t))
        theta = theta - lr * m / (1 - beta1**t) / (root + eps)
        path.append(theta)
    return path


def adamw_torch(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    amsgrad: bool,
) -> list[Array]:
    """The same, always on shrunken parameters."""
    given = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
    return adam_torch(theta, grads, lr=lr, **given, decoupled_weight_decay=True)


def rmsprop_torch(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: bool,
) -> list[Array]:
    """Momentum of gradients over their running root mean square, or standard deviation, and eps."""
    mean = square = buffer = 0.0
    path = []
    for g in grads:
        g = g + weight_decay * theta
        mean, square = mean + (1 - alpha) * (g - mean), square + (1 - alpha) * (g * g - square)
        size = np.sqrt(square - mean * mean if centered else square) + eps
        buffer = momentum * buffer + g / size
        theta = theta - lr * buffer
        path.append(theta)
    return path


def adagrad_torch(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    lr_decay: float,
    weight_decay: float,
    initial_accumulator_value: float,
    eps: float,
) -> list[Array]:
    """The gradient over the root of the sum of all squares, at a falling rate."""
    total, path = np.full_like(theta, initial_accumulator_value), []
    for finished, g in enumerate(grads):
        g = g + weight_decay * theta
        total = total + g * g
        theta = theta - lr / (1 + finished * lr_decay) * g / (np.sqrt(total) + eps)
        path.append(theta)
    return path


def adadelta_torch(
    theta: Array, grads: Sequence[Array], *, lr: float, rho: float, eps: float, weight_decay: float
) -> list[Array]:
    """Adadelta on the penalty's gradient."""
    mean_g2, mean_x2, path = np.zeros_like(theta), np.zeros_like(theta), []
    for g in grads:
        g = g + weight_decay * theta
        mean_g2 = mean_g2 + (1 - rho) * (g * g - mean_g2)
        step = g * np.sqrt((mean_x2 + eps) / (mean_g2 + eps))
        mean_x2 = mean_x2 + (1 - rho) * (step * step - mean_x2)
        theta = theta - lr * step
        path.append(theta)
    return path


def adamax_torch(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> list[Array]:
    """The corrected mean over a falling maximum of |g| + eps."""
    m, norm, path = 0.0, np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        g = g + weight_decay * theta
        m = m + (1 - beta1) * (g - m)
        norm = np.maximum(norm * beta2, np.abs(g) + eps)
        theta = theta - lr * m / ((1 - beta1**t) * norm)
        path.append(theta)
    return path


def nadam_torch(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    momentum_decay: float,
    decoupled_weight_decay: bool,
) -> list[Array]:
    """The gradient's step and the mean's, one after the other, each over the corrected root."""
    m, v, product, path = 0.0, 0.0, 1.0, []
    for t, g in enumerate(grads, 1):
        if decoupled_weight_decay:
            theta = theta * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * theta
        now, then = (beta1 * (1 - 0.96 ** (i * momentum_decay) / 2) for i in (t, t + 1))
        product = product * now
        m, v = m + (1 - beta1) * (g - m), v + (1 - beta2) * (g * g - v)
        root = np.sqrt(v / (1 - beta2**t)) + eps
        theta = theta - lr * (1 - now) / (1 - product) * g / root
        theta = theta - lr * then / (1 - product * then) * m / root
        path.append(theta)
    return path


def radam_torch(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
) -> list[Array]:
    """The corrected mean; where rho > 5 rectified and over the root plus eps, which is then corrected."""
    m, v, rho_inf, path = 0.0, 0.0, 2 / (1 - beta2) - 1, []
    for t, g in enumerate(grads, 1):
        if decoupled_weight_decay:
            theta = theta * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * theta
        m, v = m + (1 - beta1) * (g - m), v + (1 - beta2) * (g * g - v)
        step, rho = m / (1 - beta1**t), rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 5:
            now, limit = (rho - 4) * (rho - 2) / rho, (rho_inf - 4) * (rho_inf - 2) / rho_inf
            step = step * math.sqrt(now / limit * (1 - beta2**t)) / (np.sqrt(v) + eps)
        theta = theta - lr * step
        path.append(theta)
    return path


def rprop_torch(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    etaminus: float,
    etaplus: float,
    step_size_min: float,
    step_size_max: float,
) -> list[Array]:
    """Sizes grow where the sign stays and shrink where it turns; there the gradient counts as 0."""
    last, size, path = np.zeros_like(theta), np.full_like(theta, lr), []
    for g in grads:
        same = np.sign(g) * np.sign(last)
        factor = np.choose(1 + same.astype(int), [etaminus, 1.0, etaplus])
        size = np.clip(size * factor, step_size_min, step_size_max)
        last = np.where(same < 0, 0.0, g)
        theta = theta - size * np.sign(last)
        path.append(theta)
    return path


def asgd_torch(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    lambd: float,
    alpha: float,
    t0: float,
    weight_decay: float,
) -> list[Array]:
    """The path itself; its average from step t0 on is beside it."""
    path = []
    for finished, g in enumerate(grads):
        rate = lr / (1 + lambd * lr * finished) ** alpha
        theta = theta * (1 - lambd * rate) - rate * (g + weight_decay * theta)
        path.append(theta)
    return path


def adafactor_torch(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta2_decay: float,
    eps1: float | None,
    eps2: float,
    d: float,
    weight_decay: float,
) -> list[Array]:
    """The second moment of a matrix from means of rows and columns, bounded below."""
    least = 2.0**-23 if eps1 is None else eps1
    rows = columns = full = 0.0
    path = []
    for t, g in enumerate(grads, 1):
        new, rate = t**beta2_decay, max(eps2, np.sqrt(np.mean(theta**2))) * min(lr, 1 / math.sqrt(t))
        if g.ndim == 2:
            rows = rows + new * (np.mean(g**2, 1, keepdims=True) - rows)
            columns = columns + new * (np.mean(g**2, 0, keepdims=True) - columns)
            v = rows @ columns / max(np.mean(rows), least)
        else:
            v = full = full + new * (g**2 - full)
        u = g / np.maximum(np.sqrt(v), least)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / d)
        theta = theta * (1 - lr * weight_decay) - rate * u
        path.append(theta)
    return path


def muon_torch(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    ns_coefficients: tuple[float, ...],
    eps: float,
    ns_steps: int,
    adjust_lr_fn: str | None,
) -> list[Array]:
    """An average with a look-ahead; its singular values, of norm 1, through an odd polynomial."""
    m, path = np.zeros_like(theta), []
    rows, cols = theta.shape[-2:]
    a, b, c = ns_coefficients
    size = math.sqrt(max(1, rows / cols))
    if adjust_lr_fn == "match_rms_adamw":
        size = 0.2 * math.sqrt(max(rows, cols))
    for g in grads:
        m = m + (1 - momentum) * (g - m)
        left, s, right = np.linalg.svd(g + momentum * (m - g) if nesterov else m, full_matrices=False)
        s = s / np.maximum(np.linalg.norm(s, axis=-1, keepdims=True), eps)
        for _ in range(ns_steps):
            s = a * s + b * s**3 + c * s**5
        theta = theta * (1 - lr * weight_decay) - lr * size * (left * s[..., None, :]) @ right
        path.append(theta)
    return path


def schedule_free_sgd(
    theta: Array, grads: Sequence[Array], *, lr: float, beta: float
) -> list[Array]:
    """The points y between the iterates z and their average x."""
    z, path = np.array(theta), []
    iterates = []
    for g in grads:
        z = z - lr * g
        iterates.append(z)
        x = np.mean(iterates, axis=0)  # of a constant rate
        path.append((1 - beta) * z + beta * x)
    return path


def schedule_free_adamw(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> list[Array]:
    """The same with the second moment of adam, and a decay of z taken at y."""
    y, z, iterates, path = theta, np.array(theta), [], []
    for g, v in zip(grads, _corrected(beta2, [g**2 for g in grads]), strict=True):
        z = z - lr * g / (np.sqrt(v) + eps) - lr * weight_decay * y
        iterates.append(z)
        y = (1 - beta1) * z + beta1 * np.mean(iterates, axis=0)
        path.append(y)
    return path


def svrg(
    theta: Array,
    grads: Sequence[Callable[[Array], Array]],
    *,
    lr: float,
    period: int,
    full_gradient: Sequence[Callable[[Array], Array]],
) -> list[Array]:
    """Epochs of `period` steps, each around its own snapshot and the mean gradient there."""
    path: list[Array] = []
    for start in range(0, len(grads), period):
        snapshot = theta
        mean = full_gradient[start](snapshot)
        for grad in grads[start : start + period]:
            theta = theta - lr * (grad(theta) - grad(snapshot) + mean)
            path.append(theta)
    return path


def storm(
    theta: Array, grads: Sequence[Callable[[Array], Array]], *, lr: float, a: float
) -> list[Array]:
    """The estimate of the last step, moved on by the difference of two gradients of one batch."""
    path = [theta]
    estimate = grads[0](theta)
    for t, grad in enumerate(grads):
        if t:
            estimate = a * grad(path[-1]) + (1 - a) * (estimate + grad(path[-1]) - grad(path[-2]))
        path.append(path[-1] - lr * estimate)
    return path[1:]


def sam(theta: Array, grad: Callable[[Array], Array], *, rho: float) -> Array:
    """The gradient at the worst point nearby, to first order."""
    g = grad(theta)
    return grad(theta + rho * g / np.linalg.norm(g))


def adamw_sam(
    theta: Array,
    grads: Sequence[Callable[[Array], Array]],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    rho: float,
) -> list[Array]:
    """AdamW with the gradients of the worst points nearby."""
    path = [theta]
    taken: list[Array] = []
    for t, grad in enumerate(grads, 1):
        taken.append(sam(path[-1], grad, rho=rho))
        m = _average(beta1, taken)[-1] / (1 - beta1**t)
        v = _average(beta2, [g**2 for g in taken])[-1] / (1 - beta2**t)
        path.append((1 - lr * weight_decay) * path[-1] - lr * m / (np.sqrt(v) + eps))
    return path[1:]


def sophia(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    gamma: float,
    eps: float,
    weight_decay: float,
    period: int,
    hessian_diagonal: Sequence[Callable[[Array], Array]],
) -> list[Array]:
    """Decay, then momentum over the curvature, at most one each way."""
    path: list[Array] = []
    momenta = _average(beta1, grads)
    seen: list[Array] = []
    for t, m in enumerate(momenta):
        if t % period == 0:
            seen.append(hessian_diagonal[t](theta))
        h = _average(beta2, seen)[-1]
        theta = theta - lr * weight_decay * theta - lr * np.clip(m / np.maximum(gamma * h, eps), -1, 1)
        path.append(theta)
    return path


def learned(
    theta: Array, grads: Sequence[Array], *, lr: float, weights: Mapping[str, Array]
) -> list[Array]:
    """A network of matrix products on normalized features; the features come last."""

    def normal(x: Array) -> Array:
        return x / (np.sqrt(np.mean(x * x)) + 1e-16)

    averages = [_average(beta, grads) for beta in (0.5, 0.9, 0.99)]
    squares = [_average(beta, [g**2 for g in grads]) for beta in (0.99, 0.999)]
    path: list[Array] = []
    for t, g in enumerate(grads, 1):
        over = [g / (np.sqrt(v[t - 1]) + 1e-16) for v in squares]
        features = [*map(normal, [g, *(m[t - 1] for m in averages), *over, theta]), np.full_like(g, t**-0.5)]
        h = np.stack(features, -1)
        for k in (1, 2):
            h = np.maximum(h @ weights[f"W{k}"].T + weights[f"b{k}"], 0)
        a, b = np.moveaxis(h @ weights["W3"].T + weights["b3"], -1, 0)
        theta = theta - lr * a * (1 + b / (1 + np.abs(b)))
        path.append(theta)
    return path


def adahessian(
    theta: Array,
    grads: Sequence[Array],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    hessian_diagonal: Sequence[Callable[[Array], Array]],
) -> list[Array]:
    """Averages of gradients over the root of averages of squared curvatures."""
    squares = [diagonal(theta) ** 2 for diagonal in hessian_diagonal]
    steps = []
    pairs = zip(_average(beta1, grads), _average(beta2, squares), strict=True)
    for t, (m, v) in enumerate(pairs, 1):
        steps.append(-lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps))
    return _path(theta, steps)


# --------------------------------------------------------------------------------------------------
# Transforms: the gradient (or update) g at theta becomes another one


def polyak_average(path: Sequence[Array], *, decay: float) -> Array:
    """The average of the first point and all later ones with weights that fall exponentially."""
    n = len(path) - 1
    weights = [decay**n, *((1 - decay) * decay ** (n - i) for i in range(1, n + 1))]
    return np.sum([w * p for w, p in zip(weights, path, strict=True)], axis=0)


def lookahead(fast: Array, slow: Array, *, k: int, alpha: float) -> Array:
    """Where both weights go after k fast steps. arXiv:1907.08610, Algorithm 1."""
    return (1 - alpha) * slow + alpha * fast


def skip_nonfinite(grads: Sequence[Sequence[Array]]) -> list[bool]:
    """Whether each step is done: all of its gradients are finite. arXiv:1710.03740, section 3.2."""
    return [all(bool(np.all(np.abs(g) < np.inf)) for g in gs) for gs in grads]


def accumulate(grads: Sequence[Array], *, k: int) -> list[Array]:
    """The mean of each k gradients."""
    return [np.mean(grads[i : i + k], axis=0) for i in range(0, len(grads) - k + 1, k)]


def cautious(change: Array, g: Array, *, least: float) -> Array:
    """What is left of a change of the parameters. arXiv:2411.16085, Algorithm 1."""
    agree = (-change * g > 0).astype(float)
    return change * agree / max(agree.mean(), least)


def clip_by_value(theta: Array, g: Array, *, c: float) -> Array:
    """Entries cut at -c and c."""
    return np.clip(g, -c, c)


def clip_by_norm(theta: Array, g: Array, *, max_norm: float) -> Array:
    """No longer than a bound. Pascanu et al., ICML 2013, Algorithm 1."""
    length = np.linalg.norm(g.ravel())
    return g if length <= max_norm else g * (max_norm / length)


def clip_by_global_norm(theta: Array, g: Array, *, max_norm: float) -> Array:
    """The same where there is one tensor."""
    return clip_by_norm(theta, g, max_norm=max_norm)


def add_noise(theta: Array, g: Array, *, eta0: float, gamma: float, seed: int) -> Array:
    """Normal noise of variance eta0 / (1 + t)^gamma, here at t = 1. arXiv:1511.06807, section 3."""
    key = _threefry((seed % 2**32, seed >> 32), (1, 0))  # step 1, source 0
    words = [_threefry(key, (place, 0)) for place in range(g.size)]  # stream 0
    xi = np.array([_quantile(*w) for w in words]).reshape(g.shape)
    return g + math.sqrt(eta0 / 2**gamma) * xi


def _threefry(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Threefry-2x32, 20 rounds, in Python's integers. Salmon et al., SC 2011, section 3.2."""
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = ((c + k) % 2**32 for c, k in zip(counter, key, strict=True))
    for i in range(20):
        turn = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        x = (x + y) % 2**32
        y = (y << turn | y >> (32 - turn)) % 2**32 ^ x
        if i % 4 == 3:
            n = i // 4 + 1
            x, y = (x + keys[n % 3]) % 2**32, (y + keys[(n + 1) % 3] + n) % 2**32
    return x, y


def _quantile(high: int, low: int) -> float:
    """Where the normal distribution has the probability 1/2 plus or minus a fraction of 63 bits."""
    with mpmath.workdps(40):
        i = high % 2**31 * 2**32 + low
        x = mpmath.sqrt(2) * mpmath.erfinv((2 * i + 1) / mpmath.mpf(2) ** 64)
    return float(-x if high >= 2**31 else x)


def centralize(theta: Array, g: Array, *, outputs: str) -> Array:
    """Less the mean of each output's slice. arXiv:2004.01461, equation 1."""
    last = outputs == "last"
    slices = np.moveaxis(g, -1, 0) if last else g  # outputs first
    made = np.stack([w - w.sum() / w.size for w in slices]) if g.ndim > 1 else slices
    return np.moveaxis(made, 0, -1) if last else made


def weight_decay(theta: Array, g: Array, *, weight_decay: float) -> Array:
    """The gradient of loss + weight_decay / 2 |theta|^2. Krogh & Hertz, NIPS 1991."""
    return g + weight_decay * theta


def decoupled_weight_decay(theta: Array, g: Array, *, lr: float, weight_decay: float) -> Array:
    """The update g, and the parameters shrunk beside it. arXiv:1711.05101, section 2."""
    return ((1 - lr * weight_decay) * theta + g) - theta


# --------------------------------------------------------------------------------------------------
# Schedules


def constant(n: int, *, base_lr: float) -> float:
    """Always the same."""
    return base_lr


def linear(n: int, *, base_lr: float, total: int, end: float) -> float:
    """A straight line from base_lr to end. arXiv:2310.07831."""
    return end if n >= total else (base_lr * (total - n) + end * n) / total


def polynomial(n: int, *, base_lr: float, total: int, power: float, end: float) -> float:
    """The poly policy. arXiv:1606.00915."""
    return end if n >= total else end + (base_lr - end) * ((total - n) / total) ** power


def exponential(n: int, *, base_lr: float, decay: float, steps: int, staircase: bool) -> float:
    """Multiplied by decay once in `steps` steps. arXiv:1910.07454."""
    return base_lr * math.pow(decay, math.floor(n / steps) if staircase else n / steps)


def inverse_sqrt(n: int, *, base_lr: float, scale: int) -> float:
    """1 / sqrt(n), level before `scale`. arXiv:1910.10683, section 3.1.2."""
    return base_lr if n < scale else base_lr * math.sqrt(scale) / math.sqrt(n)


def inverse_time(n: int, *, base_lr: float, decay: float, steps: int, staircase: bool) -> float:
    """1 / (1 + decay n). Bottou, Stochastic Gradient Descent Tricks, 2012."""
    passed = math.floor(n / steps) if staircase else n / steps
    return base_lr / (1 + decay * passed)


def step_decay(n: int, *, base_lr: float, decay: float, step: int) -> float:
    """Multiplied by decay once at the end of each interval. arXiv:1904.12838."""
    rate = base_lr
    for _ in range(n // step):
        rate *= decay
    return rate


def piecewise(
    n: int, *, base_lr: float, boundaries: Sequence[int], values: Sequence[float]
) -> float:
    """The value of the piece that n lies in. arXiv:1706.02677, section 5.1."""
    pieces = [base_lr, *values]
    return pieces[sum(n >= b for b in boundaries)]


def cosine(n: int, *, base_lr: float, total: int, end: float) -> float:
    """Half a cosine from base_lr to end. arXiv:1608.03983, equation 5."""
    return end if n >= total else _half_cosine(base_lr, end, n / total)


def cosine_restarts(n: int, *, base_lr: float, first: int, factor: int, end: float) -> float:
    """The same, again and again, each cycle longer by `factor`. arXiv:1608.03983, equation 5."""
    cycle = first
    while n >= cycle:
        n, cycle = n - cycle, cycle * factor
    return _half_cosine(base_lr, end, n / cycle)


def cyclical(n: int, *, base_lr: float, lr_min: float, period: int) -> float:
    """The triangular policy from its top. arXiv:1506.01186."""
    return triangular(n + period, base_lr=base_lr, lr_min=lr_min, period=period)


def triangular(n: int, *, base_lr: float, lr_min: float, period: int) -> float:
    """The triangular policy as the paper computes it. arXiv:1506.01186, section 3.1."""
    cycle = math.floor(1 + n / (2 * period))
    x = abs(n / period - 2 * cycle + 1)
    return lr_min + (base_lr - lr_min) * max(0.0, 1 - x)


def warmup_cosine(n: int, *, base_lr: float, warmup: int, total: int, lr_min: float) -> float:
    """A line up, half a cosine down. arXiv:1812.01187, sections 3.1 and 5.1."""
    if n < warmup:
        return _line(lr_min, base_lr, n / warmup)
    return lr_min if n >= total else _half_cosine(base_lr, lr_min, (n - warmup) / (total - warmup))


def warmup_linear(n: int, *, base_lr: float, warmup: int, total: int, end: float) -> float:
    """A line up, a line down. arXiv:1810.04805, appendix A.2."""
    if n < warmup:
        return _line(0.0, base_lr, n / warmup)
    return end if n >= total else _line(base_lr, end, (n - warmup) / (total - warmup))


def warmup_stable_decay(
    n: int, *, base_lr: float, warmup: int, stable: int, total: int, end: float
) -> float:
    """A line up, a plateau, a line down. arXiv:2404.06395, section 4."""
    if n < warmup:
        return _line(0.0, base_lr, n / warmup)
    if n < stable:
        return base_lr
    return end if n >= total else _line(base_lr, end, (n - stable) / (total - stable))


def one_cycle(
    n: int, *, base_lr: float, total: int, up: float, start_factor: float, final_factor: float
) -> float:
    """Half a cosine up, half a cosine down. arXiv:1708.07120, with cosines for lines."""
    start = base_lr / start_factor
    if n < up * total:
        return _half_cosine(start, base_lr, n / (up * total))
    final = start / final_factor
    z = (n - up * total) / (total - up * total)
    return final if n >= total else _half_cosine(base_lr, final, z)


def rex(n: int, *, base_lr: float, total: int) -> float:
    """(1 - z) / (1 - z / 2). arXiv:2107.04197."""
    return 0.0 if n >= total else base_lr * (1 - n / total) / (1 - n / total / 2)


def warmup(n: int, *, warmup: int, schedule: Rate) -> float:
    """A line up to where the schedule starts. arXiv:1706.02677, section 2.2."""
    return _line(0.0, schedule(0), n / warmup) if n < warmup else schedule(n - warmup)


def join(n: int, *, schedules: Sequence[Rate], boundaries: Sequence[int]) -> float:
    """The schedule whose turn it is, at the steps since it began."""
    starts = [0, *boundaries]
    turn = max(i for i, start in enumerate(starts) if n >= start)
    return schedules[turn](n - starts[turn])


def _line(start: float, end: float, z: float) -> float:
    """From start to end while z goes from 0 to 1."""
    return (1 - z) * start + z * end


def _half_cosine(start: float, end: float, z: float) -> float:
    """The same along half a cosine: weights cos^2 and sin^2 of a quarter turn."""
    return math.cos(z * math.pi / 2) ** 2 * start + math.sin(z * math.pi / 2) ** 2 * end
