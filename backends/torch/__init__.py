"""PyTorch: subclasses of torch.optim.Optimizer and LRScheduler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from backends import OPERATORS, Backend
from generator.ir import Lowered, Number

_FUNCTIONS = {
    "sqrt": "sqrt",
    "abs": "abs",
    "sign": "sign",
    "finite": "isfinite",
    "minimum": "minimum",
    "maximum": "maximum",
    "where": "where",
    "not": "logical_not",
}



def _legalized(lowered: Lowered) -> Lowered:
    """Literals are divided by a function: a Python number over a tensor is rounded twice."""
    return lowered.replaced(
        lambda v: [
            replace(v, op="quotient") if v.op == "div" and isinstance(v.args[0], Number) else v
        ]
    )


backend = Backend(
    name="torch",
    title="PyTorch",
    folder=Path(__file__).parent,
    tensor={**OPERATORS, **_FUNCTIONS, "floor": "floor", "quotient": "quotient", "fill": "full_like"},
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
    legalize=_legalized,
    elementary={"floor": "floor", "where": "where", "absolute": "abs"},
    together={
        "betas": ("beta1", "beta2", "beta3"),
        ("rprop_torch", "etas"): ("etaminus", "etaplus"),
        ("rprop_torch", "step_sizes"): ("step_size_min", "step_size_max"),
        ("adafactor_torch", "eps"): ("eps1", "eps2"),
    },
    dialects=("torch",),
    implied={"schedule": ("base_lr",)},
    modes=("eager", "default", "fused"),
    runner="backends.torch.runner",
)
