"""What commands print: tables and progress on a terminal, plain lines everywhere else.

In: texts. Out: standard output (results) and standard error (progress, mistakes). Must not know:
what is printed. rich is imported only where a terminal shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import rich.text

Item = TypeVar("Item")


def heading(text: str) -> None:
    """A line that stands out on a terminal."""
    print(f"\033[1m{text}\033[0m" if styled() else text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Rows under their columns: wrapped to fit a terminal, else one line a row, aligned."""
    if styled():
        _rich_table(columns, rows, indent)
        return
    lines = [list(columns), *(list(r) for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print((indent + "  ".join(cells)).rstrip())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], indent: str) -> None:
    import rich.box
    import rich.console
    import rich.padding
    import rich.table

    made = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, expand=False)
    for number, column in enumerate(columns):
        made.add_column(column, no_wrap=number == 0)
    for row in rows:
        made.add_row(*map(_cell, row))
    padded = rich.padding.Padding(made, (0, 0, 0, len(indent)))
    rich.console.Console().print(padded)


def _cell(text: str) -> rich.text.Text:
    """The first line as it is, what stands below it dim."""
    import rich.text

    first, newline, rest = text.partition("\n")
    return rich.text.Text(first).append(newline + rest, style="dim")


def code(text: str) -> None:
    """Python, coloured on a terminal."""
    if not styled():
        print(text, end="" if text.endswith("\n") else "\n")
        return
    import rich.console
    import rich.syntax

    rich.console.Console().print(rich.syntax.Syntax(text, "python", background_color="default"))


def progress(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """The items, with a bar on the terminal that is gone when they are."""
    if not sys.stderr.isatty():
        yield from items
        return
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    yield from rich.progress.track(items, what, total=total, console=console, transient=True)


def complain(message: str) -> None:
    """One line on standard error."""
    print(" ".join(message.split()), file=sys.stderr)


def styled() -> bool:
    """Whether somebody looks at a terminal."""
    return sys.stdout.isatty()
