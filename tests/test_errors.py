"""A bad spec is refused: file, line, what is wrong, what to do. `refusals.txt` has the single mistakes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from generator import catalogue, ir
from generator.check import check
from generator.errors import SpecError, explain, suggest
from generator.ir import Assign, Call, Clock, Hyper, Loop, Number


@dataclass
class Refusal:
    """One mistake and what is said about it."""

    name: str
    kind: str = "optimizer"
    sig: str = "lr: NonNegative = 0.1"
    head: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    message: str = ""

    @property
    def text(self) -> str:
        return "\n".join(
            [
                "from generator.language import *",
                *(self.head or [""]),
                'm, v, u, x, y, z = names("m v u x y z")',
                "\n",
                f"@{self.kind}",
                f"def bad({self.sig}):",
                '    """Title.\n\n    Source: here.\n    """',
                *self.body,
                "",
            ]
        )


def read() -> list[Refusal]:
    made: list[Refusal] = []
    lines = Path(__file__).with_name("refusals.txt").read_text().splitlines()
    begin = next(k for k, line in enumerate(lines) if line.startswith("## "))
    for line in lines[begin:]:
        if line.startswith("# "):
            made.append(Refusal(line[2:]))
        elif line.startswith("% "):
            what, _, value = line[2:].partition(": ")
            if what == "head":
                made[-1].head.append(value)
            else:
                setattr(made[-1], what, value)
        elif line.startswith("    "):
            made[-1].body.append(line)
        elif line and not line.startswith("## "):
            assert not made[-1].message, made[-1].name
            made[-1].message = line
    return made


REFUSALS = read()
_VERBS = (
    "Use|Write|Define|Declare|Move|Choose|Remove|Read|Keep|Change|Annotate|Correct|Add|Give|Rename|Begin"
    "|Nest|Put|Compare|Transpose|Multiply|Only|Say|Raise|Join|Name|Index|Decorate|Compute|Did you mean"
    "|Install|Import|Its first line|Try"
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(text: str) -> str:
    """What is said about a file with this text."""
    Path("bad.py").write_text(text)
    with pytest.raises(SpecError) as caught:
        for entry in catalogue.load(Path("bad.py")):
            assert entry.checked
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.name)
def test_refusal(case: Refusal) -> None:
    assert refused(case.text) == f"bad.py:{case.message}"


def test_every_mistake_is_there_once_and_has_a_remedy() -> None:
    assert len({case.name for case in REFUSALS}) == len(REFUSALS) > 330
    for case in REFUSALS:
        assert re.search(rf"[.?] ({_VERBS})\b", case.message), case.message


# --------------------------------------------------------------------------------------------------
# Programs that come from elsewhere than a file

A = ir.Parameter("a", ir.Domain("Real", many=True), ir.REQUIRED, "", 1)
B = ir.Parameter("b", ir.Domain("Schedule", "schedule"), ir.REQUIRED, "", 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([Assign("a", Number(1), 2)], "a is a hyperparameter and cannot be defined. Rename one."),
        (
            [Assign("sqrt", Number(1), 2)],
            "sqrt is a word of the language and cannot be a state. Choose another name.",
        ),
        (
            [Loop("k", Number(3), (Assign("x", Clock("k"), 1),), 1), Assign("x", Number(1), 2)],
            "x[k] is defined twice (line 1). Give one of them another name: each is defined once a step.",
        ),
        ([Assign("x", Hyper("a"), 2)], "a is a tuple. Read one entry: a[1]."),
        ([Assign("x", Hyper("b"), 2)], "b is a schedule. Say at which step: b(t)."),
        ([Assign("x", Clock("k"), 2)], "k is known only inside its loop. Use the loop's count."),
        (
            [Assign("x", Call("word", (), "fast"), 2)],
            "'fast' is a word. Compare a choice with it: equal(x, 'fast').",
        ),
        ([Assign("x", Call("sqr", ()), 2)], "unknown function sqr. Did you mean sqrt?"),
        ([Assign("x", Call("tanh", ()), 2)], "unknown function tanh. Write it out."),
    ],
)
def test_program(body: list[ir.Statement], message: str) -> None:
    program = ir.Program("optimizer", "p", "P", "t", ("s",), (), (A, B), tuple(body), file="p.py")
    with pytest.raises(SpecError) as caught:
        check(program)
    assert str(caught.value) == f"p.py:2: {message}"


# --------------------------------------------------------------------------------------------------
# The docstring

SPEC = """from generator.language import *


