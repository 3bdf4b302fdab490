"""What the language records: order and grouping of every equation, declarations, regions, inferred facts."""

from __future__ import annotations

import ast
import math
import random
import struct
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import sympy as sp

import backends
from generator import catalogue, ir, regions, render, sample, shapes
from generator.check import Checked
from generator.errors import NotAvailable, SpecError
from generator.ir import Assign, Call, Case, Clock, Expr, Hyper, Loop, Number, Ref, Start, When
from generator.language import NonNegative, g, names, optimizer, t, theta
from generator.lower import lower


def load(path: Path, text: str) -> catalogue.Entry:
    """The one spec of a file with this text."""
    file = path / f"spec{len(list(path.iterdir()))}.py"
    file.write_text("from generator.language import *\n\n" + textwrap.dedent(text))
    (entry,) = catalogue.load(file)
    return entry


def spec(
    path: Path, body: str, sig: str = "", names: str = "", kind: str = "optimizer"
) -> ir.Program:
    """The frozen program of a body."""
    declared = "".join(f'{x} = names("{x}")\n' for x in names.split())
    body = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    doc = '    """Title.\n\n    Source: here.\n    """\n'
    return load(path, f"{declared}\n\n@{kind}\ndef made({sig}):\n{doc}{body}\n").program


def flat(e: ir.Expr) -> str:
    """An expression with nothing left to precedence."""
    match e:
        case Number(value):
            return repr(value)
        case Hyper(name) | Clock(name):
            return name
        case Ref(name, lag):
            return f"{name}'" if lag else name
        case ir.Item(name, index):
            return f"{name}[{flat(index)}]"
    assert isinstance(e, Call)
    inner = [*([e.text] if e.text else []), *map(flat, e.args)]
    return f"{e.op}({', '.join(inner)})"


# --------------------------------------------------------------------------------------------------
# Order and grouping

WRITTEN = [
    ("a + b + c", "add(add(a, b), c)"),
    ("a + (b + c)", "add(a, add(b, c))"),
    ("c + b + a", "add(add(c, b), a)"),
    ("a - b - c", "sub(sub(a, b), c)"),
    ("a - (b - c)", "sub(a, sub(b, c))"),
    ("a - (b + c)", "sub(a, add(b, c))"),
    ("a - b * c", "sub(a, mul(b, c))"),
    ("a - b * c * d", "sub(a, mul(mul(b, c), d))"),
    ("a - b * (c * d)", "sub(a, mul(b, mul(c, d)))"),
    ("a - b / c", "sub(a, div(b, c))"),
    ("a + b * c", "add(a, mul(b, c))"),
    ("-a", "neg(a)"),
    ("--a", "neg(neg(a))"),
    ("-a + b", "add(neg(a), b)"),
    ("-(a + b)", "neg(add(a, b))"),
    ("-(a - b)", "neg(sub(a, b))"),
    ("-(a * b)", "neg(mul(a, b))"),
    ("-a * b", "mul(neg(a), b)"),
    ("a * -b", "mul(a, neg(b))"),
    ("-(0.5 * a)", "neg(mul(0.5, a))"),
    ("-0.5 * a", "mul(-0.5, a)"),
    ("-a**2", "neg(power(a, 2))"),
    ("(-a)**2", "power(neg(a), 2)"),
    ("-(1 / a)", "neg(div(1, a))"),
    ("a * b * c", "mul(mul(a, b), c)"),
    ("a * (b * c)", "mul(a, mul(b, c))"),
    ("b * a", "mul(b, a)"),
    ("2 * a", "mul(2, a)"),
    ("a * 2", "mul(a, 2)"),
    ("a * 1", "mul(a, 1)"),
    ("1.0 * a", "mul(1.0, a)"),
    ("a + 0", "add(a, 0)"),
    ("a * 0", "mul(a, 0)"),
    ("a - a", "sub(a, a)"),
    ("a / a", "div(a, a)"),
    ("1 - 0.5 * a", "sub(1, mul(0.5, a))"),
    ("1 - a", "sub(1, a)"),
    ("a - 1", "sub(a, 1)"),
    ("a - 0.0", "sub(a, 0.0)"),
    ("a + 0.0", "add(a, 0.0)"),
    ("a - 0 * b", "sub(a, mul(0, b))"),
    ("a - 0.0 * b", "sub(a, mul(0.0, b))"),
    ("0 - a", "sub(0, a)"),
    ("a / b / c", "div(div(a, b), c)"),
    ("a / (b / c)", "div(a, div(b, c))"),
    ("a * (1 / b)", "div(a, b)"),
    ("a * b / (c * d)", "div(mul(a, b), mul(c, d))"),
    ("a / (b * c) * d", "mul(div(a, mul(b, c)), d)"),
    ("a / 2", "div(a, 2)"),
    ("1 / a", "div(1, a)"),
    ("1.0 / a", "div(1.0, a)"),
    ("2 / a", "div(2, a)"),
    ("(1 / a) * b", "mul(div(1, a), b)"),
    ("a / -b", "div(a, neg(b))"),
    ("a**2", "power(a, 2)"),
    ("a**1", "power(a, 1)"),
    ("a**0", "power(a, 0)"),
    ("a**-1", "div(1, a)"),
    ("a**-2", "power(a, -2)"),
    ("a**0.5", "power(a, 0.5)"),
    ("a**b**c", "power(a, power(b, c))"),
    ("(a**b)**c", "power(power(a, b), c)"),
    ("2**a", "power(2, a)"),
    ("a * b**2", "mul(a, power(b, 2))"),
    ("a**t", "power(a, t)"),
    ("sqrt(a) / (sqrt(b) + c)", "div(sqrt(a), add(sqrt(b), c))"),
    ("sqrt(a**2)", "sqrt(power(a, 2))"),
    ("abs(-a)", "abs(neg(a))"),
    ("maximum(a, minimum(b, a))", "maximum(a, minimum(b, a))"),
    ("exp(log(a))", "exp(log(a))"),
    ("cos(pi * a)", "cos(mul(pi(), a))"),
    ("sign(a) * floor(a)", "mul(sign(a), floor(a))"),
    ("where(a < b, a, b)", "where(lt(a, b), a, b)"),
    ("where(a <= b, a, b)", "where(le(a, b), a, b)"),
    ("where(a > b, a, b)", "where(gt(a, b), a, b)"),
    ("where(a >= b, a, b)", "where(ge(a, b), a, b)"),
    ("where(a < 1, a, b)", "where(lt(a, 1), a, b)"),
    ("where(equal(a, b), a, b)", "where(eq(a, b), a, b)"),
    ("where(~(a < b), a, b)", "where(not(lt(a, b)), a, b)"),
    ("where(~equal(a, b), a, b)", "where(not(eq(a, b)), a, b)"),
    ("where((b < a) & (a < b), a, b)", "where(and(lt(b, a), lt(a, b)), a, b)"),
    ("where((a < b) & (a < b), a, b)", "where(and(lt(a, b), lt(a, b)), a, b)"),
    ("where((a < 1) | (a >= 1), a, b)", "where(or(lt(a, 1), ge(a, 1)), a, b)"),
    (
        "where((b > a) | (a > b) & equal(a, 1), a, b)",
        "where(or(gt(b, a), and(gt(a, b), eq(a, 1))), a, b)",
    ),
    ("where(t > 0, a, b)", "where(gt(t, 0), a, b)"),
    ("a * (t // k)", "mul(a, floordiv(t, k))"),
    ("a * (t % k)", "mul(a, mod(t, k))"),
    ("a * (7 // k)", "mul(a, floordiv(7, k))"),
    ("a * (7 % k)", "mul(a, mod(7, k))"),
    ("a * (t % (2 * k) - k)", "mul(a, sub(mod(t, mul(2, k)), k))"),
    ("a * floor(t / k)", "mul(a, floor(div(t, k)))"),
    ("a * (1 / 3)", f"mul(a, {1 / 3!r})"),  # Python's own arithmetic on literals
    ("a + -5", "sub(a, 5)"),  # the same bits
    ("a + -b", "sub(a, b)"),  # the same bits
]


