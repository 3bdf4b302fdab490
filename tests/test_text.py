"""The generated text is the program: parsed back with `ast`, it is the legalized tree, node by node."""

from __future__ import annotations

import ast
import re

import programs
import pytest

from backends import discover
from generator import catalogue, render
from generator.ir import Branch, Call, Hyper, Number, Point, Repeat, Value, Word

BACKENDS = discover()
ENTRIES = {e.program.name: e for e in catalogue.entries() if e.program.kind != "wrapper"}
KERNELS = [n for n, e in ENTRIES.items() if e.program.kind in ("optimizer", "transform")]
SIGNS = {
    **{"Add": "add", "Sub": "sub", "Mult": "mul", "Div": "div", "BitAnd": "and", "BitOr": "or"},
    **{"MatMult": "matmul", "FloorDiv": "floordiv", "Mod": "mod", "USub": "neg", "Invert": "not"},
    **{"Lt": "lt", "LtE": "le", "Gt": "gt", "GtE": "ge", "Eq": "eq", "NotEq": "ne"},
}
# Of rows and columns alone, and written as the same operations of tensors are.
SIZES = {f"size_{op}": op for op in ("add", "sub", "mul", "neg")}


def tree_of(values, outputs, renamed):
    """The outputs of single assignments as nested tuples over the inputs."""
    made = {}

    def operand(o):
        if isinstance(o, Number):
            return ("number", float(o.value))
        if isinstance(o, Word):
            return ("word", o.value)
        if isinstance(o, Hyper | Call):
            return asked(o)
        return made.get(o, ("name", renamed.get(o, o)))

    def block(values):
        for v in values:
            if isinstance(v, Branch):
                condition, before = operand(v.condition), dict(made)
                ends = []
                for way, body in ((1, v.body), (2, v.otherwise)):
                    block(body)
                    ends.append([("none",) if c[way] is None else operand(c[way]) for c in v.carried])
                    made.clear()
                    made.update(before)
                for c, here, there in zip(v.carried, *ends, strict=True):
                    made[c[0]] = chosen(condition, here, there)
            else:
                assert isinstance(v, Value), v
                made[v.name] = (SIZES.get(v.op, v.op), *map(operand, v.args))

    block(values)
    return [operand(o) for o in outputs]


def chosen(condition, here, there):
    """What a region and its opposite make of a name."""
    if condition[0] == "not":
        return chosen(condition[1], there, here)
    return here if here == there else ("if", condition, here, there)


def asked(e):
    """A condition on choices."""
    if isinstance(e, Hyper):
        return ("name", e.name)
    if e.op in ("eq", "ne"):
        (hyper,) = [a.name for a in e.args if isinstance(a, Hyper)]
        (word,) = [a.text for a in e.args if isinstance(a, Call)]
        same = ("is", ("name", hyper), ("word", None if word == "None" else word))
        return same if e.op == "eq" else opposite(same)
    if e.op == "gt":  # above 0: a number that there is something of
        return ("with", ("name", e.args[0].name))
    inner = [asked(a) for a in e.args]
    return opposite(*inner) if e.op == "not" else joined(e.op, inner)


def joined(op, conditions):
    """Conditions joined by the same word, however they are nested."""
    return (op, *(x for c in conditions for x in (c[1:] if c[0] == op else [c])))


def opposite(condition):
    return condition[1] if condition[0] == "not" else ("not", condition)


class Reader:
    """Python text back to nested tuples; a table's words are read as the operations they print."""

    def __init__(self, table, told=()):
        self.told = {name: hyper for name, hyper in told if name != hyper}
        self.words = {w: op for op, w in table.items() if re.fullmatch(r"[A-Za-z_][\w.]*", w)}
        self.names, self.functions = {}, {}

    def run(self, lines):
        self.block(ast.parse("\n".join(lines)).body)

    def block(self, statements):
        for statement in statements:
            if isinstance(statement, ast.If):
                self.branch(statement)
                continue
            if isinstance(statement, ast.FunctionDef):
                self.functions[statement.name] = statement.body
                continue
            assert isinstance(statement, ast.Assign)
            if isinstance(statement.value, ast.Constant) and statement.value.value is None:
                self.names |= {x.id: ("none",) for x in statement.targets}
                continue
            assert len(statement.targets) == 1
            target, value = statement.targets[0], statement.value
            if isinstance(value, ast.Call) and ast.unparse(value.func) == "branch":
                self.chosen(target, *value.args)
            else:
                self.names[target.id] = self.expr(value)

    def chosen(self, target, condition, *ways):
        condition, ends = self.expr(condition), []
        for way in ways:
            before = dict(self.names)
            if isinstance(way, ast.Lambda):
                end = way.body
            else:
                *body, end = self.functions[way.id]
                self.block(body)
                end = end.value
            ends.append([self.expr(e) for e in (end.elts if isinstance(end, ast.Tuple) else [end])])
            self.names = before
        targets = target.elts if isinstance(target, ast.Tuple) else [target]
        for t, here, there in zip(targets, *ends, strict=True):
            self.names[t.id] = chosen(condition, here, there)

    def branch(self, statement):
        condition, before, ways = self.expr(statement.test), self.names, []
        for body in (statement.body, statement.orelse):
            self.names = dict(before)
            self.block(body)
            ways.append(self.names)
        here, there = ways
        self.names = {
            n: chosen(condition, here.get(n, ("name", n)), there.get(n, ("name", n)))
            for n in {**here, **there}
        }

    def text(self, text):
        return self.expr(ast.parse(text, mode="eval").body)

    def expr(self, e):
        match e:
            case ast.Name(name) if name in self.told and name.startswith("with_"):
                return ("with", ("name", self.told[name]))
            case ast.Name(name) if name in self.told:
                return ("not", ("is", ("name", self.told[name]), ("word", None)))
            case ast.Name(name):
                return self.names.get(name, ("name", name))
            case ast.Attribute():
                whole = ast.unparse(e)
                return (self.words[whole],) if whole in self.words else ("name", whole)
            case ast.Subscript(ast.Attribute(x, "shape"), ast.UnaryOp(_, ast.Constant(axis))):
                return ({1: "cols", 2: "rows"}[axis], self.expr(x))
            case ast.Subscript(x, ast.Constant(k)):
                return ("entry", self.expr(x), ("number", float(k)))
            case ast.Constant(None):
                return ("none",)
            case ast.Constant(float() | int() as value):
                return ("number", float(value))
            case ast.UnaryOp(op, ast.Constant(value)) if isinstance(op, ast.USub):
                return ("number", -float(value))
            case ast.Constant(str(word)):
                return ("word", word)
            case ast.UnaryOp(ast.Not(), a):
                return opposite(self.expr(a))
            case ast.BoolOp(op, args):
                return joined(type(op).__name__.lower(), list(map(self.expr, args)))
            case ast.Compare(a, [ast.Is() | ast.IsNot() as op], [ast.Constant(None)]):
                same = ("is", self.expr(a), ("word", None))
                return same if isinstance(op, ast.Is) else opposite(same)
            case ast.Compare(a, [ast.Eq() | ast.NotEq() as op], [ast.Constant(str(word))]):
                same = ("is", self.expr(a), ("word", word))
                return same if isinstance(op, ast.Eq) else opposite(same)
            case ast.UnaryOp(op, a):
                return (SIGNS[type(op).__name__], self.expr(a))
            case ast.BinOp(a, op, b):
                return (SIGNS[type(op).__name__], self.expr(a), self.expr(b))
            case ast.Compare(a, [op], [b]):
                return (SIGNS[type(op).__name__], self.expr(a), self.expr(b))
            case ast.Call(f, args):
                return (self.words[ast.unparse(f)], *map(self.expr, args))
        raise AssertionError(ast.dump(e))