@optimizer
def bad(lr: NonNegative = 0.1):
{doc}    theta[t] = theta[t-1] - lr * g[t]
"""


@pytest.mark.parametrize(
    ("doc", "message"),
    [
        ("", "4: bad has no docstring. Its first line is the algorithm's name."),
        ('    """  """\n', "4: bad has no docstring. Its first line is the algorithm's name."),
        (
            '    """Title.\n\n    Note: none.\n    """\n',
            "4: bad has no source. Add a line `Source: authors, venue, number of the algorithm.` to its "
            "docstring.",
        ),
        (
            '    """Title.\n\n    Source:\n    """\n',
            "4: bad has no source. Add a line `Source: authors, venue, number of the algorithm.` to its "
            "docstring.",
        ),
        (
            '    """Title.\n\n    Source: here.\n\n    Args:\n        lr: rate.\n        q: what?\n    """\n',
            "12: Args: describes q, which is no hyperparameter. Remove it.",
        ),
        (
            '    """\n    Title.\n\n    Source: here.\n\n    Args:\n        lrr: rate.\n    """\n',
            "12: Args: describes lrr, which is no hyperparameter. Did you mean lr?",
        ),
    ],
)
def test_docstring(doc: str, message: str) -> None:
    assert refused(SPEC.format(doc=doc)) == f"bad.py:{message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Notes:", "Notes: is no section of a docstring. Did you mean Note:?"),
        ("Notes: on it.", "Notes: is no section of a docstring. Did you mean Note:?"),
        ("note: on it.", "note: is no section of a docstring. Did you mean Note:?"),
        ("Arg:", "Arg: is no section of a docstring. Did you mean Args:?"),
        ("Sources: two.", "Sources: is no section of a docstring. Did you mean Source:?"),
        ("Returns:", "Returns: is no section of a docstring. Write Source:, Note: or Args:."),
        (
            r"In terms of \\beta.",
            "the docstring goes into generated code and cannot have \\ in it. Write it in words.",
        ),
        (
            r'A \"""quoted\""" word.',
            'the docstring goes into generated code and cannot have """ in it. Write it in words.',
        ),
        (
            r"A bell: \a.",
            "the docstring goes into generated code and has a character that cannot be printed. Remove it.",
        ),
    ],
)
def test_what_a_docstring_cannot_say(line: str, message: str) -> None:
    doc = f"    '''Title.\n\n    Source: here.\n\n    {line}\n    '''\n"
    assert refused(SPEC.format(doc=doc)) == f"bad.py:10: {message}"


def test_prose_may_have_a_colon() -> None:
    doc = '    """Title.\n\n    Prose: it goes on.\n\n    Source: here.\n    """\n'
    Path("bad.py").write_text(SPEC.format(doc=doc))
    (entry,) = catalogue.load(Path("bad.py"))
    assert entry.checked.program.doc == ("Prose: it goes on.",)


GOOD = SPEC.format(doc='    """Title.\n\n    Source: here.\n    """\n')


# --------------------------------------------------------------------------------------------------
# The file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (1\n", "1: this is not Python: '(' was never closed. Correct the line."),
        ("\n\nx = = 1\n", "3: this is not Python: invalid syntax. Correct the line."),
        ("def f(:\n", "1: this is not Python: invalid syntax. Correct the line."),
        (
            GOOD.replace("lr * g[t]", "lr * g[t"),
            "10: this is not Python: '[' was never closed. Correct the line.",
        ),
        (
            GOOD.replace("    theta", "  theta"),
            "10: this is not Python: unindent does not match any outer indentation level. Correct the "
            "line.",
        ),
        ("return 1\n", "1: this is not Python: 'return' outside function. Correct the line."),
        (
            'from generator.language import *\nm = names("m")\nm[0] = 3\n',
            "3: m[0] = ... stands outside a spec. Put it in a decorated function.",
        ),
        (
            'from generator.language import *\n\nxi = noise("xi")\n',
            "3: noise stands outside a spec. Put it in a decorated function.",
        ),
        (
            "from generator.language import *\n\n\n@optimizer\nclass A:\n    pass\n",
            '4: @optimizer decorates a function, or takes one name: @optimizer("AdamW"). Correct the line.',
        ),
        (
            GOOD.replace("import *", "import optimizer, theta, t, g, NonNegative")
            .replace("lr * g", "lr * sqrt(g")
            .replace("g[t]", "g[t])"),
            "10: sqrt is not imported. Begin with: from generator.language import *",
        ),
        (
            GOOD.replace("def bad", "def sqrt"),
            "5: sqrt is a word of the language and cannot be the name of a spec. Choose another name.",
        ),
        (
            GOOD.replace("def bad", "def create"),
            "5: create is a word of generated code and cannot be the name of a spec. Choose another name.",
        ),
        (
            GOOD.replace("def bad", "def names"),
            "5: names is a word of the language and cannot be the name of a spec. Choose another name.",
        ),
        (
            'm = names("m")\n',
            "1: names is not imported. Begin with: from generator.language import *",
        ),
        (
            GOOD.partition("\n")[2],
            "3: optimizer is not imported. Begin with: from generator.language import *",
        ),
        (
            GOOD.replace("def bad", "async def bad"),
            "5: a spec is read at once and cannot be async. Write def alone.",
        ),
        (
            GOOD + GOOD.partition("\n")[2],
            "14: bad is defined twice (line 5). Rename one of them.",
        ),
    ],
)
def test_file(text: str, message: str) -> None:
    assert refused(text) == f"bad.py:{message}"