@pytest.mark.parametrize(("text", "tree"), WRITTEN, ids=[text for text, _ in WRITTEN])
def test_as_written(text: str, tree: str, tmp_path: Path) -> None:
    used = [x for x in "abcd" if x in text.replace("abs", "").replace("and", "").replace("cos", "")]
    sig = ", ".join([f"{x}: Real" for x in used] + ["k: PositiveCount"] * ("k" in text))
    program = spec(tmp_path, f"x[t] = {text}\ntheta[t] = theta[t-1] - x[t]", sig, "x")
    first = program.body[0]
    assert isinstance(first, Assign)
    assert flat(first.value) == tree


def nested(terms: list[str]) -> str:
    """A balanced sum."""
    half = len(terms) // 2
    return f"({nested(terms[:half])} + {nested(terms[half:])})" if half else terms[0]


def test_literals_are_the_authors_doubles(tmp_path: Path) -> None:
    rng = random.Random(0)
    values = [0.1, 1 / 3, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 1e22, 1e23, 0.0]
    values += [2.0**53, 123456789.123456789, 1e-8, 4.9406564584124654e-323]
    while len(values) < 500:
        (value,) = struct.unpack("<d", rng.randbytes(8))
        if math.isfinite(value):
            values.append(math.fabs(value))
    integers = [0, 1, 7, 2**31, 2**53 - 1, 2**53]
    lines = [f"x{i}[t] = {v!r} * theta[t-1]" for i, v in enumerate([*values, *integers])]
    names = " ".join(f"x{i}" for i in range(len(lines)))
    lines.append(f"theta[t] = {nested([f'x{i}[t]' for i in range(len(lines))])}")
    found = []
    program = spec(tmp_path, "\n".join(lines), "", names)
    for s in program.body[:-1]:
        assert isinstance(s, Assign)
        assert isinstance(s.value, Call)
        assert isinstance(s.value.args[0], Number)
        found.append(s.value.args[0].value)
    assert found == [*values, *integers]
    assert list(map(type, found)) == [float] * len(values) + [int] * len(integers)


MATRICES = [
    ("g[t] @ g[t].T", "matmul(g, transpose(g))"),
    ("g[t].T @ g[t] @ g[t].T", "matmul(matmul(transpose(g), g), transpose(g))"),
    ("(g[t] + g[t]).T", "transpose(add(g, g))"),
    ("(2 * g[t] / 3).T", "transpose(div(mul(2, g), 3))"),
    ("g[t] * row_mean(g[t]) / mean(g[t])", "div(mul(g, row_mean(g)), mean(g))"),
    ("g[t] / (row_norm(g[t]) + col_rms(g[t]))", "div(g, add(row_norm(g), col_rms(g)))"),
    ("g[t] * (rows / cols)", "mul(g, div(rows(), cols()))"),
]


@pytest.mark.parametrize(("text", "tree"), MATRICES, ids=[text for text, _ in MATRICES])
def test_matrices_as_written(text: str, tree: str, tmp_path: Path) -> None:
    program = spec(tmp_path, f"x[t] = {text}\ntheta[t] = theta[t-1] - norm(x[t])", "", "x")
    assert isinstance(program.body[0], Assign)
    assert flat(program.body[0].value) == tree


def test_sympy_is_itself_again_afterwards() -> None:
    assert catalogue.entries(["adamw"])[0].spec.equations
    x, y = sp.symbols("x y")
    assert x - x == 0
    assert (x < y) & ~(x < y) == sp.false
    assert not hasattr(sp.Expr, "T")
    with pytest.raises(TypeError):
        assert x @ y


# --------------------------------------------------------------------------------------------------
# Equations of SymPy


