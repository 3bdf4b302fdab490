"""Measures the promise: every backend, in every mode, takes the trajectory of the lowered program.

In: specs, backends, a number of steps. Out: for each spec, backend, mode and dtype the largest distance
in units in the last place, never "ok"; beside it how far we and the framework's own optimizer are from
the 50-digit oracle. Must not know: any framework (each backend's runner does).
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import backends
from backends import Backend
from backends.running import Outcome, Policy, Run, further
from generator import catalogue, interpret, ir, products, regions, render, sample
from generator.catalogue import Entry
from generator.errors import NotAvailable
from generator.interpret import Exact, Oracle, schedule_value
from generator.ir import REQUIRED, Domain, Lowered, Program
from generator.storage import Storage

SHAPES = ((), (1,), (7,), (64, 33), (3, 3, 8, 16), (0, 4))
ONLY = {"": SHAPES, "vector": SHAPES[:3], "matrix": ((5, 1), (1, 7), (20, 48), *SHAPES[3:])}
# What is compiled anew for each shape and case is, in tests, for these; for the last where every number
# goes its own way.
FEW_SHAPES = {"": ((7,), (64, 33)), "vector": ((), (7,)), "matrix": ((20, 48), (64, 33))}
DTYPES = ("float32", "float64", "bfloat16", "float16")
SCHEDULE = "warmup_cosine"
# A few programs whose parameters and states are kept in all ways: one that goes number by number, one
# that does not, one whose gradient is taken elsewhere. The codecs are the same for all.
STORED = ("adamw", "adafactor", "nesterov")
LARGE = ((), (7,), (64, 65), (5000,))  # some of them large enough for 8 bits
WAYS = {
    "float32": (("nearest", "8bit"),),
    "bfloat16": (("master", "float32"), ("kahan", "8bit"), ("stochastic", "8bit")),
    "float16": (("master", "8bit"), ("kahan", "float32"), ("stochastic", "float32")),
}
ORACLE_SHAPE = (8, 8)


@dataclass(frozen=True)
class Case:
    """One run: start, gradients, hyperparameters."""

    name: str
    params: list[Any]
    grads: list[list[Any]]
    hypers: dict[str, Any]
    schedule: tuple[str, dict[str, Any]] | None = None
    further: list[list[list[Any]]] = field(default_factory=list)  # see running.Run
    given: list[dict[str, Any]] = field(default_factory=list)
    storage: Storage = field(default_factory=Storage)


@dataclass(frozen=True)
class Brief:
    """What tests run of the grid, which have little time; `verify` runs all of it.

    Modes that compile do so for each shape and case anew. They run the defaults in float32, and every other
    case in turn: what is not a mode's own, such as an absurd hyperparameter, is in the others, too.

    Attributes:
        every_mode: whether the defaults run in each such mode, or in one of a backend in turn.
        parts: among how many backends the other cases are dealt out.
        part: which of them this one is.
    """

    every_mode: bool = True
    parts: int = 1
    part: int = 0


@dataclass
class Row:
    """One line of the result."""

    spec: str
    backend: str
    mode: str
    dtype: str
    ulp: float = 0.0
    where: str = ""  # the case and the array with that distance
    ours: float = math.nan  # rms distance from the oracle, of the framework's float32 run
    native: float = math.nan  # the same for the framework's own optimizer
    error: str = ""
    cases: int = 0
    subnormal: int = 0  # entries that differ only below the smallest normal number, which XLA flushes
    products: float = 0.0  # distance after matrix products, in units of the largest entry's last place
    allowed: float = 0.0  # how large it may be where it is; see products.py
    infinite: int = 0  # numbers of the reference that are inf or NaN although nothing asks for it
    program: str = ""  # the digest of what was measured, as in the first lines of generated files


# ---------------------------------------------------------------------------------------------------
# The grid


def numpy_dtype(name: str) -> Any:
    """A NumPy dtype; bfloat16 comes from the ml_dtypes that JAX and TensorFlow bring."""
    if name == "bfloat16":
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    return np.dtype(name)


def compute_dtype(name: str) -> Any:
    """float64 for float64, else float32."""
    return np.dtype("float64" if name == "float64" else "float32")


def cases(
    lowered: Lowered, dtype: str, steps: int, seed: int = 0, brief: Brief | None = None
) -> Iterator[Case]:
    """Default and absurd hyperparameters, constant lr and a schedule, every choice, missing gradients.

    bfloat16 and float16 are computed in float32, where the absurd cases are covered. In tests each is there
    once, low hyperparameters in float64, the others in float32, the schedule together with the defaults; of
    a long run that and, in float64, a constant, on a few shapes. All shapes are in float32, the defaults
    once more on some shapes and on a few, for what is long in compiling; what runs in which mode,
    `_left_to_others` says.
    """
    program = lowered.program
    default, shapes = defaults(program), tuple[tuple[int, ...], ...](ONLY[program.only])
    few = FEW_SHAPES[program.only][lowered.elementwise :] if brief else shapes
    scheduled = None
    starts = [s.value for s in ir.statements(program.body) if isinstance(s, ir.Start)]
    begins = ir.Hyper("lr") in starts
    if "lr" in default and not begins:  # a state that begins at lr goes its own way
        total = max(steps - 2, 2)
        rate = {"base_lr": 10 * default["lr"], "warmup": min(5, total // 2), "total": total}
        scheduled = (SCHEDULE, {**rate, "lr_min": default["lr"] / 10})
    narrow, long = dtype in ("bfloat16", "float16"), brief and steps > _FEW
    if long:
        shapes = FEW_SHAPES[program.only]
    if not brief or long or dtype != "float64":
        driven = scheduled if brief and dtype == "float32" else None
        yield _case("default", dtype, steps, seed, default, shapes, driven)
        if brief:
            every_other = shapes[_turn(program.name, 2) :: 2]
            yield _case(f"default{_ON_SOME}", dtype, steps, seed, default, every_other, driven)
            # Gradients that are missing are another function in TensorFlow.
            yield _case(f"default{_ON_FEW}", dtype, steps, seed, default, few, driven, missing=False)
    if program.name in STORED:
        for i, (store, states) in enumerate(WAYS.get(dtype, ())):
            large = LARGE[1:3] if brief else LARGE
            case = _case(f"{store} {states}", dtype, min(steps, _FEW), seed + 4 + i, default, large)
            yield replace(case, storage=Storage(store, states, seed))
    if scheduled and not brief:
        yield _case("schedule", dtype, steps, seed + 1, default, shapes, scheduled)
    if narrow or long:
        return
    if not brief or dtype == "float64":
        yield _case("low", dtype, steps, seed + 2, _extreme(program, low=True), few)
    if not brief or dtype == "float32":
        yield _case("high", dtype, steps, seed + 3, _extreme(program, low=False), few)
        for i, chosen in enumerate(choices(program)):
            name = ", ".join(f"{k}={value}" for k, value in chosen.items())
            yield _case(name, dtype, min(steps, _FEW), seed + 20 + i, {**default, **chosen}, few)


def defaults(program: Program) -> dict[str, Any]:
    """Every hyperparameter's default, or a value from its domain where it must be given."""
    made: dict[str, Any] = {}
    for p in program.parameters:
        made[p.name] = _some(p.domain) if p.default == REQUIRED else p.default
    return made


