"""NumPy: classes that update arrays in place; the reference for bits, and the embedded default."""

from __future__ import annotations

from pathlib import Path

from backends import OPERATORS, Backend

_FUNCTIONS = {
    "sqrt": "np.sqrt",
    "abs": "abs",
    "floor": "np.floor",
    "finite": "np.isfinite",
    "sign": "sign",
    "minimum": "minimum",
    "maximum": "maximum",
    "not": "np.logical_not",
}

backend = Backend(
    name="numpy",
    title="NumPy",
    folder=Path(__file__).parent,
    tensor={**OPERATORS, **_FUNCTIONS, "where": "np.where", "fill": "np.full_like"},
    scalar={
        **OPERATORS,
        **_FUNCTIONS,
        "where": "where",
        "power": "power",
        "real_power": "real_power",
        "exp": "exp",
        "log": "log",
        "cos": "cos",
        "to_float": "np.float64",
        "store": "store",
    },
    elementary={"floor": "np.floor", "where": "where", "absolute": "abs"},
    modes=("numpy",),
    runner="backends.numpy.runner",
)
