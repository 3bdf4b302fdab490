"""TensorFlow: subclasses of keras.optimizers.Optimizer and LearningRateSchedule."""

from __future__ import annotations

from pathlib import Path

from backends import OPERATORS, Backend, guarded

_FUNCTIONS = {
    "sign": "sign",
    "finite": "tf.math.is_finite",
    "minimum": "minimum",
    "maximum": "maximum",
    "not": "logical_not",
}

backend = Backend(
    name="tensorflow",
    title="TensorFlow",
    folder=Path(__file__).parent,
    tensor={
        **OPERATORS,
        **_FUNCTIONS,
        "sqrt": "sqrt",
        "abs": "tf.abs",
        "floor": "tf.floor",
        "where": "where",
        "fill": "full_like",
    },
    scalar={
        **OPERATORS,
        **_FUNCTIONS,
        "sqrt": "sqrt",
        "abs": "abs",
        "div": "div",
        "floor": "floor",
        "where": "where",
        "power": "power",
        "real_power": "real_power",
        "exp": "exp",
        "log": "log",
        "cos": "cos",
        "to_float": "to_float",
        "store": "store",
    },
    legalize=guarded,
    elementary={"guard": "fl", "floor": "floor", "where": "where", "absolute": "abs"},
    spelling={
        "lr": "learning_rate",
        "beta1": "beta_1",
        "beta2": "beta_2",
        "beta3": "beta_3",
        "eps": "epsilon",
        "base_lr": "initial_learning_rate",
    },
    dialects=("keras",),
    modes=("eager", "graph", "xla"),
    runner="backends.tensorflow.runner",
)
