"""The command line: what each command prints and writes, its exit code, and every refusal."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

import generator.__main__ as command_line
from generator import catalogue, commands, page, show, terminal
from generator import verify as measured
from generator.errors import NotAvailable

ROOT = Path(__file__).parents[1]
Run = Callable[..., SimpleNamespace]

SPEC = '''from generator.language import *

v = names("v")


@optimizer("Mine")
def mine(lr: NonNegative = 0.5, beta: Decay = 0.5):
    """Momentum, as a user would write it.

    Source: a user, 2025.
    """
    v[0] = 0
    v[t] = beta * v[t-1] + g[t]
    theta[t] = theta[t-1] - lr * v[t]
'''


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process: its exit code and what it printed."""

    def command(*words: object) -> SimpleNamespace:
        capsys.readouterr()
        code = command_line.main([str(w) for w in words])
        printed = capsys.readouterr()
        return SimpleNamespace(code=code, out=printed.out, err=printed.err)

    return command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, the current one, with a spec."""
    (tmp_path / "mine.py").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder in the place of `generated/`."""
    monkeypatch.setattr(commands, "GENERATED", tmp_path / "generated")
    return tmp_path / "generated"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **more}


# --------------------------------------------------------------------------------------------------
# Help, and what is refused


def test_alone_it_prints_help_without_importing_what_building_needs() -> None:
    script = (
        "import sys; from generator.__main__ import main; code = main([]);"
        "print([m for m in ('sympy', 'jinja2', 'numpy', 'rich') if m in sys.modules], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python -m generator build --check" in done.stdout
    assert done.stdout.endswith("[] 0\n")


@pytest.mark.parametrize("words", [[], *([c] for c in ("build", "list", "show", "verify", "new"))])
def test_help(run: Run, words: list[str]) -> None:
    done = run(*words, "--help")
    assert done.code == 0
    assert done.out.startswith(f"usage: python -m generator {' '.join(words)}".rstrip())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "build mine.py",
            "without --out the whole catalogue is built into generated/. "
            "To build mine.py alone, add --out my_package/.",
        ),
        ("build mine.py --out .", "--out is the current folder or one above it, where what is"),
        ("build --out ..", "--out is the current folder or one above it, where what is"),
        ("build mine.py --out my-package", "'my-package' is not a Python name and could not be"),
        ("build mine.py --out class", "'class' is not a Python name and could not be imported."),
        (
            "build mine.py --out torch",
            "a folder called torch would hide the installed package torch.",
        ),
        (f"build --out {ROOT}/generated", "belongs to the generator. Choose a folder of your own"),
        (
            "build mine.py --out mine.py/x --backend numpy",
            "cannot write mine.py/x: Not a directory.",
        ),
        ("build nope.py --out x", "nope.py: there is no such file. Correct the path."),
        ("show .", ".: this is a folder. Name a file in it."),
        ("build adamww --out x", "no spec is called 'adamww'. Did you mean adamw?"),
        (
            "build empty.py --out x",
            "empty.py:1: no spec in this file. Decorate a function: @optimizer.",
        ),
        ("build numpy --out x", "numpy is a backend, not a spec: write --backend numpy."),
        ("build --backend nunpy", "no backend is called 'nunpy'. Did you mean numpy?"),
        ("build --backend a.b", "the backend a.b cannot be imported: No module named 'a'."),
        ("build --backend json", "json is no backend: it has no `backend = Backend(...)`."),
        ("build --chek", "unrecognized arguments: --chek"),
        ("biuld", "invalid choice: 'biuld'"),
        ("show bad.py", "bad.py:7: lr has no domain. Annotate it, for example `lr: NonNegative`."),
        ("show adamww", "no spec is called 'adamww'. Did you mean adamw?"),
        ("show adamw --backend nunpy", "no backend is called 'nunpy'. Did you mean numpy?"),
        ("show adamw --stage soup", "argument --stage: invalid choice: 'soup'"),
        ("show", "the following arguments are required: NAME"),
        ("show mine.py --latex --stage text", "--latex prints the equations and has no --stage. Leave one"),
        ("show mine.py --latex --backend numpy", "--latex prints the equations and has no --backend."),
        ("verify --steps 0", "argument --steps: '0' is not 1 or more"),
        ("verify --steps many", "argument --steps: 'many' is not 1 or more"),
        ("verify --seed -1", "argument --seed: '-1' is not 0 or more"),
        ("verify adamww", "no spec is called 'adamww'. Did you mean adamw?"),
        ("verify mine.py --backend nunpy", "no backend is called 'nunpy'. Did you mean numpy?"),
        ("verify mine.py --json mine.py/x.json", "cannot write mine.py: File exists."),
        ("new 2nd", "'2nd' is not a name. Use letters, digits and _."),
        ("new my-opt", "'my-opt' is not a name. Use letters, digits and _."),
        ("new class", "class is a word of Python. Choose another name."),
        ("new theta", "theta is a word of the language and cannot be the name of a spec."),
        ("new create", "create is a word of generated code and cannot be the name of a spec."),
        ("new m_hat", "m_hat is a state of the starter. Choose a longer name."),
        ("new numpy", "a file numpy.py could hide the module numpy. Choose another name."),
        ("new mine", "mine.py exists and stays as it is. Choose another name."),
        (
            "new other --out other.txt",
            "--out other.txt is no file for a spec. Name one like other.py.",
        ),
        ("new other --out mine.py/other.py", "cannot write mine.py: File exists."),
    ],
)
def test_a_mistake_is_one_line(here: Path, run: Run, line: str, message: str) -> None:
    (here / "empty.py").write_text("x = 1\n")
    (here / "bad.py").write_text(SPEC.replace("lr: NonNegative", "lr"))
    before = contents(here)
    done = run(*line.split())
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    if not done.err.startswith("usage:"):  # argparse shows the usage first
        assert done.err.count("\n") == 1
    assert done.out == ""
    assert contents(here) == before


