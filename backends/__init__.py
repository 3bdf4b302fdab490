"""What a backend is, and which there are.

In: the folders of this package (and any import path). Out: `Backend` records. Must not know: how programs
come to be, what any one backend prints.

A backend is a folder: this record in its `__init__.py`, templates for optimizers, schedules, transforms
and the package's `__init__`, and `runtime.py`. Adding one edits nothing outside it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from generator.ir import Branch, Lowered, Number, Operand, Repeat, Step, Value

if __name__ != "backends":  # pragma: no cover - only when this folder itself is on sys.path
    raise ImportError("put the folder above `backends` on sys.path, not `backends` itself")

Table = Mapping[str, str]

# What Python's operators print as everywhere; a backend's tables start from these.
OPERATORS: Table = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "neg": "-{0}",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
    "is": "==",
    "and": "&",
    "or": "|",
    "floordiv": "//",
    "mod": "%",
    "length": "len({0})",
    "pi": "math.pi",
    "call": "{0}({1})",
    "item": "{0}[{1}]",
    "matrix": "is_matrix",
    "rows": "{0}.shape[-2]",
    "cols": "{0}.shape[-1]",
    **{op: op for op in ("row_sum", "row_mean", "col_sum", "col_mean")},
    **{op: op for op in ("mean_but_first", "mean_but_last")},
    "sum": "tree_sum",
    "mean": "tree_mean",
    "stack": "stack",
    "dense": "dense",
    "entry": "{0}[{1}]",
    "matmul": "@",
    "transpose": "transposed",
    "size_rows": "rows_of",
    "size_cols": "cols_of",
    "size_add": "+",
    "size_sub": "-",
    "size_mul": "*",
    "size_neg": "-{0}",
    "size_div": "size_ratio",
    "size_sqrt": "size_root",
    "size_maximum": "larger_size",
    "size_minimum": "smaller_size",
    "size_rounded": "rounded_size",
    "random_key": "random_key",
    "normal": "normal",
    "fl": "fl",
}

# Words as long as any backend's: which values get a line of their own is decided under these, so that
# a step has the same lines in every framework.
WIDEST: Table = {
    **OPERATORS,
    **{op: f"torch.{op}" for op in ("sqrt", "abs", "floor", "where")},
    **{op: op for op in ("sign", "minimum", "maximum")},
    "finite": "tf.math.is_finite",
    "not": "torch.logical_not",
    "matmul": "matmul",
    "fill": "full_like",
}


@dataclass(frozen=True)
class Backend:
    """Everything that the generator knows of a framework.

    Attributes:
        name: name of the generated package, and of the extra that installs the framework.
        title: what people call it.
        folder: where its templates and its runtime stand.
        tensor: operation table of the step, on tensors.
        scalar: operation table of step scope, in double.
        legalize: replaces operations by the backend's own of equal value (guards).
        elementary: its words for `floor`, `where` and `absolute` in step scope, and its `guard`.
        spelling: what its users call a hyperparameter, by name or by (spec, name).
        together: hyperparameters that its users pass as one tuple, by its name or by (spec, name).
        dialects: whose definitions of well-known names it knows: specs called NAME_torch are those of
            torch, and `like_torch.py` of every package has them as NAME.
        implied: hyperparameters, by kind, that the shell supplies: base_lr of a torch schedule.
        modes: how its code runs; `verify` compares each.
        runner: import path of the module that runs a trajectory in a mode.
        functions: the kinds that its users call as functions, not as classes.
        delta: whether the additive form is generated, too.
    """

    name: str
    title: str
    folder: Path
    tensor: Table
    scalar: Table
    legalize: Callable[[Lowered], Lowered] = lambda lowered: lowered
    elementary: Table = field(default_factory=dict)
    spelling: Mapping[str | tuple[str, str], str] = field(default_factory=dict)
    together: Mapping[str | tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    dialects: tuple[str, ...] = ()
    implied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    modes: tuple[str, ...] = ()
    runner: str = ""
    functions: tuple[str, ...] = ("transform",)
    delta: bool = False

    def spelled(self, spec: str, name: str) -> str:
        """What this backend's users call a hyperparameter."""
        return self.spelling.get((spec, name), self.spelling.get(name, name))


    def bundled(self, spec: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The tuples that this backend's users pass: name, and what is in it."""
        for key, members in self.together.items():
            if isinstance(key, str):
                yield key, members
            elif key[0] == spec:
                yield key[1], members


def discover() -> dict[str, Backend]:
    """The backends of this package, by name."""
    here = Path(__file__).parent
    found = sorted(p.parent.name for p in here.glob("*/__init__.py"))
    return {name: load(f"backends.{name}") for name in found}


def load(path: str) -> Backend:
    """The record of a backend by its import path; a stranger's is as good as ours."""
    made = importlib.import_module(path).backend
    assert isinstance(made, Backend), f"{path}.backend is not a Backend"
    return made


# ---------------------------------------------------------------------------------------------------
# Guards, for backends whose compilers fuse and reorder

_TENSOR_GUARDED = frozenset(
    {"mul", "div", "sqrt", "mean", "row_mean", "col_mean", "mean_but_first", "mean_but_last", "matmul"}
)
_SCALAR_GUARDED = frozenset(
    {"add", "sub", "mul", "div", "sqrt", "power", "real_power", "exp", "log", "cos"}
)


def guarded(lowered: Lowered) -> Lowered:
    """Round the result of each operation that a compiler would fuse, merge or replace: `fl(...)`.

    In a step these are products, quotients, roots and means, and every literal; in step scope sums as well,
    and every literal that something is divided by.
    """
    made = lowered.replaced(lambda v: _guard(v, _TENSOR_GUARDED, tensor=True))
    return replace(made, scalars=_guarded_block(lowered.scalars))


def _guarded_block(values: tuple[Step, ...]) -> tuple[Step, ...]:
    made: list[Step] = []
    for v in values:
        if isinstance(v, Repeat):
            made.append(replace(v, body=_guarded_block(v.body)))
        elif isinstance(v, Branch):
            ways = _guarded_block(v.body), _guarded_block(v.otherwise)
            made.append(replace(v, body=ways[0], otherwise=ways[1]))
        else:
            made += _guard(v, _SCALAR_GUARDED, tensor=False)
    return tuple(made)


def _guard(v: Value, which: frozenset[str], tensor: bool) -> list[Value]:
    made: list[Value] = []
    args: list[Operand] = []
    for position, a in enumerate(v.args):
        literal = isinstance(a, Number) and isinstance(a.value, float)
        arithmetic = v.op in ("add", "sub", "mul", "div")
        if literal and ((tensor and arithmetic) or (v.op == "div" and position == 1)):
            name = f"{v.name}.{position}!"
            made.append(Value(name, "fl", (a,), "float"))
            a = name
        args.append(a)
    if v.op in which and v.type == "float":
        inner = f"{v.name}!"
        made.append(replace(v, name=inner, args=tuple(args), spec=False))
        made.append(replace(v, op="fl", args=(inner,)))
    else:
        made.append(replace(v, args=tuple(args)))
    return made