def _some(d: Domain) -> Any:
    """A value of a domain."""
    if d.many:
        return (_some(replace(d, many=False, optional=False)),) * max(d.least, 2)
    if d.type in ("bool", "choice"):
        return d.choices[0] if d.choices else True
    return 1 if d.type == "int" else max(d.low, 0.0) + 0.01


def choices(program: Program) -> list[dict[str, Any]]:
    """Other choices than the default: all of them together where they are few, else one by one."""
    default, every, numbers = defaults(program), dict[str, list[Any]](), regions.amounts_of(program)
    for p in program.parameters:
        d, values = p.domain, [default[p.name]]
        if d.type in ("bool", "choice") and not d.many:
            values += d.choices or (False, True)
        if d.optional and not d.many:
            values.append(_some(d) if default[p.name] is None else None)
        if p.name in numbers:
            values.append(0 * _some(d) if default[p.name] > 0 else 0.9 if d.contains(0.9) else _some(d))
        others = [x for i, x in enumerate(values) if x not in values[:i]]
        every |= {p.name: others} if len(others) > 1 else {}
    if math.prod(len(x) for x in every.values()) > _MANY:
        made = [{name: x} for name, values in every.items() for x in values[1:]]
    else:
        made = [dict(zip(every, x, strict=True)) for x in itertools.product(*every.values())][1:]
    return [chosen for chosen in made if sample.fit(program, {**default, **chosen})]


NOT_ADDITIVE = "not additive"
_MANY = 12  # combinations of choices
_FEW = 100  # steps
_ON_SOME, _ON_FEW = ", on some shapes", ", on few shapes"


def _turn(what: str, count: int) -> int:
    """One of so many, the same in every process."""
    return zlib.crc32(what.encode()) % count


def _left_out(policy: Policy, mode: str, case: Case, first: bool, dtype: str) -> str:
    """Why a mode does not run a case; empty where it does."""
    seldom = not first or dtype not in ("float32", "float64")
    if len(case.grads) > _FEW and mode in policy.dispatched and seldom:
        return f"of more than {_FEW} steps one case of float32 and one of float64 only"
    if mode in policy.slow and seldom:
        return "one case of float32 and one of float64 only"
    return ""


def _left_to_others(
    brief: Brief, policy: Policy, modes: Sequence[str], mode: str, case: Case, dtype: str, spec: str
) -> str:
    """The same for tests."""
    name = case.name.removesuffix(_ON_SOME).removesuffix(_ON_FEW)  # one turn, on whatever shapes
    long = len(case.grads) > _FEW
    dispatched, compiled = mode in policy.dispatched, mode in policy.compiled
    many = dispatched and brief.every_mode
    if name == "default":
        shapes = (_ON_SOME if many else _ON_FEW) if compiled else ""
        if case.name != name + shapes:
            return "for modes that take longer, or less"
    if not compiled:
        return ""
    slow = mode in policy.slow
    first = name == "default" and dtype == "float32"
    if first and brief.every_mode and not (long and slow):
        return ""
    if slow or (long and dispatched):
        return "one case only"
    turns, key = [m for m in modes if m in policy.compiled - policy.slow], f"{spec} {dtype} {name}"
    here = name == "default" or _turn(f"{key} on", brief.parts) == brief.part
    mine = here and turns[_turn(key, len(turns))] == mode
    return "" if mine else "it is the turn of another mode, if any"


