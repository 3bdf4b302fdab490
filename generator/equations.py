"""Equations for people: ASCII for docstrings and messages, LaTeX for the catalogue.

In: frozen expressions and statements. Out: text. Must not know: SymPy (whose printers reorder), any
framework.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from generator import ir

_ATOM = 10
Text = tuple[str, int]  # and how tightly it binds


def ascii_expr(e: ir.Expr) -> str:
    """An expression as the spec writes it; a relation as people do, with `=`."""
    return Ascii().relation(e)


def ascii_lines(program: ir.Program) -> list[str]:
    """The program's equations, one a line, regions indented; the spec's own text but for regions."""
    inputs = {
        f"{e.text} = {e.op}({', '.join([repr(e.text), *_declared(e)])})": None
        for s in ir.statements(program.body)
        for top in ir.expressions(s)
        for e in ir.walk(top)
        if isinstance(e, ir.Call) and e.op in ("oracle", "noise", "meta")
    }
    return [*inputs, *Ascii(program).block(program.body)]


def latex_expr(e: ir.Expr, clock: str = "t") -> str:
    """An expression in LaTeX, in the author's order."""
    printer = _Latex()
    printer.clock = clock
    return printer.expr(e)


def latex_lines(program: ir.Program) -> list[str]:
    """The program's equations, one a line, for an `aligned` block."""
    return _Latex(program).block(program.body)


class _Printer:
    """What both texts share: at which time a name stands."""

    def __init__(self, program: ir.Program | None = None) -> None:
        self.clock = "n" if program and program.kind == "schedule" else "t"
        self.loops: list[ir.Loop] = []  # around the statement that is printed
        self.loop_of = {
            s.target: loop
            for loop in (ir.statements(program.body) if program else ())
            if isinstance(loop, ir.Loop)
            for s in ir.statements(loop.body)
            if isinstance(s, ir.Assign)
        }

    def enter(self, loop: ir.Loop) -> None:
        """Go into a loop: its names count with its index."""
        self.loops.append(loop)

    def leave(self) -> None:
        """Go out again: its names stand at its count."""
        self.loops.pop()

    def time(self, name: str, lag: int) -> str:
        """The time of a reference: t-1, k, or the count of a loop that is over."""
        loop = self.loop_of.get(name)
        if loop is not None and loop not in self.loops:
            return self.tight(loop.count)
        now = self.clock if loop is None else loop.index
        return f"{now}-1" if lag else now

    def tight(self, e: ir.Expr) -> str:
        """An index, without spaces."""
        return self.expr(e).replace(" ", "")

    def expr(self, e: ir.Expr) -> str:
        """An expression."""
        return self.text(e)[0]

    def start(self, value: ir.Expr) -> str:
        """The start of a state."""
        return self.at("theta", "0") if value == ir.Ref("theta", 1) else self.expr(value)

    def equation(self, s: ir.Start | ir.Assign) -> tuple[str, str]:
        """Both sides of an equation."""
        if isinstance(s, ir.Start):
            value = self.expr if s.target in self.loop_of else self.start
            return self.at(s.target, "0"), value(s.value)
        return self.at(s.target, self.time(s.target, 0)), self.expr(s.value)

    def text(self, e: ir.Expr) -> Text:
        raise NotImplementedError

    def at(self, name: str, index: str) -> str:
        raise NotImplementedError


def _together(body: tuple[ir.Statement, ...]) -> list[list[ir.Statement]]:
    """Statements, with starts that one line gives to several names in one group."""

    def key(numbered: tuple[int, ir.Statement]) -> tuple[object, ...]:
        number, s = numbered
        return ("start", s.line, s.value) if isinstance(s, ir.Start) else ("alone", number)

    return [[s for _, s in group] for _, group in groupby(enumerate(body), key)]


# ---------------------------------------------------------------------------------------------------
# ASCII

_INFIX = {
    "lt": ("<", 1),
    "le": ("<=", 1),
    "gt": (">", 1),
    "ge": (">=", 1),
    "or": ("|", 2),
    "and": ("&", 3),
    "add": ("+", 5),
    "sub": ("-", 5),
    "mul": ("*", 6),
    "div": ("/", 6),
    "floordiv": ("//", 6),
    "mod": ("%", 6),
    "matmul": ("@", 6),
    "power": ("**", 8),
    "real_power": ("**", 8),
}
_LEFT_ONLY = ("lt", "le", "gt", "ge")  # a < b < c has another meaning


