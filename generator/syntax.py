"""The first look at a spec: its Python syntax, before anything runs.

In: the decorated function, and what the names in it stand for. Out: what only the syntax tells, or a
`SpecError` for every construct that SymPy would silently take the wrong way (`if flag:` is always true
of a symbol, `a == b` is a plain False, `x += 1` forgets the equation). Must not know: SymPy, what
equations mean.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import linecache
import math
import re
import tokenize
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from generator.errors import TOO_DEEP, SpecError, shallow, suggest


@dataclass(frozen=True)
class Scope:
    """What the names in a spec's body stand for."""

    functions: Mapping[str, int]  # the language's functions, and how many operands each takes
    values: frozenset[str]  # its other words: t, pi, matrix
    shapes: frozenset[str]  # full, row, column, scalar
    lost: Mapping[str, str]  # its words that the file lacks, or has under another meaning: which
    reserved: Mapping[str, str]  # words that no names(...) can make: why
    timed: frozenset[str]  # names with a time: theta, m
    numbers: frozenset[str]  # constants of the module
    odd: Mapping[str, str]  # what looks like one and is none: why
    parameters: Mapping[str, str]  # hyperparameters: "number", "schedule", "tuple"
    results: frozenset[str]  # what a spec of this kind defines

    @property
    def clock(self) -> str:
        """What names count with."""
        return "n" if "lr" in self.results else "t"


@dataclass(frozen=True)
class Source:
    """A spec's function as text."""

    file: str
    node: ast.FunctionDef
    line: int  # of its first decorator

    @property
    def parameters(self) -> dict[str, int]:
        """The line of each hyperparameter."""
        a = self.node.args
        return {x.arg: x.lineno for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)}

    @property
    def documented(self) -> int:
        """The first line of the docstring."""
        return self.node.body[0].lineno

    @property
    def named(self) -> dict[int, str]:
        """What the author calls a loop's index or an update, by the line of the call."""
        found = {}
        for node in ast.walk(self.node):
            if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
                found[node.iter.lineno] = node.target.id
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.value.lineno] = node.targets[0].id
        return found