def _extreme(program: Program, low: bool) -> dict[str, Any]:
    """Hyperparameters near the ends of their domains."""
    chosen: dict[str, Any] = {}
    default = defaults(program)
    for p in program.parameters:
        d, value = p.domain, default[p.name]
        if d.type == "float" and not d.many and value is not None:
            if d.high == 1.0:
                value = (1e-6 if d.low_open else 0.0) if low else 0.99999
            elif p.name == "lr":
                value = 1e-7 if low else 10.0
            elif d.low == 0.0:
                value = (1e-6 if d.low_open else 0.0) if low else 3.0
        chosen[p.name] = value
    return chosen


def _case(
    name: str,
    dtype: str,
    steps: int,
    seed: int,
    hypers: dict[str, Any],
    shapes: Sequence[tuple[int, ...]],
    schedule: tuple[str, dict[str, Any]] | None = None,
    missing: bool = True,
) -> Case:
    rng = np.random.default_rng(seed)
    kind = numpy_dtype(dtype)
    half = dtype == "float16"

    def gradient(shape: tuple[int, ...]) -> Any:
        decades = rng.uniform(-2, 2, shape) if half else rng.uniform(-4, 4, shape)
        values = rng.standard_normal(shape) * 10.0**decades
        return np.asarray(np.where(rng.random(shape) < 0.1, 0.0, values)).astype(kind)

    params = [np.asarray(rng.standard_normal(s)).astype(kind) for s in shapes]
    grads: list[list[Any]] = []
    for step in range(steps):
        made: list[Any] = [gradient(s) for s in shapes]
        if missing and step % 3 == 2:
            made[1:4:2] = [None for _ in made[1:4:2]]
        grads.append(made)
    return Case(name, params, grads, hypers, schedule)


# ---------------------------------------------------------------------------------------------------
# The reference


def reference(
    lowered: Lowered,
    schedule: Lowered | None,
    case: Case,
    dtype: str,
    policy: Policy,
    operations: products.Operations = interpret.EXACT,
) -> Outcome:
    """The lowered program, node by node in NumPy, under an ecosystem's contract."""
    kind = compute_dtype(dtype)
    runs = [
        Exact(lowered, np.array(p), dtype=kind, operations=operations, storage=case.storage, stream=i)
        for i, p in enumerate(case.params)
    ]
    hypers = {k: _counted(k, v, policy) for k, v in case.hypers.items()}
    for r in runs:
        r.start(hypers)
    for step, grads in enumerate(case.grads):
        if case.schedule is not None and schedule is not None:
            hypers["lr"] = schedule_value(schedule, step, case.schedule[1])
        clock = step + 1 if policy.missing == "clock" else None
        made = iter(case.further[step] if case.further else ())

        def again(name: str, points: list[Any], made: Any = made) -> list[Any]:
            pairs = zip(next(made), points, strict=True)
            return [a if a is None else further(a, p, np.where) for a, p in pairs]

        inputs = {**(case.given[step] if case.given else {}), **case.hypers.get("weights", {})}
        given = {k: _each(v, len(runs)) for k, v in inputs.items()}
        interpret.step(runs, grads, hypers, clock, given, again)
        for r, g in zip(runs, grads, strict=True):
            if g is None and clock is not None and not lowered.shared_states:
                r.wait(hypers, clock)
    subnormal = [r.subnormal for r in runs] if policy.flushes else [False for _ in runs]
    return Outcome([r.theta for r in runs], [r.state for r in runs], subnormal)


def _each(value: Any, count: int) -> list[Any]:
    """An input for each parameter; a number is the same for all."""
    return value if isinstance(value, list) else [value] * count


def allowed(
    lowered: Lowered, schedule: Lowered | None, case: Case, dtype: str, policy: Policy, want: Outcome
) -> Outcome | None:
    """How far from the reference matrix products may lead; None where there are none."""
    if not products.used(lowered):
        return None
    return products.tolerances(
        lambda operations: reference(lowered, schedule, case, dtype, policy, operations), want
    )


def _counted(name: str, value: Any, policy: Policy) -> Any:
    """A hyperparameter that the framework keeps in float32 counts as that."""
    return float(np.float32(value)) if name in policy.rounds else value


