"""Which specs there are, and what each becomes.

In: spec files, by path or from `specs/`. Out: checked and lowered programs. Must not know: backends.
"""

from __future__ import annotations

import functools
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from generator.check import Checked, check
from generator.errors import NotAvailable as NotAvailable
from generator.errors import SpecError, explain, suggest
from generator.freeze import freeze
from generator.ir import Lowered, Program
from generator.language import Spec
from generator.lower import lower
from generator.syntax import parse

SPECS = Path(__file__).parents[1] / "specs"


@dataclass(frozen=True)
class Entry:
    """One spec at every stage."""

    spec: Spec

    @functools.cached_property
    def program(self) -> Program:
        """The frozen tree."""
        return freeze(self.spec.trace)

    @functools.cached_property
    def checked(self) -> Checked:
        """The checked program."""
        return check(self.program)

    @functools.cached_property
    def lowered(self) -> Lowered:
        """The single assignments; `NotAvailable` where there is no code yet."""
        return lower(self.checked)


def load(path: Path) -> list[Entry]:
    """The specs of one file; `SpecError` where it cannot be read."""
    if not path.is_file():
        raise SpecError(str(path), 1, "there is no such file.")
    file = str(path.resolve())
    linecache.checkcache(file)
    parse(file)
    name = f"_specs_{abs(hash(file))}_{path.stem}"
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(SPECS.parent))
    try:
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        found.loader.exec_module(module)
    except SpecError:
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        line = (frames[-1].lineno or 1) if frames else 1
        raise SpecError(file, line, explain(error, vars(module))) from error
    finally:
        sys.dont_write_bytecode = before
        sys.path.remove(str(SPECS.parent))
    return [Entry(s) for s in vars(module).values() if isinstance(s, Spec) and s.file == file]


@functools.cache
def builtin() -> dict[str, Path]:
    """The files of the catalogue by the name of their spec."""
    return {
        p.stem: p for p in sorted(SPECS.glob("*/*.py")) if not p.stem.startswith("_")
    }


def entries(wanted: Sequence[str] = ()) -> list[Entry]:
    """Specs by name or path; all of the catalogue where none is named."""
    files = builtin()
    chosen: list[Path] = []
    for word in wanted or files:
        if word in files:
            chosen.append(files[word])
        elif word.endswith(".py") or Path(word).exists():
            chosen.append(Path(word))
        else:
            raise UnknownName(f"no spec is called {word!r}.{suggest(word, files)}")
    made = [e for path in chosen for e in load(path)]
    seen: dict[str, Entry] = {}
    for e in made:
        for name in {e.spec.name, e.spec.class_name}:
            other = seen.setdefault(name, e)
            if other is not e:
                where = f"{Path(other.spec.file).name}:{other.spec.line}"
                message = f"{name} is declared twice ({where}). Rename one of them."
                raise SpecError(e.spec.file, e.spec.line, message)
    return made


def available(chosen: Sequence[Entry]) -> tuple[list[Lowered], list[str]]:
    """The programs for which code is generated, and why not for the others."""
    made, missing = [], []
    for e in chosen:
        try:
            made.append(e.lowered)
        except NotAvailable as reason:
            missing.append(str(reason))
    return made, missing


class UnknownName(Exception):
    """A name that is neither in the catalogue nor a file."""
