"""keras.optimizers beside the catalogue: which of them take the same steps, and with what options.

In: a `Run` with a constant learning rate. Out: the first parameter after it, by Keras' own optimizer.
Must not know: the generated code. Read from keras 3.15.1, `keras/src/optimizers/`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from backends.running import Run

Hypers = Mapping[str, Any]

NATIVE: dict[str, Callable[[Hypers], Any]] = {
    # p - lr g
    "sgd": lambda h: keras.optimizers.SGD(h["lr"]),
    # m = beta m - lr g has no 1 - beta, so lr takes it
    "momentum": lambda h: keras.optimizers.SGD(h["lr"] * (1 - h["beta"]), momentum=h["beta"]),
    # lr stands inside the velocity, which is the same while lr is constant
    "heavy_ball": lambda h: keras.optimizers.SGD(h["lr"], momentum=h["mu"]),
    # y + beta m - lr g is the look-ahead point theta - beta v, with m = -v
    "nesterov": lambda h: keras.optimizers.SGD(h["lr"], momentum=h["beta"], nesterov=True),
    # the base class' decoupled p - lr weight_decay p before p - lr g is the penalty's gradient
    "sgd_l2": lambda h: keras.optimizers.SGD(h["lr"], weight_decay=h["weight_decay"]),
    # eps stands under the root
    "rmsprop": lambda h: keras.optimizers.RMSprop(h["lr"], rho=h["gamma"], epsilon=h["eps"]),
    # epsilon joins the uncorrected root: set anew before each step, see BEFORE_CORRECTION
    "adam": lambda h: keras.optimizers.Adam(**_adam(h)),
    # the same; p - lr weight_decay p first, then adam's step, which does not read p
    "adamw": lambda h: keras.optimizers.AdamW(**_adam(h), weight_decay=h["weight_decay"]),
    # see DIFFERENT
    "amsgrad": lambda h: keras.optimizers.Adam(**_adam(h), amsgrad=True),
    # the sum starts at 0.1 unless told; see DIFFERENT
    "adagrad": lambda h: keras.optimizers.Adagrad(h["lr"], initial_accumulator_value=0.0, epsilon=h["eps"]),
    # sqrt(a + eps) g / sqrt(v + eps)
    "adadelta": lambda h: keras.optimizers.Adadelta(h["lr"], rho=h["rho"], epsilon=h["eps"]),
    # eps is added to the norm
    "adamax": lambda h: keras.optimizers.Adamax(**_adam(h)),
    # epsilon is added to the corrected root; see DIFFERENT
    "nadam": lambda h: keras.optimizers.Nadam(**_adam(h)),
    # the base class' p - lr weight_decay p first, then the sign, which does not read p
    "lion": lambda h: keras.optimizers.Lion(
        h["lr"], beta_1=h["beta1"], beta_2=h["beta2"], weight_decay=h["weight_decay"]
    ),
    # see DIFFERENT
    "lamb": lambda h: keras.optimizers.Lamb(**_adam(h), weight_decay=h["weight_decay"]),
    # no factor for shapes, which is 1 unless there are more rows than columns
    "muon": lambda h: keras.optimizers.Muon(
        h["lr"], momentum=h["mu"], weight_decay=None, rms_rate=None
    ),
    # the same means, quotient first
    "adafactor": lambda h: keras.optimizers.Adafactor(
        h["lr"], epsilon_1=h["eps1"], epsilon_2=h["eps2"], clip_threshold=h["clip"]
    ),
}

# Where epsilon joins sqrt(v) before the correction by sqrt(1 - beta2**t), so that the spec's eps is
# eps sqrt(1 - beta2**t) there.
BEFORE_CORRECTION = ("adam", "adamw", "amsgrad")

DIFFERENT: dict[str, str] = {
    "muon_adamw": "Keras scales the steps of matrices in its own way, and has no factor for shapes",
    "amsgrad": "takes the maximum before the bias correction, the spec after it",
    "adagrad": "adds eps under the root, the spec to it",
    "radam": "Keras has none",
    "nadam": "lets the momentum grow by 0.96**t, the spec by 0.96**(psi t)",
    "adabelief": "Keras has none",
    "yogi": "Keras has none",
    "adan": "Keras has none",
    "signum": "Keras has none",
    "lars": "Keras has none",
    "lamb": "lets the decay stand beside the ratio, the spec inside",
    "schedule_free_sgd": "Keras has none",
    "schedule_free_adamw": "Keras has none",
}

# Hyperparameters with which optimizers of DIFFERENT take the spec's steps after all.
WHERE: dict[str, Hypers] = {
    "adagrad": {"eps": 0.0},  # nothing to place
    "nadam": {"psi": 1.0},  # 0.96**t
    "lamb": {"weight_decay": 0.0},  # nothing to place
}


def _adam(h: Hypers) -> dict[str, Any]:
    return {
        "learning_rate": h["lr"], "beta_1": h["beta1"], "beta_2": h["beta2"], "epsilon": h["eps"]
    }  # fmt: skip


def agrees(name: str, hypers: Hypers) -> bool:
    """Whether Keras' own optimizer has the spec's equations with these hyperparameters."""
    if name not in NATIVE:
        return False
    values = WHERE.get(name, {} if name not in DIFFERENT else None)
    return values is not None and all(hypers[k] == v for k, v in values.items())


def native(run: Run) -> Any:
    """The first parameter after the run by Keras' own optimizer, or None where it has no such one."""
    if run.schedule is not None or not agrees(run.name, run.hypers):
        return None
    return trained(run)


def trained(run: Run) -> Any:
    """The same for every optimizer of NATIVE, whether it agrees or not."""
    start = np.asarray(run.params[0])
    h, before = run.hypers, keras.config.floatx()
    keras.config.set_floatx(start.dtype.name)  # learning_rate is kept in this dtype
    try:
        optimizer = NATIVE[run.name](h)
        variable = keras.Variable(start, dtype=start.dtype.name)
        optimizer.build([variable])
        for t, grads in enumerate(run.grads, 1):
            if run.name in BEFORE_CORRECTION:
                optimizer.epsilon = h["eps"] * math.sqrt(1 - h["beta2"] ** t)
            optimizer.apply([tf.constant(grads[0])], [variable])
        return np.asarray(variable)
    finally:
        keras.config.set_floatx(before)
