"""Whether a program makes sense; every message about names, states, shapes, scopes and domains.

In: an `ir.Program`. Out: a `Checked` program with what was inferred about each name. Must not know:
how a program is computed (lower.py), any framework.

Each name gets a type, a scope and a shape. The scope says how often it is computed: **step** (only
clocks and hyperparameters), **global** (a reduction over all parameters), **tensor** (once a
parameter), **element**. A shape is a tuple of symbolic sizes; sizes of 1 broadcast.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass, replace

from generator import ir, regions, sample, shapes
from generator.errors import SpecError, brief, elsewhere, line_of, shallow, twice, uncounted
from generator.infer import SIZES, TENSORS, Definition, Inference, Info, is_call, wider
from generator.language import ENTRIES, LARGEST, PACKAGE, RESERVED, reserved
from generator.regions import EVERYWHERE, Fact, Region
from generator.shapes import FULL, MATRIX

__all__ = ["Checked", "Info", "check", "reached"]


@dataclass(frozen=True)
class Checked:
    """A program that makes sense, and what was inferred."""

    program: ir.Program
    states: tuple[ir.State, ...]
    info: Mapping[str, Info]
    gradients: int  # taken in a step, where that is not just the one at theta
    elsewhere: bool  # whether the first gradient is taken at another point than theta
    inputs: tuple[str, ...]  # oracles, noise sources and meta-parameters, by name
    noises: tuple[str, ...]  # the noise sources among them
    metas: tuple[str, ...]  # the meta-parameters among them

    @property
    def sharding(self) -> str:
        """What the program needs to know of other shards of a tensor."""
        return _sharding(self.program)


def check(program: ir.Program) -> Checked:
    """Refuse what is wrong with a program, or tell what follows from it."""
    with shallow(program.file, program.line):
        return _Checker(program).run()


_RESULT = {
    "optimizer": ("theta", "t"),
    "wrapper": ("theta", "t"),
    "transform": ("u", "t"),
    "schedule": ("lr", "n"),
}


def reached(program: ir.Program) -> None:
    """Refuse what is kept from step to step and never reaches the result."""
    reads: dict[str, set[str]] = {}
    lines: dict[str, int] = {}

    def collect(body: tuple[ir.Statement, ...], around: set[str]) -> None:
        for s in body:
            names = {x.name for e in ir.expressions(s) for x in ir.walk(e) if isinstance(x, ir.Ref)}
            match s:
                case ir.Start(name) | ir.Assign(name):
                    reads.setdefault(name, set()).update(names | around)
                    if isinstance(s, ir.Assign) or name == "g":
                        lines.setdefault(name, s.line)
                case ir.When():
                    collect(s.body, around | names)
                    collect(s.otherwise, around | names)
                case ir.Loop() | ir.Case():
                    collect(s.body, around | names)

    collect(program.body, set())
    result, clock = _RESULT[program.kind]
    end = program.evaluate
    new = {result} | {x.name for x in ir.walk(end or ir.Number(0)) if isinstance(x, ir.Ref)}
    found: set[str] = set()
    while new:
        found |= new
        new = {x for name in new for x in reads.get(name, ())} - found
    for name, line in lines.items():
        if name not in found and program.kind != "wrapper":  # which may count for its user
            what = f"{name} never reaches {result}[{clock}]. Use it there, or remove it."
            raise SpecError(program.file, line, what)


_ROUNDS = 9  # more than shapes and scopes can grow
_COMPARED = "lt le gt ge eq ne and or not add sub mul div length word".split()
# Classes that generated modules import; a spec's class cannot have their names.
_CLASSES = frozenset(
    """Any NamedTuple Callable Unpack Array Tensor Scalar Tree State Method Optimizer Schedule
    Transformation Rule Rate Sequence Domain NonNegative Positive Decay Real Count PositiveCount Flag
    AnySchedule KerasOptions ParamsT""".split()
)


class _Checker(Inference):
    # The whole program ----------------------------------------------------------------------------

    def run(self) -> Checked:
        program = self.program
        self.documentation()
        self.declarations(program.body, EVERYWHERE, None)
        self.names()
        for relation, _ in program.requires:
            if is_call(relation, "matrix", "vector"):
                self.region |= {regions.fact("case", relation)}
        self.infer()
        self.result()
        self.relations()
        self.gradient()
        self.evaluation()
        states = tuple(
            ir.State(
                n,
                s.value,
                self.info[n].scope == "step",
                s.line,
                self.info[n].shape,
                self.exists(n),
                self.info[n].scope == "global",
            )
            for n, s in self.starts.items()
            if n not in self.loop_of
        )
        self.generated(states)
        count = len(self.points) + bool(self.points and "g" not in self.assigned and self.reads_g)
        noises = tuple(name for name, e in self.inputs.items() if is_call(e, "noise"))
        metas = tuple(name for name, e in self.inputs.items() if is_call(e, "meta"))
        elsewhere = "g" in self.assigned
        return Checked(program, states, self.info, count, elsewhere, tuple(self.inputs), noises, metas)

    def exists(self, name: str) -> tuple[tuple[ir.Expr, bool], ...]:
        """The conditions on shapes and choices under which a state exists."""
        facts = sorted(self.home[name], key=lambda f: (f[0], repr(f)))
        return tuple((e, holds) for kind, e, holds in facts if kind == "case" or regions.static(e))

    def documentation(self) -> None:
        p = self.program
        if not p.title:
            raise self.fail(f"{p.name} has no docstring. Its first line is the algorithm's name.")
        if not p.source:
            raise self.fail(
                f"{p.name} has no source. Add a line `Source: authors, venue, number of the "
                "algorithm.` to its docstring."
            )
        if not p.class_name.isidentifier() or keyword.iskeyword(p.class_name):
            raise self.fail(f"{p.class_name!r} is not a class name. Write it like AdamW.")
        if p.class_name in _CLASSES | PACKAGE:
            raise self.fail(f"generated code has a class {p.class_name}. Choose another name.")

    def declarations(
        self, body: tuple[ir.Statement, ...], region: Region, loop: ir.Loop | None
    ) -> None:
        for s in body:
            match s:
                case ir.Start(name):
                    if name in self.starts:
                        first = self.starts[name].line
                        what = f"{name}[0] is given twice (line {first}). Keep one."
                        raise self.fail(what, s.line)
                    self.starts[name], self.home[name] = s, region
                case ir.Assign(name):
                    if self.loop_of.setdefault(name, loop or _NO_LOOP) is not (loop or _NO_LOOP):
                        raise self.twice(name, self.assigned[name], s.line)
                    self.assigned.setdefault(name, s.line)
                case ir.Loop():
                    self.declarations(s.body, region, s)
                case ir.When():
                    f = regions.fact("when", s.condition)
                    self.declarations(s.body, region | {f}, loop)
                    self.declarations(s.otherwise, region | {regions.opposite(f)}, loop)
                case ir.Case():
                    self.declarations(s.body, region | {regions.fact("case", s.condition)}, loop)
        if loop is None and region == EVERYWHERE:
            self.loop_of = {k: v for k, v in self.loop_of.items() if v is not _NO_LOOP}

    def names(self) -> None:
        result, kind = _RESULT[self.program.kind][0], self.program.kind
        for name, line in {**self.assigned, **{n: s.line for n, s in self.starts.items()}}.items():
            self.line = line
            if name in self.parameters:
                raise self.fail(f"{name} is a hyperparameter and cannot be defined. Rename one.")
            if name in {"theta", "lr"} - {result}:
                raise self.fail(elsewhere(kind, name, f"{result}[{self.clock}]"))
            if name in RESERVED - {"theta", "g", "lr"}:
                raise self.fail(reserved(name, "a state"))
            if name in self.starts and name not in self.loop_of:
                self.state(name)

    def state(self, name: str) -> None:
        if name in ENTRIES:
            raise self.fail(reserved(name, "a state"))
        if name == "theta":
            raise self.fail("theta[0] is the user's. Remove this line: theta[0] can only be read.")
        if self.program.kind == "schedule":
            raise self.fail(
                f"{name}[0] makes {name} a state, and a schedule keeps nothing: lr[n] is a formula "
                "of n. Use iterate(...) where a loop is needed."
            )
        if name != "g" and name not in self.assigned:
            raise self.fail(
                f"{name}[0] is given, but {name}[t] is never defined. Define it, or remove {name}[0]."
            )

    def infer(self) -> None:
        """Go through the program until nothing new is learnt, then once more, strictly.

        A state's shape follows from its update, which may read the state: only the last time
        everything that is wrong is wrong for good.
        """
        everywhere = self.region
        for name, s in self.starts.items():
            self.line, self.region = s.line, everywhere | self.home[name]
            if name not in self.loop_of:
                start = self.start(s.value)
                self.info[name] = start if name != "g" else Info("float", "element", FULL)
        self.region = everywhere
        for _ in range(_ROUNDS):
            before = dict(self.info)
            self.round(strict=False)
            if self.info == before:
                break
        self.round(strict=True)

    def round(self, strict: bool) -> None:
        self.strict = strict
        self.known, self.points, self.updates, self.inputs = {}, [], 0, {}
        self.block(self.program.body)

    def result(self) -> None:
        name, clock = _RESULT[self.program.kind]
        kind, at = self.program.kind, f"{name}[{clock}]"
        self.line = self.program.line
        if name not in self.known:
            a = "an" if kind == "optimizer" else "a"
            raise self.fail(f"{at} is never defined. Add {at} = ..., with which {a} {kind} ends.")
        self.line = self.known[name][0].line
        self.ref(ir.Ref(name))
        if kind == "wrapper" and self.updates != 1:
            raise self.fail(
                f"a wrapper takes one update, here are {self.updates}. Write once: "
                "inner = update(g[t])."
            )

    def relations(self) -> None:
        for relation, line in self.program.requires:
            self.line = line
            if is_call(relation, "matrix", "vector"):
                continue
            nodes = list(ir.walk(relation))
            if any(isinstance(e, ir.Ref | ir.Clock) or is_call(e, *TENSORS) for e in nodes):
                raise self.fail(
                    "require(...) is about hyperparameters only. Use where(...) for values of a step."
                )
            info = self.expr(relation)
            if any(isinstance(e, ir.Item) or _computed(e) for e in nodes):
                raise self.fail(
                    f"require(...) compares hyperparameters with + - * / only, not "
                    f"{self.text(relation)}. Write the relation without it."
                )
            if info.type != "bool":
                raise self.fail(
                    f"require(...) asks for a condition, not for {self.text(relation)}. Compare it "
                    "with something."
                )
            if not sample.defaults_fit(self.program, relation):
                raise self.fail(
                    f"the defaults do not fulfil {self.words.relation(relation)}. Change a default."
                )

    def gradient(self) -> None:
        """The user's parameters hold the gradient's point, at first theta[0]."""
        if "g" not in self.assigned:
            if self.points and not self.reads_g:
                self.line = line_of(self.program.file, "grad(", self.program.line)
                raise self.fail("the first gradient of a step is called g. Write g[t] = grad(...).")
            return
        if not sample.starts_at_theta(self.program):
            self.line = self.assigned["g"]
            point = next(
                s.value.args[0]
                for s in ir.statements(self.program.body)
                if isinstance(s, ir.Assign) and s.target == "g" and isinstance(s.value, ir.Call)
            )
            raise self.fail(
                f"the first gradient is taken at theta[0], but at t = 1 {self.text(point)} is "
                "another point. Change the point, or the starts of its states."
            )

    def evaluation(self) -> None:
        value = self.program.evaluate
        if value is None:
            return
        kind = self.program.kind
        self.line = line_of(self.program.file, "evaluate(", self.program.line)
        if kind not in ("optimizer", "wrapper"):
            raise self.fail(f"evaluate(...) belongs to an optimizer, not to a {kind}. Remove it.")
        info = self.expr(value)
        if info.shape not in (FULL, MATRIX) or info.type == "bool":
            raise self.fail(
                f"evaluate({self.text(value)}) has the shape {info.describe()}, but a parameter has "
                "the shape full. Name a state that has it."
            )

    def generated(self, states: tuple[ir.State, ...]) -> None:
        """Refuse names that generated code needs for this program."""
        kind, p = self.program.kind, self.program
        taken = {f"{s.name}_prev" for s in states if s.scalar or s.shared}
        taken |= {p.class_name, f"{p.class_name}State", f"{p.class_name}Scalars"}
        if "g" in self.starts:
            taken |= {"g_prev", "is_first"}
        if "g" in self.assigned:
            taken |= {"point", "point_next"}
        if self.raises:
            taken.add("power")
        numbers = regions.amounts_of(p)
        options = [h.name for h in p.parameters if h.domain.optional or h.name in numbers]
        taken |= {p.told(name) for name in options} - set(options)
        inner = (e for s in ir.statements(p.body) for x in ir.expressions(s) for e in ir.walk(x))
        if any(is_call(e, *ir.GLOBAL) for e in inner):
            taken |= {"shared", f"{p.class_name}Sums", f"{p.class_name}Shared"}
            taken |= {n for n in ("total",) if n in self.info and self.info[n].scope == "global"}
        used = {**{h.name: h.line for h in p.parameters}, **self.assigned}
        for name in sorted(taken & set(used)):
            what = f"generated code needs the name {name} for this {kind}. Choose another name."
            raise self.fail(what, used[name])

    def start(self, value: ir.Expr) -> Info:
        """What a state begins as: a number, a hyperparameter, theta[0] or first(g)."""
        match value:
            case ir.Number() | ir.Call("neg", (ir.Number(),), _):
                return Info()
            case ir.Hyper(name) if self.hyper(name).type != "bool":
                return Info()
            case ir.Ref("theta", 1) | ir.Call("first", (), _):
                return Info("float", "element", FULL)
        raise self.fail(
            "a state starts as a number, a hyperparameter, theta[0] or first(g), not as "
            f"{self.text(value)}. Compute the rest in an equation."
        )

    # Statements -----------------------------------------------------------------------------------

    def block(self, body: tuple[ir.Statement, ...]) -> None:
        for s in body:
            self.line = s.line
            try:
                self.statement(s)
            except SpecError:
                if self.strict:
                    raise

    def statement(self, s: ir.Statement) -> None:
        with shallow(self.program.file, s.line):
            self.understood(s)

    def understood(self, s: ir.Statement) -> None:
        match s:
            case ir.Start(name, value):
                if name in self.loop_of:
                    self.define(name, self.expr(value), s.line)
            case ir.Assign():
                self.assign(s)
            case ir.Loop():
                self.loop(s)
            case ir.When(condition, body, otherwise):
                f = self.condition(condition, "when")
                self.happens(f, f"when({self.text(condition)})")
                if otherwise:
                    where = f"the otherwise() of when({self.text(condition)})"
                    self.happens(regions.opposite(f), where)
                self.inside(f, body)
                self.inside(regions.opposite(f), otherwise)
            case ir.Case(condition, body):
                self.inside(self.condition(condition, "case"), body)

    def happens(self, f: Fact, where: str) -> None:
        """Refuse a region for which there are no choices."""
        if regions.impossible(self.region | {f}, self.choices):
            raise self.fail(
                f"{where} never happens here, whatever is chosen. Remove it, or correct its condition."
            )

    def inside(self, f: Fact, body: tuple[ir.Statement, ...]) -> None:
        outer, self.region = self.region, self.region | {f}
        decided = self.decided
        if f[0] == "when":  # what happens only where a global condition holds is not of step scope
            self.decided = wider(decided, self.expr(f[1]).scope)
        self.block(body)
        self.region, self.decided = outer, decided

    def condition(self, e: ir.Expr, word: str) -> Fact:
        info = self.expr(e)
        if info.type != "bool":
            what = f"{word}(...) asks for a condition, not for {self.text(e)}."
            raise self.fail(f"{what} Compare it with something.")
        leaves = [x for x in ir.walk(e) if not ir.children(x)]
        sizes = [x for x in leaves if is_call(x, *SIZES)]
        if word == "case":
            if not sizes or any(isinstance(x, ir.Ref | ir.Clock) for x in leaves):
                raise self.fail(
                    "case(...) is about a parameter's shape: matrix, vector, rows and cols. Use when(...) "
                    "for other conditions."
                )
        elif sizes:
            raise self.fail(
                "when(...) decides for all parameters at once. Use case(...) for a shape."
            )
        elif info.scope in ("tensor", "element"):
            raise self.fail(
                "when(...) decides for all parameters at once: its condition is of t, "
                "hyperparameters or a global reduction. Use where(condition, a, b) for values."
            )
        if word == "when" and regions.static(e):
            self.decidable(e)
        return regions.fact(word, e)

    def decidable(self, e: ir.Expr) -> None:
        """Refuse to decide when an optimizer is made on what is not known then."""
        for name in regions.amounts(e):
            if self.parameters[name].domain.optional:
                raise self.fail(
                    f"{name} may be None, which is what decides on a region. Write "
                    f"`with when(~equal({name}, None)):`."
                )
            if name == "lr":
                raise self.fail(
                    "when(lr > 0) is decided when an optimizer is made, and schedules change lr. Use "
                    "where(lr > 0, a, b)."
                )

    def loop(self, s: ir.Loop) -> None:
        count = self.expr(s.count)
        counted = any(
            isinstance(x, ir.Ref | ir.Clock) or is_call(x, *SIZES) for x in ir.walk(s.count)
        )
        if count.type != "int" or counted:
            raise self.fail(uncounted(self.text(s.count)))
        if isinstance(s.count, ir.Number) and s.count.value > LARGEST:
            what = f"{brief(s.count.value)} is beyond 2**31 - 1, where integers end."
            raise self.fail(f"{what} Write a smaller one.")
        own = [x.target for x in ir.statements(s.body) if isinstance(x, ir.Assign)]
        carried = {x: self.known.get(x) for x in own}
        self.loops.append(s)
        self.words.enter(s)
        for _ in range(_ROUNDS):
            before = dict(self.info)
            for x, start in carried.items():
                self.known.pop(x, None)
                if start:
                    self.known[x] = list(start[:1])
            self.block(s.body)
            if before == self.info:
                break
        self.words.leave()
        self.loops.pop()
        self.line = s.line

    def assign(self, s: ir.Assign) -> None:
        name, value = s.target, s.value
        if is_call(value, "grad"):
            assert isinstance(value, ir.Call)
            info = self.taken(value)
        elif name == "g":
            self.tensors_only("g[n]")
            raise self.fail("g[t] is the gradient. Only g[t] = grad(point) defines it.")
        elif is_call(value, "update"):
            assert isinstance(value, ir.Call)
            info = self.updated(value)
        else:
            info = self.expr(value)
        if name == _RESULT[self.program.kind][0]:
            self.fitting(self.text(ir.Ref(name)), info)
        if name in self.starts and name != "g":
            info = self.kept(name, info, value)
        self.define(name, info, s.line)

    def fitting(self, at: str, info: Info) -> None:
        """What a program defines is shaped like a parameter, or in a schedule a number."""
        if info.type == "bool":
            raise self.fail(f"{at} is a condition. Use where(condition, a, b).")
        if self.program.kind != "schedule" and info.shape not in (FULL, MATRIX):
            raise self.fail(
                f"{at} has the shape {info.describe()}, but a parameter has the shape full. "
                "Define it by an expression with theta[t-1] or g[t] in it."
            )

    def taken(self, value: ir.Call) -> Info:
        """A gradient at a point."""
        self.tensors_only("grad(...)")
        point = self.expr(value.args[0])
        if point.type == "bool" or point.shape not in (FULL, MATRIX):
            raise self.fail(
                f"grad({self.text(value.args[0])}) is not at a point: a point is shaped like theta. "
                "Begin with theta[t-1], or a state that starts there."
            )
        self.points.append(value.args[0])
        return self.full()

    def updated(self, value: ir.Call) -> Info:
        """What the wrapped optimizer makes of a gradient."""
        if self.program.kind != "wrapper":
            raise self.fail(
                "update(...) belongs to a wrapper. Decorate the function with @wrapper."
            )
        given = self.expr(value.args[0])
        if given.type == "bool" or given.shape not in (FULL, MATRIX) or self.loops:
            raise self.fail("update(...) takes a gradient, outside of loops. Write update(g[t]).")
        self.updates += 1
        return self.full()

    def kept(self, name: str, new: Info, value: ir.Expr) -> Info:
        """A state, or a loop's iterate, after its definition."""
        old = self.here(self.info[name], name)
        if new.type == "bool":
            raise self.fail(
                f"{name} keeps a condition. Keep a number: where({self.text(value)}, 1, 0)."
            )
        shape = new.shape if old.shape == () else shapes.broadcast(old.shape, new.shape)
        if shape is None or (new.shape and old.shape and shape != old.shape):
            start = f"{name}[0]" if name in self.starts else name
            raise self.fail(
                f"{self.text(value)} has the shape {new.describe()}, but {start} has the shape "
                f"{old.describe()}. Keep the shape, or give this another name."
            )
        kind = new.type if old.type == new.type else "float"
        return Info(kind, wider(old.scope, new.scope), shape)

    def define(self, name: str, info: Info, line: int) -> None:
        """Add a definition; each name has one wherever it is reached."""
        if info.shape == MATRIX:
            info = replace(info, shape=FULL)
        info = replace(info, scope=wider(info.scope, self.decided))
        earlier = self.known.setdefault(name, [])
        carried = self.loops and name in self.starts and self.loop_of.get(name) in self.loops
        for d in earlier[1:] if carried else earlier:
            if not regions.exclude(d.region, self.region, self.choices) and d.line != line:
                if d.region - self.region and self.region - d.region:
                    raise self.both(name, d)
                raise self.twice(name, d.line, line)
        earlier.append(Definition(line, self.region, info))
        self.info[name] = self.merged(name, earlier[1:] if carried else earlier)

    def twice(self, name: str, first: int, line: int) -> SpecError:
        return self.fail(twice(self.at(name), first), line)

    def both(self, name: str, d: Definition) -> SpecError:
        """The refusal of definitions in regions whose conditions are not each other's opposite."""
        what = f"{self.at(name)} is defined in a region (line {d.line}) and in another, and"
        for f in d.region - self.region:
            match f:
                case "case", ir.Call("gt", (a, b), _), True if (
                    ("case", ir.Call("gt", (b, a)), True) in self.region - d.region
                ):
                    equal, right = f"{self.text(a)} = {self.text(b)}", self.place(regions.opposite(f))
                    return self.fail(f"{what} neither happens where {equal}. Write {right} here.")
        return self.fail(f"{what} both may happen. Change a condition, so that one excludes the other.")

    def at(self, name: str) -> str:
        """A name with its time."""
        return f"{name}[{self.loop_of.get(name, _NO_LOOP).index or self.clock}]"