def test_equations_print_in_the_authors_order() -> None:
    equations = catalogue.entries(["adamw"])[0].spec.equations
    assert all(isinstance(e, sp.Eq) for e in equations)
    assert list(map(str, equations)) == [
        "Eq(m[0], 0)",
        "Eq(v[0], 0)",
        "Eq(m[t], beta1*m[t - 1] + (1 - beta1)*g[t])",
        "Eq(v[t], beta2*v[t - 1] + (1 - beta2)*g[t]**2)",
        "Eq(m_hat[t], m[t]/(1 - beta1**t))",
        "Eq(v_hat[t], v[t]/(1 - beta2**t))",
        "Eq(theta[t], theta[t - 1] - lr*(m_hat[t]/(sqrt(v_hat[t]) + eps) + weight_decay*theta[t - 1]))",
    ]
    assert sp.latex(equations[2]) == (
        r"{m}_{t} = \beta_{1} {m}_{t - 1} + \left(1 - \beta_{1}\right) {g}_{t}"
    )
    assert "Eq(theta[t], theta[t - 1] - lr" in str(equations)


def test_equations_can_be_worked_with() -> None:
    update = catalogue.entries(["momentum"])[0].spec.equations[1]
    beta = next(s for s in update.free_symbols if s.name == "beta")
    assert beta.is_nonnegative
    (solved,) = sp.solve(update, beta)
    assert sp.simplify(update.rhs.subs(beta, solved) - update.lhs) == 0


def test_equations_of_regions_and_loops(tmp_path: Path) -> None:
    entry = load(tmp_path, CONCEPTS["muon"])
    assert [str(e) for e in entry.spec.equations if "X" in str(e.lhs)] == [
        "Eq(X[0], Y[t])",
        "Eq(X[k], 3.4445*X[k - 1] + matmul(-4.775*A[k] + 2.0315*matmul(A[k], A[k]), X[k - 1]))",
    ]


# --------------------------------------------------------------------------------------------------
# Statements


def test_starts_and_states(tmp_path: Path) -> None:
    program = spec(
        tmp_path,
        """
        m[0] = v[0] = 0
        a[0] = -1.5
        b[0] = lr
        c[0] = theta[0]
        g[0] = first(g)
        m[t] = m[t-1] + g[t] - g[t-1]
        v[t] = v[t-1] + lr
        a[t] = a[t-1] * b[t-1]
        b[t] = b[t-1] / 2
        c[t] = c[t-1] - lr * m[t]
        theta[t] = c[t] - v[t] * a[t]
        """,
        "lr: NonNegative",
        "m v a b c",
    )
    starts = [(s.target, flat(s.value), s.line) for s in program.body if isinstance(s, Start)]
    assert starts == [
        ("m", "0", 16),
        ("v", "0", 16),
        ("a", "-1.5", 17),
        ("b", "lr", 18),
        ("c", "theta'", 19),
        ("g", "first(g)", 20),
    ]
    checked = catalogue.check(program)
    assert [(s.name, s.scalar) for s in checked.states] == [
        ("m", False),
        ("v", True),
        ("a", True),
        ("b", True),
        ("c", False),
        ("g", False),
    ]


def test_loops_bear_the_authors_index(tmp_path: Path) -> None:
    program = spec(
        tmp_path,
        """
        x[0] = y[0] = lr
        for i in iterate(3):
            x[i] = x[i-1] * i
            for j in iterate(length(rates)):
                y[j] = y[j-1] + rates[j] * x[i]
        for i in iterate(2):
            z[i] = i
            w[i] = z[i] * 2
        theta[t] = theta[t-1] - y[length(rates)] * x[3] * g[t]
        """.replace(
            "        for i in iterate(2):\n            z[i] = i\n            w[i] = z[i] * 2\n", ""
        ),
        "lr: NonNegative, rates: tuple[Positive, ...]",
        "x y z w",
    )
    outer = program.body[2]
    assert isinstance(outer, Loop)
    assert (outer.index, outer.count) == ("i", Number(3))
    assert flat(outer.body[0].value) == "mul(x', i)"  # type: ignore[union-attr]
    inner = outer.body[1]
    assert isinstance(inner, Loop)
    assert (inner.index, flat(inner.count)) == ("j", "length(rates)")
    assert flat(inner.body[0].value) == "add(y', mul(rates[j], x))"  # type: ignore[union-attr]
    assert flat(program.body[3].value) == (  # type: ignore[union-attr]
        "sub(theta', mul(mul(y, x), g))"
    )


def test_two_loops_with_one_index(tmp_path: Path) -> None:
    program = spec(
        tmp_path,
        """
        x[0] = y[0] = 1
        for k in iterate(3):
            x[k] = x[k-1] * k
        for k in iterate(2):
            y[k] = y[k-1] * x[3]
        theta[t] = theta[t-1] - y[2] * g[t]
        """,
        "",
        "x y",
    )
    assert [s.index for s in program.body if isinstance(s, Loop)] == ["k", "k"]
    assert catalogue.check(program).info["y"].scope == "step"


def test_regions(tmp_path: Path) -> None:
    program = spec(
        tmp_path,
        """
        with when(flag):
            x[t] = 2 * g[t]
        with otherwise():
            x[t] = g[t]
        with case(matrix):
            theta[t] = theta[t-1] - x[t]
        with case(vector):
            with when(t > 3):
                theta[t] = theta[t-1]
            with otherwise():
                theta[t] = theta[t-1] - x[t]
        """,
        "flag: bool",
        "x",
    )
    first, second, third = program.body
    assert isinstance(first, When)
    assert (first.condition, len(first.body), len(first.otherwise)) == (Hyper("flag"), 1, 1)
    assert isinstance(second, Case)
    assert isinstance(third, Case)
    assert (flat(second.condition), flat(third.condition)) == ("matrix()", "vector()")
    (inner,) = third.body
    assert isinstance(inner, When)
    assert flat(inner.condition) == "gt(t, 3)"
    assert inner.otherwise
    assert catalogue.check(program)


def test_inputs(tmp_path: Path) -> None:
    program = spec(
        tmp_path,
        """
        hessian = oracle("hessian")
        loss = oracle("loss", shape=scalar, scope="global")
        xi = noise("xi")
        theta[t] = theta[t-1] - g[t] / hessian * loss + xi
        """,
    )
    nodes = [e for e in ir.walk(program.body[0].value) if isinstance(e, Call)]  # type: ignore[union-attr]
    inputs = {e.text: [a.text for a in e.args] for e in nodes if e.op in ("oracle", "noise")}
    assert inputs == {"hessian": [], "loss": ["scalar", "global"], "xi": []}
    checked = catalogue.check(program)
    assert checked.inputs == ("hessian", "loss", "xi")
    assert (checked.info["loss"].scope, checked.info["loss"].shape) == ("global", ())


