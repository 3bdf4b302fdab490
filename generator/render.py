"""From a lowered program to the text of one module, and from all programs to a package.

In: programs and a `Backend`. Out: files, written only where they changed. Must not know: any
mathematics, any framework; what a file looks like stands in the backend's templates.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import functools
import hashlib
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2

import backends
from backends import Backend
from generator import (
    elementary,
    emit,
    ir,
    network,
    normal,
    regions,
    shapes,
    signs,
    storage,
    summation,
    threefry,
)
from generator.equations import ascii_expr, ascii_lines
from generator.errors import NotAvailable, SpecError
from generator.ir import Lowered, Program
from generator.shapes import FULL, MATRIX

WIDTH = 100
FOLDERS = {"optimizer": "optimizers", "schedule": "schedules", "transform": "transforms"}


@dataclass(frozen=True)
class Hyper:
    """A hyperparameter as one backend's users pass it; a tuple of the spec's where they do."""

    name: str
    spec: tuple[str, ...]
    type: str
    default: str  # empty where it must be given
    about: str
    phrase: str
    domain: str  # the Domain as Python text

    @property
    def plain(self) -> bool:
        """Whether the spec has it under the same name."""
        return self.spec == (self.name,)

    @property
    def doc(self) -> str:
        """As it stands under `Args:`, wrapped for an indent of eight."""
        about = f"{self.about}; " if self.about else ""
        return "\n".join(
            textwrap.wrap(
                f"{self.name}: {about}{self.phrase}.",
                92,
                subsequent_indent="    ",
                break_on_hyphens=False,
            )
        )

    @property
    def signature(self) -> str:
        """As it stands in a signature."""
        return f"{self.name}: {self.type}" + (f" = {self.default}" if self.default else "")


@dataclass(frozen=True)
class Start:
    """How a tensor state begins."""

    name: str
    value: str  # copy, or a number or a name
    sizes: str | None  # of another shape than the parameter's: arguments that make it
    home: str  # the condition under which it exists, as Python; empty: always

    @property
    def how(self) -> str:
        """Which of the framework's words makes it: kept, zero, copy or filled."""
        if self.sizes is not None:
            return "kept"
        return self.value if self.value in ("zero", "copy") else "filled"


@dataclass(frozen=True)
class View:
    """Everything that a template may show, as text; every field is used by some template."""

    backend: str
    kind: str
    name: str
    class_name: str
    title: str
    spec: str  # where it is declared
    digest: str
    prose: tuple[str, ...]  # paragraphs, wrapped
    equations: tuple[str, ...]
    notes: tuple[str, ...]
    source: tuple[str, ...]
    hypers: tuple[Hyper, ...]
    spec_hypers: tuple[str, ...]
    states: tuple[str, ...]
    scalar_states: tuple[tuple[str, str], ...]
    shared_states: tuple[tuple[str, str], ...]
    held: str
    starts: tuple[Start, ...]  # of tensor states
    init_hypers: tuple[str, ...]
    choices: tuple[tuple[str, str], ...]  # what kernels are told, of which hyperparameter
    told: list[str]  # the same as arguments
    memory: str
    coded: tuple[tuple[str, str], ...]  # states that may be kept in 8 bits, with their codes
    fields: tuple[tuple[str, str], ...]  # of the scalars: name, float or bool
    scalar_lines: tuple[str, ...]
    exports: tuple[tuple[str, str], ...]
    value: str  # of a schedule
    parameter: str
    step_lines: tuple[str, ...]
    step_states: tuple[tuple[str, str], ...]
    step_result: str
    update_lines: tuple[str, ...]
    update_states: tuple[tuple[str, str], ...]
    update_result: str
    additive: bool
    evaluate: str
    domains: tuple[str, ...]  # names of domains, taken from the runtime
    runtime: tuple[str, ...]  # names that the kernel takes from the runtime
    words: frozenset[str]  # every name that the kernel mentions
    scalar_words: frozenset[str]
    step_words: frozenset[str]
    public: str  # the name that the package exports
    relations: tuple[tuple[str, str], ...]  # what must hold: text, Python
    related: tuple[str, ...]  # the hyperparameters among which it must hold
    uses_theta: bool  # whether anything reads the parameter but the sum that ends the step
    elementwise: bool
    products: bool  # whether matrices are multiplied
    only: str  # the parameters that it is for, matrix or vector; empty: all
    passes: tuple[emit.PassText | emit.PointText, ...]
    shared: tuple[str, ...]  # what the passes leave to the step: fields
    given: tuple[ir.Given, ...]  # what the caller gives beside the gradient
    sources: tuple[str, ...]  # the scalars that are keys of noise
    clock: bool  # whether anything depends on t
    weights: tuple[ir.Given, ...]  # what is given once


