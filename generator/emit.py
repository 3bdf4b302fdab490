"""From single assignments to Python text, given a backend's table of operations.

In: values and a table (`"add": "+"`, `"sqrt": "np.sqrt"`, `"neg": "-{0}"`). Out: lines of text in which
values used once are nested again, and any line that would be too long gives its parts names. Must not
know: which backend it prints for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from generator import regions
from generator.ir import (
    Branch,
    Call,
    Hyper,
    Lowered,
    Number,
    Operand,
    Pass,
    Point,
    Program,
    Repeat,
    Step,
    Value,
    Word,
    uses,
)

WIDTH = 100
_LEVEL = {
    "or": 2,
    "xor": 3,
    "and": 4,
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne", "is"), 1),
    **dict.fromkeys(("add", "sub"), 6),
    **dict.fromkeys(("mul", "div", "floordiv", "mod", "matmul"), 7),
    "neg": 8,
    "entry": 9,
}
_ATOM = 10
Table = Mapping[str, str]


@dataclass
class _Printer:
    table: Table
    indent: int
    names: dict[str, str] = field(default_factory=dict)  # what a value is called in the text
    inline: dict[str, Value] = field(default_factory=dict)  # values printed where they are used
    apart: frozenset[str] = frozenset()  # values that get a line of their own wherever they fit
    naming: bool = True
    shortened: list[str] = field(default_factory=list)  # values that got one since a line was long
    absent: frozenset[str] = frozenset()  # names that are None unless a way sets them
    chosen: int = 0  # regions so far that a scalar decides on
    program: Program | None = None  # whose choices a kernel is told; None in step scope

    def operand(self, o: Operand) -> tuple[str, int]:
        if isinstance(o, Number):
            text = repr(o.value)
            return text, _ATOM if not text.startswith("-") else _LEVEL["neg"]
        if isinstance(o, Word):
            return regions.quoted(o.value), _ATOM
        assert isinstance(o, str)
        if o in self.inline:
            return self.value(self.inline[o])
        return self.names.get(o, o), _ATOM

    def value(self, v: Value) -> tuple[str, int]:
        if v.op == "item":
            return self.item(v), _ATOM
        if v.op == "call":
            return f"{self.operand(v.args[0])[0]}({self.operand(v.args[1])[0]})", _ATOM
        how = "is" if v.args[1:] == (Word(None),) else self.table[v.op]
        texts = [self.operand(a) for a in v.args]
        if "{0}" in how:
            level = _LEVEL.get(v.op.removeprefix("size_"), _ATOM)
            return how.format(*(_wrap(t, level) if level < _ATOM else t[0] for t in texts)), level
        if (how[0].isalpha() or how[0] == "_") and how != "is":
            if not v.args:
                return how, _ATOM
            return f"{how}({', '.join(t[0] for t in texts)})", _ATOM
        level = _LEVEL[v.op.removeprefix("size_")]
        return f"{_wrap(texts[0], level + (level == 1))} {how} {_wrap(texts[1], level + 1)}", level

    def item(self, v: Value) -> str:
        name, index = v.args
        if isinstance(index, Number):
            return f"{name}[{int(index.value) - 1}]"
        added = self.inline.get(str(index))
        if added is not None and added.op == "add" and added.args[1] == Number(1):
            return f"{name}[{self.operand(added.args[0])[0]}]"
        return f"{name}[{_wrap(self.operand(index), _LEVEL['sub'])} - 1]"

    def assignment(self, left: str, v: Value) -> list[str]:
        """`left = value`, on one line or broken over several.

        With `naming`, a part of what would be too long gets a name and a line of its own instead.
        """
        text = self.value(v)[0]
        if len(left) + 3 + len(text) + self.indent <= WIDTH:
            return [f"{left} = {text}"]
        if v.op == "stack":  # a feature a line
            return self.column(left, v)
        apart = self.shorten(v) if self.naming else []
        if apart:
            return [*apart, *self.assignment(left, v)]
        return [f"{left} = (", *("    " + x for x in broken(text, WIDTH - self.indent - 4)), ")"]

    def column(self, left: str, v: Value) -> list[str]:
        """`left = stack(...)` with a line for each operand."""
        lines: list[str] = []
        for a in v.args:
            while isinstance(a, str) and self.naming and self.indent + 5 + len(self.operand(a)[0]) > WIDTH:
                apart = self.shorten(self.inline[a]) if a in self.inline else []
                lines += apart
                if not apart:
                    break
        inside = [f"    {self.operand(a)[0]}," for a in v.args]
        return [*lines, f"{left} = {self.table[v.op]}(", *inside, ")"]

    def shorten(self, v: Value) -> list[str]:
        """Take the longest nested value out of `v`, unless nothing is nested."""
        parts = [p for p in self.nested(v) if not p.name.endswith("!")]
        if not parts:
            return []
        whole = len(self.value(v)[0])
        part = min(parts, key=lambda p: abs(len(self.value(p)[0]) - whole / 2))
        lines = self.assignment(part.name, part)
        del self.inline[part.name]
        self.shortened.append(part.name)
        return lines

    def nested(self, v: Value) -> list[Value]:
        found = []
        for a in v.args:
            if isinstance(a, str) and a in self.inline:
                found.append(self.inline[a])
                found += self.nested(self.inline[a])
        return found

    def condition(self, b: Branch, holds: bool = True) -> str:
        """The condition of a branch, or its opposite, as Python."""
        if isinstance(b.condition, Hyper | Call):
            return regions.python(b.condition, holds, self.program)
        text = self.operand(b.condition)
        return text[0] if holds else f"not {_wrap(text, _ATOM)}"

    def block(self, values: Sequence[Step], count: Counter[str]) -> list[str]:
        here = {v.name for v in values if isinstance(v, Value)}
        inner = set(uses([v for v in values if isinstance(v, Repeat)]))
        lines: list[str] = []
        for v in values:
            if isinstance(v, Repeat):
                lines += self.repeat(v, count)
            elif isinstance(v, Branch):
                lines += self.branch(v, count)
            elif (
                count[v.name] == 1
                and v.name in here
                and v.name not in inner
                and v.name not in self.apart
                and not v.spec
            ) or (
                v.name.endswith("!")
                or _trivial(v)
            ):
                self.inline[v.name] = v
            else:
                lines += self.assignment(self.names.get(v.name, v.name), v)
        return lines

    def choice(self, b: Branch, count: Counter[str]) -> list[str]:
        """What a scalar decides on: two functions, of which one is called."""
        self.chosen += 1
        ways, lines = [], []
        for name, values, end in (("here", b.body, 1), ("there", b.otherwise, 2)):
            if self.chosen > 1:
                name += f"_{self.chosen}"
            self.indent += 4
            outside, self.absent, inline = self.absent, frozenset(), dict(self.inline)
            inside = self.block(values, _inside(b, values, count))
            ends = ", ".join(self.operand(c[end])[0] for c in b.carried)  # type: ignore[arg-type]
            self.absent, self.inline = outside, inline
            self.indent -= 4
            if inside:
                lines += [f"def {name}() -> Any:", *("    " + x for x in [*inside, f"return {ends}"])]
                ways.append(name)
            else:
                ways.append(f"lambda: {ends}" if len(b.carried) == 1 else f"lambda: ({ends})")
        left = ", ".join(self.names.get(c[0], c[0]) for c in b.carried)
        call = f"{left} = branch({self.condition(b)}, {', '.join(ways)})"
        if len(call) + self.indent > WIDTH:
            call = call.replace("branch(", "branch(\n    ").removesuffix(")") + "\n)"
        return [*lines, *call.split("\n")]

    def branch(self, b: Branch, count: Counter[str]) -> list[str]:
        if not b.known:
            return self.choice(b, count)
        absent = [c[0] for c in b.carried if None in c and c[0] not in self.absent]
        lines, outside = [f"{name} = None" for name in absent], self.absent
        if len(together := " = ".join([*absent, "None"])) + self.indent <= WIDTH:
            lines = [together] * bool(absent)
        self.absent |= set(absent)
        taken = False
        self.indent += 4
        for way, (values, end) in enumerate(((b.body, 1), (b.otherwise, 2))):
            inline = dict(self.inline)
            inside = self.block(_named(b, values, end), _inside(b, values, count))
            nested = len(values) == 1 and inside[:1] and inside[0].startswith("if ")
            for c in b.carried:
                made = c[end]
                left = self.names.get(c[0], c[0])
                right = left if made in (c[0], None) else self.operand(made)[0]
                if right != left:
                    inside.append(f"{left} = {right}")
                    nested = False
            self.inline = inline  # the other way may have the same names
            if inside and taken and nested:
                lines += [f"el{inside[0]}", *inside[1:]]
            elif inside:
                head = "else:" if taken else f"if {self.condition(b, not way)}:"
                lines += [head, *("    " + x for x in inside)]
                taken = True
        self.indent -= 4
        self.absent = outside
        return lines

    def repeat(self, r: Repeat, count: Counter[str]) -> list[str]:
        lines = [f"{name} = {self.operand(start)[0]}" for name, start, _ in r.carried]
        last = self.operand(r.count)[0]
        stop = str(int(last) + 1) if last.isdigit() else f"{last} + 1"
        counter = r.index if r.index in uses(r.body) else "_"
        lines.append(f"for {counter} in range(1, {stop}):")
        self.indent += 4
        ends = {e for _, _, e in r.carried}
        single = Counter({n: 1 for n in ends if isinstance(n, str)}) if len(ends) == 1 else None
        body = [
            Value(v.name, v.op, v.args, v.type) if isinstance(v, Value) and single else v
            for v in r.body
        ]
        inside = self.block(body, count)
        left = ", ".join(name for name, _, _ in r.carried)
        right = ", ".join(self.operand(end)[0] for _, _, end in r.carried)
        self.indent -= 4
        return [*lines, *("    " + x for x in [*inside, f"{left} = {right}"])]


def broken(text: str, width: int) -> list[str]:
    """An expression over several lines, each but the first beginning with an outer operator."""
    if len(text) <= width:
        return [text]
    depth, outer = 0, []
    for k, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        operator = text[k : k + 3] in (" + ", " - ", " * ", " / ", " @ ", " & ", " | ")
        operator = operator or text[k : k + 4] in (" == ", " != ", " <= ", " >= ")
        if operator or text[k : k + 3] in (" < ", " > "):
            outer.append((depth, k))
    if not outer:
        return [text]
    least = min(d for d, _ in outer)
    places = [k for d, k in outer if d == least]
    at = next((k for k in reversed(places) if k <= width), places[0])
    return [*broken(text[:at], width), *broken(text[at + 1 :], width)]


def _named(b: Branch, values: Sequence[Step], end: int) -> list[Step]:
    """The values of one way; what is carried out under its own name has a line of its own."""
    ends = {c[end] for c in b.carried if c[end] == c[0]}
    return [replace(v, spec=True) if isinstance(v, Value) and v.name in ends else v for v in values]


def _inside(b: Branch, values: Sequence[Step], count: Counter[str]) -> Counter[str]:
    """How often names are used, where those of one way count there; the other may have the same."""
    own = {v.name for v in values if isinstance(v, Value)} - {c[0] for c in b.carried}
    here = Counter(uses([replace(b, body=tuple(values), otherwise=())]))
    return Counter({**count, **{name: here[name] for name in own}})


def _trivial(v: Value) -> bool:
    """Values that read better where they are used, however often that is."""
    return v.op in ("item", "length", "pi", "matrix") and not v.spec


def _wrap(text: tuple[str, int], level: int) -> str:
    return text[0] if text[1] >= level else f"({text[0]})"


@dataclass(frozen=True)
class Text:
    """The printed kernel of one program."""

    scalars: tuple[str, ...]  # lines before the scalars are returned
    exports: tuple[tuple[str, str], ...]  # field, expression
    step: tuple[str, ...]
    states: tuple[tuple[str, str], ...]  # field, expression
    result: str


def scalar_text(lowered: Lowered, table: Table, indent: int = 4) -> Text:
    """The step-scope part: lines, and what is returned."""
    printer = _Printer(table, indent)
    outputs = list(lowered.exports)
    if lowered.program.kind == "schedule" and isinstance(lowered.result, str):
        outputs.append(lowered.result)
    count = Counter(uses(lowered.scalars))
    count.update(outputs)
    lines = printer.block(lowered.scalars, count)
    exports = []
    for e in lowered.exports:
        text = printer.operand(e)[0]
        if len(f"        {e}={text},") > WIDTH and e in printer.inline:
            lines += printer.assignment(e, printer.inline.pop(e))
            text = e
        exports.append((e, text))
    result = printer.operand(lowered.result)[0] if lowered.program.kind == "schedule" else ""
    return Text(tuple(lines), tuple(exports), (), (), result)


def long_parts(lowered: Lowered, table: Table) -> frozenset[str]:
    """The values that get a line of their own, in every framework's text."""
    printer = _Printer(table, 4, program=lowered.program)
    _step(lowered, printer)
    return frozenset(printer.shortened)