def distance(a: Any, b: Any) -> float:
    """The largest distance in units in the last place; NaN equals NaN, +0 differs from -0."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if a.size == 0:
        return 0.0
    width: Any = {2: np.int16, 4: np.int32, 8: np.int64}[a.dtype.itemsize]
    nan_a, nan_b = a != a, b != b
    if (nan_a != nan_b).any():
        return math.inf

    def ordered(x: Any) -> Any:
        """Bits as integers in the order of the numbers; -0 lies one below +0."""
        bits = x.view(width).astype(object if width == np.int64 else np.int64)
        return np.where(bits < 0, -(bits & int(np.iinfo(width).max)) - 1, bits)

    gap = np.abs(ordered(a.reshape(-1)) - ordered(b.reshape(-1)))
    gap[nan_a.reshape(-1)] = 0
    return float(gap.max())


@dataclass
class Gap:
    """How far two outcomes are apart: the largest distance, where, and how much flushing explains."""

    ulp: float = 0.0
    where: str = ""
    subnormal: int = 0
    products: float = 0.0
    allowed: float = 0.0

    def add(
        self, want: Any, got: Any, where: str, subnormal: Any = False, tolerance: float = 0.0
    ) -> None:
        """Take in two arrays; what differs since a subnormal number was flushed is counted apart.

        `subnormal` says where a number on the way was one; False: nothing is flushed. A number that is
        one itself may become a zero, or another such number, and nothing else. With a `tolerance`
        matrix products have led here, and what is within it is no distance.
        """
        if tolerance and (apart := products.distance(want, got)) <= tolerance:
            units = apart / (products.unit(want) or 1.0)
            if units > self.products:
                self.products, self.allowed = units, tolerance / (products.unit(want) or 1.0)
            return
        gap = distance(want, got)
        if gap > 0 and subnormal is not False and (want.shape, want.dtype) == (got.shape, got.dtype):
            tiny = np.finfo(compute_dtype(want.dtype.name)).tiny
            apart = (np.abs(want) > 0) & (np.abs(want) < tiny) & (np.abs(got) < tiny)
            if np.shape(subnormal) == want.shape:
                apart |= subnormal
            differs = ~((want == got) | ((want != want) & (got != got)))
            self.subnormal += int(np.sum(differs & apart))
            gap = distance(want, np.where(apart, want, got))
        if gap > self.ulp:
            self.ulp, self.where = gap, where


def compared(want: Outcome, got: Outcome, kind: Any, allowed: Outcome | None = None) -> Gap:
    """The distance over all parameters and states; `allowed` says what matrix products may do."""
    gap = Gap()
    for i, (p, q) in enumerate(zip(want.params, got.params, strict=True)):
        apart = want.subnormal[i] if want.subnormal else False
        gap.add(p, q, f"theta{list(np.shape(p))}", apart, allowed.params[i] if allowed else 0.0)
        for name, value in want.states[i].items():
            if name in got.states[i]:
                mine = np.asarray(value, kind)
                theirs = np.asarray(got.states[i][name]).astype(kind).reshape(mine.shape)
                tolerance = allowed.states[i][name] if allowed else 0.0
                gap.add(mine, theirs, f"{name}{list(np.shape(p))}", apart, tolerance)
    return gap


# ---------------------------------------------------------------------------------------------------
# One job: a spec on a backend


def _runner(backend: Backend, wake: bool = True) -> Any:
    """A backend's runner, without what its framework writes while it starts, or looks for devices."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        runner = importlib.import_module(backend.runner)
        if wake:
            getattr(runner, "wake", lambda: None)()
        return runner
    finally:
        os.dup2(kept, 2)
        os.close(kept)


_NUMBERS = itertools.count()  # no package's name is given twice


def built(entries: Sequence[Entry], backend: Backend, folder: Path) -> ModuleType:
    """The generated package of some specs, in a folder of its own, imported."""
    name = f"verified_{backend.name}_{os.getpid()}_{next(_NUMBERS)}"
    lowered = [e.lowered for e in entries]
    render.write(render.package(lowered, backend), folder / name)
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def job(
    path: str,
    backend_path: str,
    steps: int,
    dtypes: Sequence[str],
    device: str,
    seed: int = 0,
    brief: Brief | None = None,
) -> list[dict[str, Any]]:
    """All modes, dtypes and cases of one spec on one backend."""
    backend = backends.load(backend_path)
    runner = _runner(backend)
    policy: Policy = runner.POLICY
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        (schedule,) = catalogue.entries([SCHEDULE])
        for entry in catalogue.entries([path]):
            before = len(rows)
            package = built([entry, schedule], backend, Path(folder))
            if entry.program.kind == "schedule":
                rows += _schedule_rows(entry, backend, runner, package, steps)
            elif entry.program.kind == "transform":
                rows += _transform_rows(entry, backend, runner, package, dtypes)
            elif entry.program.kind == "optimizer":
                for dtype in dtypes:
                    rows += _rows(
                        entry, schedule.lowered, backend, runner, policy, package, steps, dtype,
                        device, seed, brief,
                    )  # fmt: skip
            _forget(package.__name__)
            for row in rows[before:]:
                row.program = render.digest(entry.program)
    return [asdict(r) for r in rows]


def _forget(package: str) -> None:
    """Let go of a package: frameworks keep what was compiled for it as long as they can."""
    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(f"{package}."):
            for value in list(vars(module).values()):
                getattr(value, "cache_clear", lambda: None)()
            del sys.modules[name]