def test_no_traceback_from_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "generator", "show", "adamww"],
        **{"cwd": ROOT, "capture_output": True, "text": True},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "no spec is called 'adamww'. Did you mean adamw?\n"


# --------------------------------------------------------------------------------------------------
# build


def test_the_catalogue_is_built_checked_and_restored(generated: Path, run: Run) -> None:
    begin = time.process_time()  # on one core, whatever else the machine is doing
    done = run("build")
    assert done.code == 0
    assert time.process_time() - begin < 10
    first = contents(generated)
    assert {"README.md", "__init__.py", "numpy/optimizers/adamw.py"} <= set(first)
    assert {name.partition("/")[0] for name in first if "/" in name} == set(
        commands._backend_names()
    )

    times = {p: p.stat().st_mtime_ns for p in generated.rglob("*")}
    done = run("build")
    assert "numpy: up to date" in done.out
    assert "written" not in done.out
    assert {p: p.stat().st_mtime_ns for p in generated.rglob("*")} == times

    done = run("build", "--check")
    assert (done.code, done.out) == (0, f"{len(first)} files are up to date\n")

    (generated / "numpy/optimizers/lion.py").unlink()
    (generated / "numpy/optimizers/gone.py").write_text("made of a spec that is gone\n")
    (generated / "README.md").write_text("an edit\n")
    (generated / "notes.txt").write_text("nobody's file\n")
    done = run("build", "--check")
    assert done.code == 1
    assert "-an edit" in done.out
    assert "+# The catalogue" in done.out
    assert "optimizers/gone.py: no spec makes this file any more" in done.out
    assert "notes.txt" not in done.out
    assert "3 files differ" in done.out
    assert not (generated / "numpy/optimizers/lion.py").exists()

    done = run("build")
    assert done.code == 0
    assert "1 written, 1 removed" in done.out
    assert "optimizers/gone.py (removed)" in done.out
    assert contents(generated) == {**first, "notes.txt": b"nobody's file\n"}

    shutil.rmtree(generated)
    assert run("build", "--backend", "numpy").code == 0  # this folder and nothing beside it
    assert contents(generated) == {k: v for k, v in first.items() if k.startswith("numpy/")}


def test_what_is_checked_in_is_what_is_built(run: Run) -> None:
    done = run("build", "--check")
    assert done.code == 0, done.out


