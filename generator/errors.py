"""What a user sees when a spec is refused: file, line, what is wrong, what to do.

In: a place and a message. Out: `SpecError`. Must not know: anything else.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class SpecError(Exception):
    """A spec that cannot be read; the message stands alone, without a traceback."""

    def __init__(self, file: str, line: int, message: str) -> None:
        self.file, self.line, self.message = file, line, message
        super().__init__(f"{shorten(file)}:{line}: {message}")


class NotAvailable(Exception):
    """A correct program that needs an operation for which no code is generated yet."""


def shorten(file: str) -> str:
    """The path as the user would type it: relative to where they are, if it lies below."""
    try:
        return Path(file).resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return file


def suggest(word: str, known: Iterable[str]) -> str:
    """` Did you mean x?`, or nothing."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""
