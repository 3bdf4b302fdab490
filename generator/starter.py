"""A first spec and its test, to be changed: `python -m generator new NAME`.

In: a name. Out: two files, texts of `templates/`. Must not know: what the language means.
"""

from __future__ import annotations

import importlib.util
import keyword
from pathlib import Path

from generator.language import PACKAGE, RESERVED, reserved
from generator.page import fill

_TAKEN = {"m", "v", "m_hat", "v_hat"}  # the starter's states


def refusal(name: str) -> str:
    """Why a spec cannot bear this name; empty if it can."""
    if not name.isidentifier():
        return f"{name!r} is not a name. Use letters, digits and _."
    if keyword.iskeyword(name):
        return f"{name} is a word of Python. Choose another name."
    if name in RESERVED | PACKAGE:
        return reserved(name, "the name of a spec")
    if name in _TAKEN:
        return f"{name} is a state of the starter. Choose a longer name."
    if name.startswith("_"):
        return f"{name} begins with _, which makes it private. Choose another name."
    return ""


def hidden(name: str) -> bool:
    """Whether a file of this name would hide a module that Python can import."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def starter(name: str, path: Path) -> dict[Path, str]:
    """The spec at `path` and its test beside it."""
    class_name = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    values = {"name": name, "class_name": class_name, "file": path.name}
    return {
        path: fill("spec.py.jinja", **values),
        path.with_name(f"test_{path.name}"): fill("spec_test.py.jinja", **values),
    }