def test_requires_and_evaluate(tmp_path: Path) -> None:
    program = spec(
        tmp_path,
        """
        require((a < b) & ~equal(a, 0))
        x[0] = theta[0]
        x[t] = a * x[t-1] + b * theta[t-1]
        theta[t] = theta[t-1] - g[t] * x[t]
        evaluate(x[t])
        """,
        "a: Real = 1, b: Real = 2",
        "x",
    )
    assert [(flat(e), line) for e, line in program.requires] == [
        ("and(lt(a, b), not(eq(a, 0)))", 12)
    ]
    assert program.evaluate == Ref("x")
    assert catalogue.check(program)


# --------------------------------------------------------------------------------------------------
# Signatures

D = ir.Domain
DOMAINS = [
    ("NonNegative = 1", D("NonNegative", low=0.0), 1.0),
    ("Positive = 0.5", D("Positive", low=0.0, low_open=True), 0.5),
    ("Decay = 0", D("Decay", low=0.0, high=1.0), 0.0),
    ("Real = -3", D("Real"), -3.0),
    ("float = 2", D("Real"), 2.0),
    ("Count = 0", D("Count", "int", low=0), 0),
    ("PositiveCount = 1", D("PositiveCount", "int", low=1), 1),
    ("int = -4", D("Integer", "int"), -4),
    ("bool = True", D("bool", "bool"), True),
    ("Schedule", D("Schedule", "schedule"), ir.REQUIRED),
    ('Choice["a", "b"] = "b"', D("Choice", "choice", choices=("a", "b")), "b"),
    ('Choice["only"]', D("Choice", "choice", choices=("only",)), ir.REQUIRED),
    ("Optional[Decay] = None", D("Decay", low=0.0, high=1.0, optional=True), None),
    (
        "tuple[PositiveCount, ...] = (1, 2)",
        D("PositiveCount", "int", low=1, many=True, least=1),
        (1, 2),
    ),
    ("tuple[Real, ...] = (1, 2.5)", D("Real", many=True, least=1), (1.0, 2.5)),
    (
        "Optional[tuple[Real, ...]] = None",
        D("Real", many=True, optional=True),
        None,
    ),
    (
        "Annotated[float, Domain(0, 1)] = 1",
        D("Domain", low=0, high=1, high_open=False),
        1.0,
    ),
    (
        "Annotated[int, Domain(2, 5, low_open=True)] = 3",
        D("Domain", "int", 2, 5, True, False),
        3,
    ),
]


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"], ids=["", "text"])
@pytest.mark.parametrize(("text", "domain", "default"), DOMAINS, ids=[x for x, _, _ in DOMAINS])
def test_domains(
    text: str, domain: ir.Domain, default: object, future: str, tmp_path: Path
) -> None:
    word = domain.choices[0] if domain.choices else ""
    uses = {
        "bool": "where(h, 1, 2)",
        "choice": f"where(equal(h, {word!r}), 1, 2)",
        "schedule": "h(0)",
    }
    use = "h[1]" if domain.many else uses.get(domain.type, "h")
    use = "where(equal(h, None), 1, 2)" if domain.optional else use
    body = f"theta[t] = theta[t-1] - {use} * g[t]"
    doc = '"""Title.\n\n    Source: here.\n    """'
    file = tmp_path / "spec.py"
    lines = ["from generator.language import *", "@optimizer", f"def made(h: {text}):"]
    file.write_text(future + "\n".join([*lines, f"    {doc}", f"    {body}", ""]))
    (entry,) = catalogue.load(file)
    (parameter,) = entry.checked.program.parameters
    assert (parameter.domain, parameter.default) == (domain, default)
    assert type(parameter.default) is type(default)


@pytest.mark.parametrize("name", sorted(backends.discover()))
def test_domains_in_generated_code(name: str, tmp_path: Path) -> None:
    """Whatever the domains are, a module parses and takes from its runtime only what that has."""
    program = spec(tmp_path, "theta[t] = theta[t-1] - lr * g[t]", "lr: NonNegative = 0.1")
    lowered = lower(catalogue.check(program))
    wide = D("Choice", "choice", choices=("x-y", "z"), optional=True)
    many = D("Domain", low=0, high=1, high_open=False, many=True, optional=True)
    domains = [*((d, default) for _, d, default in DOMAINS), (wide, "z"), (many, (0.5, 1.0))]
    more = [ir.Parameter(f"h{k}", d, default, "", 1) for k, (d, default) in enumerate(domains)]
    widened = replace(lowered.program, parameters=(*lowered.program.parameters, *more))
    backend = backends.load(f"backends.{name}")
    tree = ast.parse(render.render(replace(lowered, program=widened), backend))
    has = {
        x.id if isinstance(x, ast.Name) else x.name
        for x in ast.walk(ast.parse(render.runtime(backend)))
        if isinstance(x, ast.Name | ast.FunctionDef | ast.ClassDef)
    }
    imports = [x for x in tree.body if isinstance(x, ast.ImportFrom) and x.level]
    taken = {a.name for x in imports for a in x.names}
    assert taken <= has
    called = {x.func.id for x in ast.walk(tree) if isinstance(x, ast.Call) and isinstance(x.func, ast.Name)}
    assert {"Domain", "optional", "tuple_of"} <= called & taken


def test_hyperparameters_are_known_to_sympy(tmp_path: Path) -> None:
    entry = load(
        tmp_path,
        '''
        @optimizer
        def made(a: Positive, b: Decay, c: Real, k: Count, l: PositiveCount):
            """Title.

            Source: here.
            """
            theta[t] = theta[t-1] - a * b * c * k * l * g[t]
        ''',
    )
    symbols = {s.name: s for s in entry.spec.equations[0].free_symbols}
    assert symbols["a"].is_positive
    assert symbols["b"].is_nonnegative
    assert symbols["c"].is_real
    assert symbols["c"].is_nonnegative is None
    assert symbols["k"].is_integer
    assert symbols["l"].is_positive


# --------------------------------------------------------------------------------------------------
# Specs