def view(lowered: Lowered, backend: Backend) -> View:
    """The program in this backend's words."""
    program = lowered.program
    legal = backend.legalize(lowered)
    _available(legal, backend)
    scalar = emit.scalar_text(legal, backend.scalar)
    is_schedule = program.kind == "schedule"
    nothing = emit.Text((), (), (), (), "")
    apart = emit.long_parts(lowered, backends.WIDEST)
    step = nothing if is_schedule else emit.step_text(legal, backend.tensor, apart)
    additive = backend.delta and lowered.delta is not None
    update = emit.delta_text(legal, backend.tensor, apart) if additive else nothing
    hypers = _hypers(program, backend)
    lines = [*scalar.scalars, *(e for _, e in scalar.exports), scalar.result]
    tensor_lines = [*step.step, *update.step, *(e for _, e in step.states), step.result]
    scalar_words, step_words = _words(lines), _words(tensor_lines)
    passes = tuple(emit.pass_text(p, backend.tensor, program) for p in legal.passes)
    starts = tuple(_started(s, program) for s in lowered.tensor_states)
    for p in passes:
        if isinstance(p, emit.PointText):
            step_words |= _words([*p.partials, p.at])
        else:
            step_words |= _words([*p.partials, *p.values, *(e for _, e in (*p.sums, *p.exports))])
    choices = {program.told(name): name for name in lowered.choices}
    words = scalar_words | step_words | _words([s.home for s in starts])
    functions = {
        f for f in {*backend.tensor.values(), *backend.scalar.values()} if f.isidentifier()
    }
    hidden = functions & words & {p.name for p in program.parameters}
    text = "\n".join([*lines, *(tensor_lines if choices else [])])
    called = {h for h in hidden if re.search(rf"\b{h}\(", text)}
    if called:
        name = called.pop()
        raise SpecError(
            program.file,
            program.parameter(name).line,
            f"the hyperparameter {name} hides the operation of that name. Rename the hyperparameter.",
        )
    if any(s.sizes is not None for s in starts):
        words.add("kept")
    runtime = sorted((functions & words) - hidden - {"fl", "store", *dir(builtins)})
    return View(
        backend=backend.name,
        kind=program.kind,
        name=program.name,
        class_name=program.class_name,
        title=program.title,
        spec=_spec_path(program),
        digest=digest(program),
        prose=tuple(_wrapped(p, 96) for p in program.doc),
        equations=tuple(x for line in ascii_lines(program) for x in _broken(line)),
        notes=tuple(_wrapped(f"Note: {n}", 96, "    ") for n in program.notes),
        source=tuple(_wrapped(f"Source: {s}", 96, "    ") for s in program.source),
        hypers=hypers,
        spec_hypers=tuple(p.name for p in program.parameters),
        states=tuple(s.name for s in lowered.tensor_states),
        scalar_states=tuple((s.name, _scalar_start(s)) for s in lowered.scalar_states),
        shared_states=tuple((s.name, _scalar_start(s)) for s in lowered.shared_states),
        held=lowered.held or "",
        starts=starts,
        init_hypers=tuple(dict.fromkeys(s.value for s in starts if s.value in _names(program))),
        choices=tuple(choices.items()),
        told=[f"{told}: {_told_type(program, name)}" for told, name in choices.items()],
        memory=_memory(lowered),
        coded=tuple(signs.kept_in_8_bits(lowered).items()) if program.kind == "optimizer" else (),
        fields=tuple((e, lowered.types.get(e, "float")) for e in lowered.exports),
        scalar_lines=scalar.scalars,
        exports=scalar.exports,
        value=scalar.result,
        parameter=lowered.parameter,
        step_lines=step.step,
        step_states=step.states,
        step_result=step.result,
        update_lines=update.step,
        update_states=update.states,
        update_result=update.result,
        additive=lowered.delta is not None,
        evaluate=lowered.evaluate or "",
        runtime=(*runtime, *(("rounded",) if "fl" in words else ()), *sorted({"kept", "branch"} & words)),
        domains=tuple(sorted({w for h in hypers for w in _named(h.domain)})),
        words=frozenset(words),
        scalar_words=frozenset(scalar_words),
        step_words=frozenset(step_words),
        public=program.name if program.kind in backend.functions else program.class_name,
        relations=tuple(
            (ascii_expr(e), _python(e, program).removeprefix("(").removesuffix(")"))
            for e, _ in program.relations
        ),
        related=tuple(
            dict.fromkeys(
                x.name if isinstance(x, ir.Hyper) else x.text
                for e, _ in program.relations
                for x in ir.walk(e)
                if isinstance(x, ir.Hyper) or (isinstance(x, ir.Call) and x.op == "length")
            )
        ),
        uses_theta=any(
            "theta" in v.args
            for v in _all_values(lowered)
            if lowered.delta is None or v.name != lowered.result
        ),
        elementwise=lowered.elementwise,
        products=any(v.op == "matmul" for v in _all_values(lowered)),
        only=program.only,
        passes=passes,
        shared=tuple(e for p in lowered.passes if isinstance(p, ir.Pass) for e, _ in p.exports),
        given=lowered.given,
        sources=tuple(e for e in lowered.exports if lowered.types.get(e) == "key"),
        clock=lowered.clocked,
        weights=tuple(x for x in lowered.given if x.sizes is not None),
    )


