"""The examples as their readers run them: as programs of their own, in an empty folder."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALL = ("numpy", "torch", "jax", "tensorflow")
TITLES = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow"}

for needed in ("sklearn", "matplotlib", "rich"):
    pytest.importorskip(needed)


def needs(*frameworks: str) -> pytest.MarkDecorator:
    """Skip where one of them is not installed."""
    missing = [name for name in frameworks if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def example(name: str, *words: object, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return python(ROOT / "examples" / name, *words, folder=folder, **variables)


def python(*words: object, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "COLUMNS": "200",
        "PYTHONIOENCODING": "utf-8",
        **variables,
    }
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )


def rows(printed: str) -> dict[str, tuple[float, float, int, int]]:
    """The table: accuracy, loss, ULP with own and with the same gradients, by framework."""
    titles = "|".join(TITLES.values())
    row = rf"│ ({titles}) \S+ +│ +([\d.]+) % │ +(\S+) │ +([\d,]+) │ +([\d,]+) │"
    return {
        name: (float(accuracy), float(loss), int(own.replace(",", "")), int(fed.replace(",", "")))
        for name, accuracy, loss, own, fed in re.findall(row, printed)
    }


def picture(path: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_first_example_finds_the_line(tmp_path: Path) -> None:
    ran = example("first.py", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    *steps, last = ran.stdout.splitlines()
    assert len(steps) == 5
    found = re.search(r"loss +(\S+) +y = (\S+) x (\S+)", steps[-1])
    assert found is not None
    loss, a, b = map(float, found.groups())
    assert loss < 0.012
    assert abs(a - 3) < 0.05
    assert abs(b + 2) < 0.05
    assert "+3 x -2" in last


@needs("torch")
def test_digits_in_two_frameworks(tmp_path: Path) -> None:
    out = tmp_path / "new" / "short.png"
    ran = example("digits.py", "--epochs", 2, "--frameworks", "numpy", "torch", "--out", out, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    table = rows(ran.stdout)
    assert list(table) == ["NumPy", "PyTorch"]
    for accuracy, loss, own, fed in table.values():
        assert accuracy > 80
        assert loss < 1
        assert own >= 0
        assert fed == 0
    assert "adamw, warmup_cosine, lr 0.003, 88 steps" in ran.stdout
    assert "PyTorch's gradients fed to 2 frameworks: 4,810 parameters over 88 steps" in ran.stdout
    assert "0 ULP apart after every step; loss curves identical." in ran.stdout
    width, height = picture(out)
    assert width >= 1200
    assert height >= 400


@needs(*ALL)
def test_digits_in_all_frameworks_at_full_length(tmp_path: Path) -> None:
    ran = example("digits.py", "--optimizer", "adamw", "--schedule", "warmup_cosine", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    table = rows(ran.stdout)
    assert list(table) == list(TITLES.values())
    for accuracy, _, _, fed in table.values():
        assert accuracy >= 96
        assert fed == 0
    assert "PyTorch's gradients fed to 4 frameworks: 4,810 parameters over 880 steps" in ran.stdout
    assert "0 ULP apart after every step; loss curves identical." in ran.stdout
    picture(tmp_path / "digits.png")


@needs(*ALL)
def test_a_point_ahead_a_constant_rate_and_hyperparameters(tmp_path: Path) -> None:
    """The rate is 0.02, which float32 does not hold; the example takes the one next to it."""
    ran = example(
        "digits.py",
        *("--optimizer", "nesterov", "--schedule", "none", "--lr", 0.02, "--set", "beta=0.8"),
        *("--epochs", 1, "--gradients-from", "jax"),
        folder=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    assert [fed for *_, fed in rows(ran.stdout).values()] == [0, 0, 0, 0]
    assert "nesterov, constant rate, lr 0.02, 44 steps" in ran.stdout
    assert "JAX's gradients fed to 4 frameworks" in ran.stdout


@needs("torch")
def test_schedules_made_of_schedules(tmp_path: Path) -> None:
    ran = example(
        "digits.py",
        *("--schedule", "join", "--set", "schedules=('linear','warmup','piecewise')"),
        *("--epochs", 1, "--frameworks", "numpy", "torch"),
        folder=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    assert [fed for *_, fed in rows(ran.stdout).values()] == [0, 0]


@needs("torch")
def test_the_last_bit_is_noticed(tmp_path: Path) -> None:
    """In the place of PyTorch stands NumPy with another last bit, of float32, in the learning rate."""
    program = """