alpha = names("alpha")
FACTOR = 0.25


@optimizer("MyMomentum")
def declared_in_a_test(lr: NonNegative = 1e-2):
    """A title.

    Prose that goes
    on here.

    A second paragraph.

    Source: someone, 1900,
        a book. arXiv:0000.00000
    Source: someone else, 1901.
    Note: the first
        note: with a colon.
    Note: the second.

    Args:
        lr: the rate,
            in units of time.
    """
    alpha[0] = 0
    alpha[t] = FACTOR * alpha[t - 1] + g[t]
    theta[t] = theta[t - 1] - lr * alpha[t]


def test_docstring() -> None:
    program = catalogue.Entry(declared_in_a_test).checked.program
    assert (program.name, program.class_name) == ("declared_in_a_test", "MyMomentum")
    assert program.title == "A title."
    assert program.doc == ("Prose that goes on here.", "A second paragraph.")
    assert program.source == (
        "someone, 1900, a book. arXiv:0000.00000",
        "someone else, 1901.",
    )
    assert program.notes == ("the first note: with a colon.", "the second.")
    assert program.parameters[0].about == "the rate, in units of time."
    assert program.file == __file__


def test_constants_of_the_module() -> None:
    body = catalogue.Entry(declared_in_a_test).program.body
    assert flat(body[1].value) == "add(mul(0.25, alpha'), g)"  # type: ignore[union-attr]


def test_a_spec_in_a_function() -> None:
    m = names("m")
    half = 0.5

    @optimizer
    def inner_spec(lr: NonNegative = 1e-2):
        """Title.

        Source: here.
        """
        m[0] = 0
        m[t] = half * m[t - 1] + g[t]
        theta[t] = theta[t - 1] - lr * m[t]

    assert inner_spec.class_name == "InnerSpec"
    assert catalogue.Entry(inner_spec).lowered.states[0].name == "m"


def test_kinds() -> None:
    kinds = {
        e.spec.name: e.spec.kind for e in catalogue.entries(["adam", "cosine", "clip_by_value"])
    }
    assert kinds == {"adam": "optimizer", "cosine": "schedule", "clip_by_value": "transform"}


# --------------------------------------------------------------------------------------------------
# What the next issue needs: parsed, checked, represented

