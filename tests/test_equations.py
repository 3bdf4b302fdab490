"""Equations for people: ASCII parses back to the same program, LaTeX is well formed."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import programs
import pytest

from generator import catalogue, ir
from generator.equations import ascii_expr, ascii_lines, latex_expr, latex_lines, latex_name
from generator.ir import Call, Clock, Hyper, Item, Number, Ref

ENTRIES = {e.spec.name: e for e in catalogue.entries()}

# Every region, every kind of input.
REGIONS = '''from generator.language import *

m, v, q, x, y, low, high, A = names("m v q x y low high A")


@optimizer
def everything(lr: NonNegative, k: PositiveCount, flag: bool, mode: Choice["a", "b"],
               limit: Optional[Positive] = None):
    """Every construct of the language.

    Source: the test.
    """
    loss = oracle("loss", shape=scalar, scope="global")
    hessian = oracle("hessian")
    curvature = oracle("curvature", shape=(rows, rows), scope="tensor")
    xi = noise("xi")
    W = meta("W", (2, 2))
    c = meta("c", (2,))
    m[0] = v[0] = 0
    q[0] = -1.5
    A[0] = 1
    low[0] = theta[0]
    m[t] = m[t-1] + hessian * g[t] + xi * loss
    with when((t > 3) & ~flag | equal(t % k, 0)):
        low[t] = minimum(theta[t-1], low[t-1])
        with when(~equal(limit, None)):
            q[t] = maximum(q[t-1], limit)
    with otherwise():
        low[t] = -low[t-1]
    with when(equal(mode, "a")):
        v[t] = v[t-1]**2 / (1 - t // k)
    with case(matrix):
        A[t] = A[t-1] + curvature @ curvature.T
        with case(rows > cols):
            high[t] = theta[t-1].T / norm(theta[t-1])
        with case(~(rows > cols)):
            high[t] = A[t] @ theta[t-1]
        x[0] = high[t] * mean(high[t])
        for j in iterate(5):
            y[j] = x[j-1] @ x[j-1].T
            x[j] = 2 * x[j-1] - y[j] @ x[j-1] * q[t]
        theta[t] = theta[t-1] - lr * (low[t] + v[t] + m[t]) * (rows / cols) * global_norm(x[5])
    with case(vector):
        theta[t] = theta[t-1] - lr * entry(maximum(dense(W, c, stack(m[t], 1 / sqrt(t))), 0), 2)
'''


def source(program: ir.Program) -> str:
    """A spec's text, with the printed equations for a body."""
    domains = {"Integer": "int"}
    signature = []
    for p in program.parameters:
        domain = domains.get(p.domain.name, p.domain.name)
        if domain == "Domain":
            ends = [f'float("{x}")' if math.isinf(x) else x for x in (p.domain.low, p.domain.high)]
            opened = f"low_open={p.domain.low_open}, high_open={p.domain.high_open}"
            domain = f"Annotated[float, Domain({ends[0]}, {ends[1]}, {opened})]"
        if p.domain.type == "choice":
            domain = f"Choice[{', '.join(map(repr, p.domain.choices))}]"
        domain = f"tuple[{domain}, ...]" if p.domain.many else domain
        domain = f"Optional[{domain}]" if p.domain.optional else domain
        signature.append(f"{p.name}: {domain}")
    relations = (re.sub(r"^(.*) = (.*)$", r"equal(\1, \2)", ascii_expr(e)) for e, _ in program.relations)
    body = [f"require({relation})" for relation in relations]
    for line in ascii_lines(program):
        line = re.sub(r"^( *)for (\w+) = 1, \.\.\., (.*):$", r"\1for \2 in iterate(\3):", line)
        line = re.sub(r"^( *)(when|case) (.*):$", r"\1with \2(\3):", line)
        line = re.sub(r"^( *)otherwise:$", r"\1with otherwise():", line)
        body.append(line)
    targets = {
        s.target for s in ir.statements(program.body) if isinstance(s, ir.Start | ir.Assign)
    } - {"theta", "g", "lr"}
    names = [f'{x} = names("{x}")' for x in sorted(targets)]
    return "\n".join(
        [
            "from generator.language import *",
            *names,
            f'@{program.kind}("{program.class_name}")',
            f"def {program.name}({', '.join(signature)}):",
            '    """Title.\n\n    Source: here.\n    """',
            *("    " + line for line in body),
            "",
        ]
    )