def _all_values(lowered: Lowered) -> list[ir.Value]:
    """Every operation on tensors."""
    blocks = [lowered.step, *(p.partials for p in lowered.passes)]
    blocks += [p.values for p in lowered.passes if isinstance(p, ir.Pass)]
    return [v for block in blocks for v in ir.values_of(block)]


def _words(lines: Sequence[str]) -> set[str]:
    """Every name that some lines mention, attributes apart."""
    return set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", "\n".join(lines)))


def _names(program: Program) -> set[str]:
    return {p.name for p in program.parameters}


def _available(lowered: Lowered, backend: Backend) -> None:
    """Refuse a program that needs an operation that the backend lacks."""
    lacking = {v.op for v in _all_values(lowered)} - set(backend.tensor)
    lacking |= {v.op for v in ir.values_of(lowered.scalars)} - set(backend.scalar)
    if lacking:
        what = ", ".join(sorted(lacking))
        raise NotAvailable(
            f"{lowered.program.name} needs {what}, which {backend.title} does not have"
        )


def digest(program: Program) -> str:
    """A hash of what the program means; comments and formatting of the spec do not change it."""
    parts = [program.kind, program.name, program.class_name, *ascii_lines(program)]
    parts += [f"{p.name} {p.domain.phrase} {p.default!r}" for p in program.parameters]
    parts += [f"only {program.only}"] if program.only else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _spec_path(program: Program) -> str:
    path = Path(program.file)
    for parent in path.parents:
        if parent.name == "specs":
            return path.relative_to(parent.parent).as_posix()
    return path.name


def _wrapped(text: str, width: int, indent: str = "") -> str:
    return "\n".join(textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False))


def _broken(line: str) -> list[str]:
    """An equation over several lines where it is long, broken after an operator or a comma."""
    lead = line[: len(line) - len(line.lstrip())]
    head, found, rest = line.partition(" = stack(")
    if found and len(line) > 88:  # an operand a line
        operands = _operands(rest.removesuffix(")"))
        return [f"{head}{found}", *(f"{lead}    {x}," for x in operands), f"{lead})"]
    return textwrap.wrap(
        line, 88, initial_indent="", subsequent_indent=lead + "    ", drop_whitespace=True
    ) or [line]