class Ascii(_Printer):
    """Expressions and statements as specs write them."""

    def relation(self, e: ir.Expr) -> str:
        """An expression; an equality at its top as `a = b`."""
        if isinstance(e, ir.Call) and e.op == "eq":
            return f"{self.expr(e.args[0])} = {self.expr(e.args[1])}"
        return self.expr(e)

    def at(self, name: str, index: str) -> str:
        """A name at a time."""
        return f"{name}[{index}]"

    def text(self, e: ir.Expr) -> Text:
        """An expression and how tightly it binds."""
        match e:
            case ir.Number(value):
                return repr(value), _ATOM if value >= 0 else 7
            case ir.Hyper(name) | ir.Clock(name):
                return name, _ATOM
            case ir.Ref(name, lag):
                return self.at(name, self.time(name, lag)), _ATOM
            case ir.Item(name, index):
                return self.at(name, self.tight(index)), _ATOM
        assert isinstance(e, ir.Call)
        x = [self.text(a) for a in e.args]
        match e.op:
            case "power" | "real_power":
                return f"{_wrapped(x[0], 9)}**{_wrapped(x[1], 8)}", 8
            case op if op in _INFIX:
                sign, level = _INFIX[op]
                left = _wrapped(x[0], level + (op in _LEFT_ONLY))
                return f"{left} {sign} {_wrapped(x[1], level + 1)}", level
            case "neg" | "not":
                return f"{'-' if e.op == 'neg' else '~'}{_wrapped(x[0], 7)}", 7
            case "eq":
                return f"equal({x[0][0]}, {x[1][0]})", _ATOM
            case "ne":
                return f"~equal({x[0][0]}, {x[1][0]})", 7
            case "transpose":
                return f"{_wrapped(x[0], _ATOM)}.T", _ATOM
            case "call":
                return f"{x[0][0]}({x[1][0]})", _ATOM
            case "pi" | "matrix" | "vector" | "rows" | "cols":
                return e.op, _ATOM
            case "word":
                return "None" if e.text == "None" else repr(e.text), _ATOM
            case "oracle" | "noise" | "meta":
                return e.text, _ATOM
        return f"{e.op}({e.text or ', '.join(text for text, _ in x)})", _ATOM

    def block(self, body: tuple[ir.Statement, ...]) -> list[str]:
        """Statements, one a line."""
        lines: list[str] = []
        for group in _together(body):
            match group[0]:
                case ir.Start() | ir.Assign():
                    sides = [self.equation(s) for s in group if isinstance(s, ir.Start | ir.Assign)]
                    lines.append(" = ".join([*(left for left, _ in sides), sides[0][1]]))
                case ir.Loop(index, count, inner) as loop:
                    lines.append(f"for {index} = 1, ..., {self.expr(count)}:")
                    self.enter(loop)
                    lines += self.indented(inner)
                    self.leave()
                case ir.When(condition, inner, other):
                    lines += [f"when {self.expr(condition)}:", *self.indented(inner)]
                    if other:
                        lines += ["otherwise:", *self.indented(other)]
                case ir.Case(condition, inner):
                    lines += [f"case {self.expr(condition)}:", *self.indented(inner)]
        return lines

    def indented(self, body: tuple[ir.Statement, ...]) -> list[str]:
        """A region's statements."""
        return ["    " + line for line in self.block(body)]


def _wrapped(text: Text, level: int) -> str:
    return text[0] if text[1] >= level else f"({text[0]})"


def _declared(e: ir.Call) -> list[str]:
    """What an input declares besides its name: `shape=scalar, scope="global"`, or its sizes."""
    if e.op == "meta":
        return [repr(tuple(a.value for a in e.args if isinstance(a, ir.Number)))]
    words = [a.text for a in e.args if isinstance(a, ir.Call)]
    if not words:
        return []
    *sizes, scope = words
    shape = sizes[0] if len(sizes) == 1 else f"({', '.join(sizes)})"
    return [f"shape={shape}", f"scope={scope!r}"]


# ---------------------------------------------------------------------------------------------------
# LaTeX

_GREEK = set(
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi"
    " omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split()
)
_SYMBOLS = {
    "lr": (r"\eta", ()),
    "eps": (r"\epsilon", ()),
    "weight_decay": (r"\lambda", ()),
    "base_lr": (r"\eta", ("0",)),
    "lr_min": (r"\eta", (r"\min",)),
    "momentum": (r"\mu", ()),
}
_ACCENTS = {"hat": r"\hat", "bar": r"\bar", "tilde": r"\tilde"}
_INDICES = {"inf": r"\infty", "min": r"\min", "max": r"\max"}
_RELATION = {"lt": "<", "le": r"\leq", "gt": ">", "ge": r"\geq", "eq": "=", "ne": r"\ne"}
_JOINED = {
    "or": (r"\vee", 2),
    "and": (r"\wedge", 3),
    "add": ("+", 5),
    "sub": ("-", 5),
    "mod": (r"\bmod", 6),
    "matmul": (r"\,", 6),
}