def plain(e: ir.Expr) -> ir.Expr:
    """An expression without what the language does not tell apart."""
    match e:
        case Item(name, index):
            return Item(name, plain(index))
        case Call(op, args, text):
            args = tuple(map(plain, args))
            match op, args:
                case "ne", _:
                    return Call("not", (Call("eq", args),))
                case "add", (a, Number(b)) if b < 0:
                    return Call("sub", (a, Number(-b)))
                case "sub", (a, Number(b)) if b < 0:
                    return Call("add", (a, Number(-b)))
                case "add", (a, Call("neg", (b,))):
                    return Call("sub", (a, b))
                case "power", (a, Number(-1)):
                    return Call("div", (Number(1), a))
                case "mul", (a, Call("div", (Number(int(1)), b))):
                    return Call("div", (a, b))
            return Call(op, args, text)
    return e


def stripped(body: tuple[ir.Statement, ...]) -> tuple[ir.Statement, ...]:
    """Statements without line numbers."""
    made: list[ir.Statement] = []
    for s in body:
        match s:
            case ir.Start() | ir.Assign():
                made.append(replace(s, value=plain(s.value), line=0))
            case ir.Loop():
                made.append(replace(s, body=stripped(s.body), line=0))
            case ir.When():
                both = {"body": stripped(s.body), "otherwise": stripped(s.otherwise)}
                made.append(replace(s, condition=plain(s.condition), line=0, **both))
            case ir.Case():
                made.append(replace(s, body=stripped(s.body), line=0))
    return tuple(made)


def read(path: Path, text: str) -> catalogue.Entry:
    path.write_text(text)
    (entry,) = catalogue.load(path)
    return entry


@pytest.mark.parametrize("name", ENTRIES)
def test_the_catalogues_text_is_the_program(name: str, tmp_path: Path) -> None:
    program = ENTRIES[name].program
    again = read(tmp_path / "spec.py", source(ir.unseeded(program))).program
    assert stripped(again.body) == stripped(program.body)
    assert ascii_lines(again) == ascii_lines(program)


def test_regions_and_inputs_print_as_they_are_read(tmp_path: Path) -> None:
    entry = read(tmp_path / "spec.py", REGIONS)
    assert entry.checked
    lines = ascii_lines(entry.program)
    for line in (
        "m[0] = v[0] = 0",
        "q[0] = -1.5",
        "hessian = oracle('hessian')",
        "xi = noise('xi')",
        "W = meta('W', (2, 2))",
        "c = meta('c', (2,))",
        "    theta[t] = theta[t-1] - lr * entry(maximum(dense(W, c, stack(m[t], 1 / sqrt(t))), 0), 2)",
        "loss = oracle('loss', shape=scalar, scope='global')",
        "curvature = oracle('curvature', shape=(rows, rows), scope='tensor')",
        "m[t] = m[t-1] + hessian * g[t] + xi * loss",
        "when (t > 3) & ~flag | equal(t % k, 0):",
        "    when ~equal(limit, None):",
        "when equal(mode, 'a'):",
        "    v[t] = v[t-1]**2 / (1 - t // k)",
        "    A[t] = A[t-1] + curvature @ curvature.T",
        "    case ~(rows > cols):",
        "    x[0] = high[t] * mean(high[t])",
        "    for j = 1, ..., 5:",
        "        y[j] = x[j-1] @ x[j-1].T",
        "    theta[t] = theta[t-1] - lr * (low[t] + v[t] + m[t]) * (rows / cols) * global_norm(x[5])",
    ):
        assert line in lines


