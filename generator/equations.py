"""Equations for people: ASCII for docstrings and messages, LaTeX for the catalogue.

In: frozen expressions and statements. Out: text. Must not know: SymPy (whose printers reorder), any
framework.
"""

from __future__ import annotations

from generator import ir

_INFIX = {
    "or": ("|", 1),
    "and": ("&", 2),
    "lt": ("<", 4),
    "le": ("<=", 4),
    "gt": (">", 4),
    "ge": (">=", 4),
    "eq": ("=", 4),
    "ne": ("!=", 4),
    "add": ("+", 5),
    "sub": ("-", 5),
    "mul": ("*", 6),
    "div": ("/", 6),
    "mod": ("%", 6),
    "matmul": ("@", 6),
    "power": ("**", 8),
    "real_power": ("**", 8),
}
_ATOM = 10


def ascii_expr(e: ir.Expr) -> str:
    """An expression as the spec writes it."""
    return _ascii(e)[0]


def _ascii(e: ir.Expr) -> tuple[str, int]:
    match e:
        case ir.Number(value):
            return repr(value), _ATOM
        case ir.Hyper(name) | ir.Clock(name):
            return name, _ATOM
        case ir.Ref(name, lag):
            return f"{name}[{'t-1' if lag else 't'}]", _ATOM
        case ir.Item(name, index):
            return f"{name}[{ascii_expr(index)}]", _ATOM
    assert isinstance(e, ir.Call)
    if e.op in _INFIX:
        sign, level = _INFIX[e.op]
        power = level == 8
        left = _wrapped(_ascii(e.args[0]), level + power)
        right = _wrapped(_ascii(e.args[1]), level + (not power))
        return (f"{left}**{right}" if power else f"{left} {sign} {right}"), level
    if e.op == "neg":
        return f"-{_wrapped(_ascii(e.args[0]), 7)}", 7
    if e.op == "not":
        return f"~{_wrapped(_ascii(e.args[0]), 7)}", 7
    if e.op == "transpose":
        return f"{_wrapped(_ascii(e.args[0]), _ATOM)}.T", _ATOM
    if e.op == "call":
        return f"{ascii_expr(e.args[0])}({ascii_expr(e.args[1])})", _ATOM
    if e.op in ("pi", "matrix", "vector"):
        return e.op, _ATOM
    if e.op == "word":
        return repr(e.text), _ATOM
    inner = e.text or ", ".join(map(ascii_expr, e.args))
    return f"{e.op}({inner})", _ATOM


def _wrapped(text: tuple[str, int], level: int) -> str:
    return text[0] if text[1] >= level else f"({text[0]})"


def ascii_lines(program: ir.Program) -> list[str]:
    """The program's equations, one a line, regions indented."""
    return _Ascii("n" if program.kind == "schedule" else "t").block(program.body)


class _Ascii:
    def __init__(self, clock: str) -> None:
        self.clock = clock

    def block(self, body: tuple[ir.Statement, ...]) -> list[str]:
        lines: list[str] = []
        for s in body:
            match s:
                case ir.Start(target, value):
                    start = "theta[0]" if value == ir.Ref("theta", 1) else self.text(value)
                    lines.append(f"{target}[0] = {start}")
                case ir.Assign(target, value):
                    lines.append(f"{target}[{self.clock}] = {self.text(value)}")
                case ir.Loop(index, count, inner):
                    lines.append(f"for {index} = 1, ..., {self.text(count)}:")
                    outer, self.clock = self.clock, index
                    lines += ["    " + x for x in self.block(inner)]
                    self.clock = outer
                case ir.When(condition, inner, other):
                    lines.append(f"when {self.text(condition)}:")
                    lines += ["    " + x for x in self.block(inner)]
                    if other:
                        lines += ["otherwise:", *("    " + x for x in self.block(other))]
                case ir.Case(condition, inner):
                    lines.append(f"case {self.text(condition)}:")
                    lines += ["    " + x for x in self.block(inner)]
        return lines

    def text(self, e: ir.Expr) -> str:
        text = ascii_expr(e)
        if self.clock != "t":
            text = text.replace("[t]", f"[{self.clock}]").replace("[t-1]", f"[{self.clock}-1]")
        return text


# ---------------------------------------------------------------------------------------------------
# LaTeX

_GREEK = set(
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi psi"
    " Gamma Delta Theta Lambda Pi Sigma Phi Psi".split()
)
_SYMBOLS = {
    "lr": r"\eta",
    "eps": r"\epsilon",
    "weight_decay": r"\lambda",
    "base_lr": r"\eta_0",
    "lr_min": r"\eta_{\min}",
    "momentum": r"\mu",
}
_RELATION = {"lt": "<", "le": r"\le", "gt": ">", "ge": r"\ge", "eq": "=", "ne": r"\ne"}


def latex_name(name: str) -> str:
    """`v_hat` as \\hat{v}, `beta1` as \\beta_1, a word upright."""
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    stem, _, rest = name.partition("_")
    if rest == "hat":
        return rf"\hat{{{latex_name(stem)}}}"
    if rest == "bar":
        return rf"\bar{{{latex_name(stem)}}}"
    letters = stem.rstrip("0123456789")
    digits = stem[len(letters) :]
    if letters in _GREEK:
        base = f"\\{letters}"
    elif len(letters) == 1:
        base = letters
    else:
        return r"\mathrm{" + name.replace("_", r"\_") + "}"
    index = digits or ("\\infty" if rest == "inf" else rf"\mathrm{{{rest}}}" if rest else "")
    index = index.replace("_", r"\_")
    return f"{base}_{{{index}}}" if index else base