def check_step(lowered, backend):
    legal = backend.legalize(lowered)
    view = render.view(lowered, backend)
    states = [o for _, o in legal.new_states]
    want = tree_of(legal.step, [legal.result, *states], {})
    reader = Reader(backend.tensor, view.choices)
    reader.run(view.step_lines)
    got = [reader.text(view.step_result), *(reader.text(t) for _, t in view.step_states)]
    assert got == want
    for p, text in zip(legal.passes, view.passes, strict=True):
        reader = Reader(backend.tensor, view.choices)
        reader.run(text.partials)
        if isinstance(p, Point):
            assert [reader.text(text.at)] == tree_of(p.partials, [p.at], {})
            continue
        want = tree_of(p.partials, [o for _, o in p.sums], {})
        assert [reader.text(t) for _, t in text.sums] == want
        reader = Reader(backend.tensor, view.choices)
        reader.run(text.values)
        want = tree_of(p.values, [o for _, o in p.exports], {})
        assert [reader.text(t) for _, t in text.exports] == want


def check_scalars(lowered, backend):
    legal = backend.legalize(lowered)
    if any(isinstance(v, Repeat) for v in legal.scalars):
        return
    view = render.view(lowered, backend)
    reader = Reader(backend.scalar)
    reader.run(view.scalar_lines)
    if lowered.program.kind == "schedule":
        outputs, got = [legal.result], [reader.text(view.value)]
    else:
        outputs, got = list(legal.exports), [reader.text(t) for _, t in view.exports]
    want = tree_of(legal.scalars, outputs, {})
    assert [plain(x) for x in got] == [plain(x) for x in want]


def plain(tree):
    """Schedules called and tuples indexed are written in Python's own way."""
    if tree and tree[0] in ("call", "item", "length"):
        pytest.skip("entries of tuples are read by Python")
    return (tree[0], *(plain(x) if isinstance(x, tuple) else x for x in tree[1:]))


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("name", KERNELS)
def test_step_is_the_program(name, backend):
    check_step(ENTRIES[name].lowered, backend)


SIMPLE = [n for n in ENTRIES if n not in ("join", "warmup", "piecewise", "cosine_restarts")]


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("name", SIMPLE)
def test_scalars_are_the_program(name, backend):
    check_scalars(ENTRIES[name].lowered, backend)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_random_text_is_the_program(backend):
    for seed in range(200):
        lowered = programs.make(seed).lowered
        check_step(lowered, backend)
        check_scalars(lowered, backend)


@pytest.mark.parametrize("name", KERNELS)
def test_the_lines_are_the_same_everywhere(name):
    """Up to the prefix of the framework and the guard."""
    texts = set()
    for backend in BACKENDS.values():
        view = render.view(ENTRIES[name].lowered, backend)
        made = []
        for statement in ast.parse("\n".join(view.step_lines)).body:
            text = ast.unparse(Unguarded().visit(statement))
            made.append(re.sub(r"\b(np|torch|jnp|tf)\.", "", text))
        texts.add("\n".join(made))
    assert len(texts) == 1, "\n\n".join(sorted(texts))


class Unguarded(ast.NodeTransformer):
    def visit_Call(self, node):
        self.generic_visit(node)
        match ast.unparse(node.func):
            case "fl":
                return node.args[0]
            case "quotient":
                return ast.BinOp(node.args[0], ast.Div(), node.args[1])
            case "matmul":
                return ast.BinOp(node.args[0], ast.MatMult(), node.args[1])
        return node