def latex_name(name: str) -> str:
    r"""`v_hat` as \hat{v}, `beta1` as \beta_{1}, a word upright."""
    base, indices = _symbol(name)
    return f"{base}_{{{','.join(indices)}}}" if indices else base


def _symbol(name: str) -> tuple[str, tuple[str, ...]]:
    """A name's letter and its indices; a word is upright and has none."""
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    stem, *parts = name.split("_")
    letters = stem.rstrip("0123456789")
    accents = [p for p in parts if p in _ACCENTS]
    indices = [_index(p) for p in parts if p not in _ACCENTS]
    if letters in _GREEK or len(letters) == 1:
        base = f"\\{letters}" if letters in _GREEK else letters
        indices[:0] = [stem[len(letters) :]] if letters != stem else []
    else:
        words = [p for p in (stem, *parts) if p not in _ACCENTS]
        base, indices = r"\mathrm{" + r"\_".join(words) + "}", []
    for accent in accents:
        base = f"{_ACCENTS[accent]}{{{base}}}"
    return base, tuple(indices)


def _index(part: str) -> str:
    plain = len(part) == 1 or part.isdigit()
    return _INDICES.get(part, part if plain else rf"\mathrm{{{part}}}")


class _Latex(_Printer):
    def at(self, name: str, index: str) -> str:
        base, indices = _symbol(name)
        return f"{base}_{{{','.join([*indices, index])}}}"

    def block(self, body: tuple[ir.Statement, ...], indent: str = "") -> list[str]:
        lines: list[str] = []
        deeper = indent + r"\quad "
        for group in _together(body):
            match group[0]:
                case ir.Start() | ir.Assign():
                    sides = [self.equation(s) for s in group if isinstance(s, ir.Start | ir.Assign)]
                    left = " = ".join(left for left, _ in sides)
                    lines.append(f"{indent}{left} &= {sides[0][1]}")
                case ir.Loop(index, count, inner) as loop:
                    lines.append(
                        rf"{indent}\text{{for }} {index} &= 1, \dots, {self.expr(count)}\text{{:}}"
                    )
                    self.enter(loop)
                    lines += self.block(inner, deeper)
                    self.leave()
                case ir.When(condition, inner, other):
                    lines.append(rf"{indent}\text{{when }} {self.expr(condition)}\text{{:}} &")
                    lines += self.block(inner, deeper)
                    if other:
                        lines += [rf"{indent}\text{{otherwise:}} &", *self.block(other, deeper)]
                case ir.Case(condition, inner):
                    lines.append(rf"{indent}\text{{case }} {self.expr(condition)}\text{{:}} &")
                    lines += self.block(inner, deeper)
        return lines

    def text(self, e: ir.Expr) -> Text:
        match e:
            case ir.Number(value):
                return _latex_number(value)
            case ir.Hyper(name):
                return latex_name(name), _ATOM
            case ir.Clock(name):
                return name, _ATOM
            case ir.Ref(name, lag):
                return self.at(name, self.time(name, lag)), _ATOM
            case ir.Item(name, index):
                return self.at(name, self.tight(index)), _ATOM
        assert isinstance(e, ir.Call)
        if e.op == "where":
            return self.cases(e), _ATOM
        match e:
            case ir.Call("not", (ir.Call("eq", args),)):
                return self.text(ir.Call("ne", args))
        x = [self.text(a) for a in e.args]
        if e.op in _JOINED:
            sign, level = _JOINED[e.op]
            return f"{_left(x[0], level)} {sign} {_parens(x[1], level + 1)}", level
        if e.op in _RELATION:
            return f"{_left(x[0], 4)} {_RELATION[e.op]} {_parens(x[1], 4)}", 1
        made = _NOTATION.get(e.op)
        if made is not None:
            return made(x)
        match e.op:
            case "power" | "real_power":
                return f"{_left(x[0], _ATOM)}^{{{self.exponent(e.args[1])}}}", 9
            case "first":
                return self.at(e.text, "1"), _ATOM
            case "word":
                return rf"\text{{{e.text}}}" if e.text == "None" else rf"\text{{“{e.text}”}}", _ATOM
            case "oracle" | "noise" | "meta" | "length":
                inner = latex_name(e.text)
                return inner if e.op != "length" else rf"\left|{inner}\right|", _ATOM
        name = e.op.replace("_", r"\_")
        inner = rf"\left({', '.join(text for text, _ in x)}\right)" if x else ""
        return rf"\mathrm{{{name}}}{inner}", _ATOM

    def exponent(self, e: ir.Expr) -> str:
        """A quotient in an exponent is written on one line."""
        if isinstance(e, ir.Call) and e.op == "div":
            return f"{_left(self.text(e.args[0]), 6)} / {_parens(self.text(e.args[1]), 7)}"
        return self.expr(e)

    def cases(self, e: ir.Expr) -> str:
        """`where(c, a, where(d, b, x))` as one brace with three rows."""
        rows = []
        while isinstance(e, ir.Call) and e.op == "where":
            condition, value, e = e.args
            rows.append(rf"{self.expr(value)} & \text{{if }} {self.expr(condition)}")
        rows.append(rf"{self.expr(e)} & \text{{otherwise}}")
        return r"\begin{cases} " + r" \\ ".join(rows) + r" \end{cases}"