def _operands(text: str) -> list[str]:
    """What stands between the outer commas."""
    found, depth = [""], 0
    for c in text:
        depth += (c in "([") - (c in ")]")
        if c == "," and not depth:
            found.append("")
        else:
            found[-1] += c
    return [x.strip() for x in found]


def _start(s: ir.State) -> str:
    match s.start:
        case ir.Number(value):
            return "zero" if value == 0 else repr(float(value))
        case ir.Call("neg", (ir.Number(value),), _):
            return repr(-float(value))
        case ir.Hyper(name):
            return name
        case ir.Call("first", _, _):
            return "zero"
    return "copy"


def _started(s: ir.State, program: Program) -> Start:
    """How a state begins, as text."""
    words = "".join(", 1" if x == "1" else f', "{x}"' for x in s.shape)
    sizes = None if s.shape in (FULL, MATRIX) else words
    homes = [
        f"({text})" if " or " in text else text
        for e, holds in s.home
        for text in [
            regions.python(e, holds, program) if regions.static(e) else _shape_condition(e, holds)
        ]
    ]
    return Start(s.name, _start(s), sizes, " and ".join(homes))


def _shape_condition(e: ir.Expr, holds: bool = True) -> str:
    """A condition on the shape of theta, as Python."""
    match e:
        case ir.Number(value):
            return repr(value)
        case ir.Call("matrix", _, _):
            return "is_matrix(theta)" if holds else "not is_matrix(theta)"
        case ir.Call("rows" | "cols" as op, _, _):
            return f"theta.shape[{-2 if op == 'rows' else -1}]"
        case ir.Call("not", (inner,), _):
            return _shape_condition(inner, not holds)
        case ir.Call(op, (a, b), _) if op in _SIGNS:
            text = f"{_shape_condition(a)} {_SIGNS[op]} {_shape_condition(b)}"
            return text if holds else f"not {text}"
    raise AssertionError(e)


def _told_type(program: Program, name: str) -> str:
    """The type of what a kernel is told of a choice."""
    domain = program.parameter(name).domain
    kind = "str" if domain.type == "choice" else "bool"
    return f"{kind} | None" if domain.optional and program.told(name) == name else kind


def _scalar_start(s: ir.State) -> str:
    """A number, or the name of a hyperparameter as a string."""
    start = _start(s)
    return f'"{start}"' if start.isidentifier() and start != "zero" else start.replace("zero", "0.0")


def _memory(lowered: Lowered) -> str:
    """What the states cost, in words."""
    states = lowered.tensor_states
    once = ", ".join(s.name for s in lowered.shared_states)
    once = f"For all parameters together: {once}, one number{' each' if ',' in once else ''}." if once else ""
    if not states:
        return once or "States: none."
    names = ", ".join(s.name for s in states)
    plural = "s" if len(states) > 1 else ""
    costs, rough = [], []
    coded = signs.kept_in_8_bits(lowered)
    for home in dict.fromkeys(s.home for s in states):
        here = [s for s in states if s.home == home]
        full = sum(len(s.shape) == 1 for s in here)
        parts = [f"{4 * full} bytes a parameter"] if full else []
        for shape, word in shapes.UNITS.items():
            if count := sum(s.shape == shape for s in here):
                parts.append(f"{4 * count} bytes a {word}")
        where = regions.whose(home)
        costs.append(" ".join([" and ".join(parts), where]).strip())
        pieces = sum(s.name in coded for s in here)
        if pieces:
            each = 4 * (full - pieces) + pieces * (1 + 4 / storage.PIECE)
            rough.append(f"{each:.3g} bytes a parameter {where}".strip())
    cost = f"{'; '.join(costs)} (float32 and below), twice that in float64."
    cost += f' With states="8bit": {"; ".join(rough)}.' if rough else ""
    return _wrapped(" ".join([f"State{plural}: {names}; {cost}", *([once] if once else [])]), 96)