DOC = '"""Title.\n\n    Source: here.\n    """'
CONCEPT_SPECS = """
v, n_p, n_g, r = names("v n_p n_g r")

@optimizer
def lars(lr: NonNegative = 0.1, mu: Decay = 0.9, weight_decay: NonNegative = 5e-4,
         c: Positive = 1e-3):
    DOC
    v[0] = 0
    n_p[t] = norm(theta[t-1])
    n_g[t] = norm(g[t])
    r[t] = where((n_p[t] > 0) & (n_g[t] > 0), c * n_p[t] / (n_g[t] + weight_decay * n_p[t]), 1)
    v[t] = mu * v[t-1] + lr * r[t] * (g[t] + weight_decay * theta[t-1])
    theta[t] = theta[t-1] - v[t]



m, v, u, r = names("m v u r")

@optimizer
def lamb(lr: NonNegative = 1e-3, beta1: Decay = 0.9, beta2: Decay = 0.999,
         eps: NonNegative = 1e-6, weight_decay: NonNegative = 1e-2):
    DOC
    m[0] = v[0] = 0
    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]
    v[t] = beta2 * v[t-1] + (1 - beta2) * g[t]**2
    u[t] = m[t] / (1 - beta1**t) / (sqrt(v[t] / (1 - beta2**t)) + eps) + weight_decay * theta[t-1]
    r[t] = where((norm(theta[t-1]) > 0) & (norm(u[t]) > 0), norm(theta[t-1]) / norm(u[t]), 1)
    theta[t] = theta[t-1] - lr * r[t] * u[t]



beta, q, R, C, w, V, u, a = names("beta q R C w V u a")

@optimizer
def adafactor(lr: NonNegative = 1e-2, eps1: NonNegative = 1e-30, eps2: NonNegative = 1e-3,
              d: Positive = 1):
    DOC
    R[0] = C[0] = w[0] = 0
    beta[t] = 1 - t**-0.8
    q[t] = g[t]**2 + eps1
    with case(matrix):
        R[t] = beta[t] * R[t-1] + (1 - beta[t]) * row_mean(q[t])
        C[t] = beta[t] * C[t-1] + (1 - beta[t]) * col_mean(q[t])
        V[t] = R[t] * C[t] / mean(R[t])
    with case(vector):
        w[t] = beta[t] * w[t-1] + (1 - beta[t]) * q[t]
        V[t] = w[t]
    u[t] = g[t] / sqrt(V[t])
    a[t] = u[t] / maximum(1, rms(u[t]) / d)
    theta[t] = theta[t-1] - maximum(eps2, rms(theta[t-1])) * minimum(lr, 1 / sqrt(t)) * a[t]



M, u, X, A, Y, O = names("M u X A Y O")

@optimizer
def muon(lr: NonNegative = 2e-2, mu: Decay = 0.95):
    DOC
    require(matrix)
    M[0] = 0
    M[t] = mu * M[t-1] + g[t]
    u[t] = g[t] + mu * M[t]
    with case(rows > cols):
        Y[t] = u[t].T / (norm(u[t]) + 1e-7)
    with case(rows <= cols):
        Y[t] = u[t] / (norm(u[t]) + 1e-7)
    X[0] = Y[t]
    for k in iterate(5):
        A[k] = X[k-1] @ X[k-1].T
        X[k] = 3.4445 * X[k-1] + (-4.775 * A[k] + 2.0315 * (A[k] @ A[k])) @ X[k-1]
    with case(rows > cols):
        O[t] = X[5].T
    with case(rows <= cols):
        O[t] = X[5]
    theta[t] = theta[t-1] - lr * sqrt(maximum(1, rows / cols)) * O[t]



u = names("u")

@transform
def clip_by_global_norm(tau: Positive = 1):
    DOC
    u[t] = g[t] * (tau / maximum(tau, global_norm(g[t])))



h = names("h")

@wrapper
def sam(rho: NonNegative = 0.05):
    DOC
    h[t] = grad(theta[t-1] + rho * g[t] / global_norm(g[t]))
    inner = update(h[t])
    theta[t] = inner



snapshot, G, h, d = names("snapshot G h d")

@optimizer
def svrg(lr: NonNegative = 1e-2, k: PositiveCount = 100):
    DOC
    full_gradient = oracle("full_gradient")
    snapshot[0] = theta[0]
    G[0] = 0
    with when(equal(t % k, 1)):
        snapshot[t] = theta[t-1]
        G[t] = full_gradient
    h[t] = grad(snapshot[t])
    d[t] = g[t] - h[t] + G[t]
    theta[t] = theta[t-1] - lr * d[t]



before, d, h = names("before d h")

@optimizer
def storm(lr: NonNegative = 1e-2, a: NonNegative = 0.1):
    DOC
    before[0] = theta[0]
    d[0] = first(g)
    h[t] = grad(before[t-1])
    d[t] = g[t] + (1 - a) * (d[t-1] - h[t])
    before[t] = theta[t-1]
    theta[t] = theta[t-1] - lr * d[t]



x, z, w, c = names("x z w c")

@optimizer
def schedule_free_sgd(lr: NonNegative = 1.0, beta: Decay = 0.9):
    DOC
    x[0] = z[0] = theta[0]
    w[0] = 0
    g[t] = grad((1 - beta) * z[t-1] + beta * x[t-1])
    z[t] = z[t-1] - lr * g[t]
    w[t] = w[t-1] + lr**2
    c[t] = lr**2 / w[t]
    x[t] = (1 - c[t]) * x[t-1] + c[t] * z[t]
    theta[t] = (1 - beta) * z[t] + beta * x[t]
    evaluate(x[t])



average = names("average")

@wrapper
def polyak_average(decay: Decay = 0.999):
    DOC
    average[0] = theta[0]
    inner = update(g[t])
    average[t] = decay * average[t-1] + (1 - decay) * inner
    theta[t] = inner
    evaluate(average[t])



total = names("total")

@wrapper
def accumulate(k: PositiveCount = 4):
    DOC
    total[0] = 0
    total[t] = where(equal(t % k, 1), g[t], total[t-1] + g[t])
    with when(equal(t % k, 0)):
        inner = update(total[t] / k)
        theta[t] = inner



slow = names("slow")

@wrapper
def lookahead(k: PositiveCount = 5, alpha: NonNegative = 0.5):
    DOC
    slow[0] = theta[0]
    inner = update(g[t])
    with when(equal(t % k, 0)):
        slow[t] = slow[t-1] + alpha * (inner - slow[t-1])
        theta[t] = slow[t]
    with otherwise():
        theta[t] = inner



good, skipped = names("good skipped")

@wrapper
def skip_nonfinite():
    DOC
    skipped[0] = 0
    good[t] = global_sum(where(abs(g[t]) < 1e38, 0, 1)) < 0.5
    with when(good[t]):
        inner = update(g[t])
        theta[t] = inner
    with otherwise():
        skipped[t] = skipped[t-1] + 1



mask = names("mask")

@wrapper
def cautious():
    DOC
    inner = update(g[t])
    mask[t] = where((theta[t-1] - inner) * g[t] > 0, 1, 0)
    theta[t] = theta[t-1] + (inner - theta[t-1]) * mask[t] / maximum(mean(mask[t]), 1e-3)



v, d = names("v d")

@optimizer
def momentum_sgd(lr: NonNegative = 1e-2, mu: Decay = 0.9, nesterov: bool = False):
    DOC
    v[0] = 0
    v[t] = mu * v[t-1] + g[t]
    with when(nesterov):
        d[t] = g[t] + mu * v[t]
    with otherwise():
        d[t] = v[t]
    theta[t] = theta[t-1] - lr * d[t]



v = names("v")

@optimizer
def optional_momentum(lr: NonNegative = 1e-2, mu: Optional[Decay] = None):
    DOC
    with when(~equal(mu, None)):
        v[0] = 0
        v[t] = mu * v[t-1] + g[t]
        theta[t] = theta[t-1] - lr * v[t]
    with otherwise():
        theta[t] = theta[t-1] - lr * g[t]



h = names("h")

@optimizer
def hessian_step(lr: NonNegative = 1e-2, k: PositiveCount = 10):
    DOC
    diagonal = oracle("diagonal", shape=full)
    loss = oracle("loss", shape=scalar, scope="global")
    h[0] = 0
    with when(equal(t % k, 1)):
        h[t] = 0.99 * h[t-1] + 0.01 * diagonal
    theta[t] = theta[t-1] - lr * loss * g[t] / maximum(h[t], 1e-12)



@optimizer
def langevin(lr: NonNegative = 1e-2):
    DOC
    xi = noise("xi")
    theta[t] = theta[t-1] - lr * g[t] + sqrt(2 * lr) * xi



L, R = names("L R")

@optimizer
def shampoo(lr: NonNegative = 1e-2):
    DOC
    with case(matrix):
        L[0] = R[0] = 0
        theta[t] = theta[t-1] - lr * (L[t-1] @ g[t] @ R[t-1])
        L[t] = L[t-1] + g[t] @ g[t].T
        R[t] = R[t-1] + g[t].T @ g[t]
    with case(vector):
        theta[t] = theta[t-1] - lr * g[t]



u = names("u")

@transform
def centralize():
    DOC
    with case(matrix):
        u[t] = g[t] - row_mean(g[t])
    with case(vector):
        u[t] = g[t]



d = names("d")

@optimizer
def mode(lr: NonNegative, kind: Choice['plain', 'sign']):
    DOC
    with when(equal(kind, 'sign')):
        d[t] = sign(g[t])
    with otherwise():
        d[t] = g[t]
    theta[t] = theta[t-1] - lr * d[t]
"""
CONCEPTS = {
    text.rpartition("def ")[2].partition("(")[0]: text
    for text in CONCEPT_SPECS.replace("DOC", DOC).strip().split("\n\n\n\n")
}

