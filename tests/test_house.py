"""The house: what stands alone, what imports what, what is current, and that strangers fit in."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import backends
from generator import catalogue, readme, render

ROOT = Path(__file__).parents[1]
FRAMEWORK = {
    "numpy": {"numpy"},
    "torch": {"torch", "numpy"},
    "jax": {"jax", "optax", "numpy"},
    "tensorflow": {"tensorflow", "keras", "numpy"},
}


@pytest.mark.parametrize("backend", FRAMEWORK)
def test_generated_code_imports_its_framework_and_nothing_else(backend):
    for path in (ROOT / "generated" / backend).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            roots = []
            if isinstance(node, ast.Import):
                roots = [a.name.partition(".")[0] for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                roots = [(node.module or "").partition(".")[0]]
            extra = set(roots) - FRAMEWORK[backend] - sys.stdlib_module_names
            assert not extra, f"{path.name} imports {extra}"


@pytest.mark.parametrize("backend", FRAMEWORK)
def test_generated_code_runs_without_the_generator(backend, tmp_path):
    """A copy of one package, with everything of ours blocked, and SymPy and Jinja where they can be."""
    pytest.importorskip(backend)
    shutil.copytree(ROOT / "generated" / backend, tmp_path / "vendored", dirs_exist_ok=True)
    blocked = ["generator", "backends", "specs", "generated"]
    blocked += [] if backend == "torch" else ["sympy", "jinja2"]
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ImportError(name + ' is blocked')
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, {str(tmp_path)!r})
import vendored
for name in vendored.names():
    getattr(vendored, vendored._BY_NAME[name])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_backend_from_outside_the_repository(tmp_path, monkeypatch):
    """A stranger's backend: a folder elsewhere, with its own record, templates and runtime."""
    there = tmp_path / "stranger"
    shutil.copytree(ROOT / "backends" / "numpy", there)
    record = (there / "__init__.py").read_text()
    record = record.replace('name="numpy"', 'name="mine"').replace('title="NumPy"', 'title="Mine"')
    (there / "__init__.py").write_text(record)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = backends.load("stranger")
    lowered, _ = catalogue.available(catalogue.entries(["adamw", "cosine", "clip_by_value"]))
    render.write(render.package(lowered, mine), tmp_path / "built_mine")
    importlib.invalidate_caches()
    built = importlib.import_module("built_mine")
    ours = importlib.import_module("generated.numpy")
    a, b = np.ones(5, np.float32), np.ones(5, np.float32)
    g = np.linspace(-1, 1, 5, dtype=np.float32)
    built.create("adamw", a).step(g)
    ours.create("adamw", b).step(g)
    assert a.tobytes() == b.tobytes()


def test_what_a_backend_lacks_is_named():
    entry = catalogue.entries(["adam"])[0]
    numpy = backends.load("backends.numpy")
    poor = backends.Backend(
        **{**numpy.__dict__, "tensor": {k: v for k, v in numpy.tensor.items() if k != "sqrt"}}
    )
    with pytest.raises(catalogue.NotAvailable, match="adam needs sqrt, which NumPy does not have"):
        render.render(entry.lowered, poor)


def test_templates_carry_no_mathematics():
    for path in (ROOT / "backends").rglob("*.jinja"):
        for line in path.read_text().splitlines():
            assert not any(word in line for word in ("sqrt(", "** ", "fl(s", "power("))


def test_the_generator_knows_no_framework():
    for path in (ROOT / "generator").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {n.partition(".")[0] for n in names}
            assert not roots & {"torch", "jax", "tensorflow", "keras", "optax"}, path.name


def test_only_freeze_and_language_see_sympy():
    seen = {
        path.name
        for path in (ROOT / "generator").rglob("*.py")
        if "import sympy" in path.read_text() or "from sympy" in path.read_text()
    }
    assert "freeze.py" in seen
    assert not seen & {"lower.py", "emit.py", "render.py", "interpret.py", "ir.py", "verify.py"}


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_a_page_is_current(page: Path):
    assert page.read_text() == readme.current()[page]


def test_pages_lead_somewhere():
    """Links to files and to headings, and no marked block that nobody fills."""
    for page in readme.PAGES:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            file, _, heading = link.partition("#")
            if "://" in file:
                continue
            target = (page.parent / file).resolve() if file else page
            assert target.exists(), f"{page.name}: {link}"
            if heading:
                assert heading in _anchors(target.read_text()), f"{page.name}: {link}"
        for name in re.findall(r"<!-- begin: (\w+) -->", text):
            assert name in readme.blocks(), name


def _anchors(text: str) -> set[str]:
    """GitHub's: lower case, without punctuation, hyphens for spaces."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("backend", FRAMEWORK)
def test_a_package_is_not_imported_as_top_level(backend):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'generated')!r}); import {backend}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "put the folder above" in done.stderr


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax", "tensorflow"])
def test_a_runtime_that_is_joined_from_parts_defines_each_name_once(backend: str) -> None:
    """Parts are copied one behind the other, and a second definition would replace the first."""
    tree = ast.parse((ROOT / "generated" / backend / "runtime.py").read_text())
    names = [
        n.name
        for n in tree.body
        if isinstance(n, ast.FunctionDef | ast.ClassDef)
        and not any("register_fake" in ast.unparse(d) for d in n.decorator_list)
    ]
    again = {n for n in names if names.count(n) > 1}
    # PyTorch wraps some of them, on purpose.
    wrapped = "normal placed rows_of cols_of row_sum col_sum inverse random_words".split()
    assert again <= set(wrapped if backend == "torch" else ()), again