_NO_LOOP = ir.Loop("", ir.Number(0), (), 0)


def _computed(e: ir.Expr) -> bool:
    """Whether a relation between hyperparameters needs more than plain Python for this."""
    return isinstance(e, ir.Call) and e.op not in _COMPARED


def _sharding(program: ir.Program) -> str:
    calls = {
        e
        for s in ir.statements(program.body)
        for top in ir.expressions(s)
        for e in ir.walk(top)
        if isinstance(e, ir.Call)
    }
    used = {e.op for e in calls}
    if "matmul" in used:
        return "the whole matrix"
    if any(ir.OPERATIONS[op].shape in ("rows", "cols") for op in used & ir.REDUCTIONS):
        return "all-reduces of rows and columns"
    if used & {"mean_but_first", "mean_but_last"}:
        return "all-reduces of slices"
    if sums := [e.op for e in calls if e.op in ir.REDUCTIONS]:
        together = sum(op.startswith("global") for op in sums)
        each = len(sums) - together
        found = ((together, ""), (each, " for each tensor"))
        texts = [f"{_scalars(n)}{where}" for n, where in found if n]
        return f"an all-reduce of {' and '.join(texts)}"
    if "noise" in used:
        return "where it begins: random numbers are counted"
    return "nothing: elementwise"


def _scalars(count: int) -> str:
    return "one scalar" if count == 1 else f"{count} scalars"
