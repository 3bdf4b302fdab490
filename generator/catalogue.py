"""Which specs there are, and what each becomes.

In: spec files, by path or from `specs/`. Out: checked and lowered programs. Must not know: backends.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import linecache
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from generator import compose, derive, language
from generator.check import Checked, check, reached
from generator.errors import NotAvailable as NotAvailable
from generator.errors import SpecError, explain, place, suggest
from generator.freeze import freeze
from generator.ir import Lowered, Program
from generator.language import Chain, Learner, Spec
from generator.lower import lower
from generator.syntax import declared, parse

_DECLARED = Spec | Chain | Learner
SPECS = Path(__file__).parents[1] / "specs"


@dataclass(frozen=True)
class Entry:
    """One spec at every stage."""

    spec: Spec | Chain | Learner
    word: str = ""  # what named it where that is no file: "clip_by_norm > adamw"

    @property
    def source(self) -> str:
        """What `entries` finds it by."""
        return self.word or self.spec.file

    @functools.cached_property
    def program(self) -> Program:
        """The frozen tree."""
        spec = self.spec
        if isinstance(spec, Spec):
            return freeze(spec.trace)
        made = _learnt(spec) if isinstance(spec, Learner) else _together(spec)
        return replace(
            made,
            file=spec.file,
            line=spec.line,
            parameters=tuple(replace(p, line=spec.line) for p in made.parameters),
            requires=tuple((e, spec.line) for e, _ in made.requires),
        )

    @functools.cached_property
    def checked(self) -> Checked:
        """The checked program."""
        spec, program = self.spec, self.program
        try:
            made = check(program)
        except SpecError as error:
            if isinstance(spec, Spec):
                raise  # else the parts are right, and the line is one of theirs
            raise SpecError(spec.file, spec.line, error.message) from None
        if isinstance(spec, Spec):
            reached(self.program)  # last: what is wrong with an equation may be why a name is left over
            declared(self.spec.file)
        return made

    @functools.cached_property
    def lowered(self) -> Lowered:
        """The single assignments; `NotAvailable` where there is no code yet."""
        return lower(self.checked)


def _learnt(spec: Learner) -> Program:
    """An optimizer that learns a hyperparameter."""
    part = Entry(spec.part).checked.program
    given = spec.wrt, spec.kappa, spec.name, spec.class_name
    return derive.hypergradient(part, *given, spec.file, spec.line)


def _together(spec: Chain) -> Program:
    """Several programs as one; or one under another name."""
    parts = [Entry(part).checked.program for part in spec.parts]
    if len(parts) == 1:
        return replace(parts[0], name=spec.name, class_name=spec.class_name)
    try:
        return (compose.route if spec.routed else compose.chain)(parts, spec.name, spec.class_name)
    except compose.Misfit as why:
        raise SpecError(spec.file, spec.line, str(why)) from None


def load(path: Path) -> list[Entry]:
    """The specs of one file; `SpecError` where it cannot be read."""
    if path.is_dir():
        raise SpecError(str(path), 0, "this is a folder. Name a file in it.")
    if not path.is_file():
        raise SpecError(str(path), 0, "there is no such file. Correct the path.")
    file = str(path.resolve())
    _text(path, file)
    linecache.checkcache(file)
    _once(file, parse(file))
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
        if isinstance(error, NameError) and error.name in language.__all__:
            raise SpecError(file, line, language.lost(error.name)) from error
        raise SpecError(file, line, explain(error, vars(module))) from error
    finally:
        sys.dont_write_bytecode = before
        sys.path.remove(str(SPECS.parent))
    return [Entry(s) for s in vars(module).values() if isinstance(s, _DECLARED) and s.file == file]


def _text(path: Path, file: str) -> None:
    """Refuse what is no text before Python stumbles over it."""
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SpecError(file, line, "this file is not UTF-8. Write it in that encoding.") from None


def _once(file: str, tree: ast.Module) -> None:
    """Refuse a function that replaces an earlier one, which nobody would miss."""
    seen: dict[str, int] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name in seen:
                what = f"{node.name} is defined twice (line {seen[node.name]}). Rename one of them."
                raise SpecError(file, node.lineno, what)
            seen[node.name] = node.lineno


@functools.cache
def builtin() -> dict[str, Path]:
    """The files of the catalogue by the name of their spec."""
    return {
        p.stem: p for p in sorted(SPECS.glob("*/*.py")) if not p.stem.startswith("_")
    }


def entries(wanted: Sequence[str] = ()) -> list[Entry]:
    """Specs by name or path; all of the catalogue where none is named."""
    files = builtin()
    chosen: list[Path | Entry] = []
    for word in wanted or files:
        if learnt := re.fullmatch(r"hypergradient\(([^()]+),\s*(\w+)\s*\)(?: as (\w+))?", word.strip()):
            chosen.append(learning(word, *learnt.groups()))
        elif ">" in word or "|" in word:
            chosen.append(chained(word))
        elif word in files:
            chosen.append(files[word])
        elif word.endswith(".py") or (word and Path(word).exists()):
            chosen.append(Path(word))
        elif word.strip().startswith("hypergradient"):
            raise UnknownName(
                f"{word!r} does not say what learns what. Write hypergradient(adamw, lr): a spec, then "
                "the name of one of its hyperparameters."
            )
        elif " as " in word:
            chosen.append(chained(word))
        else:
            raise UnknownName(f"no spec is called {word!r}.{suggest(word, files)}")
    made = [e for path in chosen for e in (load(path) if isinstance(path, Path) else [path])]
    seen: dict[str, Entry] = {}
    for e in made:
        for name in {e.spec.name, e.spec.class_name}:
            other = seen.setdefault(name, e)
            if other is not e:
                where = place(Path(other.spec.file).name, other.spec.line)
                message = f"{name} is declared twice ({where}). Rename one of them."
                raise SpecError(e.spec.file, e.spec.line, message)
    return made


def learning(word: str, part: str, wrt: str, called: str | None) -> Entry:
    """What learns a hyperparameter, as a text names it: `hypergradient(adam, lr)`."""
    found = entries([part.strip()])
    if len(found) != 1:
        raise UnknownName(f"{part.strip()} has {len(found)} specs. Take a file that has one.")
    made = language.hypergradient(found[0].spec, wrt, class_name=called or "")
    return Entry(replace(made, file=word.strip(), line=0), word)


def chained(word: str) -> Entry:
    """The chain that a text names: `clip_by_norm > adamw`, or `clip_by_norm > adamw as ClippedAdamW`.

    One spec alone gets another name: `adamw as Mine`. There is no file; messages name the text.
    Between two optimizers | stands for route and binds more tightly: `clip_by_norm > muon | adamw`.
    """
    text, _, called = word.partition(" as ")
    parts: list[Spec | Chain | Learner] = []
    for part in map(str.strip, text.split(">")):
        if not part:
            raise UnknownName(f"{text.strip()!r} lacks a name beside >. Write clip_by_norm > adamw.")
        parts.append(_routed(part) if "|" in part else _one(part))
    if len(parts) == 1 and isinstance(parts[0], Chain) and not called.strip():
        return Entry(parts[0], word)
    class_name = called.strip() or "".join(p.class_name for p in parts)
    name = "_".join(p.name for p in parts)
    if called.strip():
        name = class_name
        for p in parts:  # AdamW is adamw, not adam_w
            name = name.replace(p.class_name, f"_{p.name}_")
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        name = re.sub(r"_+", "_", name).strip("_")
    if not class_name.isidentifier():
        raise UnknownName(f"{class_name!r} is not a class name. Write one like ClippedAdamW.")
    return Entry(Chain(tuple(parts), name, class_name, text.strip(), 0), word)


def _one(word: str) -> Spec | Chain | Learner:
    """The one spec that a name or a path stands for."""
    found = entries([word])
    if len(found) != 1:
        raise UnknownName(f"{word} has {len(found)} specs. Chain files that have one.")
    return found[0].spec


def _routed(text: str) -> Chain:
    """Two optimizers side by side: `muon | adamw`."""
    words = [word.strip() for word in text.split("|")]
    if len(words) != 2 or not all(words):
        raise UnknownName(f"{text!r} is not two optimizers. Write muon | adamw.")
    parts = tuple(map(_one, words))
    name, class_name = ("".join(x) for x in zip(*((f"_{p.name}", p.class_name) for p in parts), strict=True))
    return Chain(parts, name[1:], class_name, text, 0, routed=True)


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
