"""The files of `generated/` that belong to no backend: the catalogue, the package's docstring.

In: catalogue entries and backends. Out: text by path. Must not know: any backend's templates.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from backends import Backend
from generator import facts, render, show
from generator.catalogue import SPECS, Entry
from generator.equations import ascii_expr, latex_lines, latex_name
from generator.errors import NotAvailable

TEMPLATES = Path(__file__).with_name("templates")


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def fill(template: str, **values: Any) -> str:
    """A template of this folder with its holes filled."""
    return _environment().get_template(template).render(**values)


@dataclass(frozen=True)
class Article:
    """One algorithm on the page, as Markdown."""

    kind: str
    name: str
    class_name: str
    title: str
    spec: str  # the file, from the page
    doc: tuple[str, ...]
    math: str
    hypers: tuple[tuple[str, str, str, str, str], ...]  # name, symbol, default, domain, meaning
    requires: tuple[str, ...]
    states: tuple[str, ...]
    memory: str
    sharding: str
    source: tuple[str, ...]
    notes: tuple[str, ...]
    missing: str  # why there is no code
    dialect: str  # whose definition it is: torch, in like_torch; empty: nobody's
    plain: str  # what its class is called there


def catalogue_page(entries: Sequence[Entry], backends: Sequence[Backend]) -> str:
    """The catalogue with its equations: `generated/README.md`."""
    groups: dict[str, list[Article]] = {}
    for entry in entries:
        groups.setdefault(f"{entry.spec.kind}s", []).append(_article(entry))
    return fill("catalogue.md.jinja", groups=groups, backends=backends)


def files(entries: Sequence[Entry], backends: Sequence[Backend]) -> dict[str, str]:
    """What stands in `generated/` beside the backends' packages."""
    return {
        "README.md": catalogue_page(entries, backends),
        "__init__.py": fill("generated.py.jinja", backends=backends),
    }


def _article(entry: Entry) -> Article:
    p = entry.program
    hypers = tuple(
        (h.name, latex_name(h.name), h.default, _cell(h.domain), _cell(_markdown(h.about)))
        for h in facts.hypers(entry)
    )
    return Article(
        kind=p.kind,
        name=p.name,
        class_name=p.class_name,
        title=_markdown(p.title),
        spec=Path(p.file).relative_to(SPECS.parent).as_posix(),
        doc=tuple(map(_markdown, p.doc)),
        math=show.aligned(latex_lines(p)),
        hypers=hypers,
        requires=tuple(ascii_expr(relation) for relation, _ in p.requires),
        states=tuple(s.name for s in facts.states(entry)),
        memory=facts.memory(entry),
        sharding="" if p.kind == "schedule" else entry.checked.sharding,
        source=tuple(_linked(_markdown(s)) for s in p.source),
        notes=tuple(_linked(_markdown(n)) for n in p.notes),
        missing=_missing(entry),
        dialect=render.speaks(p.name),
        plain=render.plain(p.class_name, render.speaks(p.name)),
    )


def _missing(entry: Entry) -> str:
    try:
        entry.lowered  # noqa: B018 - says whether there is code
    except NotAvailable as reason:
        return str(reason)
    return ""


def _markdown(text: str) -> str:
    """Plain text with Markdown's own signs made plain; code in backticks stays code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*<\\]|(?<!\w)_|_(?!\w))", r"\\\1", x) for x in parts[::2]]
    return "`".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
