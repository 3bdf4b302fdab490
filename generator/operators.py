"""Python's operators on SymPy expressions while a spec is traced: nothing rearranged, nothing lost.

In: nothing. Out: `as_written`, a context in which an expression keeps what its author wrote. Must not
know: the language, what expressions mean.

Under `evaluate(False)` alone SymPy flattens -(a*b), drops the sign of a - 0.0, sorts the sides of `&`
and has neither `@` nor `.T` on elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sympy as sp
from sympy.logic.boolalg import Boolean


def _negative(a: Any) -> Any:
    return sp.Mul(sp.S.NegativeOne, a)


def _difference(a: Any, b: Any) -> Any:
    a, b = sp.sympify(a), sp.sympify(b)
    if not (isinstance(a, sp.Expr) and isinstance(b, sp.Expr)):
        return NotImplemented
    # A literal may keep its place as `a + -5`, which has the same bits; zero has no negative here.
    return sp.Add(a, -b if isinstance(b, sp.Number) and b else _negative(b))


def _quotient(a: Any, b: Any) -> Any:
    a, b = sp.sympify(a), sp.sympify(b)
    if not (isinstance(a, sp.Expr) and isinstance(b, sp.Expr)):
        return NotImplemented
    return sp.floor(sp.Mul(a, sp.Pow(b, sp.S.NegativeOne)))


def _joined(kind: Any) -> Callable[[Any, Any], Any]:
    # Built by hand: the constructors of And and Or sort their operands and compare them.
    return lambda a, b: sp.Basic.__new__(kind, sp.sympify(a), sp.sympify(b))


def _swapped(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: operation(b, a)


def _function(name: str) -> Callable[..., Any]:
    return lambda *operands: sp.Function(name)(*operands)


_JOINING = {
    "__and__": _joined(sp.And),
    "__rand__": _swapped(_joined(sp.And)),
    "__or__": _joined(sp.Or),
    "__ror__": _swapped(_joined(sp.Or)),
    "__invert__": lambda a: sp.Basic.__new__(sp.Not, a),
}
_METHODS: dict[type, dict[str, Any]] = {
    sp.Expr: {
        "__sub__": _difference,
        "__rsub__": _swapped(_difference),
        "__floordiv__": _quotient,
        "__rfloordiv__": _swapped(_quotient),
        "__neg__": _negative,
        "__matmul__": _function("matmul"),
        "__rmatmul__": _swapped(_function("matmul")),
        "T": property(_function("transpose")),
        **_JOINING,
    },
    sp.Add: {"__neg__": _negative},
    sp.Mul: {"__neg__": _negative},
    Boolean: _JOINING,
}
_MISSING = object()


@contextmanager
def as_written() -> Iterator[None]:
    """Expressions keep their order, their grouping and every literal, and not a moment longer."""
    before = {
        (kind, name): kind.__dict__.get(name, _MISSING)
        for kind, methods in _METHODS.items()
        for name in methods
    }
    try:
        for kind, methods in _METHODS.items():
            for name, method in methods.items():
                setattr(kind, name, method)
        with sp.evaluate(False):
            yield
    finally:
        for (kind, name), method in before.items():
            if method is _MISSING:
                delattr(kind, name)
            else:
                setattr(kind, name, method)