def _used(program: ir.Program) -> ir.Program:
    """A random program without the hyperparameters that it does not read."""
    tops = (x for s in ir.statements(program.body) for x in ir.expressions(s))
    hypers = {e.name for x in tops for e in ir.walk(x) if isinstance(e, Hyper)}
    return replace(program, parameters=tuple(p for p in program.parameters if p.name in hypers))


@pytest.mark.parametrize("seed", range(0, 100, 10))
def test_random_text_is_the_program(seed: int, tmp_path: Path) -> None:
    for number in range(seed, seed + 10):
        program = _used(programs.make(number).lowered.program)
        again = read(tmp_path / f"spec{number}.py", source(program)).program
        assert stripped(again.body) == stripped(program.body), number


x, y, z, t = Ref("x"), Ref("y", 1), Hyper("z"), Clock("t")
W, b = Call("meta", (Number(2), Number(1)), "W"), Call("meta", (Number(2),), "b")


@pytest.mark.parametrize(
    ("e", "text"),
    [
        (Call("sub", (x, Call("add", (y, z)))), "x[t] - (y[t-1] + z)"),
        (Call("mul", (x, Call("mul", (y, z)))), "x[t] * (y[t-1] * z)"),
        (Call("div", (Call("div", (x, y)), z)), "x[t] / y[t-1] / z"),
        (Call("neg", (Call("mul", (x, y)),)), "-(x[t] * y[t-1])"),
        (Call("mul", (Call("neg", (x,)), y)), "-x[t] * y[t-1]"),
        (Call("power", (Call("neg", (x,)), Number(2))), "(-x[t])**2"),
        (Call("power", (Number(-2), t)), "(-2)**t"),
        (Call("power", (x, Call("power", (y, z)))), "x[t]**y[t-1]**z"),
        (Call("power", (Call("power", (x, y)), z)), "(x[t]**y[t-1])**z"),
        (Call("mul", (Number(1e-8), x)), "1e-08 * x[t]"),
        (Call("and", (Call("lt", (x, y)), Call("or", (z, z)))), "(x[t] < y[t-1]) & (z | z)"),
        (Call("not", (Call("eq", (z, t)),)), "~equal(z, t)"),
        (Call("eq", (Call("mod", (t, z)), Number(0))), "t % z = 0"),
        (Call("transpose", (Call("matmul", (x, y)),)), "(x[t] @ y[t-1]).T"),
        (Call("where", (Call("ne", (x, z)), x, y)), "where(~equal(x[t], z), x[t], y[t-1])"),
        (Item("z", Call("add", (t, Number(1)))), "z[t+1]"),
        (Call("call", (Item("z", Number(2)), t)), "z[2](t)"),
    ],
)
def test_ascii(e: ir.Expr, text: str) -> None:
    assert ascii_expr(e) == text


# --------------------------------------------------------------------------------------------------
# LaTeX


@pytest.mark.parametrize("name", ENTRIES)
def test_latex_is_well_formed(name: str) -> None:
    mathtext = pytest.importorskip("matplotlib.mathtext")
    parser = mathtext.MathTextParser("path")
    for line in latex_lines(ENTRIES[name].program):
        assert line.count("{") == line.count("}")
        assert line.count(r"\left") == line.count(r"\right")
        columns = r"\begin{pmatrix}" in line  # whose rows have nothing to align
        assert line.count("&") == 1 + line.count(r"\begin{cases}") + (not columns and line.count(r"\\"))
        shown = line.replace("&=", "=").replace(r"\bmod", r"\,\mathrm{mod}\,")  # not in mathtext
        shown = shown.replace(r"\begin{cases}", r"\left\{").replace(r"\end{cases}", r"\right.")
        shown = shown.replace(r"\begin{pmatrix}", r"\left(").replace(r"\end{pmatrix}", r"\right)")
        parser.parse(f"${shown.replace('&', ',').replace(chr(92) * 2, ';')}$")