def _hypers(program: Program, backend: Backend) -> tuple[Hyper, ...]:
    """The hyperparameters as this backend's users pass them."""
    made: list[Hyper] = []
    names = [p.name for p in program.parameters]
    for p in program.parameters:
        if p.name in backend.implied.get(program.kind, ()):
            continue
        together = next(
            (
                (public, tuple(m for m in members if m in names))
                for public, members in backend.bundled(program.name)
                if p.name in members and members[1] in names
            ),
            None,
        )
        if together is None:
            made.append(_hyper(backend.spelled(program.name, p.name), (p,)))
        elif p.name == together[1][0]:
            made.append(_hyper(together[0], tuple(program.parameter(n) for n in together[1])))
    for i, h in enumerate(made):
        if h.name in [other.name for other in made[:i]]:
            raise SpecError(
                program.file,
                program.parameter(h.spec[0]).line,
                f"{backend.title} users call two of these hyperparameters {h.name}. Rename one.",
            )
    required = [h for h in made if not h.default]
    return tuple(required + [h for h in made if h.default])


_TYPES = {"float": "float", "int": "int", "bool": "bool", "choice": "str", "schedule": "Any"}


def _hyper(name: str, parts: tuple[ir.Parameter, ...]) -> Hyper:
    first = parts[0]
    if len(parts) > 1:
        kind = f"tuple[{', '.join(_type(p.domain) for p in parts)}]"
        default = "(" + ", ".join(repr(p.default) for p in parts) + ")"
        about = "; ".join(f"{p.name}: {p.about.rstrip('.')}" if p.about else p.name for p in parts)
    else:
        default = "" if first.default is ir.REQUIRED else _literal(first.default)
        about = first.about.rstrip(".")
        kind = _type(first.domain)
    phrases = list(dict.fromkeys(p.domain.phrase for p in parts))
    phrase = ", then ".join(phrases)
    domain = _domain(first.domain)
    if len(phrases) > 1:
        domain = f"each_of({', '.join(_domain(p.domain) for p in parts)})"
    elif len(parts) > 1:
        phrase = f"each {phrase}"
    return Hyper(name, tuple(p.name for p in parts), kind, default, about, phrase, domain)


def _type(d: ir.Domain) -> str:
    """The type of a hyperparameter in a signature."""
    kind = f"tuple[{_TYPES[d.type]}, ...]" if d.many else _TYPES[d.type]
    return f"{kind} | None" if d.optional else kind


_NAMED = {
    "NonNegative": "NonNegative",
    "Positive": "Positive",
    "Decay": "Decay",
    "Real": "Real",
    "Count": "Count",
    "PositiveCount": "PositiveCount",
    "bool": "Flag",
    "Schedule": "AnySchedule",
}