def _rows(
    entry: Entry,
    schedule: Lowered,
    backend: Backend,
    runner: Any,
    policy: Policy,
    package: ModuleType,
    steps: int,
    dtype: str,
    device: str,
    seed: int,
    brief: Brief | None,
) -> list[Row]:
    lowered = entry.lowered
    rows = {m: Row(lowered.program.name, backend.name, m, dtype) for m in backend.modes}
    sums = lowered.delta is not None and dtype in ("float32", "float64")
    able = [m for m in backend.modes if sums or m not in policy.additive]
    for number, case in enumerate(cases(lowered, dtype, steps, seed, brief)):
        if policy.missing == "refuse":
            full = [[_given(g, p) for g, p in zip(gs, case.params, strict=True)] for gs in case.grads]
            case = replace(case, grads=full)
        case = _extended(case, lowered)
        want = reference(lowered, schedule, case, dtype, policy)
        bounds = allowed(lowered, schedule, case, dtype, policy, want)
        wide = dtype in ("float32", "float64")
        infinite = _infinite(want.params) if wide and case.name == "default" else 0
        for mode, row in rows.items():
            if mode not in able:
                row.error = NOT_ADDITIVE if lowered.delta is None else "float32 and float64 only"
                continue
            if brief:
                why = _left_to_others(brief, policy, able, mode, case, dtype, lowered.program.name)
            else:
                why = _left_out(policy, mode, case, number == 0, dtype)
            if why:
                row.error = row.error or why
                continue
            run = Run(
                package, lowered.program.name, case.params, case.grads, case.hypers,
                case.schedule, device, case.further, case.given, case.storage.options(),
            )  # fmt: skip
            try:
                gap = compared(want, runner.trajectory(run, mode), compute_dtype(dtype), bounds)
            except Exception as error:  # a mode that fails is a result, too
                row.ulp, row.error = math.inf, f"{type(error).__name__}: {error}"[:300]
                continue
            row.cases += 1
            row.infinite += infinite
            row.subnormal += gap.subnormal
            if gap.products > row.products:
                row.products, row.allowed = gap.products, gap.allowed
            if gap.ulp > row.ulp:
                row.ulp, row.where = gap.ulp, f"{case.name}: {gap.where}"
    if dtype == "float32" and not brief and rows:
        first = next(iter(rows.values()))
        first.ours, first.native = _from_oracle(lowered, runner, package, min(steps, 200), seed)
    return list(rows.values())


def _infinite(values: Sequence[Any]) -> int:
    """How many numbers are inf or NaN: that they are so everywhere shows little."""
    return sum(int(np.sum(~np.isfinite(v))) for v in values)


def _given(g: Any, p: Any) -> Any:
    return np.zeros_like(p) if g is None else g


def _extended(case: Case, lowered: Lowered) -> Case:
    """The case with what else the program reads: arrays made of the gradients, in another order."""
    count = sum(x.gradient for x in lowered.given)
    inputs = [x for x in lowered.given if x.asked]
    if once := weights(lowered):
        case = replace(case, hypers={**case.hypers, "weights": once})
    further, given = [], []
    for step, grads in enumerate(case.grads):
        further.append([_rolled(grads, k + 1) for k in range(count)])
        values = enumerate(inputs, count + 1)
        given.append({x.name: 0.5 + step % 7 if x.scalar else _rolled(grads, k) for k, x in values})
    return replace(case, further=further if count else [], given=given if inputs else [])


def weights(lowered: Lowered) -> dict[str, Any]:
    """Meta-parameters of a program, drawn by name and shape; as large as a network begins with."""
    made = {}
    for x in lowered.given:
        if x.sizes is not None:
            rng = np.random.default_rng([*x.sizes, *x.name.encode()])
            size = 1 / math.sqrt(x.sizes[-1] if x.sizes else 1)
            made[x.name] = np.asarray(size * rng.standard_normal(x.sizes), np.float32)
    return made


def _rolled(grads: Sequence[Any], k: int) -> list[Any]:
    return [g if g is None else np.roll(g, k) for g in grads]


def _from_oracle(
    lowered: Lowered, runner: Any, package: ModuleType, steps: int, seed: int
) -> tuple[float, float]:
    """Rms distance from the 50-digit trajectory: ours, and the framework's own optimizer's."""
    rng = np.random.default_rng(seed + 100)
    theta = rng.standard_normal(ORACLE_SHAPE).astype(np.float32)
    grads = [rng.standard_normal(ORACLE_SHAPE).astype(np.float32) for _ in range(steps)]
    hypers = defaults(lowered.program)
    hypers = {k: _counted(k, v, runner.POLICY) for k, v in hypers.items()}
    oracle = Oracle(lowered, theta)
    case = _extended(Case("", [theta], [[g] for g in grads], hypers), lowered)
    for step, g in enumerate(grads):
        made = iter(case.further[step] if case.further else ())

        def again(name: str, point: Any, made: Any = made) -> Any:
            return further(next(made)[0], point, np.where)

        inputs = {**(case.given[step] if case.given else {}), **case.hypers.get("weights", {})}
        given = {k: _each(v, 1)[0] for k, v in inputs.items()}
        oracle.step(g, hypers, given, again)
    truth = oracle.theta.astype(np.float64)
    run = Run(
        package, lowered.program.name, case.params, case.grads, case.hypers,
        further=case.further, given=case.given,
    )  # fmt: skip
    mode = backends_modes(runner)[0]
    ours = np.asarray(runner.trajectory(run, mode).params[0], np.float64)
    native = getattr(runner, "native", lambda run: None)(run)
    return _rms(ours - truth), math.nan if native is None else _rms(np.asarray(native) - truth)


def backends_modes(runner: Any) -> tuple[str, ...]:
    """The modes of the backend that a runner belongs to."""
    return backends.load(runner.__name__.rpartition(".")[0]).modes