@pytest.mark.parametrize("name", ENTRIES)
def test_no_two_names_of_a_program_look_the_same(name: str) -> None:
    program = ENTRIES[name].program
    names = {p.name for p in program.parameters}
    names |= {s.target for s in ir.statements(program.body) if isinstance(s, ir.Start | ir.Assign)}
    assert len({latex_name(n) for n in names}) == len(names)


def test_adamw() -> None:
    assert latex_lines(ENTRIES["adamw"].program) == [
        r"m_{0} = v_{0} &= 0",
        r"m_{t} &= \beta_{1} \, m_{t-1} + \left(1 - \beta_{1}\right) \, g_{t}",
        r"v_{t} &= \beta_{2} \, v_{t-1} + \left(1 - \beta_{2}\right) \, g_{t}^{2}",
        r"\hat{m}_{t} &= \frac{m_{t}}{1 - \beta_{1}^{t}}",
        r"\hat{v}_{t} &= \frac{v_{t}}{1 - \beta_{2}^{t}}",
        r"\theta_{t} &= \theta_{t-1} - \eta \, \left(\frac{\hat{m}_{t}}{\sqrt{\hat{v}_{t}} + \epsilon}"
        r" + \lambda \, \theta_{t-1}\right)",
    ]
    assert ascii_lines(ENTRIES["adamw"].program) == [
        "m[0] = v[0] = 0",
        "m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]",
        "v[t] = beta2 * v[t-1] + (1 - beta2) * g[t]**2",
        "m_hat[t] = m[t] / (1 - beta1**t)",
        "v_hat[t] = v[t] / (1 - beta2**t)",
        "theta[t] = theta[t-1] - lr * (m_hat[t] / (sqrt(v_hat[t]) + eps) + weight_decay * theta[t-1])",
    ]


def test_radam() -> None:
    assert latex_lines(ENTRIES["radam"].program)[5:] == [
        r"\rho_{\infty,t} &= \frac{2}{1 - \beta_{2}} - 1",
        r"\rho_{t} &= \rho_{\infty,t} - \frac{2 \, t \, \beta_{2}^{t}}{1 - \beta_{2}^{t}}",
        r"\mathrm{known}_{t} &= \begin{cases} \rho_{t} & \text{if } \rho_{t} > 4 \\ "
        r"\rho_{\infty,t} & \text{otherwise} \end{cases}",
        r"r_{t} &= \sqrt{\frac{\left(\mathrm{known}_{t} - 4\right) \, "
        r"\left(\mathrm{known}_{t} - 2\right) \, \rho_{\infty,t}}{\left(\rho_{\infty,t} - 4\right) \, "
        r"\left(\rho_{\infty,t} - 2\right) \, \mathrm{known}_{t}}}",
        r"\mathrm{step}_{t} &= \eta \, r_{t} \, \frac{\hat{m}_{t}}{\sqrt{\hat{v}_{t}} + \epsilon}",
        r"\theta_{t} &= \theta_{t-1} - \begin{cases} \mathrm{step}_{t} & \text{if } \rho_{t} > 4 \\ "
        r"\eta \, \hat{m}_{t} & \text{otherwise} \end{cases}",
    ]


def test_a_loop_that_is_over_stands_at_its_count() -> None:
    assert ascii_lines(ENTRIES["join"].program)[-1] == "lr[n] = rate[length(boundaries)]"
    assert latex_lines(ENTRIES["join"].program) == [
        r"\mathrm{rate}_{0} &= \mathrm{schedules}_{1}\left(n\right)",
        r"\text{for } k &= 1, \dots, \left|\mathrm{boundaries}\right|\text{:}",
        r"\quad \mathrm{rate}_{k} &= \begin{cases} \mathrm{rate}_{k-1} & \text{if } n < "
        r"\mathrm{boundaries}_{k} \\ \mathrm{schedules}_{k+1}\left(\max\left(n - "
        r"\mathrm{boundaries}_{k}, 0\right)\right) & \text{otherwise} \end{cases}",
        r"\eta_{n} &= \mathrm{rate}_{\left|\mathrm{boundaries}\right|}",
    ]


