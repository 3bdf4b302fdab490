"""The first look at a spec: its Python syntax, before anything runs.

In: the decorated function. Out: the lines of its parameters, or a `SpecError` for every construct that
SymPy would silently take the wrong way (`if flag:` is always true of a symbol, `a == b` is a plain
False, `x += 1` forgets the equation). Must not know: SymPy, what equations mean.
"""

from __future__ import annotations

import ast
import builtins
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from generator.errors import SpecError, suggest


@dataclass(frozen=True)
class Scanned:
    """What the syntax tree tells that the function object does not."""

    parameter_lines: dict[str, int]


# Python's own functions that people reach for, and the word of the language that they mean.
_INSTEAD = {"max": "maximum", "min": "minimum", "pow": "**", "round": "floor", "range": "iterate"}
_REGIONS = {"case", "when", "otherwise"}
_NAMING = {"update", "oracle", "noise"}


def parse(file: str) -> ast.Module:
    """The syntax tree of a file; a syntax error is reported like every other mistake."""
    text = "".join(linecache.getlines(file))
    try:
        return ast.parse(text, file)
    except SyntaxError as error:
        message = f"this is not Python: {error.msg}."
        raise SpecError(file, error.lineno or 1, message) from None


def scan(function: Callable[..., Any], words: frozenset[str]) -> Scanned:
    """Refuse what cannot be an equation; `words` are the names that the language exports."""
    file = function.__code__.co_filename
    first = function.__code__.co_firstlineno
    found = None
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__:
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if start == first:
                found = node
    if found is None:
        raise SpecError(file, first, "the source of this spec cannot be read. Put it in a file.")
    arguments = [*found.args.posonlyargs, *found.args.args, *found.args.kwonlyargs]
    if found.args.vararg or found.args.kwarg:
        raise SpecError(file, first, "a spec has no *args or **kwargs. Name each hyperparameter.")
    lines = {a.arg: a.lineno for a in arguments}
    known = set(lines) | set(function.__globals__) | words
    _Scanner(file, known, function.__globals__, set(lines)).body(found.body)
    return Scanned(lines)


class _Scanner(ast.NodeVisitor):
    def __init__(
        self, file: str, known: set[str], scope: dict[str, Any], parameters: set[str]
    ) -> None:
        self.file, self.known, self.scope, self.parameters = file, known, scope, parameters

    def refuse(self, node: ast.AST, message: str) -> None:
        raise SpecError(self.file, getattr(node, "lineno", 1), message)

    def body(self, statements: list[ast.stmt]) -> None:
        for index, statement in enumerate(statements):
            docstring = isinstance(statement, ast.Expr) and isinstance(
                statement.value, ast.Constant
            )
            if not (index == 0 and docstring):
                self.visit(statement)

    # Statements -----------------------------------------------------------------------------------

    def visit_If(self, node: ast.If) -> None:
        self.refuse(node, "`if` is decided while the spec is read. Use where(condition, a, b).")

    def visit_While(self, node: ast.While) -> None:
        self.refuse(node, "`while` has no meaning in equations. Use `for k in iterate(count):`.")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.refuse(node, "`x += y` is not an equation. Write x[t] = x[t-1] + y.")

    def visit_For(self, node: ast.For) -> None:
        called = node.iter.func if isinstance(node.iter, ast.Call) else None
        if not (isinstance(called, ast.Name) and called.id == "iterate"):
            self.refuse(node, "the only loop is `for k in iterate(count):`.")
        if node.orelse:
            self.refuse(node.orelse[0], "a loop has no `else`.")
        if not isinstance(node.target, ast.Name):
            self.refuse(node, "a loop counts with one name: `for k in iterate(count):`.")
        assert isinstance(node.target, ast.Name)
        self.visit(node.iter)
        self.known.add(node.target.id)
        self.body_of_region(node.body)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            called = item.context_expr.func if isinstance(item.context_expr, ast.Call) else None
            if not (isinstance(called, ast.Name) and called.id in _REGIONS):
                self.refuse(node, "`with` opens a region: case(...), when(...) or otherwise().")
            self.visit(item.context_expr)
        self.body_of_region(node.body)

    def body_of_region(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.visit(statement)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if isinstance(target, ast.Subscript):
                self.visit(target.value)
                self.visit(target.slice)
            elif isinstance(target, ast.Name):
                called = node.value.func if isinstance(node.value, ast.Call) else None
                if not (isinstance(called, ast.Name) and called.id in _NAMING):
                    x = target.id
                    self.refuse(
                        node,
                        f"{x} = ... is a Python variable, not an equation. Declare "
                        f'{x} = names("{x}") above the function and write {x}[t] = ...',
                    )
                self.known.add(target.id)
            else:
                self.refuse(node, "an equation has one name on its left: x[t] = ...")
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Call):
            self.refuse(node, "this line says nothing. An equation is x[t] = ...")
        self.visit(node.value)

    # Expressions ----------------------------------------------------------------------------------

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.refuse(node, "`a if c else b` is decided while the spec is read. Use where(c, a, b).")

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        word, sign = ("and", "&") if isinstance(node.op, ast.And) else ("or", "|")
        self.refuse(node, f"`{word}` drops one side of a symbol. Use {sign}, with parentheses.")

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.refuse(node, "`not` is always False of a symbol. Use ~.")
        self.visit(node.operand)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) > 1:
            self.refuse(node, "a chained comparison drops one side. Use (a < b) & (b < c).")
        match node.ops[0]:
            case ast.Eq():
                self.refuse(node, "`==` compares symbols, not values. Use equal(a, b).")
            case ast.NotEq():
                self.refuse(node, "`!=` compares symbols, not values. Use ~equal(a, b).")
            case ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE():
                self.generic_visit(node)
            case _:
                self.refuse(node, "`is` and `in` have no meaning in equations.")

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute):
            dotted = ast.unparse(node.func)
            self.refuse(node, f"unknown function {dotted}. {self.functions(node.func.attr)}")
        if isinstance(node.func, ast.Name):
            word = node.func.id
            if word in _INSTEAD and word not in self.scope:
                self.refuse(node, f"{word} is Python's, not an equation's. Use {_INSTEAD[word]}.")
            if word not in self.known:
                self.refuse(node, f"unknown function {word}. {self.functions(word)}")
        self.generic_visit(node)

    def functions(self, word: str) -> str:
        """What to use instead of an unknown function."""
        from generator.ir import OPERATIONS

        named = [o for o in OPERATIONS if o in self.known]
        return (suggest(word, named) or f"The functions are {', '.join(sorted(named))}.").strip()

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in self.known:
            return
        if hasattr(builtins, node.id):
            self.refuse(node, f"{node.id} is Python's, not an equation's.")
        hint = suggest(node.id, {w for w in self.known if not w.startswith("_")})
        declare = f' Declare it: {node.id} = names("{node.id}").'
        self.refuse(node, f"{node.id} is not defined.{hint or declare}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr != "T":
            self.refuse(node, f"`.{node.attr}` has no meaning in equations; only `.T` has.")
        self.visit(node.value)

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, _ALLOWED):
            super().generic_visit(node)
            return
        what = type(node).__name__
        self.refuse(node, f"{what} has no meaning in a spec. See `specs/__init__.py` for what has.")


_ALLOWED = (
    ast.Constant,
    ast.BinOp,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.expr_context,
    ast.Subscript,
    ast.Tuple,
    ast.Call,
    ast.keyword,
    ast.Compare,
    ast.Pass,
)