def _rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _schedule_rows(
    entry: Entry, backend: Backend, runner: Any, package: ModuleType, steps: int
) -> list[Row]:
    """A schedule's values, in double."""
    program = entry.program
    hypers = schedule_hypers(program, max(steps, 20))
    at = [*range(max(steps, 20) + 3), 10**6]
    want = np.array([schedule_value(entry.lowered, n, _functions(hypers)) for n in at])
    rows = []
    for mode in backend.modes:
        row = Row(program.name, backend.name, mode, "float64", cases=1, infinite=_infinite([want]))
        try:
            got = runner.schedule(package, program.name, hypers, at, mode)
            gap = Gap()
            apart: Any = np.zeros(len(at), bool) if runner.POLICY.flushes else False
            gap.add(want, np.asarray(got, np.float64), "", apart)
            row.ulp, row.subnormal = gap.ulp, gap.subnormal
        except Exception as error:
            row.ulp, row.error = math.inf, f"{type(error).__name__}: {error}"[:300]
        rows.append(row)
    return rows


def _functions(hypers: dict[str, Any]) -> dict[str, Any]:
    def function(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(function(v) for v in value)
        return value

    return {k: function(v) for k, v in hypers.items()}


def schedule_hypers(program: Program, total: int) -> dict[str, Any]:
    """Hyperparameters that reach every branch within `total` steps."""
    chosen: dict[str, Any] = {}
    lengths = {"warmup": total // 5, "stable": total // 2, "total": total, "first": total // 7 + 1}
    for p in program.parameters:
        d = p.domain
        if d.type == "schedule":
            parts = (_decaying, _constant, *[_decaying] * max(d.least - 2, 1))
            chosen[p.name] = parts if d.many else _decaying
        elif d.many:
            many: tuple[float, ...] = (total // 4, total // 2) if d.type == "int" else (0.03, 0.007)
            chosen[p.name] = many + many[-1:] * (d.least - 2)
        elif d.type == "bool":
            chosen[p.name] = True
        elif d.type == "int":
            chosen[p.name] = lengths.get(p.name, 3)
        elif p.name == "base_lr":
            chosen[p.name] = 0.1
        elif d.high == 1.0:
            chosen[p.name] = 0.3
        else:
            chosen[p.name] = 0.013 if p.default is None or p.default == "required" else p.default
    return chosen


def _decaying(n: Any) -> Any:
    return 0.1 / (1.0 + 0.25 * n)


def _constant(n: Any) -> Any:
    return 0.02 + 0.0 * n


def _transform_rows(
    entry: Entry, backend: Backend, runner: Any, package: ModuleType, dtypes: Sequence[str]
) -> list[Row]:
    program = entry.program
    rows: list[Row] = []
    rng = np.random.default_rng(5)
    for dtype in dtypes:
        kind = numpy_dtype(dtype)
        shapes = ONLY[program.only]
        g = [np.asarray(rng.standard_normal(s) * 3).astype(kind) for s in shapes]
        theta = [np.asarray(rng.standard_normal(s)).astype(kind) for s in shapes]
        clock: dict[str, Any] = {"t": 3} if entry.lowered.clocked else {}
        made = {mode: Row(program.name, backend.name, mode, dtype) for mode in backend.modes}
        for hypers in transform_hypers(program):
            kind = compute_dtype(dtype)
            runs = [Exact(entry.lowered, np.array(p), dtype=kind, stream=i) for i, p in enumerate(theta)]
            interpret.step(runs, g, hypers, **clock)
            want = [r.theta for r in runs]
            for mode, row in made.items():
                try:
                    got = runner.transform(package, program.name, hypers, theta, g, mode, **clock)
                    gap = max(distance(a, b) for a, b in zip(want, got, strict=True))
                except Exception as error:
                    row.ulp, row.error = math.inf, f"{type(error).__name__}: {error}"[:300]
                    continue
                row.cases += 1
                row.infinite += _infinite(want) if dtype in ("float32", "float64") else 0
                if gap > row.ulp:
                    row.ulp, row.where = gap, ", ".join(f"{k}={x}" for k, x in hypers.items())
        rows += made.values()
    return rows


def transform_hypers(program: Program) -> list[dict[str, Any]]:
    """Ordinary numbers, with every choice."""
    given = {"int": 5, "float": 0.37}
    made = {p.name: given.get(p.domain.type, _some(p.domain)) for p in program.parameters}
    return [{**made, **chosen} for chosen in ({}, *choices(program))]


# ---------------------------------------------------------------------------------------------------
# The command


@dataclass
class Report:
    """A whole run."""

    steps: int
    machine: dict[str, str]
    versions: dict[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)


def versions() -> dict[str, str]:
    """What is installed of all that matters for bits."""
    import importlib.metadata as metadata

    found = {"python": platform.python_version()}
    for name in ("numpy", "torch", "jax", "jaxlib", "optax", "tensorflow", "keras", "sympy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """The machine in words; no names of hosts or paths."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {"system": platform.system(), "processor": model, "cores": str(os.cpu_count())}


def main(arguments: argparse.Namespace) -> int:
    """`python -m generator verify`: 0 if every distance is 0, else 1."""
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    chosen = catalogue.entries(arguments.specs)
    chosen = [e for e in chosen if e.spec.kind != "wrapper" or arguments.specs]
    files = list(dict.fromkeys(e.source for e in chosen if _runs(e, console)))
    paths = _backends(arguments.backend, console)
    if arguments.device:
        paths = _having(arguments.device, paths, bool(arguments.backend), console)
    dtypes = DTYPES if not getattr(arguments, "dtype", None) else tuple(arguments.dtype)
    work = [(f, b) for f in files for b in paths]
    report = Report(arguments.steps, machine(), versions())
    kept = _measured_before(arguments.json, report)
    begun = time.monotonic()
    columns = (
        bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.BarColumn(),
        bars.MofNCompleteColumn(), bars.TimeElapsedColumn(),
    )  # fmt: skip
    context, jobs = multiprocessing.get_context("spawn"), arguments.jobs or 1
    # A job's threads that wait for those of another cost more than they do.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with bars.Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(_running(work, jobs), total=len(work))
        waiting = list(work)
        # New processes now and then: frameworks keep what they compiled. (A pool that renews its own
        # processes, max_tasks_per_child, comes to a halt.)
        for batch in (work[i : i + 8 * jobs] for i in range(0, len(work), 8 * jobs)):
            with ProcessPoolExecutor(jobs, context) as pool:
                given = arguments.steps, dtypes, arguments.device, arguments.seed
                futures = {pool.submit(job, f, b, *given): (f, b) for f, b in batch}
                for done in as_completed(futures):
                    waiting.remove(futures[done])
                    report.rows += (found := _rows_of(done, *futures[done]))
                    counted = f"{len(work) - len(waiting)} of {len(work)}, {time.monotonic() - begun:.0f} s"
                    _ended(futures[done], found, counted, console)
                    progress.update(task, advance=1, description=_running(waiting, jobs))
            if arguments.json:  # what was measured so far is not lost
                _write(Path(arguments.json), report, kept)
    report.rows.sort(key=_place)
    show(report.rows, arguments.steps, Console())
    wrong = [r for r in report.rows if r["ulp"] > 0]
    seconds = time.monotonic() - begun
    count = len(report.rows)
    console.print(
        f"{count} row{'s'[: count != 1]}, {len(wrong)} with a distance above 0, {seconds:.0f} s",
        highlight=False,
    )
    return 1 if wrong else 0


def _measured_before(path: str | None, now: Report) -> list[dict[str, Any]]:
    """The rows of a file that are as good as those of this run: same steps, machine and versions."""
    if path is None or not Path(path).exists():
        return []
    try:
        before = json.loads(Path(path).read_text())
        same = all(before[k] == getattr(now, k) for k in ("steps", "machine", "versions"))
        return list(before["rows"]) if same else []
    except (ValueError, KeyError, TypeError):
        return []  # another file, which this run replaces


def _write(path: Path, report: Report, kept: Sequence[dict[str, Any]]) -> None:
    """The measurements as JSON, beside those of other specs and backends that the file had before."""
    measured = {(r["spec"], r["backend"]) for r in report.rows}
    others = [r for r in kept if (r["spec"], r["backend"]) not in measured]
    rows = sorted([*report.rows, *others], key=_place)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(asdict(replace(report, rows=rows)), indent=1, default=str) + "\n")
    os.replace(partial, path)


def _place(row: dict[str, Any]) -> tuple[str, ...]:
    return row["spec"], row["backend"], row["mode"], row["dtype"]


def _running(waiting: Sequence[tuple[str, str]], jobs: int) -> str:
    """What the processes work on: they take jobs in order."""
    now = [f"{Path(file).stem} on {path.rpartition('.')[2]}" for file, path in waiting[:jobs]]
    return ", ".join(now[:2]) + (", ..." if len(now) > 2 else "")


def _ended(what: tuple[str, str], rows: Sequence[dict[str, Any]], counted: str, console: Any) -> None:
    """A line for a job that ended, where no bar shows that something happens."""
    if not console.is_terminal:
        line = f"{_running([what], 1)}: {entry(rows)} ULP ({counted})"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _having(device: str, paths: Sequence[str], wanted: bool, console: Any) -> list[str]:
    """The backends that run on a device, tried once each; of the others one line."""
    (entry,) = catalogue.entries(["sgd"])
    hypers = {p.name: p.default for p in entry.program.parameters}
    found, one = [], np.ones(1, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            backend = backends.load(path)
            package = built([entry], backend, Path(folder))
            try:
                run = Run(package, "sgd", [one], [[one]], hypers, device=device)
                _runner(backend).trajectory(run, backend.modes[0])
            except Exception as error:
                why = " ".join(str(error).split())[:120].rstrip(".")
                what = f"{backend.title} does not run on the device {device!r} here ({why})."
                if wanted:
                    raise catalogue.UnknownName(f"{what} Choose another --device.") from error
                console.print(f"[yellow]left out:[/] {what}", highlight=False, soft_wrap=True)
            else:
                found.append(path)
    return found


def _rows_of(done: Future[list[dict[str, Any]]], file: str, backend: str) -> list[dict[str, Any]]:
    """What a job found; one that breaks is a result, too."""
    try:
        return done.result()
    except Exception as error:
        what = f"{type(error).__name__}: {error}"[:300]
        return [asdict(Row(Path(file).stem, backend.rpartition(".")[2], "-", "-", math.inf, error=what))]


def _runs(entry: Entry, console: Any) -> bool:
    try:
        return bool(entry.lowered)
    except NotAvailable as reason:
        console.print(f"[yellow]left out:[/] {reason}", highlight=False)
        return False


def _backends(wanted: Sequence[str] | None, console: Any) -> list[str]:
    """Import paths of the backends whose framework is installed."""
    found = []
    for name in wanted or sorted(backends.discover()):
        path = name if "." in name else f"backends.{name}"
        backend = backends.load(path)
        try:
            _runner(backend, wake=False)
        except ImportError as error:
            if wanted:
                raise catalogue.UnknownName(
                    f"{backend.title} cannot be imported: {error}. Install the extra: "
                    f'pip install "isostep[{backend.name}]".'
                ) from error
            console.print(f"[yellow]left out:[/] {backend.title} ({error})", highlight=False)
            continue
        found.append(path)
    return found


def show(rows: Sequence[dict[str, Any]], steps: int, console: Any) -> None:
    """The table: a line a spec, a column a mode; each entry the largest distance over its dtypes."""
    columns = list(dict.fromkeys((r["backend"], r["mode"]) for r in rows))
    specs = list(dict.fromkeys(r["spec"] for r in rows))
    cells = {
        (s, b, m): entry([r for r in rows if (r["spec"], r["backend"], r["mode"]) == (s, b, m)])
        for s in specs
        for b, m in columns
    }
    widths = {
        (b, m): max([len(b), len(m), *(len(cells[s, b, m]) for s in specs)]) for b, m in columns
    }
    left = max(map(len, [*specs, "spec"]))
    console.print(f"largest distance from the lowered program, in ULP, {steps} steps", highlight=False)
    for block in blocks(widths, console.width - left):
        lines = [["", *(b for b, _ in block)], ["spec", *("" if b == m else m for b, m in block)]]
        lines += [[s, *(cells[s, b, m] for b, m in block)] for s in specs]
        console.print()
        _aligned(console, lines, 1)
    if any(r["subnormal"] for r in rows):
        console.print(SUBNORMAL, highlight=False)
    if any(r.get("products") for r in rows):
        console.print(PRODUCTS, highlight=False)
    if any(r.get("infinite") for r in rows):
        console.print(INFINITE, highlight=False)
    distances = [r for r in rows if not math.isnan(r["ours"])]
    if distances:
        lines = [["spec", "framework", "ours", "its own"]]
        for r in distances:
            native = "-" if math.isnan(r["native"]) else f"{r['native']:.1e}"
            lines.append([r["spec"], r["backend"], f"{r['ours']:.1e}", native])
        console.print("\nrms distance from the 50-digit oracle\n", highlight=False)
        _aligned(console, lines, 2)
    for r in rows:
        if r["ulp"] > 0:
            what = r["error"] or r["where"]
            console.print(
                f"{r['spec']} {r['backend']} {r['mode']} {r['dtype']}: {r['ulp']:g} ULP, {what}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


def blocks(widths: dict[tuple[str, str], int], room: int) -> list[list[tuple[str, str]]]:
    """Columns in as few tables as fit side by side, a backend's together where they can be."""
    made: list[list[tuple[str, str]]] = []
    free = -1
    for backend in dict.fromkeys(b for b, _ in widths):
        group = [column for column in widths if column[0] == backend]
        together = sum(GAP + widths[column] for column in group)
        if together > free:
            made.append([])
            free = room
        for column in group:
            if GAP + widths[column] > free and made[-1]:
                made.append([])
                free = room
            made[-1].append(column)
            free -= GAP + widths[column]
    return made


def _aligned(console: Any, lines: Sequence[Sequence[str]], words: int) -> None:
    """Lines in columns, the first few to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [x.ljust(w) for x, w in zip(line[:words], widths, strict=False)]
        cells += [x.rjust(w) for x, w in zip(line[words:], widths[words:], strict=True)]
        text = (" " * GAP).join(cells).rstrip()
        console.print(text, highlight=False, markup=False, soft_wrap=True)


GAP = 2  # between columns
PRODUCTS = (
    "~ after matrix products, which each library adds up in its own order: in units of the last place of "
    "the largest entry; within what any order may lead to"
)
INFINITE = (
    "! some numbers are inf or NaN with default hyperparameters, and equal bits say nothing about those"
)
SUBNORMAL = "* but for numbers below the smallest normal one, which XLA flushes to zero"


def entry(rows: Sequence[dict[str, Any]]) -> str:
    """The largest distance over some rows.

    A star where flushed subnormal numbers were left apart, an exclamation mark where numbers are not
    finite; after ~, where there are matrix products, how far apart they lead, unless something is farther
    than that allows.
    """
    shown = [r for r in rows if r["cases"] or r["ulp"]]
    star = "*" if any(r["subnormal"] for r in shown) else ""
    star += "!" if any(r.get("infinite") for r in shown) else ""
    if not any(r["ulp"] for r in shown) and any(r.get("products") for r in shown):
        return f"~{max(r['products'] for r in shown):.2g}{star.lstrip('*')}"
    return f"{max(r['ulp'] for r in shown):g}{star}" if shown else "-"