def parse(file: str) -> ast.Module:
    """The syntax tree of a file; a syntax error is reported like every other mistake."""
    lines = linecache.getlines(file)
    try:
        tree = ast.parse("".join(lines), file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python, which come again when the file runs
            compile(tree, file, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise SpecError(file, error.lineno or 1, _syntax(error)) from None
    except (RecursionError, MemoryError):
        raise SpecError(file, _longest(lines), TOO_DEEP) from None
    except ValueError as error:  # a null byte
        raise SpecError(file, 1, f"this is not Python: {error}. Correct the file.") from None
    _deep(file, tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _calls(node.value) == "names":
            _names(file, node)
    return tree


_DEEPEST = 200  # operations in one another; how long Python's own stack is depends on who else is there


def _deep(file: str, tree: ast.Module) -> None:
    """Refuse what no reader could follow, and no recursion over the tree."""
    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > _DEEPEST:
            raise SpecError(file, getattr(node, "lineno", 1), TOO_DEEP)
        waiting += [(inner, depth + isinstance(inner, ast.expr)) for inner in ast.iter_child_nodes(node)]


def _longest(lines: list[str]) -> int:
    """The first line of the longest statement: there is no tree that says which is nested too deep."""
    longest = length = first = 0
    found = 1
    for token in tokenize.generate_tokens(iter(lines).__next__):
        first = first if length else token.start[0]
        length = 0 if token.type == tokenize.NEWLINE else length + bool(token.string.strip())
        if length > longest:
            longest, found = length, first
    return found


def _syntax(error: SyntaxError) -> str:
    rest = (error.text or "")[max((error.offset or 1) - 1, 0) :]
    word = rest.split("(")[0].split(":")[0].split(",")[0].split("=")[0].strip()
    if keyword.iskeyword(word):
        return f"{word} is a word of Python and cannot be a name here. Choose another name."
    return f"this is not Python: {error.msg}. Correct the line."


def _names(file: str, node: ast.Assign) -> None:
    """Refuse `m, v = names("v m")`, `m, v = names("m")`, and `v = names("w")`, whose state would be w."""
    target, call = node.targets[0], node.value
    assert isinstance(call, ast.Call)
    listed = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    given = [x.id for x in listed if isinstance(x, ast.Name)]
    text = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
    if len(given) != len(listed) or not isinstance(text, str):
        return
    words = text.replace(",", " ").split()
    good = len(set(words)) == len(words) and all(map(_is_plain, words))  # else names(...) says more
    if len(words) != len(given) or (words != given and good):
        right = f'{", ".join(given)} = names("{" ".join(given)}")'
        raise SpecError(
            file, node.lineno, f"names({text!r}) does not fit the left side. Write {right}."
        )


def _is_plain(word: str) -> bool:
    return word.isidentifier() and word[0].isalpha() and not keyword.iskeyword(word)


def declared(file: str) -> None:
    """Refuse a name of `names(...)` that no equation of the file has."""
    tree = parse(file)
    nodes = ast.walk(tree)
    read = {x.id for x in nodes if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Load)}
    for node in tree.body:
        if isinstance(node, ast.Assign) and _calls(node.value) == "names":
            target = node.targets[0]
            for x in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
                if isinstance(x, ast.Name) and x.id not in read:
                    message = f"{x.id} is declared and never used. Use it, or remove it here."
                    raise SpecError(file, x.lineno, message)


def _calls(node: ast.AST) -> str:
    """The name of the function that an expression calls, if it has one."""
    called = node.func if isinstance(node, ast.Call) else None
    return called.id if isinstance(called, ast.Name) else ""


def find(function: Callable[..., Any]) -> Source:
    """The text of a spec's function."""
    file, first = function.__code__.co_filename, function.__code__.co_firstlineno
    for node in ast.walk(parse(file)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name == function.__name__:
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if start == first:
                if isinstance(node, ast.AsyncFunctionDef):
                    message = "a spec is read at once and cannot be async. Write def alone."
                    raise SpecError(file, node.lineno, message)
                if node.args.vararg or node.args.kwarg:
                    message = "a spec has no *args or **kwargs. Name each hyperparameter."
                    raise SpecError(file, node.lineno, message)
                return Source(file, node, first)
    raise SpecError(file, first, "the source of this spec cannot be read. Put it in a file.")


def scan(source: Source, scope: Scope) -> None:
    """Refuse what cannot be an equation, and what is written but never used."""
    scanner = _Scanner(source.file, scope)
    scanner.body(source.node.body)
    scanner.unused(source.parameters)


# What people reach for, and what they mean.
_INSTEAD = {
    "max": "maximum(a, b)",
    "min": "minimum(a, b)",
    "fmax": "maximum(a, b)",
    "fmin": "minimum(a, b)",
    "clip": "minimum(maximum(x, low), high)",
    "pow": "x**k",
    "power": "x**k",
    "square": "x**2",
    "absolute": "abs(x)",
    "fabs": "abs(x)",
    "round": "floor(x + 0.5)",
    "range": "iterate(count)",
    "len": "length(x)",
    "dot": "a @ b",
    "matmul": "a @ b",
    "print": "`python -m generator show`",
}
_WITH = {"case", "when", "otherwise"}
_NAMING = {"update", "oracle", "noise", "meta"}
_LINES = {"require", "evaluate"}
_RESULTS = {"theta", "lr"}
_ASKING = {*_LINES, "case", "when", "iterate"}  # what people give a text that is meant as an expression
_CHOICE = re.compile(r"\w[\w .+-]*")  # what a choice's word may be
_LARGEST = 2**53

# How a call is written whose operands are not just any values.
_WRITTEN = {
    "case": "case(matrix)",
    "dense": "dense(W, b, x)",
    "entry": "entry(x, 1)",
    "evaluate": "evaluate(x[t])",
    "first": "first(g)",
    "grad": "grad(x[t])",
    "iterate": "iterate(5)",
    "length": "length(boundaries)",
    "meta": 'meta("W", (16, 8))',
    "noise": 'noise("xi")',
    "oracle": 'oracle("h")',
    "require": "require(matrix)",
    "update": "update(g[t])",
    "when": "when(t > 1)",
    "where": "where(condition, a, b)",
}


def written(word: str, arity: int) -> str:
    """How a call of the language's function is written, for messages."""
    return _WRITTEN.get(word) or f"{word}({', '.join('abc'[:arity])})"


# Constructs that have no meaning, and what to do instead.
_NOT = {
    ast.Return: ("`return`", "Remove it; a spec ends with its last equation."),
    ast.Assert: ("`assert`", "Use require(relation)."),
    ast.Import: ("an import", "Put it above the function."),
    ast.ImportFrom: ("an import", "Put it above the function."),
    ast.AnnAssign: ("an annotation", "Write x[t] = ..."),
    ast.NamedExpr: ("`:=`", "Give the value a name and a line: x[t] = ..."),
    ast.ClassDef: ("a class", "Write its equations out."),
    ast.FunctionDef: ("a function", "Write its equations out."),
    ast.Lambda: ("`lambda`", "Write its equations out."),
    ast.ListComp: ("a comprehension", "Use `for k in iterate(count):`."),
    ast.GeneratorExp: ("a comprehension", "Use `for k in iterate(count):`."),
    ast.List: ("a list", "Write one equation a name."),
    ast.Dict: ("a dictionary", "Write one equation a name."),
    ast.Set: ("a set", "Write one equation a name."),
    ast.Tuple: ("a tuple", "Write one equation a name."),
    ast.JoinedStr: ("an f-string", "Remove it."),
    ast.Starred: ("`*`", "Name each operand."),
    ast.Slice: ("a slice", "Write x[t] or x[t-1]."),
    ast.Try: ("`try`", "Remove it."),
    ast.Raise: ("`raise`", "Use require(relation)."),
    ast.Delete: ("`del`", "Remove it."),
    ast.Match: ("`match`", "Use where(condition, a, b)."),
}
_AUGMENTED: dict[type[ast.AST], str] = {ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_SIGNS: dict[type[ast.AST], str] = {
    ast.BitXor: "`^` is not a power. Use **.",
    ast.LShift: "`<<` has no meaning in equations. Multiply by 2**k.",
    ast.RShift: "`>>` has no meaning in equations. Use // 2**k.",
}
_ALLOWED = (
    ast.BinOp,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.expr_context,
    ast.Compare,
    ast.Pass,
)


@dataclass
class _Use:
    """Where names are written and whether they are read."""

    written: dict[str, tuple[int, str]] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)


class _Scanner(ast.NodeVisitor):
    def __init__(self, file: str, scope: Scope) -> None:
        self.file, self.scope = file, scope
        self.local: set[str] = set()  # loop indices, and what update, oracle, noise and meta give
        self.ended: set[str] = set()  # indices of loops further up
        self.starting = False  # whether the equation is that of a state before the first step
        self.use = _Use()

    def refuse(self, node: ast.AST, message: str) -> SpecError:
        return SpecError(self.file, getattr(node, "lineno", 1), message)

    def body(self, statements: list[ast.stmt]) -> None:
        first = statements[0]
        documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        self.visit_all(statements[documented:])

    def visit_all(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            with shallow(self.file, statement.lineno):
                self.visit(statement)

    def unused(self, parameters: Mapping[str, int]) -> None:
        """What is defined and never read; not asked where the result itself is missing."""
        use = self.use
        if not self.scope.results & set(use.written):
            return
        for name, (line, at) in use.written.items():
            if name not in use.read | use.started | self.scope.results | _RESULTS:
                message = f"{at} is defined and never used. Use it, or remove the line."
                raise SpecError(self.file, line, message)
        for name, line in parameters.items():
            if name not in use.read:
                message = f"the hyperparameter {name} is never used. Use it, or remove it."
                raise SpecError(self.file, line, message)

    # Statements -----------------------------------------------------------------------------------

    def visit_If(self, node: ast.If) -> None:
        raise self.refuse(
            node,
            "`if` is decided while the spec is read. Use where(condition, a, b), or "
            "`with when(flag):` for a region.",
        )

    def visit_While(self, node: ast.While) -> None:
        raise self.refuse(
            node, "`while` has no meaning in equations. Use `for k in iterate(count):`."
        )

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        sign, target = _AUGMENTED.get(type(node.op), "+"), node.target
        base = target.value if isinstance(target, ast.Subscript) else None
        x = base.id if isinstance(base, ast.Name) else "x"
        raise self.refuse(node, f"`{sign}=` is not an equation. Write {x}[t] = {x}[t-1] {sign} ...")

    def visit_For(self, node: ast.For) -> None:
        if _calls(node.iter) != "iterate":
            raise self.refuse(
                node, "this loop runs while the spec is read. Use `for k in iterate(count):`."
            )
        if node.orelse:
            raise self.refuse(node.orelse[0], "a loop has no `else`. Put these lines below it.")
        if not isinstance(node.target, ast.Name):
            raise self.refuse(
                node, "a loop counts with one name. Write `for k in iterate(count):`."
            )
        self.call(node.iter)
        self.declare(node.target)
        self.visit_all(node.body)
        self.local.discard(node.target.id)
        self.ended.add(node.target.id)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            if _calls(item.context_expr) not in _WITH:
                raise self.refuse(
                    node, "`with` opens a region. Use case(...), when(...) or otherwise()."
                )
            if item.optional_vars is not None:
                raise self.refuse(node, "a region has no name. Remove `as ...`.")
            self.call(item.context_expr)
        self.visit_all(node.body)

    def visit_Assign(self, node: ast.Assign) -> None:
        called, target = _calls(node.value), node.targets[0]
        if isinstance(target, ast.Name):
            self.input(node, target, called)
            return
        for target in node.targets:
            if not isinstance(target, ast.Subscript):
                raise self.refuse(node, "an equation has one name on its left. Write x[t] = ...")
            self.equation(target)
        starts = [isinstance(t.slice, ast.Constant) for t in node.targets if isinstance(t, ast.Subscript)]
        self.starting = any(starts)
        if called == "update":
            self.call(node.value)
        elif called in _NAMING:
            raise self.refuse(
                node, f"{called}(...) has a name without a time. Write x = {called}(...)."
            )
        else:
            self.visit(node.value)
        self.starting = False

    def input(self, node: ast.Assign, target: ast.Name, called: str) -> None:
        """`x = oracle("x")`: the only values that Python variables may hold."""
        x = target.id
        if x in self.scope.timed:
            raise self.refuse(node, f"{x} has a time. Write {x}[t] = ...")
        if called not in _NAMING:
            raise self.refuse(node, self.variable(x))
        if len(node.targets) > 1:
            raise self.refuse(node, f"{called}(...) has one name. Write {x} = {called}(...).")
        self.call(node.value)
        first = node.value.args[0] if isinstance(node.value, ast.Call) and node.value.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value != x:
            rest = ", (16, 8)" if called == "meta" else ""
            raise self.refuse(
                node,
                f"{x} is called {first.value!r} in {called}(...), which generated code would say. "
                f'Write {x} = {called}("{x}"{rest}).',
            )
        self.declare(target)
        self.use.written[x] = node.lineno, x

    def variable(self, x: str) -> str:
        """Why `x = ...` is no equation, and how the value is written."""
        scope, own = self.scope, "Give the new value a name of its own."
        if x in scope.parameters:
            return f"{x} is a hyperparameter and cannot be defined. {own}"
        if x in scope.numbers or x in scope.odd:
            return f"{x} is a constant of this file and cannot be defined. {own}"
        if x in scope.reserved:
            return scope.reserved[x]
        return (
            f'{x} = ... is a Python variable, not an equation. Declare {x} = names("{x}") above the '
            f"function and write {x}[{scope.clock}] = ..."
        )

    def undeclared(self, x: str, known: Iterable[str]) -> str:
        """What to do about a name that nothing stands for."""
        if hint := suggest(x, known):
            return f"{x} is not defined.{hint}"
        if x in self.scope.reserved:  # declared it would be refused
            return self.scope.reserved[x]
        return f'{x} is not defined. Declare it above the function: {x} = names("{x}").'

    def equation(self, target: ast.Subscript) -> None:
        """The left side of an equation."""
        base = target.value
        if not isinstance(base, ast.Name):
            raise self.refuse(target, "an equation has one name on its left. Write x[t] = ...")
        if base.id in self.scope.parameters:
            raise self.refuse(
                target, f"{base.id} is a hyperparameter and cannot be defined. Rename one of them."
            )
        self.timed(base)
        self.index(target, base.id)
        if isinstance(target.slice, ast.Constant) and target.slice.value == 0:
            self.use.started.add(base.id)
        else:
            self.use.written.setdefault(base.id, (target.lineno, ast.unparse(target)))

    def declare(self, target: ast.Name) -> None:
        """A name that Python binds: a loop's index, an input, an update."""
        x, scope = target.id, self.scope
        words = {*scope.functions, *scope.values, *scope.shapes}
        if x in words | scope.timed | scope.numbers | set(scope.parameters) | self.local:
            raise self.refuse(target, f"{x} has a meaning already. Choose another name.")
        self.local.add(x)

    def visit_Expr(self, node: ast.Expr) -> None:
        if _calls(node.value) in _LINES:
            self.call(node.value)
        elif isinstance(node.value, ast.Yield | ast.YieldFrom | ast.Await):
            self.generic_visit(node.value)
        elif _calls(node.value) in _WITH:
            word = _calls(node.value)
            raise self.refuse(node, f"{word}(...) opens a region. Write `with {word}(...):`.")
        else:
            raise self.refuse(node, "this line says nothing. Write x[t] = ..., or remove it.")

    # Expressions ----------------------------------------------------------------------------------

    def visit_IfExp(self, node: ast.IfExp) -> None:
        raise self.refuse(
            node, "`a if c else b` is decided while the spec is read. Use where(c, a, b)."
        )

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        word, sign = ("and", "&") if isinstance(node.op, ast.And) else ("or", "|")
        raise self.refuse(
            node, f"`{word}` drops one side of a symbol. Use {sign}, with parentheses."
        )

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            raise self.refuse(node, "`not` is always False of a symbol. Use ~.")
        value = node.operand.value if isinstance(node.operand, ast.Constant) else None
        if isinstance(node.op, ast.USub) and isinstance(value, float) and value == 0:
            raise self.refuse(node, "-0.0 is not told from 0.0 here. Write 0.")
        self.visit(node.operand)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        message = _SIGNS.get(type(node.op))
        if message:
            raise self.refuse(node, message)
        self.visit(node.left)
        self.visit(node.right)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) > 1:
            raise self.refuse(node, "a chained comparison drops one side. Use (a < b) & (b < c).")
        match node.ops[0]:
            case ast.Eq():
                raise self.refuse(node, "`==` compares symbols, not values. Use equal(a, b).")
            case ast.NotEq():
                raise self.refuse(node, "`!=` compares symbols, not values. Use ~equal(a, b).")
            case ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE():
                self.generic_visit(node)
            case _:
                raise self.refuse(
                    node, "`is` and `in` have no meaning in equations. Use equal(x, None)."
                )

    def visit_Call(self, node: ast.Call) -> None:
        word = _calls(node)
        if word == "iterate":
            raise self.refuse(node, "iterate(...) makes a loop. Write `for k in iterate(count):`.")
        if word in _NAMING:
            raise self.refuse(node, f"{word}(...) stands alone. Write x = {word}(...).")
        if word in _WITH or word in _LINES:
            raise self.refuse(node, f"{word}(...) has no value. Give it a line of its own.")
        self.call(node)

    def call(self, node: ast.AST) -> None:
        """A call where it may stand: whom it calls, then its operands."""
        assert isinstance(node, ast.Call)
        scope = self.scope
        self.finite(node)
        self.called(node.func)
        word = _calls(node)
        if word not in scope.functions and (len(node.args) != 1 or node.keywords):
            name = ast.unparse(node.func)
            what = f"a schedule takes one step. Write {name}({scope.clock})."
            raise self.refuse(node, what)
        for k in node.keywords:
            if word != "oracle":
                right = written(word, scope.functions[word])
                raise self.refuse(node, f"{word} takes no keywords. Write {right}.")
            if k.arg not in ("shape", "scope"):
                what = 'is no name of an operand. Write oracle("h", shape=row, scope="tensor").'
                raise self.refuse(node, f"{k.arg} {what}")
            self.operand(k.value, word)
        match node.args:
            case [ast.Constant(str() as text)] if word in _ASKING:
                what = f"{word}(...) takes an expression, not a text. Write {word}({text})."
                raise self.refuse(node, what)
            case [_, ast.Constant(str()), *_] if word in _ASKING:
                what = f"{word} takes 1 operand, not {len(node.args)}. Remove the text."
                raise self.refuse(node, what)
        if word == "equal" and any(
            isinstance(a, ast.Constant) and a.value is None for a in node.args
        ):
            word = "equal None"  # of any hyperparameter, a tuple too
        for a in node.args:
            self.operand(a, word)

    def operand(self, node: ast.expr, word: str) -> None:
        """An operand; words in quotes and None have a meaning in few places."""
        quoted = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if quoted and word in ("equal", "oracle", "noise", "meta"):
            return
        if isinstance(node, ast.Constant) and node.value is None and word == "equal None":
            return
        if word == "equal None" and isinstance(node, ast.Name) and node.id in self.scope.parameters:
            self.use.read.add(node.id)
            return
        if word == "oracle" and isinstance(node, ast.Name) and node.id in self.scope.shapes:
            return
        if word in ("oracle", "meta") and isinstance(node, ast.Tuple):
            for x in node.elts:
                self.operand(x, word)
        elif word in ("length", "first"):
            self.bare(node, word)
        else:
            self.visit(node)

    def bare(self, node: ast.expr, word: str) -> None:
        """The one operand of length(...) and first(...): a name without a time or an index."""
        given = ast.unparse(node)
        if word == "first" and given != "g":
            raise self.refuse(
                node, f"first(...) is of the gradient, not of {given}. Write first(g)."
            )
        if word == "length" and self.scope.parameters.get(given) != "tuple":
            raise self.refuse(
                node,
                f"length(...) is of a tuple hyperparameter, which {given} is not. Remove it.",
            )
        self.use.read.add(given)

    def finite(self, node: ast.Call | ast.Attribute) -> None:
        """Refuse float("nan"), math.inf and their like."""
        attribute = isinstance(node, ast.Attribute) and node.attr in ("nan", "inf", "NaN")
        if attribute or _calls(node) == "float":
            text = ast.unparse(node).replace("'", '"')
            what = "a state starts as a number" if self.starting else "equations have finite numbers"
            raise self.refuse(node, f"{what}, not {text}. Write one, such as 0.5.")

    def called(self, function: ast.expr) -> None:
        """Refuse calls of what is no function of the language."""
        scope = self.scope
        if isinstance(function, ast.Attribute):
            dotted = ast.unparse(function)
            raise self.refuse(
                function, f"unknown function {dotted}. {self.functions(function.attr)}"
            )
        if isinstance(function, ast.Subscript):  # an entry of a tuple of schedules
            self.visit(function)
            if isinstance(function.value, ast.Name) and function.value.id in scope.parameters:
                return
        elif isinstance(function, ast.Name):
            word = function.id
            if word in scope.functions:
                return
            if scope.parameters.get(word) == "schedule":
                self.use.read.add(word)
                return
            if word in scope.lost:
                raise self.refuse(function, scope.lost[word])
            if word in _INSTEAD and word not in scope.parameters:
                raise self.refuse(
                    function, f"{word} is not a function of the language. Use {_INSTEAD[word]}."
                )
            known = scope.timed | scope.numbers | scope.values | set(scope.parameters) | self.local
            if word not in known:
                raise self.refuse(function, f"unknown function {word}. {self.functions(word)}")
        else:
            self.visit(function)
        text = ast.unparse(function)
        if text in scope.timed:
            text = f"{text}[{scope.clock}]"
        raise self.refuse(function, f"{text} is not a function. Write {text} * (...) to multiply.")

    def functions(self, word: str) -> str:
        """What to use instead of an unknown function."""
        if word in _INSTEAD:
            return f"Use {_INSTEAD[word]}."
        apart = {*_WITH, *_LINES, *_NAMING, "iterate", "length", "first"}
        known = set(self.scope.functions) - apart
        close = {w for w in known if not word.startswith("_")}
        return suggest(word, close).strip() or f"Use one of {', '.join(sorted(known))}."

    def visit_Name(self, node: ast.Name) -> None:
        x, scope = node.id, self.scope
        if x in scope.timed:
            when = f"{x}[n]" if scope.clock == "n" else f"{x}[t] or {x}[t-1]"
            raise self.refuse(node, f"{x} has a time. Write {when}.")
        kind = scope.parameters.get(x)
        if kind == "tuple":
            raise self.refuse(node, f"{x} is a tuple. Read one entry: {x}[1].")
        if kind == "schedule":
            raise self.refuse(node, f"{x} is a schedule. Say at which step: {x}({scope.clock}).")
        if kind is not None or x in self.local:
            self.use.read.add(x)
            return
        if x in scope.numbers or x in scope.values:
            return
        if x in scope.odd:
            raise self.refuse(node, scope.odd[x])
        if x in scope.functions:
            raise self.refuse(node, f"{x} is a function. Write {x}(...).")
        if x in scope.lost:
            raise self.refuse(node, scope.lost[x])
        if x in scope.shapes:
            raise self.refuse(node, f"{x} is a shape, which only oracle(...) takes. Remove it.")
        if x in self.ended:
            raise self.refuse(node, f"{x} is known only inside its loop. Use the loop's count.")
        if hasattr(builtins, x) or x in _INSTEAD:
            instead = f"Use {_INSTEAD[x]}." if x in _INSTEAD else "Write an equation."
            raise self.refuse(node, f"{x} is Python's, not an equation's. {instead}")
        known = scope.timed | scope.numbers | scope.values | set(scope.parameters) | self.local
        raise self.refuse(node, self.undeclared(x, known))

    def timed(self, node: ast.Name) -> None:
        """The name in front of `[t]`."""
        x, scope = node.id, self.scope
        if x in scope.timed:
            return
        if x in scope.parameters or x in scope.numbers or x in self.local:
            raise self.refuse(node, f"{x} has no time. Write {x} alone.")
        if x in {*scope.functions, *scope.values, *scope.shapes}:
            raise self.refuse(
                node, f"{x} is a word of the language and has no time. Choose another name."
            )
        if x in scope.lost:
            raise self.refuse(node, scope.lost[x])
        if x in scope.odd:
            raise self.refuse(node, scope.odd[x])
        raise self.refuse(node, self.undeclared(x, scope.timed))

    def visit_Subscript(self, node: ast.Subscript) -> None:
        base = node.value
        if not isinstance(base, ast.Name):
            raise self.refuse(node, "only a name has a time: x[t]. Give this value a name first.")
        if self.scope.parameters.get(base.id) != "tuple":
            self.timed(base)
        self.use.read.add(base.id)
        self.index(node, base.id)

    def index(self, node: ast.Subscript, name: str) -> None:
        """The time of a name, or the number of an entry."""
        if isinstance(node.slice, ast.Tuple):
            raise self.refuse(node, "a name has one time. Write x[t] or x[t-1].")
        for x in ast.walk(node.slice):
            if isinstance(x, ast.Name) and not self.known(x.id):
                right = self.scope.clock
                what = f"Write {name}[{right}] or {name}[{right}-1]: an index is {right}, {right}-1"
                if name in self.scope.parameters:
                    what = "Index by integers 1, 2, ..."
                else:
                    what += ", or a loop's."
                raise self.refuse(x, f"{x.id} is not defined. {what}")
        self.visit(node.slice)

    def known(self, x: str) -> bool:
        """Whether a name means something, if not always here."""
        s = self.scope
        words = {*s.functions, *s.values, *s.shapes, *s.lost, *s.odd, *s.timed, *s.numbers}
        return x in words | set(s.parameters) | self.local | self.ended or hasattr(builtins, x)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.finite(node)
        words = {*self.scope.functions, *self.scope.values}
        if node.attr in words:
            raise self.refuse(
                node, f"{ast.unparse(node)} is not the language's. Write {node.attr} alone."
            )
        if node.attr != "T":
            raise self.refuse(
                node, f"`.{node.attr}` has no meaning in equations; only `.T` has. Remove it."
            )
        self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool) or value is None:
            raise self.refuse(
                node, f"{value} is decided already. Use a bool hyperparameter, or a condition."
            )
        if isinstance(value, str):
            if not _CHOICE.fullmatch(value):
                what = f"{value!r} is a text, which means nothing here. Write it without quotes."
                raise self.refuse(node, what)
            raise self.refuse(
                node, f"{value!r} is a word. Compare a choice with it: equal(x, {value!r})."
            )
        if isinstance(value, int) and value > _LARGEST:
            raise self.refuse(
                node, f"{value} is not exact in a double. Write a float, such as 1e20."
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise self.refuse(node, "this literal is too large for a double. Write a smaller one.")
        if not isinstance(value, int | float):
            raise self.refuse(node, f"{value!r} is not a number of the language. Write a real one.")

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, _ALLOWED):
            super().generic_visit(node)
            return
        what, remedy = _NOT.get(type(node), (f"`{type(node).__name__.lower()}`", "Remove it."))
        raise self.refuse(node, f"{what} has no meaning in a spec. {remedy}")