def latex_expr(e: ir.Expr, clock: str = "t") -> str:
    """An expression in LaTeX, in the author's order."""
    return _Latex(clock).text(e)[0]


def latex_lines(program: ir.Program) -> list[str]:
    """The program's equations, one a line, for an `aligned` block."""
    return _Latex("n" if program.kind == "schedule" else "t").block(program.body)


class _Latex:
    def __init__(self, clock: str) -> None:
        self.clock = clock

    def at(self, name: str, index: str) -> str:
        base = latex_name(name)
        if base.endswith("}") and "_{" in base and not base.startswith(r"\hat"):
            return rf"{base[:-1]},{index}}}"
        return rf"{base}_{{{index}}}"

    def block(self, body: tuple[ir.Statement, ...], indent: str = "") -> list[str]:
        lines: list[str] = []
        for s in body:
            match s:
                case ir.Start(target, value):
                    start = self.at("theta", "0") if value == ir.Ref("theta", 1) else None
                    lines.append(f"{indent}{self.at(target, '0')} &= {start or self.text(value)[0]}")
                case ir.Assign(target, value):
                    left = self.at(target, self.clock)
                    lines.append(f"{indent}{left} &= {self.text(value)[0]}")
                case ir.Loop(index, count, inner):
                    lines.append(rf"{indent}\text{{for }} {index} &= 1, \dots, {self.text(count)[0]}:")
                    outer, self.clock = self.clock, index
                    lines += self.block(inner, indent + r"\quad ")
                    self.clock = outer
                case ir.When(condition, inner, other):
                    lines.append(rf"{indent}\text{{when }} & {self.text(condition)[0]}:")
                    lines += self.block(inner, indent + r"\quad ")
                    if other:
                        lines.append(rf"{indent}\text{{otherwise:}} &")
                        lines += self.block(other, indent + r"\quad ")
                case ir.Case(condition, inner):
                    lines.append(rf"{indent}\text{{case }} & {self.text(condition)[0]}:")
                    lines += self.block(inner, indent + r"\quad ")
        return lines

    def text(self, e: ir.Expr) -> tuple[str, int]:
        match e:
            case ir.Number(value):
                return _latex_number(value), _ATOM
            case ir.Hyper(name):
                return latex_name(name), _ATOM
            case ir.Clock(name):
                return name, _ATOM
            case ir.Ref(name, lag):
                return self.at(name, f"{self.clock}-1" if lag else self.clock), _ATOM
            case ir.Item(name, index):
                return rf"{latex_name(name)}_{{{self.text(index)[0]}}}", _ATOM
        assert isinstance(e, ir.Call)
        x = [self.text(a) for a in e.args]
        match e.op:
            case "div":
                return rf"\frac{{{x[0][0]}}}{{{x[1][0]}}}", 9
            case "power" | "real_power":
                return rf"{_parens(x[0], _ATOM)}^{{{x[1][0]}}}", 9
            case "mul":
                sign = r" \cdot " if x[1][0][:1].isdigit() else r" \, "
                return f"{_parens(x[0], 6)}{sign}{_parens(x[1], 7)}", 6
            case "add" | "sub" | "mod" | "and" | "or" | "matmul":
                sign, level = _INFIX[e.op]
                sign = {"%": r"\bmod", "&": r"\wedge", "|": r"\vee", "@": ""}.get(sign, sign)
                return f"{_parens(x[0], level)} {sign} {_parens(x[1], level + 1)}", level
            case "neg":
                return f"-{_parens(x[0], 7)}", 7
            case "not":
                return rf"\neg {_parens(x[0], 7)}", 7
            case "sqrt":
                return rf"\sqrt{{{x[0][0]}}}", _ATOM
            case "abs":
                return rf"\left|{x[0][0]}\right|", _ATOM
            case "floor" | "floordiv":
                inner = x[0][0] if e.op == "floor" else rf"\frac{{{x[0][0]}}}{{{x[1][0]}}}"
                return rf"\left\lfloor {inner} \right\rfloor", _ATOM
            case "norm" | "global_norm":
                return rf"\left\|{x[0][0]}\right\|", _ATOM
            case "where":
                rows = rf"{x[1][0]} & \text{{if }} {x[0][0]} \\ {x[2][0]} & \text{{otherwise}}"
                return rf"\begin{{cases}} {rows} \end{{cases}}", _ATOM
            case "pi":
                return r"\pi", _ATOM
            case "transpose":
                return rf"{_parens(x[0], _ATOM)}^\top", 9
            case "minimum" | "maximum":
                return rf"\{e.op[:3]}\left({x[0][0]}, {x[1][0]}\right)", _ATOM
            case "grad":
                return rf"\nabla f\left({x[0][0]}\right)", _ATOM
            case "exp" | "log" | "cos":
                return rf"\{e.op}\left({x[0][0]}\right)", _ATOM
            case "call":
                return rf"{x[0][0]}\left({x[1][0]}\right)", _ATOM
            case op if op in _RELATION:
                return f"{_parens(x[0], 5)} {_RELATION[op]} {_parens(x[1], 5)}", 4
        inner = rf"\mathrm{{{e.text}}}" if e.text else ", ".join(text for text, _ in x)
        name = e.op.replace("_", r"\_")
        return rf"\operatorname{{{name}}}\left({inner}\right)", _ATOM


def _parens(text: tuple[str, int], level: int) -> str:
    return text[0] if text[1] >= level else rf"\left({text[0]}\right)"


def _latex_number(value: int | float) -> str:
    mantissa, _, exponent = repr(value).partition("e")
    if not exponent:
        return mantissa
    power = rf"10^{{{int(exponent)}}}"
    return power if mantissa in ("1", "1.0") else rf"{mantissa} \cdot {power}"
