"""Symbolic shapes: how the shape of a result follows from those of its operands.

In: shapes, tuples of symbolic sizes such as ("rows", "cols"); "1" broadcasts. Out: shapes, or None where
they do not fit. Must not know: operations, messages.

A size written "a|b" is a where a condition on the parameter's shape holds and b where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping

Shape = tuple[str, ...]
FULL: Shape = ("shape",)
MATRIX: Shape = ("rows", "cols")
SHAPES: Mapping[str, Shape] = {
    "full": FULL,
    "row": ("rows", "1"),
    "column": ("1", "cols"),
    "scalar": (),
}
# What a state of a shape costs is so much a ...
UNITS: Mapping[Shape, str] = {
    ("rows", "1"): "row",
    ("1", "cols"): "column",
    (): "tensor",
    ("rows", "rows"): "pair of rows",
    ("cols", "cols"): "pair of columns",
    ("cols", "rows"): "entry of a transposed matrix",
    ("1", "1"): "matrix",
    ("cols", "1"): "column",
    ("1", "rows"): "row",
}


def features(count: int) -> Shape:
    """The shape of so many tensors side by side, each shaped like the parameter."""
    return (f"{count} x {FULL[0]}",)


def count_of(shape: Shape) -> int:
    """How many features there are; 0 for a shape without."""
    size = shape[0] if len(shape) == 1 else ""
    return int(size.split()[0]) if size.endswith(f" x {FULL[0]}") else 0


def describe(shape: Shape) -> str:
    """A shape in words, for messages: full, row, (rows, rows), 8 features of full."""
    for name, known in SHAPES.items():
        if known == shape:
            return name
    if count := count_of(shape):
        return f"{count} features of full"
    return "(" + ", ".join(shape) + ")"


def broadcast(a: Shape, b: Shape) -> Shape | None:
    """The shape of a + b; None where they do not fit."""
    if () in (a, b) or a == b:
        return a or b
    if len(a) != len(b):
        return None
    sizes = []
    for x, y in zip(a, b, strict=True):
        if x != y and "1" not in (x, y):
            return None
        sizes.append(y if x == "1" else x)
    return tuple(sizes)


def either(a: Shape, b: Shape) -> Shape | None:
    """The shape of what has shape a where a condition holds and b where it does not."""
    if () in (a, b) or a == b:
        return a or b
    a, b = (MATRIX if FULL in (a, b) and x == FULL else x for x in (a, b))
    if len(a) != len(b):
        return None
    return tuple(x if x == y else f"{x}|{y}" for x, y in zip(a, b, strict=True))