import dataclasses, sys
import digits
def other(start, recipe):
    rule = digits.Rule("constant", {"base_lr": recipe.lr * (1 + 2**-23 * off)})
    return digits.with_numpy(start, dataclasses.replace(recipe, schedule=rule))
off = sys.argv.pop(1) == "off"
digits.FRAMEWORKS["torch"] = other
digits.version = lambda name: "0"
sys.exit(digits.main())
"""
    words = ("--schedule", "constant", "--epochs", 1, "--frameworks", "numpy", "torch")
    for control, code, end in (("on", 0, "0 ULP apart after every step"), ("off", 1, "ULP apart.")):
        ran = python("-c", program, control, *words, folder=tmp_path, PYTHONPATH=str(ROOT / "examples"))
        assert (ran.returncode, ran.stderr) == (code, "")
        assert end in ran.stdout
        assert ("up to" in ran.stdout) == (control == "off")


def test_a_framework_that_is_not_installed_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise ImportError(\"No module named 'jax'\")\n")
    ran = example(
        "digits.py",
        *("--epochs", 1, "--frameworks", "numpy", "jax"),
        folder=tmp_path,
        PYTHONPATH=str(tmp_path),
    )
    assert ran.returncode == 0, ran.stderr
    assert "JAX is left out: No module named 'jax'" in ran.stdout
    assert list(rows(ran.stdout)) == ["NumPy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--optimizer adamww", "no optimizer is called 'adamww'. Did you mean 'adamw'?"),
        ("--schedule warmupcosine", "no schedule is called 'warmupcosine'. Did you mean 'warmup_cosine'?"),
        ("--optimizer cosine", "no optimizer is called 'cosine'. There are adabelief, adadelta, "),
        ("--schedule warmup --set schedule=rexx", "no schedule is called 'rexx'. Did you mean 'rex'?"),
        ("--set beta3=0.9", "--set beta3=0.9: no hyperparameter of adamw and warmup_cosine. Did you mean"),
        ("--set lr=0.1", "--set lr=0.1: the learning rate is --lr 0.1."),
        ("--set beta2=1.0", "AdamW: beta2 must be a number in [0, 1), got 1.0."),
        ("--lr -1", "WarmupCosine: base_lr must be a number in [0, inf), got -1.0."),
        ("--frameworks numpy --gradients-from jax", "gradients cannot come from jax: --frameworks lacks it."),
        ("--batch 0", "--epochs and --hidden are at least 1, --batch is from 1 to 1438."),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, words: str, message: str) -> None:
    ran = example("digits.py", *words.split(), folder=tmp_path)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith(f"digits.py: {message}")
    assert ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@needs("torch", "ml_dtypes")
def test_low_precision_stalls_or_does_not(tmp_path: Path) -> None:
    out = tmp_path / "low.png"
    words = "--epochs", 12, "--frameworks", "numpy", "torch", "--out", out
    ran = example("low_precision.py", *words, folder=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    row = r"│ ([a-z\d, ]+?) +│ +([\d.]+) │ +([\d.]+) % │ +([\d.]+) │ the same │"
    table = {name: tuple(map(float, numbers)) for name, *numbers in re.findall(row, ran.stdout)}
    assert len(table) == 7
    whole, accuracy, loss = table["float32"]
    assert whole == 12
    for name, (size, reached, ended) in table.items():
        if name == "bfloat16, rounded":
            assert reached < accuracy - 20
            assert ended > 2 * loss
        else:
            assert abs(reached - accuracy) <= 0.5
        assert (size < 8) == ("8 bits" in name)
    assert picture(out) == (900, 550)