def step_text(
    lowered: Lowered, table: Table, apart: frozenset[str] = frozenset(), indent: int = 4
) -> Text:
    """The tensor part: lines, the new parameter and the new states."""
    return _step(lowered, _Printer(table, indent, apart=apart, naming=False, program=lowered.program))


def _step(lowered: Lowered, printer: _Printer) -> Text:
    final = f"{lowered.parameter}_next"
    free = _free(lowered.step, lowered.parameter, (final, "theta_next"), [False])
    free &= lowered.parameter not in (o for _, o in lowered.new_states)  # a state of the old one
    for name in (final, "theta_next"):
        plain = name.removesuffix("_next")
        if free or plain != lowered.parameter:
            printer.names[name] = plain
    count = Counter(uses(lowered.step))
    count.update([o for _, o in lowered.new_states if isinstance(o, str)])
    if isinstance(lowered.result, str):
        count.update([lowered.result] * 2)  # the result has a line of its own
    lines = printer.block(lowered.step, count)
    states = tuple((s, printer.operand(o)[0]) for s, o in lowered.new_states)
    return Text((), (), tuple(lines), states, printer.operand(lowered.result)[0])


def _free(values: Sequence[Step], old: str, new: tuple[str, ...], there: list[bool]) -> bool:
    """Whether nothing reads the old parameter once the new one is there."""
    free = True
    for v in values:
        if isinstance(v, Branch) and not v.known:
            free = False  # functions would take a name that they set for their own
        if isinstance(v, Branch):
            before = list(there)
            ways = [_free(v.body, old, new, there), _free(v.otherwise, old, new, before)]
            free &= all(ways)
            there[0] |= before[0]
            there[0] |= any(name in new for name, _, _ in v.carried)
        elif isinstance(v, Value):
            free &= not (there[0] and old in v.args)
            there[0] |= v.name in new
    return free