def test_no_file() -> None:
    with pytest.raises(SpecError, match=r"^nope\.py: there is no such file\. Correct the path\.$"):
        catalogue.load(Path("nope.py"))


def test_a_folder() -> None:
    with pytest.raises(SpecError, match=r"^\.: this is a folder\. Name a file in it\.$"):
        catalogue.load(Path("."))


def test_not_utf_8() -> None:
    Path("bad.py").write_bytes(GOOD.encode() + b"# caf\xe9\n")
    message = r"^bad\.py:11: this file is not UTF-8\. Write it in that encoding\.$"
    with pytest.raises(SpecError, match=message):
        catalogue.load(Path("bad.py"))


LONG = " + ".join(["g[t]"] * 3000)


@pytest.mark.parametrize("text", [LONG, f"({LONG.replace('+', chr(10) + '+')})", "-" * 3000 + "g[t]"])
def test_too_long_an_equation_is_named_by_its_line(text: str) -> None:
    said = refused(GOOD.replace("lr * g[t]", text))
    assert said.startswith("bad.py:10: an expression is nested too deep. Give parts of it names")


def test_no_spec() -> None:
    Path("empty.py").write_text("x = 1\n")  # the commands refuse it: test_cli.py
    assert catalogue.load(Path("empty.py")) == []


def test_no_source() -> None:
    made: dict[str, object] = {}
    exec(compile(GOOD, "<nowhere>", "exec"), made)
    message = r"^<nowhere>:4: the source of this spec cannot be read\. Put it in a file\.$"
    with pytest.raises(SpecError, match=message):
        assert made["bad"].trace  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import nosuchmodule",
            "there is no module nosuchmodule. Install it, or remove the import: a spec needs "
            "generator.language only.",
        ),
        (
            "from generator.language import nothing",
            "cannot import name 'nothing' from 'generator.language'",
        ),
        ("NonNegativ", "NonNegativ is not defined. Did you mean NonNegative?"),
        ("whatever", "whatever is not defined. Import or define it above."),
        (
            "domain | None",
            "a domain has no `| None`. Write Optional[NonNegative], with the domain that is meant.",
        ),
        ("1 / 0", "this divides a literal by 0. Write the value that is meant."),
        ("10.0 ** 400", "this literal is too large for a double. Write a smaller one."),
        (
            "[][1]",
            "Python stops here: list index out of range. The docstring of specs/__init__.py shows what a "
            "spec may say.",
        ),
        (
            "raise KeyError",
            "Python stops here: KeyError. The docstring of specs/__init__.py shows what a spec may say.",
        ),
    ],
)
def test_exceptions_of_a_file(code: str, message: str) -> None:
    with pytest.raises(Exception) as caught:
        exec(code, {"domain": ir.Domain("NonNegative")})
    assert explain(caught.value, ["NonNegative"]).startswith(message)


def test_suggestions() -> None:
    assert suggest("sqr", ["sqrt", "sum"]) == " Did you mean sqrt?"
    assert suggest("xyz", ["sqrt", "sum"]) == ""


def test_a_correct_file_is_not_refused() -> None:
    Path("bad.py").write_text(GOOD)
    (entry,) = catalogue.load(Path("bad.py"))
    assert entry.lowered