def _applied(name: str) -> Callable[[list[Text]], Text]:
    return lambda x: (rf"{name}\left({', '.join(text for text, _ in x)}\right)", _ATOM)


def _between(left: str, right: str) -> Callable[[list[Text]], Text]:
    return lambda x: (f"{left}{x[0][0]}{right}", _ATOM)


def _column(x: list[Text]) -> Text:
    rows = r" \\ ".join(text for text, _ in x)
    return rf"\begin{{pmatrix}} {rows} \end{{pmatrix}}", _ATOM


def _product(x: list[Text]) -> Text:
    left, right = _left(x[0], 6), _parens(x[1], 7)
    sign = r" \cdot " if right[0].isdigit() else r" \, "
    return f"{left}{sign}{right}", 6


_NOTATION: dict[str, Callable[[list[Text]], Text]] = {
    "mul": _product,
    "div": lambda x: (rf"\frac{{{x[0][0]}}}{{{x[1][0]}}}", 9),
    "neg": lambda x: (f"-{_parens(x[0], 7)}", 7),
    "not": lambda x: (rf"\neg {_parens(x[0], 7)}", 7),
    "sqrt": _between(r"\sqrt{", "}"),
    "abs": _between(r"\left|", r"\right|"),
    "floor": _between(r"\left\lfloor ", r" \right\rfloor"),
    "floordiv": lambda x: (
        rf"\left\lfloor \frac{{{x[0][0]}}}{{{x[1][0]}}} \right\rfloor",
        _ATOM,
    ),
    "norm": _between(r"\left\|", r"\right\|"),
    "global_norm": _between(r"\left\|", r"\right\|_{\mathrm{global}}"),
    "global_sum": _applied(r"\mathrm{sum}_{\mathrm{global}}"),
    "stack": _column,
    "dense": lambda x: (rf"{_left(x[1], 5)} + {_left(x[0], 6)} \, {_parens(x[2], 7)}", 5),
    "entry": lambda x: (rf"{_left(x[0], _ATOM)}^{{({x[1][0]})}}", 9),
    "transpose": lambda x: (rf"{_left(x[0], _ATOM)}^\top", 9),
    "minimum": _applied(r"\min"),
    "maximum": _applied(r"\max"),
    "exp": _applied(r"\exp"),
    "log": _applied(r"\log"),
    "cos": _applied(r"\cos"),
    "grad": _applied(r"\nabla f"),
    "call": lambda x: (rf"{x[0][0]}\left({x[1][0]}\right)", _ATOM),
    "pi": lambda x: (r"\pi", _ATOM),
}


def _parens(text: Text, level: int) -> str:
    return text[0] if text[1] >= level else rf"\left({text[0]}\right)"


def _left(text: Text, level: int) -> str:
    """As `_parens`, for what something follows: cases have no brace at their right."""
    return _parens(text, level if not text[0].endswith(r"\end{cases}") else _ATOM + 1)


def _latex_number(value: int | float) -> Text:
    mantissa, _, exponent = repr(value).partition("e")
    if not exponent:
        return mantissa, _ATOM if value >= 0 else 7
    power = rf"10^{{{int(exponent)}}}"
    if mantissa in ("1", "1.0"):
        return power, 9
    return rf"{mantissa} \cdot {power}", 6 if value >= 0 else 5
