"""JAX: optax gradient transformations with an exact step besides; schedules are functions."""

from __future__ import annotations

from pathlib import Path

from backends import OPERATORS, Backend, guarded

_FUNCTIONS = {
    "sqrt": "sqrt",
    "abs": "jnp.abs",
    "floor": "jnp.floor",
    "finite": "jnp.isfinite",
    "where": "jnp.where",
    "sign": "sign",
    "minimum": "minimum",
    "maximum": "maximum",
    "not": "jnp.logical_not",
}

backend = Backend(
    name="jax",
    title="JAX",
    folder=Path(__file__).parent,
    tensor={**OPERATORS, **_FUNCTIONS, "fill": "jnp.full_like", "matmul": "matmul"},
    scalar={
        **OPERATORS,
        **_FUNCTIONS,
        "div": "div",
        "power": "power",
        "real_power": "real_power",
        "exp": "exp",
        "log": "log",
        "cos": "cos",
        "to_float": "to_float",
        "store": "store",
    },
    legalize=guarded,
    elementary={"guard": "fl", "floor": "jnp.floor", "where": "jnp.where", "absolute": "jnp.abs"},
    spelling={
        "lr": "learning_rate",
        "beta1": "b1",
        "beta2": "b2",
        "beta3": "b3",
        "base_lr": "init_value",
    },
    modes=("eager", "op by op", "jit", "update"),
    runner="backends.jax.runner",
    functions=("optimizer", "schedule", "transform"),
    delta=True,
    dialects=("optax",),
)
