"""optax beside the catalogue: which of its optimizers take the same steps, and with what options.

In: a `Run` with a constant learning rate. Out: the first parameter after it, by optax's own optimizer.
Must not know: the generated code. Read from optax 0.2.8, `optax/_src/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from backends.running import Run

Hypers = Mapping[str, Any]

NATIVE: dict[str, Callable[[Hypers], Any]] = {
    # p - lr g
    "sgd": lambda h: optax.sgd(h["lr"]),
    # ema without debias is the spec's average; sgd's momentum is not one
    "momentum": lambda h: optax.chain(
        optax.ema(h["beta"], debias=False), optax.scale_by_learning_rate(h["lr"])
    ),
    # the trace is mu v + g, lr outside
    "heavy_ball": lambda h: optax.sgd(h["lr"], momentum=h["mu"]),
    # y - lr (g + beta b) is the look-ahead point theta - beta v, as v = lr b while lr is constant
    "nesterov": lambda h: optax.sgd(h["lr"], momentum=h["beta"], nesterov=True),
    # sgd has no weight_decay; add_decayed_weights before it is the penalty's gradient
    "sgd_l2": lambda h: optax.chain(optax.add_decayed_weights(h["weight_decay"]), optax.sgd(h["lr"])),
    # eps stands under the root with eps_in_sqrt, its default
    "rmsprop": lambda h: optax.rmsprop(h["lr"], decay=h["gamma"], eps=h["eps"], eps_in_sqrt=True),
    # eps is added to the root of the corrected moment, eps_root = 0
    "adam": lambda h: optax.adam(**_adam(h)),
    # lr (step + weight_decay p) is subtracted as one, as in the spec
    "adamw": lambda h: optax.adamw(**_adam(h), weight_decay=h["weight_decay"]),
    # the maximum of the corrected moment, by default
    "amsgrad": lambda h: optax.amsgrad(**_adam(h)),
    # the sum starts at 0.1 unless told; see DIFFERENT
    "adagrad": lambda h: optax.adagrad(h["lr"], initial_accumulator_value=0.0, eps=h["eps"]),
    # with a learning rate the sign is right
    "adadelta": lambda h: optax.adadelta(h["lr"], rho=h["rho"], eps=h["eps"]),
    # threshold 4, not 5; >= for > matters only at 4 itself, where the rectified step is 0
    "radam": lambda h: optax.radam(**_adam(h), threshold=4.0),
    # see DIFFERENT
    "adamax": lambda h: optax.adamax(**_adam(h)),
    # see DIFFERENT
    "nadam": lambda h: optax.nadam(**_adam(h)),
    # eps_root joins the stored moment, eps its root: the spec has one name for both
    "adabelief": lambda h: optax.adabelief(**_adam(h), eps_root=h["eps"]),
    # see DIFFERENT
    "yogi": lambda h: optax.yogi(**_adam(h)),
    # sign of the interpolation and weight_decay p are scaled together
    "lion": lambda h: optax.lion(h["lr"], b1=h["beta1"], b2=h["beta2"], weight_decay=h["weight_decay"]),
    # no eps under the root; see DIFFERENT
    "adan": lambda h: optax.adan(**_adam(h), b3=h["beta3"], eps_root=0.0, weight_decay=h["weight_decay"]),
    # sign of the average without debias
    "signum": lambda h: optax.signum(h["lr"], beta=h["beta"]),
    # see DIFFERENT; the trace is of steps with the rate in them
    "lars": lambda h: optax.lars(
        h["lr"],
        weight_decay=h["weight_decay"],
        trust_coefficient=h["trust"],
        eps=0.0,
        momentum=h["mu"],
    ),
    # the ratio is of the direction with the decay in it
    "lamb": lambda h: optax.lamb(**_adam(h), weight_decay=h["weight_decay"]),
    # optax.adafactor's parts; min(lr, 1 / sqrt(t)) is a schedule of the count, which is t - 1
    "adafactor": lambda h: optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=1, epsilon=h["eps1"]),
        optax.clip_by_block_rms(h["clip"]),
        optax.scale_by_learning_rate(lambda count: jnp.minimum(h["lr"], 1 / jnp.sqrt(count + 1.0))),
        optax.scale_by_param_block_rms(h["eps2"]),
    ),
}

DIFFERENT: dict[str, str] = {
    "muon_adamw": "as muon",
    "adagrad": "adds eps under the root, the spec to it",
    "adamax": "adds eps to the absolute gradient inside the maximum, the spec to the norm",
    "nadam": "has no momentum schedule, the spec Dozat's with psi",
    "yogi": "corrects both moments' bias and starts m at the initial accumulator, the spec neither",
    "lars": "takes the norm of the decayed gradient, the spec the sum of two norms",
    "schedule_free_sgd": "finds x again from y and z, which loses bits; the spec keeps it",
    "schedule_free_adamw": "finds x again from y and z, which loses bits; the spec keeps it",
    "muon": "corrects the momentum's bias before the gradient joins it, the spec has a plain sum",
    "adan": "mixes differences in with 1 - beta2, the spec with beta2; adds the decay to the step",
}

# Hyperparameters with which optimizers of DIFFERENT take the spec's steps after all.
WHERE: dict[str, Hypers] = {
    "adagrad": {"eps": 0.0},  # nothing to place
    "adamax": {"eps": 0.0},  # nothing to place
    "nadam": {"psi": 1e5},  # 0.96**psi is 0 in double: mu = beta1 from the first step on
    "lars": {"weight_decay": 0.0},  # one norm
    "adan": {"beta2": 0.5, "weight_decay": 0.0},  # 1 - beta2 = beta2, and nothing decays
}


def _adam(h: Hypers) -> dict[str, Any]:
    return {"learning_rate": h["lr"], "b1": h["beta1"], "b2": h["beta2"], "eps": h["eps"]}


def agrees(name: str, hypers: Hypers) -> bool:
    """Whether optax's own optimizer has the spec's equations with these hyperparameters."""
    if name not in NATIVE:
        return False
    values = WHERE.get(name, {} if name not in DIFFERENT else None)
    return values is not None and all(hypers[k] == v for k, v in values.items())


def native(run: Run) -> Any:
    """The first parameter after the run by optax's own optimizer, or None where it has no such one."""
    if run.schedule is not None or not agrees(run.name, run.hypers):
        return None
    return trained(run)


def trained(run: Run) -> Any:
    """The same for every optimizer of NATIVE, whether it agrees or not."""
    # Without it float64 arrays turn float32, and 1 - decay**count is float32 in any case.
    with jax.enable_x64(np.asarray(run.params[0]).dtype == np.float64):
        optimizer = NATIVE[run.name](run.hypers)
        p = jnp.asarray(run.params[0])
        state = optimizer.init(p)
        for grads in run.grads:
            u, state = optimizer.update(jnp.asarray(grads[0]), state, p)
            p = optax.apply_updates(p, u)
        return np.asarray(p)