def _literal(value: object) -> str:
    """A default as Python text."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _named(text: str) -> set[str]:
    """The names that an expression reads, words in quotes and keywords apart."""
    return {x.id for x in ast.walk(ast.parse(text)) if isinstance(x, ast.Name)}


def _domain(d: ir.Domain) -> str:
    """A domain as the text that makes it in generated code."""
    if d.optional:
        return f"optional({_domain(replace(d, optional=False))})"
    if d.many:
        least = f", {d.least}" if d.least else ""
        return f"tuple_of({_domain(replace(d, many=False, least=0))}{least})"
    if d.name in _NAMED:
        return _NAMED[d.name]
    parts = [f'"{d.phrase}"', *([f'"{d.type}"'] if d.type != "float" else [])]
    default = ir.Domain("")
    for key in ("low", "high", "low_open", "high_open", "choices"):
        value = getattr(d, key)
        if value != getattr(default, key):
            parts.append(f"{key}={value!r}".replace("'", '"'))
    return f"Domain({', '.join(parts)})"


def _python(e: ir.Expr, program: Program) -> str:
    """A relation between hyperparameters as Python."""
    match e:
        case ir.Hyper(name):
            return name
        case ir.Number(value):
            return repr(value)
        case ir.Call("length", _, text):
            return f"len({text})"
        case ir.Call(op, args, _):
            inner = [_python(a, program) for a in args]
            if op in _SIGNS:  # `and` would look into a tensor
                sign = {"and": "&", "or": "|"}.get(op, _SIGNS[op])
                return f"({inner[0]} {sign} {inner[1]})"
            if op == "not":
                return f"(not {inner[0]})"
    line = program.requires[0][1]
    what = f"require(...) compares hyperparameters with + - * / only, not {ascii_expr(e)}."
    raise SpecError(program.file, line, f"{what} Write the relation without it.")


_SIGNS = {
    **{"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "and", "or": "or"},
    **{"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="},
}

# ---------------------------------------------------------------------------------------------------
# Files


@functools.lru_cache
def _environment(folder: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(backends.__file__).parent]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["suffixed"] = lambda text, suffix: text + suffix
    environment.filters["trimmed"] = lambda text: text.rstrip("\n")
    environment.filters["opened"] = _opened
    environment.filters["quoted"] = lambda text: f'"{text}"'
    environment.tests["in_case"] = lambda name, upper: name[0].isupper() == upper
    return environment


def _opened(text: str, indent: int, before: int = 0) -> str:
    """A call or a tuple with an argument a line where it is too long for one.

    Args:
        text: the expression, as Python.
        indent: of the line that it stands in.
        before: how many characters of that line come before it.
    """
    node = ast.parse(text, mode="eval").body
    if indent + before + len(text) < WIDTH or not isinstance(node, ast.Call | ast.Tuple):
        return text
    head = ast.get_source_segment(text, node.func) if isinstance(node, ast.Call) else ""
    parts = [*node.args, *node.keywords] if isinstance(node, ast.Call) else node.elts
    inner = [(ast.get_source_segment(text, x) or "", isinstance(x, ast.keyword)) for x in parts]
    opened = [x if plain else _opened(x, indent + 4) for x, plain in inner]
    lines = "".join(f"{' ' * (indent + 4)}{x},\n" for x in opened)
    return f"{head}(\n{lines}{' ' * indent})"


def render(lowered: Lowered, backend: Backend) -> str:
    """The text of one module."""
    return _module(view(lowered, backend), backend)


def _module(v: View, backend: Backend) -> str:
    template = _environment(backend.folder).get_template(f"{v.kind}.py.jinja")
    return _spaced(template.render(v=v))


def _spaced(text: str) -> str:
    """Blank lines as PEP 8 has them, so that templates need not count theirs."""
    made: list[str] = []
    blank = quoted = False
    for line in text.splitlines():
        line = line.rstrip()
        if not line:
            blank = True
            continue
        inside, quoted = quoted, quoted ^ (line.count('"""') % 2 == 1)
        if inside:
            made += [""] * blank + [line]
            blank = False
            continue
        last = made[-1] if made else ""
        opens = line.startswith(("def ", "class ", "@", "async "))
        after_body = last.startswith(" ") and not line.startswith((" ", ")", "]", "}", '"""', "#"))
        if made and (opens or after_body) and not last.startswith(("@", "#")):
            made += ["", ""]
        elif blank and made:
            made.append("")
        made.append(line)
        blank = False
    return "\n".join(made) + "\n"


# What is copied as it stands; the words it is written in are the runtime's own.
_TEXTS = (storage, summation, network, threefry, normal)