def test_the_hash_seed_changes_nothing(tmp_path: Path) -> None:
    made = [
        subprocess.Popen(
            [sys.executable, "-m", "generator", "build", "--out", tmp_path / f"made{seed}"],
            cwd=ROOT,
            env=environment(PYTHONHASHSEED=str(seed)),
            stdout=subprocess.DEVNULL,
        )
        for seed in (1, 2)
    ]
    assert [m.wait() for m in made] == [0, 0]
    one, two = contents(tmp_path / "made1"), contents(tmp_path / "made2")
    assert "numpy/optimizers/adamw.py" in one
    assert one == two


def test_a_users_spec_in_a_users_package(here: Path) -> None:
    command = [sys.executable, "-m", "generator", "build", "mine.py", "--backend", "numpy"]
    done = subprocess.run(
        [*command, "--out", "my_package/"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "my_package: 5 written (5 files)\n    runtime.py\n" in done.stdout
    assert done.stdout.endswith("    from my_package import Mine\n")
    assert sorted(p.name for p in here.iterdir()) == ["mine.py", "my_package"]
    script = f"""
import sys
sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]
for name in ("generator", "backends", "specs", "generated", "sympy", "jinja2"):
    sys.modules[name] = None
import numpy as np
from my_package import Mine, create
theta = [np.array([1.0, 2.0])]
optimizer = Mine(theta)
optimizer.step([np.array([1.0, -1.0])])
optimizer.step([np.array([1.0, -1.0])])
create("mine", [np.ones(3, np.float32)], lr=0.1, beta=0.9).step([np.ones(3, np.float32)])
print(theta[0].tolist())
"""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[-0.25, 3.25]\n", "")


def test_several_backends_go_into_folders_of_their_own(here: Path, run: Run) -> None:
    done = run("build", "--backend", "numpy", "mine.py", "--backend", "torch", "--out", "src/pack")
    assert done.code == 0
    assert {p.name for p in (here / "src/pack").iterdir()} == {"numpy", "torch"}
    assert "    from pack.numpy import Mine  # with src on sys.path\n" in done.out
    assert "    from pack.torch import Mine  # with src on sys.path\n" in done.out


def test_specs_may_stand_on_both_sides_of_an_option(here: Path, run: Run) -> None:
    assert run("build", "mine.py", "--backend", "numpy", "--out", "pack", "lion", "lion").code == 0
    names = {p.name for p in (here / "pack/optimizers").iterdir()}
    assert names == {"__init__.py", "mine.py", "lion.py"}


def test_a_users_folder_keeps_what_is_in_it(here: Path, run: Run) -> None:
    assert run("build", "lion", "--backend", "numpy", "--out", "pack").code == 0
    (here / "pack/own.py").write_text("mine\n")
    done = run("build", "mine.py", "--backend", "numpy", "--out", "pack")
    assert done.code == 0
    assert "of an earlier build there are lion.py" in done.out
    assert (here / "pack/own.py").read_text() == "mine\n"
    assert (here / "pack/optimizers/lion.py").exists()
    done = run("build", "mine.py", "--backend", "numpy", "--out", "pack", "--check")
    assert (done.code, done.out) == (0, "5 files are up to date\n")
    (here / "mine.py").write_text(SPEC.replace("0.5", "0.25"))
    done = run("build", "mine.py", "--backend", "numpy", "--out", "pack", "--check")
    assert done.code == 1
    assert "+        lr: float = 0.25," in done.out

    (here / "pack/__init__.py").write_text("their = 'own'\n")
    before = contents(here)
    done = run("build", "mine.py", "--backend", "numpy", "--out", "pack")
    assert done.code == 2
    assert done.err.startswith("pack/__init__.py was not made by this command and stays as it is.")
    assert contents(here) == before


def test_a_strangers_backend(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = here / "strangers_package/abacus"
    shutil.copytree(ROOT / "backends/numpy", theirs)
    record = (theirs / "__init__.py").read_text()
    record = record.replace('name="numpy"', 'name="abacus"').replace(
        'title="NumPy"', 'title="Abacus"'
    )
    (theirs / "__init__.py").write_text(record)
    monkeypatch.syspath_prepend(here)
    wanted = ("--backend", "strangers_package.abacus")
    done = run("build", "mine.py", *wanted, "--out", "pack")
    assert done.code == 0
    assert "1 spec for Abacus" in done.out
    assert run("build", "mine.py", "--backend", "numpy", "--out", "same").code == 0
    kernel = Path("optimizers/mine.py")
    assert (here / "pack" / kernel).read_text() == (here / "same" / kernel).read_text()
    done = run("build", "mine.py", *wanted, "--backend", "numpy", "--out", "both")
    assert {p.name for p in (here / "both").iterdir()} == {"numpy", "abacus"}
    assert run("show", "mine.py", *wanted).out == (here / "pack" / kernel).read_text()
    monkeypatch.delitem(sys.modules, "strangers_package.abacus")
    (theirs / "__init__.py").write_text(record.replace('"abacus"', '"numpy"'))
    done = run("build", "mine.py", *wanted, "--backend", "numpy", "--out", "clash")
    assert done.err == "two backends are called numpy. Build them into different folders.\n"


def test_what_has_no_code_yet_is_listed(
    generated: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = catalogue.lower

    def lower(checked: catalogue.Checked) -> catalogue.Lowered:
        if checked.program.name == "lion":
            raise NotAvailable("lion needs teeth, for which no code is generated yet")
        return real(checked)

    monkeypatch.setattr(catalogue, "lower", lower)
    done = run("build")
    assert done.code == 0
    assert "not built: lion needs teeth, for which no code is generated yet\n" in done.out
    assert not (generated / "numpy/optimizers/lion.py").exists()
    assert "needs teeth" in (generated / "README.md").read_text()
    assert "no code yet: lion needs teeth" in run("show", "lion").out
    assert "Lion" in run("list").out
    done = run("build", "lion", "adam", "--out", tmp_path / "pack")
    assert done.code == 2
    assert done.err == "lion needs teeth, for which no code is generated yet.\n"
    assert not (tmp_path / "pack").exists()


def test_what_a_backend_lacks_is_listed(
    generated: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = importlib.import_module("backends.numpy").backend
    table = {k: v for k, v in backend.tensor.items() if k != "sign"}
    monkeypatch.setattr("backends.numpy.backend", replace(backend, tensor=table))
    done = run("build", "--backend", "numpy")
    assert done.code == 0
    assert "not built: lion needs sign, which NumPy does not have\n" in done.out
    assert not (generated / "numpy/optimizers/lion.py").exists()
    lion = next(e for e in json.loads(run("list", "--json").out) if e["name"] == "lion")
    assert "numpy" not in lion["backends"]
    assert "torch" in lion["backends"]
    done = run("build", "lion", "--backend", "numpy", "--out", tmp_path / "pack")
    assert done.code == 2
    assert done.err.startswith("lion needs sign, which NumPy does not have.")


def test_what_would_not_be_python_is_not_written(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands.render, "runtime", lambda backend: "def (\n")
    done = run("build", "mine.py", "--backend", "numpy", "--out", "pack")
    assert done.code == 2
    assert done.err.startswith("pack/runtime.py:1 would not be Python: invalid syntax")
    assert "This is a defect of the generator, not of the spec; nothing is written." in done.err
    assert not (here / "pack").exists()


def test_names_are_suggested_however_they_are_spelled(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("build", "adamw", "warmup_cosine", "--backend", "numpy", "--out", "spelled").code == 0
    monkeypatch.syspath_prepend(here)
    create = importlib.import_module("spelled").create
    for name, meant in (
        *[(x, "adamw") for x in ("AdamW", "ADAMW", "adam-w", "Adam_W", "admaw")],
        *[(x, "warmup_cosine") for x in ("WarmupCosine", "warmup-cosine", "warmupcosine")],
    ):
        with pytest.raises(ValueError, match=f"called '{name}'. Did you mean '{meant}'"):
            create(name)
    with pytest.raises(ValueError, match="There are adamw, warmup_cosine"):
        create("xyz")
    with pytest.raises(TypeError, match="create takes the name of an algorithm first, as text, got None"):
        create(None)


# --------------------------------------------------------------------------------------------------
# list, show, verify


def test_list(run: Run) -> None:
    done = run("list")
    assert done.code == 0
    assert "optimizers (" in done.out
    row = next(x for x in done.out.splitlines() if x.startswith("adamw "))
    for text in ("AdamW", "Adam with decoupled weight decay.", "m v", "8 bytes a parameter"):
        assert text in row
    for text in ("lr=0.001, beta1=0.9", "weight_decay=0.01", "numpy", "arXiv:1711.05101"):
        assert text in row
    assert next(x for x in done.out.splitlines() if x.startswith("cosine ")).count("base_lr, total")


def test_list_as_json(run: Run) -> None:
    made = {e["name"]: e for e in json.loads(run("list", "--json").out)}
    assert set(made) == set(catalogue.builtin())
    adamw = made["adamw"]
    assert (adamw["kind"], adamw["class"], adamw["bytes_a_parameter"]) == ("optimizer", "AdamW", 8)
    assert [s["name"] for s in adamw["states"]] == ["m", "v"]
    assert "numpy" in adamw["backends"]
    lr = {k: v for k, v in adamw["hyperparameters"][0].items() if k != "meaning"}
    domain = "a number in [0, inf)"
    assert lr == {"name": "lr", "default": 0.001, "required": False, "domain": domain}
    total = made["cosine"]["hyperparameters"][1]
    assert (total["name"], total["default"], total["required"]) == ("total", None, True)
    assert made["nesterov"]["bytes_a_parameter"] == 8  # the velocity, and theta beside the point


def test_tables_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "styled", lambda: True)
    monkeypatch.setattr(commands, "styled", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    done = run("list")
    assert done.code == 0
    assert "AdamW" in done.out
    assert "all" in done.out
    assert "Adam with decoupled" in run("show", "adamw").out
    assert run("show", "adamw", "--stage", "text").code == 0


def test_show(run: Run) -> None:
    done = run("show", "adamw")
    assert done.code == 0
    assert done.out.startswith("AdamW: Adam with decoupled weight decay.\noptimizer adamw, ")
    for line in (
        "    m[t] = beta1 * m[t-1] + (1 - beta1) * g[t]",
        "    eps           1e-8     a number in [0, inf)  added to the root of the second",
        "    v     element  full   0          4 bytes a parameter",
        "memory: 8 bytes a parameter (float32 and below; float64 twice that)",
        "sharded tensors need nothing: elementwise",
        "source: Loshchilov & Hutter, ICLR 2019, Algorithm 2. arXiv:1711.05101",
        "note: the decay is multiplied by lr",
        "backends: ",
    ):
        assert f"\n{line}" in done.out
    assert "    total    required  an integer in [1, inf)" in run("show", "cosine").out
    assert "evaluate: with the state theta" in run("show", "nesterov").out
    assert "requires length(boundaries) = length(values)" in run("show", "piecewise").out


STAGES = {
    "equations": "v[t] = beta2 * v[t-1] + (1 - beta2) * g[t]**2\n",
    "program": "set m = add(mul(beta1, m[t-1]), mul(sub(1, beta1), g[t]))  # line ",
    "checked": "m_hat  float  element  full",
    "lowered": "    g_squared = mul(g, g)\n",
    "legal": "    g_squared = mul(g, g)\n",
    "text": "class AdamW(Optimizer):",
}


@pytest.mark.parametrize("stage", STAGES)
def test_show_a_stage(run: Run, stage: str) -> None:
    done = run("show", "adamw", "--stage", stage)
    assert done.code == 0
    assert STAGES[stage] in done.out


def test_stages_are_the_same_on_both_sides() -> None:
    assert tuple(show.STAGES) == command_line.STAGES == tuple(STAGES)


@pytest.mark.parametrize("stage", ["program", "checked", "lowered", "legal"])
def test_every_spec_can_be_shown(run: Run, stage: str) -> None:
    for name, path in catalogue.builtin().items():
        done = run("show", name, "--stage", stage)
        if path.parent.name == "wrappers" and stage in ("lowered", "legal"):
            assert f'Chain it: "adamw > {name}"' in done.err
        else:
            assert done.code == 0


def test_show_for_a_backend(run: Run) -> None:
    for name in commands._backend_names():
        checked_in = ROOT / "generated" / name / "optimizers/adamw.py"
        assert run("show", "adamw", "--backend", name).out == checked_in.read_text()
    assert run("show", "adamw", "--stage", "legal", "--backend", "torch").out.startswith(
        "for PyTorch"
    )


def test_show_loops(run: Run) -> None:
    out = run("show", "piecewise", "--stage", "lowered").out
    assert "    rate = base_lr\n    for k = 1, ..., " in out
    assert (
        "    loop k = 1, ..., length('boundaries'):"
        in run("show", "piecewise", "--stage", "program").out
    )


def test_show_latex(run: Run) -> None:
    done = run("show", "adamw", "--latex")
    assert done.out.startswith("\\begin{aligned}\nm_{0} = v_{0} &= 0 \\\\\n")
    assert r"\hat{m}_{t} &= \frac{m_{t}}{1 - \beta_{1}^{t}}" in done.out
    assert done.out.endswith("\n\\end{aligned}\n")


def test_show_every_spec_of_a_file(here: Path, run: Run) -> None:
    second = SPEC.partition("\n\n\n")[2].replace("mine", "yours").replace("Mine", "Yours")
    (here / "mine.py").write_text(f"{SPEC}\n\n{second}")
    out = run("show", "mine.py").out
    assert "\noptimizer mine, mine.py:6\n" in out
    assert "\n\nYours: Momentum, as a user would write it.\n" in out


def test_verify_hands_over_its_arguments(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Namespace] = []
    stub = ModuleType("generator.verify")
    stub.main = lambda arguments: seen.append(arguments) or 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "generator.verify", stub)
    line = (
        "verify mine.py --backend numpy lion --steps 7 --jobs 2 --json x.json --device cpu --seed 3"
    )
    assert run(*line.split()).code == 1
    assert run("verify").code == 1
    first, second = seen
    assert (first.specs, first.backend) == (["mine.py", "lion"], ["numpy"])
    assert (first.steps, first.jobs, first.seed) == (7, 2, 3)
    assert (first.json, first.device) == ("x.json", "cpu")
    assert (second.specs, second.backend, second.steps, second.seed) == ([], [], 20, 0)


COLUMNS = {
    "jax": ("eager", "op by op", "jit", "update"),
    "numpy": ("numpy",),
    "tensorflow": ("eager", "graph", "xla"),
    "torch": ("default", "eager", "fused"),
}


@pytest.mark.parametrize("width", [30, 80, 200])
def test_verify_shows_every_column(width: int) -> None:
    rows = [
        asdict(measured.Row("schedule_free_adamw", b, m, "float32", float(len(b + m)), "m", cases=1))
        for b, modes in COLUMNS.items()
        for m in modes
    ]
    text = io.StringIO()
    measured.show(rows, 7, Console(file=text, width=width))
    table, _, failures = text.getvalue().partition("\nschedule_free_adamw jax eager float32:")
    lines = table.splitlines()
    assert max(map(len, lines[1:])) <= max(width, len("schedule_free_adamw  tensorflow"))
    shown = [line.split() for line in lines if line.startswith("schedule_free_adamw")]
    assert [x for line in shown for x in line[1:]] == [
        f"{len(b + m)}" for b, modes in COLUMNS.items() for m in modes
    ]
    for b, modes in COLUMNS.items():
        assert table.count(b) == len(modes)
        assert all(m in table for m in modes)
    assert failures.count("ULP, m") == sum(map(len, COLUMNS.values()))
    if width == 200:
        assert len(shown) == 1


def test_verify_refuses_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def trajectory(run: object, mode: str) -> None:
        raise RuntimeError("there is\nno cuda.")

    monkeypatch.setattr(measured, "_runner", lambda backend: SimpleNamespace(trajectory=trajectory))
    text = io.StringIO()
    paths = ["backends.numpy"]
    assert measured._having("cuda", paths, False, Console(file=text, width=200)) == []
    message = "NumPy does not run on the device 'cuda' here (there is no cuda)."
    assert text.getvalue() == f"left out: {message}\n"
    with pytest.raises(catalogue.UnknownName) as caught:
        measured._having("cuda", paths, True, Console(file=text))
    assert str(caught.value) == f"{message} Choose another --device."


def test_verify_says_what_runs() -> None:
    work = [(f"/x/{name}.py", "backends.jax") for name in ("adam", "lion", "sgd")]
    assert measured._running(work, 1) == "adam on jax"
    assert measured._running(work, 3) == "adam on jax, lion on jax, ..."
    assert measured._running([], 1) == ""


def test_verify_tells_what_ended_where_there_is_no_bar() -> None:
    rows = [asdict(measured.Row("mine", "jax", mode, "float32", cases=1)) for mode in ("eager", "jit")]
    broken = [asdict(measured.Row("mine", "jax", "-", "-", float("inf"), error="no"))]
    pipe, terminal = io.StringIO(), io.StringIO()
    what = ("/x/mine.py", "backends.jax")
    measured._ended(what, rows, "3 of 4, 12 s", Console(file=pipe, width=20))
    measured._ended(what, broken, "4 of 4, 15 s", Console(file=pipe, width=20))
    measured._ended(what, rows, "3 of 4, 12 s", Console(file=terminal, force_terminal=True))
    assert pipe.getvalue() == "mine on jax: 0 ULP (3 of 4, 12 s)\nmine on jax: inf ULP (4 of 4, 15 s)\n"
    assert terminal.getvalue() == ""


def test_verify_is_silent_while_a_framework_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wakes = "def wake():\n    os.write(2, b'E0000 no such device')\n"
    (tmp_path / "noisy_runner.py").write_text(f"import os\nos.write(2, b'I0000 noise')\n{wakes}")
    monkeypatch.syspath_prepend(tmp_path)
    numpy = importlib.import_module("backends.numpy").backend
    measured._runner(replace(numpy, runner="noisy_runner"))
    print("afterwards", file=sys.stderr)
    assert capfd.readouterr().err == "afterwards\n"


# --------------------------------------------------------------------------------------------------
# new


def test_new_writes_a_spec_that_works_and_its_test(here: Path, run: Run) -> None:
    done = run("new", "swift_adam")
    assert done.code == 0
    assert done.out.startswith("wrote swift_adam.py and test_swift_adam.py. Next:\n")
    assert "    python -m generator verify swift_adam.py " in done.out
    assert '@optimizer("SwiftAdam")\ndef swift_adam(' in (here / "swift_adam.py").read_text()
    passed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_swift_adam.py"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 passed" in passed.stdout, passed.stdout
    assert run("build", "swift_adam.py", "--out", "pack").code == 0
    assert {p.name for p in (here / "pack").iterdir()} == set(commands._backend_names())


def test_new_somewhere_else(here: Path, run: Run) -> None:
    assert run("new", "calm", "--out", "specs_of_mine/slow.py").code == 0
    assert {p.name for p in (here / "specs_of_mine").iterdir()} == {"slow.py", "test_slow.py"}
    before = contents(here)
    done = run("new", "calmer", "--out", "specs_of_mine/slow.py")
    assert done.code == 2
    assert done.err.startswith("specs_of_mine/slow.py exists and stays as it is.")
    (here / "test_fast.py").write_text("a test of somebody\n")
    assert run("new", "fast").err.startswith("test_fast.py exists and stays as it is.")
    assert {**contents(here)} == {**before, "test_fast.py": b"a test of somebody\n"}


@pytest.mark.parametrize("name", ["t2", "A", "MyOpt", "beta1", "grad_norm_free", "u"])
def test_new_under_any_name(here: Path, run: Run, name: str) -> None:
    assert run("new", name).code == 0
    assert run("show", f"{name}.py").code == 0


# --------------------------------------------------------------------------------------------------
# The catalogue's page


def test_the_page_tells_of_every_spec() -> None:
    entries = catalogue.entries()
    text = page.catalogue_page(entries, commands._backends([]))
    blocks = text.split("```math\n")[1:]
    assert len(blocks) == len(entries)
    for e, block in zip(entries, blocks, strict=True):
        math = block.partition("\n```")[0]
        assert math.startswith("\\begin{aligned}\n")
        assert math.count("{") == math.count("}")
        assert math.count(r"\left") == math.count(r"\right")
        assert "operatorname" not in math  # GitHub refuses it
        assert f"\n### {e.spec.name}\n" in text
        assert f"[`{e.spec.name}`](#{e.spec.name})" in text
        assert (ROOT / "generated" / Path(f"../specs/{e.spec.kind}s/{e.spec.name}.py")).exists()
    assert "[arXiv:1711.05101](https://arxiv.org/abs/1711.05101)" in text
    assert "| `eps` | $`\\epsilon`$ | `1e-8` | a number in [0, inf) |" in text
    assert "- States: m, v; 8 bytes a parameter\n" in text


def test_the_page_escapes_markdown() -> None:
    assert page._markdown("a*b, x_y, x_ and `x_*z` < y") == r"a\*b, x_y, x\_ and `x_*z` \< y"


# --------------------------------------------------------------------------------------------------
# Chains


def test_a_chain_is_shown_and_built(run: Run, here: Path) -> None:
    words = ("--chain", "clip_by_norm > adamw", "--name", "ClippedAdamW", "--backend", "numpy")
    done = run("build", *words, "--out", "mine")
    assert done.code == 0 and "1 spec for NumPy" in done.out
    made = (here / "mine/optimizers/clipped_adamw.py").read_text()
    assert "class ClippedAdamW(Optimizer):" in made
    assert "edit clip_by_norm > adamw." in made.splitlines()[0]
    assert run("show", "lion > cautious", "--stage", "lowered").code == 0


def test_one_spec_under_another_name(run: Run, here: Path) -> None:
    done = run("build", "--chain", "adamw", "--name", "Foo", "--backend", "numpy", "--out", "mine")
    assert done.code == 0 and "from mine import Foo" in done.out
    assert "class Foo(Optimizer):" in (here / "mine/optimizers/foo.py").read_text()
    done = run("show", "cosine as Half")
    assert done.code == 0 and "schedule half, cosine\n" in done.out
    done = run("show", "mine.py as Other")
    assert done.code == 0 and "optimizer other, mine.py\n" in done.out


def test_what_learns_is_named_from_any_folder(run: Run, here: Path) -> None:
    done = run("show", "hypergradient(sgd, lr)")
    assert done.code == 0 and "optimizer sgd_hd, hypergradient(sgd, lr)\n" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "adamw > lookahead > clip_by_norm"], "Put transforms first, then one optimizer, then"),
        (["show", "clip_by_norm > sgd > lion"], "then transforms of its change, then wrappers."),
        (["show", "adan > clip_by_norm"], "does not end with theta[t] = theta[t-1] plus or minus a change."),
        (["show", "clip_by_norm >"], "lacks a name beside >. Write clip_by_norm > adamw."),
        (["show", "clip_by_norm > adamm"], "no spec is called 'adamm'. Did you mean adam?"),
        (["show", "clip_by_norm > sgd as 3"], "'3' is not a class name. Write one like ClippedAdamW."),
        (["show", "clip_by_norm > adan"], "adan keeps the gradient, which a chain would replace."),
        (["show", "schedule_free_sgd > polyak_average"], "both say what to evaluate with. Leave one"),
        (["build", "--name", "X", "--out", "mine"], "--name names a chain."),
        (["show", "adamw > lion"], "adamw > lion: lion is an optimizer, which has no place there"),
        (["show", "adam | muon"], "adam | muon: muon is not for other parameters than matrices. Put it on"),
        (
            ["show", "hypergradient(adamw, foo)"],
            "hypergradient(adamw, foo): adamw has no hyperparameter 'foo'. It has lr, beta1, beta2, eps, "
            "weight_decay.",
        ),
        (["build", "--chain", "adamw", "--name", "a b", "--out", "x"], "'a b' is not a class name."),
        (["build", "--chain", "adamm", "--name", "X", "--out", "x"], "no spec is called 'adamm'."),
    ],
)
def test_wrong_chains(run: Run, here: Path, words: list[str], message: str) -> None:
    done = run(*words)
    assert done.code == 2 and message in done.err
