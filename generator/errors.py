"""What a user sees when a spec is refused: file, line, what is wrong, what to do.

In: a place and a message, or an exception that a spec's file raised. Out: `SpecError`. Must not know:
anything else.
"""

from __future__ import annotations

import difflib
import linecache
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class SpecError(Exception):
    """A spec that cannot be read; the message stands alone, without a traceback."""

    def __init__(self, file: str, line: int, message: str) -> None:
        self.file, self.line, self.message = file, line, message
        super().__init__(f"{place(file, line)}: {message}")


class NotAvailable(Exception):
    """A correct program that needs an operation for which no code is generated yet."""


def place(file: str, line: int) -> str:
    """Where something stands; without a line the file as a whole, or a text of the command line."""
    return f"{shorten(file)}:{line}" if line else shorten(file)


def shorten(file: str) -> str:
    """The path as the user would type it: relative to where they are, if it lies below."""
    try:
        return Path(file).resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return file


TOO_DEEP = "an expression is nested too deep. Give parts of it names and lines of their own."


@contextmanager
def shallow(file: str, line: int) -> Iterator[None]:
    """Refuse expressions for which Python's stack is too short."""
    try:
        yield
    except RecursionError:
        raise SpecError(file, line, TOO_DEEP) from None


def twice(at: str, first: int) -> str:
    """The message for a name that has a definition already."""
    return (
        f"{at} is defined twice (line {first}). Give one of them another name: each is defined once a "
        "step."
    )


def uncounted(text: str) -> str:
    """The message for a loop whose count is no integer, or one that changes."""
    what = f"iterate(...) counts to an integer that stands fast, not to {text}."
    return f"{what} Use a whole number, a Count or length(...)."


def elsewhere(kind: str, name: str, right: str) -> str:
    """The message for a result that a spec of another kind has."""
    return f"{'an' if kind == 'optimizer' else 'a'} {kind} does not define {name}. Define {right} instead."


def brief(value: object) -> str:
    """A literal for a message; of a huge integer the size."""
    if isinstance(value, int) and value.bit_length() > 80:
        return f"{'-' * (value < 0)}10**{int(value.bit_length() * math.log10(2))}"
    return repr(value)


def line_of(file: str, text: str, first: int) -> int:
    """The first line from `first` on that has this text; `first` where none has."""
    lines = linecache.getlines(file)
    return next((k for k, x in enumerate(lines, 1) if k >= first and text in x), first)


def suggest(word: str, known: Iterable[str]) -> str:
    """` Did you mean x?`, or nothing."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def explain(error: Exception, known: Iterable[str] = ()) -> str:
    """What an exception of Python says about a spec, and what to do; `known` names for suggestions."""
    text = str(error).strip().rstrip(".") or type(error).__name__
    match error:
        case ModuleNotFoundError():
            return (
                f"there is no module {error.name}. Install it, or remove the import: a spec needs "
                "generator.language only."
            )
        case ImportError():
            return f"{text}. Correct the import: a spec needs generator.language only."
        case NameError() if error.name:
            ours = [word for word in known if not word.startswith("__")]
            hint = suggest(error.name, ours) or " Import or define it above."
            return f"{error.name} is not defined.{hint}"
        case AttributeError() if error.name == "T":
            return "`.T` is of a matrix, and this is a number. Remove it."
        case ZeroDivisionError():
            return "this divides a literal by 0. Write the value that is meant."
        case OverflowError():
            return "this literal is too large for a double. Write a smaller one."
        case TypeError() if "'Domain' and 'NoneType'" in text:
            return "a domain has no `| None`. Write Optional[NonNegative], with the domain that is meant."
        case TypeError() if operator := re.match(r"unsupported operand type\(s\) for (\S+):", text):
            return (
                f"`{operator[1]}` works on numbers, not on conditions. Use where(condition, a, b)."
            )
        case TypeError() if operator := re.match(r"'(\S+)' not supported between", text):
            return f"`{operator[1]}` compares numbers, not conditions. Join conditions with & or |."
        case TypeError() if "Boolean" in text or "bad operand type for unary" in text:
            return "a condition is not a number here. Use where(condition, a, b)."
    return (
        f"Python stops here: {text}. The docstring of specs/__init__.py shows what a spec may say."
    )