# name: what is inferred of names, gradients, inputs, what shards need, what is missing
INFERRED = {
    "lars": (
        {"n_p": "float tensor scalar", "n_g": "float tensor scalar", "r": "float tensor scalar"},
        0,
        (),
        "an all-reduce of 2 scalars for each tensor",
        "",
    ),
    "lamb": ({"r": "float tensor scalar"}, 0, (), "an all-reduce of 2 scalars for each tensor", ""),
    "adafactor": (
        {"R": "float tensor row", "C": "float tensor column", "beta": "float step scalar"},
        0,
        (),
        "all-reduces of rows and columns",
        "",
    ),
    "muon": (
        {
            "Y": "float element (cols|rows, rows|cols)",
            "X": "float element (cols|rows, rows|cols)",
            "A": "float element (cols|rows, cols|rows)",
        },
        0,
        (),
        "the whole matrix",
        "",
    ),
    "clip_by_global_norm": ({}, 0, (), "an all-reduce of one scalar", ""),
    "sam": ({}, 2, (), "an all-reduce of one scalar", "<wrapped>"),
    "svrg": ({}, 2, ("full_gradient",), "nothing: elementwise", ""),
    "storm": ({}, 2, (), "nothing: elementwise", ""),
    "schedule_free_sgd": (
        {"w": "float step scalar", "c": "float step scalar"},
        1,
        (),
        "nothing: elementwise",
        "",
    ),
    "polyak_average": ({}, 0, (), "nothing: elementwise", "<wrapped>"),
    "accumulate": ({}, 0, (), "nothing: elementwise", "<wrapped>"),
    "lookahead": ({}, 0, (), "nothing: elementwise", "<wrapped>"),
    "skip_nonfinite": (
        {"skipped": "float global scalar", "good": "bool global scalar"},
        0,
        (),
        "an all-reduce of one scalar",
        "<wrapped>",
    ),
    "cautious": ({}, 0, (), "an all-reduce of one scalar for each tensor", "<wrapped>"),
    "momentum_sgd": ({}, 0, (), "nothing: elementwise", ""),
    "optional_momentum": ({}, 0, (), "nothing: elementwise", ""),
    "hessian_step": (
        {"loss": "float global scalar"},
        0,
        ("diagonal", "loss"),
        "nothing: elementwise",
        "",
    ),
    "langevin": ({}, 0, ("xi",), "where it begins: random numbers are counted", ""),
    "shampoo": (
        {"L": "float element (rows, rows)", "R": "float element (cols, cols)"},
        0,
        (),
        "the whole matrix",
        "",
    ),
    "centralize": ({}, 0, (), "all-reduces of rows and columns", ""),
    "mode": ({}, 0, (), "nothing: elementwise", ""),
}


def checked(path: Path, name: str) -> Checked:
    return load(path, CONCEPTS[name]).checked


@pytest.mark.parametrize("name", CONCEPTS)
def test_concepts(name: str, tmp_path: Path) -> None:
    c = checked(tmp_path, name)
    expected, gradients, inputs, sharding, missing = INFERRED[name]
    found = {k: f"{v.type} {v.scope} {v.describe()}" for k, v in c.info.items()}
    assert found == {
        **dict.fromkeys(found, "float element full"),
        **expected,
    }
    assert (c.gradients, c.inputs, c.sharding) == (gradients, inputs, sharding)
    if not missing:
        assert lower(c)
        return
    with pytest.raises(NotAvailable) as caught:
        lower(c)
    want = f"{name} needs {missing}, for which no code is generated yet"
    if missing == "<wrapped>":
        want = f'{name} wraps an optimizer and has no code of its own. Chain it: "adamw > {name}"'
    assert str(caught.value) == want


def test_the_states_of_the_concepts(tmp_path: Path) -> None:
    states = {n: [s.name for s in checked(tmp_path, n).states] for n in CONCEPTS}
    assert states["adafactor"] == ["R", "C", "w"]
    assert states["muon"] == ["M"]
    assert states["svrg"] == ["snapshot", "G"]
    assert states["schedule_free_sgd"] == ["x", "z", "w"]
    assert states["accumulate"] == ["total"]
    assert states["sam"] == []


def test_shapes_of_chained_products(tmp_path: Path) -> None:
    program = spec(
        tmp_path,
        """
        require(matrix)
        a[t] = g[t] @ g[t].T
        b[t] = a[t] @ a[t] @ g[t]
        c[t] = g[t].T @ row_mean(g[t])
        d[t] = c[t].T
        e[t] = g[t] - row_mean(g[t]) - col_mean(g[t]) + mean(g[t])
        q[t] = row_sum(a[t])
        w[t] = col_sum(g[t].T)
        theta[t] = theta[t-1] - b[t] * d[t] * sum(e[t]) * q[t] / rms(w[t]) / norm(c[t])
        """,
        "",
        "a b c d e q w",
    )
    info = catalogue.check(program).info
    assert {k: v.shape for k, v in info.items()} == {
        "a": ("rows", "rows"),
        "b": ("shape",),
        "c": ("cols", "1"),
        "d": ("1", "cols"),
        "e": ("shape",),
        "q": ("rows", "1"),
        "w": ("1", "rows"),
        "theta": ("shape",),
    }


def test_a_norm_broadcasts(tmp_path: Path) -> None:
    program = spec(
        tmp_path,
        """
        x[t] = theta[t-1] / norm(theta[t-1])
        theta[t] = x[t] - g[t] * rms(g[t]) / (mean(g[t]) + sum(x[t]))
        """,
        "",
        "x",
    )
    info = catalogue.check(program).info["x"]
    assert (info.scope, info.describe()) == ("element", "full")


def test_options(tmp_path: Path) -> None:
    program = spec(
        tmp_path,
        """
        with when(~equal(rates, None)):
            r[t] = rates[1] * length(rates)
        with otherwise():
            r[t] = 1
        with when(equal(limit, None)):
            u[t] = g[t]
        with otherwise():
            u[t] = minimum(g[t], limit)
        theta[t] = theta[t-1] - r[t] * u[t]
        """,
        "rates: Optional[tuple[Positive, ...]] = None, limit: Optional[Real] = None",
        "r u",
    )
    info = catalogue.check(program).info
    assert (info["r"].scope, info["u"].scope) == ("step", "element")