def runtime(backend: Backend) -> str:
    """The backend's runtime; what it imports from here is copied in, so that it stands alone."""
    text = (backend.folder / "runtime.py").read_text(encoding="utf-8")
    here = Path(backends.__file__).parent
    included = {
        "backends.domains": (here / "domains.py").read_text(encoding="utf-8"),
        "backends.rules": (here / "rules.py").read_text(encoding="utf-8"),
        "generator.elementary": Path(elementary.__file__).read_text(encoding="utf-8"),
        **{m.__name__: Path(m.__file__ or "").read_text(encoding="utf-8") for m in _TEXTS},
        **{
            f"backends.{backend.name}.{file.stem}": file.read_text(encoding="utf-8")
            for file in backend.folder.glob("*.py")
        },
    }
    tree = ast.parse(text)
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    lines = text.splitlines()
    parts: list[str] = []
    merged: list[ast.Import | ast.ImportFrom] = []
    for node in imports:
        source = included.get(getattr(node, "module", None) or "")
        if source is None:
            merged.append(node)
        elif "elementary" in str(getattr(node, "module", "")):
            parts.append(_elementary(source, backend.elementary))
            merged.append(ast.Import([ast.alias("math")]))
        elif not str(getattr(node, "module", "")).startswith("backends."):
            parts.append(source.partition("# <text>\n")[2].strip("\n") + "\n")
        else:
            parts.append(_definitions(source))
            body = ast.parse(source).body
            needed = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
            merged += [n for n in needed if getattr(n, "module", None) not in included]
    head = "\n".join(lines[: imports[0].lineno - 1])
    rest = "\n".join(lines[imports[-1].end_lineno :])
    note = _edit_note(f"backends/{backend.name}/runtime.py", "that")
    blocks = [note + head, _imports(merged), *(x.strip("\n") for x in parts), rest.strip("\n")]
    return blocks[0].rstrip("\n") + "\n\n" + "\n\n".join(blocks[1:2]) + "".join(
        "\n\n\n" + b for b in blocks[2:]
    ) + "\n"


def _edit_note(source: str, what: str) -> str:
    return f"# @generated by `python -m generator build` from {source}; edit {what}.\n"


def _imports(nodes: Sequence[ast.Import | ast.ImportFrom]) -> str:
    """One sorted import block: the future, the standard library, the rest."""
    plain: set[tuple[str, str]] = set()
    named: dict[str, set[str]] = {}
    for n in nodes:
        for a in n.names:
            as_name = f" as {a.asname}" if a.asname else ""
            if isinstance(n, ast.Import):
                plain.add((a.name, as_name))
            else:
                named.setdefault("." * n.level + (n.module or ""), set()).add(a.name + as_name)
    sections: list[list[str]] = [[], [], []]

    def section(module: str) -> list[str]:
        root = module.partition(".")[0]
        if root == "__future__":
            return sections[0]
        return sections[1] if root in sys.stdlib_module_names else sections[2]

    for name, as_name in sorted(plain):
        section(name).append(f"import {name}{as_name}")
    for module in sorted(named):
        line = f"from {module} import {', '.join(sorted(named[module], key=_import_order))}"
        if len(line) > WIDTH:
            inner = "".join(f"    {x},\n" for x in sorted(named[module], key=_import_order))
            line = f"from {module} import (\n{inner})"
        section(module).append(line)
    return "\n\n".join("\n".join(s) for s in sections if s)


def _import_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as isort has it."""
    rank = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return rank, name.lower()


def _definitions(text: str) -> str:
    """A module without its docstring and imports."""
    tree = ast.parse(text)
    first = next(n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef))
    start = min([first.lineno, *(d.lineno for d in first.decorator_list)])
    return "\n".join(text.splitlines()[start - 1 :]) + "\n"


def _elementary(source: str, words: Mapping[str, str]) -> str:
    """The elementary functions in a backend's words, each operation guarded where it guards."""
    text = source.partition("# <text>\n")[2].strip("\n")
    guard = words.get("guard", "")
    made: list[str] = []
    for line in text.splitlines():
        code, _, comment = line.partition("  # ")
        opened = re.match(r"def (\w+)\((\w+)", code)
        statement = code.startswith("    ") and not code.lstrip().startswith(("#", '"""'))
        if statement and code.strip():
            tree = _InWords(words, guard).visit(ast.parse(code.strip()))
            code = "    " + ast.unparse(tree)
        whole = code + (f"  # {comment}" if comment else "")
        if len(whole) <= WIDTH or not statement:
            made.append(whole)
        else:
            made += [f"    # {comment}"] * bool(comment) + _parted(code)
        if opened:
            argument = opened[2]
        elif guard and code.lstrip().startswith('"""'):
            made.append(f"    {guard} = rounded({argument})")
    return "\n".join(made) + "\n"