@pytest.mark.parametrize(
    ("name", "latex"),
    [
        ("beta1", r"\beta_{1}"),
        ("v_hat", r"\hat{v}"),
        ("v_hat_max", r"\hat{v}_{\max}"),
        ("theta_bar", r"\bar{\theta}"),
        ("rho_inf", r"\rho_{\infty}"),
        ("mu_next", r"\mu_{\mathrm{next}}"),
        ("x_1", r"x_{1}"),
        ("W2_k", r"W_{2,k}"),
        ("lr", r"\eta"),
        ("base_lr", r"\eta_{0}"),
        ("lr_min", r"\eta_{\min}"),
        ("eps", r"\epsilon"),
        ("final_factor", r"\mathrm{final\_factor}"),
        ("step_hat", r"\hat{\mathrm{step}}"),
    ],
)
def test_names(name: str, latex: str) -> None:
    assert latex_name(name) == latex


@pytest.mark.parametrize(
    ("e", "latex"),
    [
        (Call("mul", (x, Number(0.5))), r"x_{t} \cdot 0.5"),
        (Call("mul", (Number(1e-8), x)), r"10^{-8} \, x_{t}"),
        (Call("power", (Number(2.5e-3), t)), r"0.0025^{t}"),
        (Call("power", (Number(2.5e-30), t)), r"\left(2.5 \cdot 10^{-30}\right)^{t}"),
        (Call("power", (x, Call("div", (t, z)))), r"x_{t}^{t / z}"),
        (Call("power", (Call("add", (x, y)), Number(2))), r"\left(x_{t} + y_{t-1}\right)^{2}"),
        (Call("sub", (x, Call("sub", (y, z)))), r"x_{t} - \left(y_{t-1} - z\right)"),
        (Call("div", (Call("neg", (x,)), y)), r"\frac{-x_{t}}{y_{t-1}}"),
        (Call("abs", (x,)), r"\left|x_{t}\right|"),
        (Call("norm", (x,)), r"\left\|x_{t}\right\|"),
        (Call("row_mean", (x,)), r"\mathrm{row\_mean}\left(x_{t}\right)"),
        (Call("matmul", (x, Call("transpose", (y,)))), r"x_{t} \, y_{t-1}^\top"),
        (Call("floordiv", (t, z)), r"\left\lfloor \frac{t}{z} \right\rfloor"),
        (Call("stack", (x, y)), r"\begin{pmatrix} x_{t} \\ y_{t-1} \end{pmatrix}"),
        (Call("dense", (W, b, x)), r"b + W \, x_{t}"),
        (Call("maximum", (Call("dense", (W, b, x)), Number(0))), r"\max\left(b + W \, x_{t}, 0\right)"),
        (Call("entry", (x, Number(2))), r"x_{t}^{(2)}"),
        (Call("grad", (x,)), r"\nabla f\left(x_{t}\right)"),
        (Call("first", (), "g"), "g_{1}"),
        (Call("oracle", (), "loss"), r"\mathrm{loss}"),
        (
            Call("add", (Call("where", (Call("lt", (t, z)), x, y)), z)),
            r"\left(\begin{cases} x_{t} & \text{if } t < z \\ y_{t-1} & \text{otherwise} \end{cases}"
            r"\right) + z",
        ),
        (
            Call("where", (Call("lt", (t, z)), x, Call("where", (Call("ge", (t, z)), y, z)))),
            r"\begin{cases} x_{t} & \text{if } t < z \\ y_{t-1} & \text{if } t \geq z \\ "
            r"z & \text{otherwise} \end{cases}",
        ),
    ],
)
def test_latex(e: ir.Expr, latex: str) -> None:
    assert latex_expr(e) == latex
