"""PyTorch: subclasses of torch.optim.Optimizer and LRScheduler."""

from __future__ import annotations

from pathlib import Path

from backends import OPERATORS, Backend

_FUNCTIONS = {
    "sqrt": "sqrt",
    "abs": "abs",
    "sign": "sign",
    "minimum": "minimum",
    "maximum": "maximum",
    "where": "where",
    "not": "logical_not",
}

backend = Backend(
    name="torch",
    title="PyTorch",
    folder=Path(__file__).parent,
    tensor={**OPERATORS, **_FUNCTIONS, "floor": "torch.floor"},
    scalar={
        **OPERATORS,
        **_FUNCTIONS,
        "div": "div",
        "floor": "floor",
        "power": "power",
        "real_power": "real_power",
        "exp": "exp",
        "log": "log",
        "cos": "cos",
        "to_float": "to_float",
        "store": "store",
        "and": "logical_and",
        "or": "logical_or",
    },
    elementary={"floor": "floor", "where": "where", "absolute": "abs"},
    together={"betas": ("beta1", "beta2", "beta3")},
    implied={"schedule": ("base_lr",)},
    modes=("eager", "compile"),
    runner="backends.torch.runner",
)