def _parted(code: str) -> list[str]:
    """A long statement over several lines."""
    left, _, right = code.strip().partition("return " if "return " in code else " = ")
    head = "    return (" if "return " in code else f"    {left} = ("
    return [head, *("        " + x for x in emit.broken(right, WIDTH - 8)), "    )"]


class _InWords(ast.NodeTransformer):
    """Renames the three functions that are no operators, and guards what the operators give."""

    def __init__(self, words: Mapping[str, str], guard: str) -> None:
        self.words, self.guard = words, guard

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.words.get(node.id, node.id), node.ctx)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return ast.Call(ast.Name(self.guard), [node], []) if self.guard else node


def package(lowered: Sequence[Lowered], backend: Backend) -> dict[str, str]:
    """Every file of one backend's package, by its path inside it."""
    files = {"runtime.py": runtime(backend)}
    groups: dict[str, list[View]] = {folder: [] for folder in FOLDERS.values()}
    for program in lowered:
        folder = FOLDERS[program.program.kind]
        groups[folder].append(v := view(program, backend))
        files[f"{folder}/{v.name}.py"] = _module(v, backend)
    environment = _environment(backend.folder)
    for folder, views in groups.items():
        if views:
            text = f'"""{backend.title} {folder}, one a file."""\n'
            files[f"{folder}/__init__.py"] = _edit_note("specs", "those") + text
    views = [v for g in groups.values() for v in g]
    for name in ("__init__.py", "__init__.pyi"):
        template = environment.get_template(f"package/{name}.jinja")
        text = template.render(b=backend, groups=groups, views=views)
        files[name] = text if name.endswith("i") else _spaced(text)
    for dialect in dialects():
        spoken = [(plain(v.public, dialect), v) for v in views if speaks(v.name) == dialect]
        for ending in ("py", "pyi") if spoken else ():
            template = environment.get_template(f"dialect.{ending}.jinja")
            text = template.render(b=backend, dialect=dialect, spoken=spoken)
            files[f"like_{dialect}.{ending}"] = text if ending == "pyi" else _spaced(text)
    return files


@functools.cache
def dialects() -> tuple[str, ...]:
    """Whose definitions of well-known names there may be, among all backends."""
    return tuple(sorted({d for b in backends.discover().values() for d in b.dialects}))


def speaks(name: str) -> str:
    """Whose definition a spec is, by its name: rmsprop_torch is torch's; empty where it is nobody's."""
    return next((d for d in dialects() if name.endswith(f"_{d}")), "")


def plain(public: str, dialect: str) -> str:
    """What a dialect itself calls what a package calls RMSpropTorch or rmsprop_torch."""
    return re.sub(rf"_?{dialect}$", "", public, flags=re.IGNORECASE)


def write(files: Mapping[str, str], out: Path, stale: bool = True) -> list[str]:
    """Write what changed, remove what no spec makes any more; the paths that were touched."""
    touched = []
    for name, text in files.items():
        path = out / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.replace(path)
            touched.append(name)
    if stale and out.exists():
        for path in sorted(out.rglob("*")):
            name = path.relative_to(out).as_posix()
            if path.is_file() and name not in files and "__pycache__" not in name:
                path.unlink()
                touched.append(name)
                if not any(path.parent.iterdir()):
                    path.parent.rmdir()
    return touched


def differences(files: Mapping[str, str], out: Path, stale: bool = True) -> list[str]:
    """What `write` would change, as unified diffs."""
    found = []
    for name, text in files.items():
        path = out / name
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old != text:
            diff = difflib.unified_diff(
                old.splitlines(), text.splitlines(), f"{name} (there)", f"{name} (built)", lineterm=""
            )
            found.append("\n".join(diff))
    for path in sorted(out.rglob("*")) if stale and out.exists() else []:
        name = path.relative_to(out).as_posix()
        if path.is_file() and name not in files and "__pycache__" not in name:
            found.append(f"{name}: no spec makes this file any more")
    return found