@dataclass(frozen=True)
class PassText:
    """The printed functions of one pass over all parameters."""

    partials: tuple[str, ...]
    sums: tuple[tuple[str, str], ...]  # field, expression
    values: tuple[str, ...]
    exports: tuple[tuple[str, str], ...]  # field, expression
    absent: frozenset[str]  # fields of both kinds that are None for some choices


@dataclass(frozen=True)
class PointText:
    """The printed function that says where one more gradient is taken."""

    partials: tuple[str, ...]
    name: str
    at: str  # expression


def pass_text(
    p: Pass | Point, table: Table, program: Program, indent: int = 4
) -> PassText | PointText:
    """What a parameter adds to the sums, and what follows from the totals; or a point."""
    printer = _Printer(table, indent, program=program)
    if isinstance(p, Point):
        count = Counter([*uses(p.partials), str(p.at)])
        lines = printer.block(p.partials, count)
        return PointText(tuple(lines), p.name, printer.operand(p.at)[0])
    count = Counter(uses(p.partials))
    count.update(str(o) for _, o in p.sums)
    lines = printer.block(p.partials, count)
    sums = tuple((name, printer.operand(o)[0]) for name, o in p.sums)
    shared = _Printer(table, indent)
    count = Counter(uses(p.values))
    count.update(o for _, o in p.exports)
    values = shared.block(p.values, count)
    exports = tuple((e, shared.operand(o)[0]) for e, o in p.exports)
    ends = [c for v in p.partials if isinstance(v, Branch) for c in v.carried if None in c]
    none = {name for name, o in p.sums if o in [c[0] for c in ends]}
    none |= {e for e, o in p.exports if o.removeprefix("total.") in none}
    return PassText(tuple(lines), sums, tuple(values), exports, frozenset(none))


def delta_text(
    lowered: Lowered, table: Table, apart: frozenset[str] = frozenset(), indent: int = 4
) -> Text:
    """As `step_text`, but ending with what is to be added to the parameter."""
    assert lowered.delta is not None
    op, value = lowered.delta
    values = [v for v in lowered.step if not isinstance(v, Value) or v.name != lowered.result]
    if lowered.result in {*uses(values), *(end for _, end in lowered.new_states)}:
        values = list(lowered.step)  # a state follows from the new parameter: asgd's average
    taken = {v.name for v in lowered.step if isinstance(v, Value)} | {s.name for s in lowered.states}
    name = next(n for n in ("u", "change", "added", "difference") if n not in taken)
    end = Value(name, "neg", (value,), "float", spec=True)
    if op == "add":
        printed = Lowered(**{**lowered.__dict__, "step": tuple(values), "result": value})
    else:
        printed = Lowered(**{**lowered.__dict__, "step": (*values, end), "result": name})
    return step_text(printed, table, apart, indent)