def test_a_step_value_of_a_case_is_one_a_tensor(tmp_path: Path) -> None:
    program = spec(
        tmp_path,
        """
        with case(matrix):
            r[t] = 1 - lr**t
        with case(vector):
            r[t] = lr
        theta[t] = theta[t-1] - r[t] * g[t]
        """,
        "lr: NonNegative",
        "r",
    )
    assert catalogue.check(program).info["r"].scope == "tensor"


@pytest.mark.parametrize("text", ["-" * 3000 + "g[t]", " + ".join(["g[t]"] * 600)])
def test_very_deep_expressions_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nested too deep\. Give parts of it names and lines"):
        assert catalogue.check(spec(tmp_path, f"theta[t] = theta[t-1] - ({text})"))


# --------------------------------------------------------------------------------------------------
# The parts


def test_broadcasting() -> None:
    full, matrix = shapes.FULL, shapes.MATRIX
    assert shapes.broadcast((), full) == full
    assert shapes.broadcast(matrix, ("rows", "1")) == matrix
    assert shapes.broadcast(("rows", "1"), ("1", "cols")) == matrix
    assert shapes.broadcast(matrix, ("cols", "rows")) is None
    assert shapes.broadcast(full, matrix) is None
    assert shapes.either(("cols", "rows"), full) == ("cols|rows", "rows|cols")
    assert shapes.either(matrix, matrix) == matrix
    assert shapes.either((), full) == full


def test_regions_cover_each_other() -> None:
    matrix, wide = Call("matrix", ()), Call("gt", (Call("rows", ()), Call("cols", ())))
    m, v = regions.fact("case", matrix), regions.fact("case", Call("vector", ()))
    assert v == regions.opposite(m)
    w = regions.fact("case", wide)
    n = regions.fact("case", Call("le", wide.args))
    assert n == regions.opposite(w)
    assert regions.fact("case", Call("lt", wide.args[::-1])) == w
    assert regions.fact("case", Call("not", (wide,))) == n
    late = regions.fact("when", Call("gt", (Clock("t"), Number(3))))
    assert regions.fact("when", Call("le", (Clock("t"), Number(3)))) != regions.opposite(late)

    def region(*facts: regions.Fact) -> regions.Region:
        return frozenset(facts)

    everywhere = regions.EVERYWHERE
    assert regions.gap(everywhere, [everywhere], {}) is None
    assert regions.gap(everywhere, [region(m)], {}) == region(v)
    assert regions.gap(everywhere, [region(m), region(v)], {}) is None
    assert regions.gap(region(m, w), [region(m)], {}) is None
    assert regions.gap(everywhere, [region(m, w), region(v), region(m, n)], {}) is None
    assert regions.gap(everywhere, [region(m, w), region(v)], {}) == region(m, n)
    assert regions.gap(everywhere, [], {}) == everywhere
    assert regions.exclude(region(m), region(v, late), {})
    assert not regions.exclude(region(m), region(late), {})


def test_choices_cover_each_other() -> None:
    flag, kind = Hyper("flag"), Hyper("kind")
    is_a, is_b, is_c = (Call("eq", (kind, Call("word", (), x))) for x in "abc")
    known = {"flag": (False, True), "kind": ("a", "b", "c")}

    def region(*conditions: Expr) -> regions.Region:
        return frozenset(regions.fact("when", e) for e in conditions)

    def gap(here: regions.Region, *defined: regions.Region) -> regions.Region | None:
        return regions.gap(here, defined, known)

    everywhere = regions.EVERYWHERE
    assert all(map(regions.static, (flag, is_a, Call("and", (flag, Call("not", (is_a,)))))))
    assert not regions.static(Call("and", (flag, Call("eq", (Clock("t"), Number(1))))))
    assert gap(everywhere, region(is_a), region(is_b), region(is_c)) is None
    assert gap(everywhere, region(is_a), region(is_b)) is not None
    assert gap(region(Call("not", (is_c,))), region(is_a), region(is_b)) is None
    assert gap(everywhere, region(Call("or", (flag, is_a))), region(Call("not", (flag,)))) is None
    assert regions.exclude(region(is_a), region(is_b), known)
    assert regions.exclude(region(is_a), region(flag, Call("and", (is_b, flag))), known)
    assert not regions.exclude(region(flag), region(is_b), known)


def test_the_first_gradients_point(tmp_path: Path) -> None:
    names = "v x z w"
    good = """
        v[0] = 0
        x[0] = z[0] = theta[0]
        w[t] = 1 - beta**t
        g[t] = grad({})
        v[t] = v[t-1] + g[t] * w[t]
        x[t] = x[t-1] - v[t]
        z[t] = z[t-1] - beta * v[t]
        theta[t] = theta[t-1] - z[t] - x[t]
    """
    points = {
        "theta[t-1]": True,
        "theta[t-1] - beta * v[t-1]": True,
        "(1 - beta) * z[t-1] + beta * x[t-1]": True,
        "theta[t-1] - v[t-1] / w[t]": True,
        "theta[t-1] + beta": False,
        "beta * theta[t-1]": False,
        "z[t-1] + x[t-1]": False,
        "theta[t-1] / norm(theta[t-1]) * norm(x[t-1])": True,
        "theta[t-1] / norm(theta[t-1])": False,
        "where(t > 1, x[t-1] + beta, theta[t-1])": True,
    }
    for point, right in points.items():
        program = spec(tmp_path, good.format(point), "beta: Decay", names)
        assert sample.starts_at_theta(program) == right, point


def test_defaults_and_relations(tmp_path: Path) -> None:
    def fits(relation: str, sig: str) -> bool:
        body = f"require({relation})\ntheta[t] = theta[t-1] - a * b * g[t]"
        program = spec(tmp_path, body, sig)
        return sample.defaults_fit(program, program.requires[0][0])

    assert fits("a < b", "a: Real = 1, b: Real = 2")
    assert not fits("a < b", "a: Real = 3, b: Real = 2")
    assert fits("a < b", "a: Real, b: Real = 2")
    assert not fits("(a < b) & ~equal(a, 1)", "a: Real = 1, b: Real = 2")
    assert not fits("a / b > 1", "a: Real = 1, b: Real = 2")
