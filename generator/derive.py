"""A program that learns one of its hyperparameters: hypergradient descent, by symbolic derivatives.

In: a frozen optimizer, the name of a hyperparameter h. Out: one frozen program, which is checked, lowered
and printed like any other. Must not know: SymPy, how a program is computed.

    h[t] = h[t-1] - kappa * global_sum(g[t] * slope[t-1])        slope[t] = d theta[t] / d h

The step reads h[t], and each name that depends on it gets its derivative on the line below, forward
through the program's own equations; what was kept from the step before is held fixed. Nothing is
simplified but zeros, ones and signs. Where a function has a kink, its slope is that of the side it
takes; a root's is 0 at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from generator import ir
from generator.equations import ascii_expr
from generator.errors import SpecError, suggest
from generator.ir import Assign, Call, Expr, Hyper, Number, Ref, Start
from generator.language import NonNegative

SOURCE = (
    "Baydin, Cornish, Martinez Rubio, Schmidt & Wood, Online Learning Rate Adaptation with "
    "Hypergradient Descent, ICLR 2018. arXiv:1703.04782"
)
_ZERO, _ONE, _TWO = Number(0), Number(1), Number(2)
_LINEAR = {"sum", "mean", "row_sum", "row_mean", "col_sum", "col_mean", "global_sum", "transpose"}
_LINEAR |= {"mean_but_first", "mean_but_last"}


def hypergradient(
    program: ir.Program, wrt: str, kappa: float, name: str, class_name: str, file: str, line: int
) -> ir.Program:
    """The program with the hyperparameter `wrt` learnt; `SpecError` where that cannot be derived."""
    return _Learner(program, wrt, file, line).learnt(kappa, name, class_name)


class _Learner:
    def __init__(self, program: ir.Program, wrt: str, file: str, line: int) -> None:
        self.program, self.wrt, self.file, self.line = program, wrt, file, line
        self.taken = {"theta", "g", *(p.name for p in program.parameters)}
        for s in ir.statements(program.body):
            self.taken |= {s.target} if isinstance(s, Assign | Start) else set()
            self.taken |= {s.index} if isinstance(s, ir.Loop) else set()
        self.checked()
        self.state = self.fresh(f"learnt_{wrt}")
        self.kappa = self.fresh("kappa")
        self.slopes: dict[str, str] = {}  # of the names that depend on it

    def fail(self, message: str) -> SpecError:
        return SpecError(self.file, self.line, message)

    def fresh(self, base: str) -> str:
        name = base if base not in self.taken else f"{base}_of_{self.wrt}"
        self.taken.add(name)
        return name

    def checked(self) -> None:
        """Refuse what is no optimizer, and what is no number of a continuum."""
        program, wrt = self.program, self.wrt
        if program.kind != "optimizer":
            what = f"{program.name} is a {program.kind}, which has no parameters to step."
            raise self.fail(f"{what} Take an optimizer, or a chain with one.")
        if any(isinstance(s, Assign) and s.target == "g" for s in ir.statements(program.body)):
            what = f"{program.name} takes its gradient at another point than theta"
            raise self.fail(f"{what}, whose derivative is another. Take another optimizer.")
        numbers = [p.name for p in program.parameters if _continuous(p.domain)]
        if wrt not in (p.name for p in program.parameters):
            hint = suggest(wrt, numbers) or f" It has {', '.join(numbers)}."
            raise self.fail(f"{program.name} has no hyperparameter {wrt!r}.{hint}")
        if wrt not in numbers:
            phrase = program.parameter(wrt).domain.phrase
            rest = f"Choose one of {', '.join(numbers)}." if numbers else "There is none."
            raise self.fail(f"{wrt} of {program.name} is {phrase}; only a real number is learnt. {rest}")
        if Hyper(wrt) in [s.value for s in ir.statements(program.body) if isinstance(s, Start)]:
            raise self.fail(f"{wrt} of {program.name} is where a state begins. Choose another.")

    def learnt(self, kappa: float, name: str, class_name: str) -> ir.Program:
        """The program that learns."""
        while True:  # until no further name turns out to depend on it
            before = dict(self.slopes)
            body = self.block(self.program.body)
            if self.slopes == before:
                break
        if "theta" not in self.slopes:
            raise self.fail(
                f"theta[t] of {self.program.name} does not follow from {self.wrt} in the same step, so "
                "there is nothing to learn. Choose another hyperparameter."
            )
        p, slope = self.program, self.slopes["theta"]
        gain = Call("global_sum", (Call("mul", (Ref("g"), Ref(slope, 1))),))
        moved = Call("sub", (Ref(self.state, 1), Call("mul", (Hyper(self.kappa), gain))))
        head = (
            Start(self.state, Hyper(self.wrt), self.line),
            Start(slope, _ZERO, self.line),
            Assign(self.state, moved, self.line),
        )
        old = p.parameter(self.wrt)
        about = f"{old.about.rstrip('.')}; where {self.state} begins" if old.about else ""
        rate = ir.Parameter(self.kappa, NonNegative, kappa, f"step size of {self.state}", self.line)
        return replace(
            p,
            name=name,
            class_name=class_name,
            title=f"{p.class_name} with {self.wrt} learnt by hypergradient descent.",
            source=(SOURCE, *p.source),
            notes=(
                f"{slope}[t] is the derivative of theta[t] with respect to {self.state}[t]; what was kept "
                "from the step before is held fixed.",
                f"nothing keeps {self.state} in {old.domain.interval}, as in the source: with a large "
                f"{self.kappa} it leaves the domain of {self.wrt}.",
                *p.notes,
            ),
            parameters=(*(replace(x, about=about) if x is old else x for x in p.parameters), rate),
            body=(*head, *_without(body, set(self.slopes.values()) - self.reached(body))),
            evaluate=None if p.evaluate is None else self.read(p.evaluate),
        )

    def reached(self, body: Sequence[ir.Statement]) -> set[str]:
        """The derivatives from which that of theta follows."""
        found, new = set[str](), {self.slopes["theta"]}
        while new:
            found |= new
            read = [
                e.name
                for s in ir.statements(tuple(body))
                if isinstance(s, Assign) and s.target in new
                for e in ir.walk(s.value)
                if isinstance(e, Ref)
            ]
            new = set(read) & set(self.slopes.values()) - found
        return found

    # Statements -----------------------------------------------------------------------------------

    def block(self, body: Sequence[ir.Statement]) -> tuple[ir.Statement, ...]:
        """Each statement, and below it the derivative of what it defines."""
        made: list[ir.Statement] = []
        for s in body:
            match s:
                case Start():
                    made.append(s)
                case Assign(target, value):
                    made.append(replace(s, value=self.read(value)))
                    slope = self.slope(value)
                    if slope != _ZERO and target not in self.slopes:
                        own = "slope" if target == "theta" else f"slope_{target}"
                        self.slopes[target] = self.fresh(own)
                    if target in self.slopes:
                        made.append(Assign(self.slopes[target], slope, s.line))
                case ir.Case():
                    made.append(replace(s, body=self.block(s.body)))
                case _:
                    self.unchanged(s)
                    made.append(s)
        return tuple(made)

    def unchanged(self, s: ir.Statement) -> None:
        """Refuse a loop, or a region that may not happen, in which something depends on it."""
        for inner in ir.statements((s,)):
            for e in ir.expressions(inner):
                if Hyper(self.wrt) in ir.walk(e) or self.slope(e) != _ZERO:
                    word = "iterate(...)" if isinstance(s, ir.Loop) else "when(...)"
                    raise self.fail(
                        f"{self.program.name} reads {self.wrt} in {word}, which is not derived yet. Choose "
                        "another hyperparameter."
                    )

    def read(self, e: Expr) -> Expr:
        """The expression with what is learnt in place of the hyperparameter."""
        match e:
            case Hyper(self.wrt):
                return Ref(self.state)
            case ir.Item(name, index):
                return ir.Item(name, self.read(index))
            case Call(op, args, text):
                return Call(op, tuple(map(self.read, args)), text)
        return e

    # Derivatives ----------------------------------------------------------------------------------

    def slope(self, e: Expr) -> Expr:
        """The derivative of an expression."""
        match e:
            case Hyper(self.wrt):
                return _ONE
            case Ref(name, 0) if name in self.slopes:
                return Ref(self.slopes[name])
            case Call(op, args, _):
                # A condition is taken where it does not change.
                chosen = op == "where"
                slopes = [_ZERO if chosen and i == 0 else self.slope(a) for i, a in enumerate(args)]
                if any(d != _ZERO for d in slopes):
                    return self.derived(e, op, [self.read(a) for a in args], slopes)
        return _ZERO

    def derived(self, e: Expr, op: str, args: list[Expr], slopes: list[Expr]) -> Expr:
        """The derivative of an operation, of whose operands one depends on it."""
        value = Call(op, tuple(args))
        match op, args, slopes:
            case "add", _, [da, db]:
                return _add(da, db)
            case "sub", _, [da, db]:
                return _sub(da, db)
            case "neg", _, [da]:
                return _neg(da)
            case "mul", [a, b], [da, db]:
                return _add(_mul(da, b), _mul(a, db))
            case "div", [_, b], [da, db]:
                return _div(_sub(da, _mul(value, db)), b)
            case "sqrt", _, [da]:
                return _rooted(_div(da, _mul(_TWO, value)), value)
            case "abs", [a], [da]:
                return _mul(Call("sign", (a,)), da)
            case "power", [a, k], [da, dk] if dk == _ZERO and self.whole(k):
                return _mul(_mul(k, _power(a, _sub(k, _ONE))), da)
            case ("minimum" | "maximum"), [a, b], [da, db]:
                order = Call("lt" if op == "minimum" else "gt", (a, b))
                return _where(order, da, db)
            case "where", [condition, _, _], [_, da, db]:
                return _where(condition, da, db)
            case _, _, [da] if op in _LINEAR:
                return Call(op, (da,))
            case _, [a], [da] if op in ir.ROOTS:
                return _rooted(_div(Call(ir.ROOTS[op], (_mul(a, da),)), value), value)
            case "matmul", [a, b], [da, db]:
                left = Call(op, (da, b)) if da != _ZERO else _ZERO
                return _add(left, Call(op, (a, db)) if db != _ZERO else _ZERO)
        why = f"depends on {self.wrt} and has no slope"
        if op in ("exp", "log", "cos", "power"):
            why = f"is exact for t and hyperparameters only, and a learnt {self.wrt} is none"
        what = f"{self.program.name}: {ascii_expr(e)} {why}."
        raise self.fail(f"{what} Choose another hyperparameter.")

    def whole(self, k: Expr) -> bool:
        """Whether an exponent is an integer."""
        match k:
            case Number(value):
                return isinstance(value, int)
            case ir.Clock():
                return True
            case Hyper(name):
                return self.program.parameter(name).domain.type == "int"
            case Call("add" | "sub" | "mul" | "neg", args, _):
                return all(map(self.whole, args))
        return False


def _without(body: Sequence[ir.Statement], names: set[str]) -> tuple[ir.Statement, ...]:
    """Statements but for the definitions of these names."""
    return tuple(
        replace(s, body=_without(s.body, names)) if isinstance(s, ir.Case) else s
        for s in body
        if not (isinstance(s, Assign) and s.target in names)
    )


def _continuous(domain: ir.Domain) -> bool:
    return domain.type == "float" and not domain.many and not domain.optional


# Operations, but for zeros, ones and signs


def _negative(e: Expr) -> Expr | None:
    return e.args[0] if isinstance(e, Call) and e.op == "neg" else None


def _neg(a: Expr) -> Expr:
    if a == _ZERO:
        return a
    return _negative(a) or Call("neg", (a,))


def _add(a: Expr, b: Expr) -> Expr:
    if _ZERO in (a, b):
        return b if a == _ZERO else a
    minus = _negative(b)
    return Call("add", (a, b)) if minus is None else Call("sub", (a, minus))


def _sub(a: Expr, b: Expr) -> Expr:
    if _ZERO in (a, b):
        return a if b == _ZERO else _neg(b)
    if isinstance(a, Number) and isinstance(b, Number):
        return Number(a.value - b.value)
    minus = _negative(b)
    return Call("sub", (a, b)) if minus is None else Call("add", (a, minus))


def _mul(a: Expr, b: Expr) -> Expr:
    if _ZERO in (a, b):
        return _ZERO
    if _ONE in (a, b):
        return b if a == _ONE else a
    if (minus := _negative(a)) is not None:
        return _neg(_mul(minus, b))
    if (minus := _negative(b)) is not None:
        return _neg(_mul(a, minus))
    return Call("mul", (a, b))


def _div(a: Expr, b: Expr) -> Expr:
    if a == _ZERO or b == _ONE:
        return a
    minus = _negative(a)
    return Call("div", (a, b)) if minus is None else _neg(_div(minus, b))


def _power(a: Expr, k: Expr) -> Expr:
    if k in (_ZERO, _ONE):
        return a if k == _ONE else _ONE
    return Call("power", (a, k))


def _rooted(slope: Expr, root: Expr) -> Expr:
    """The slope of a root, which is taken as 0 at 0."""
    return _where(Call("gt", (root, _ZERO)), slope, _ZERO)


def _where(condition: Expr, a: Expr, b: Expr) -> Expr:
    return a if a == b else Call("where", (condition, a, b))
