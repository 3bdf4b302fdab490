"""Which parameters a hyperparameter holds for, said and checked the same way on every backend.

In: rules, and the names and shapes of parameters. Out: what holds for each parameter, and a table of
it. Must not know: any framework. The build copies this text into each backend's runtime, so that a
generated package stands alone.
"""

from __future__ import annotations

import difflib
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from backends.domains import Domain, told


class Times:
    """So many times what holds otherwise: `Rule("backbone.*", lr=Times(0.1))`."""

    def __init__(self, factor: float) -> None:
        known = isinstance(factor, numbers.Real) and not isinstance(factor, bool)
        if not known or not math.isfinite(factor):
            raise TypeError(f"Times: the factor must be a finite number, got {factor!r}.")
        self.factor = float(factor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Times) and other.factor == self.factor

    def __hash__(self) -> int:
        return hash((Times, self.factor))

    def __repr__(self) -> str:
        return f"Times({self.factor!r})"


class Rule:
    """What holds for some parameters: `Rule("*.bias", weight_decay=0.0)`.

    A parameter is meant if it fulfils every condition that is given. Where several rules mean a
    parameter, all of them hold, in their order: of two that set the same thing the later one does.

    Args:
        *patterns: its name matches one of these; `*` stands for any text, `?` for one character.
            Names are `layers[0].weight`; `layers.0.weight` and `layers/0/weight` are the same name. A
            pattern that begins with `*.` matches names without a dot, too.
        names: it has one of these names.
        ndim: it has so many axes.
        max_ndim: it has at most so many axes; 1 are biases and the scales of norms.
        min_ndim: it has at least so many axes.
        train: whether it is trained; if not, it keeps its value and has no state.
        as_vector: the algorithm sees it with all its axes as one, so that it is no matrix.
        as_matrix: where it has more than two axes, the algorithm sees it as a matrix: `first` keeps
            the first axis as rows (kernels of PyTorch), `last` the last one as columns (of Keras and
            JAX).
        **hypers: hyperparameters of the optimizer, by this package's names or by the spec's; a value,
            or `Times(factor)` of what holds otherwise.

    Raises:
        TypeError, ValueError: a condition is missing or no condition, or the rule changes nothing.
    """

    def __init__(
        self,
        *patterns: str,
        names: Sequence[str] | None = None,
        ndim: int | None = None,
        max_ndim: int | None = None,
        min_ndim: int | None = None,
        train: bool | None = None,
        as_vector: bool | None = None,
        as_matrix: str | None = None,
        **hypers: Any,
    ) -> None:
        self.patterns = patterns
        self.names = None if names is None or isinstance(names, str) else tuple(names)
        self.sizes = {
            word: given
            for word, given in (("ndim", ndim), ("max_ndim", max_ndim), ("min_ndim", min_ndim))
            if given is not None
        }
        self.train, self.as_vector, self.as_matrix = train, as_vector, as_matrix
        self.hypers = {key: _plain_number(value) for key, value in hypers.items()}
        for word in patterns:
            if not isinstance(word, str):
                remedy = "By the number of axes a rule goes with ndim, max_ndim or min_ndim."
                if isinstance(word, Iterable):
                    remedy = "A list of names is Rule(names=[...]); several patterns are Rule(p, q)."
                raise TypeError(f"{self}: a pattern must be text, got {word!r}. {remedy}")
        if isinstance(names, str) or not all(isinstance(x, str) for x in self.names or ()):
            raise TypeError(f"Rule: names must be a list of names, got {names!r}. Pass names=[...].")
        for word, given in self.sizes.items():
            if isinstance(given, bool) or not isinstance(given, int) or given < 0:
                raise TypeError(f"{self}: {word} must be an integer in [0, inf), got {given!r}.")
        for word, flag in (("train", train), ("as_vector", as_vector)):
            if flag is not None and not isinstance(flag, bool):
                raise TypeError(f"{self}: {word} must be True or False, got {flag!r}.")
        if as_matrix not in (None, "first", "last"):
            raise ValueError(f"{self}: as_matrix must be 'first' or 'last', got {as_matrix!r}.")
        if as_vector and as_matrix:
            raise ValueError(f"{self}: a parameter cannot be seen as a vector and as a matrix. Drop one.")
        if not (patterns or names or self.sizes):
            raise ValueError(
                f"{self} does not say which parameters it means. Give a pattern, names, ndim, max_ndim "
                'or min_ndim; "*" means all.'
            )
        if train is None and as_vector is None and as_matrix is None and not hypers:
            raise ValueError(
                f"{self} changes nothing. Say what holds, for example weight_decay=0.0 or train=False."
            )

    def means(self, name: str, ndim: int) -> bool:
        """Whether a parameter fulfils every condition."""
        plain = _plain_name(name)
        fits = {
            "ndim": ndim == self.sizes.get("ndim"),
            "max_ndim": ndim <= self.sizes.get("max_ndim", 0),
            "min_ndim": ndim >= self.sizes.get("min_ndim", 0),
        }
        return (
            all(fits[word] for word in self.sizes)
            and (self.names is None or plain in map(_plain_name, self.names))
            and (not self.patterns or any(_matches(p, plain) for p in self.patterns))
        )

    @property
    def named(self) -> bool:
        """Whether it goes by names."""
        return bool(self.patterns) or self.names is not None

    def config(self) -> dict[str, Any]:
        """Everything that makes another rule like this one, by the arguments' names."""
        given = {
            "names": None if self.names is None else list(self.names),
            **self.sizes,
            "train": self.train,
            "as_vector": self.as_vector,
            "as_matrix": self.as_matrix,
            **self.hypers,
        }
        kept = {key: value for key, value in given.items() if value is not None or key in self.hypers}
        return {"patterns": list(self.patterns), **kept}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rule:
        """The reverse of `config`."""
        return cls(*config["patterns"], **{k: v for k, v in config.items() if k != "patterns"})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and other.config() == self.config()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        config = self.config()
        words = [f'"{p}"' if isinstance(p, str) else repr(p) for p in config.pop("patterns")]
        return f"Rule({', '.join([*words, *(f'{k}={v!r}' for k, v in config.items())])})"


def _plain_number(value: Any) -> Any:
    """A number of NumPy as Python's own, so that rules are plain data."""
    return value.item() if isinstance(value, numbers.Number) and hasattr(value, "item") else value


def _plain_name(name: str) -> str:
    """A name as every framework writes it: `layers[0].w`, `layers.0.w` and `layers/0/w:0` are one."""
    return re.sub(r"[./\[\]]+", ".", name.removesuffix(":0")).strip(".")


def _matches(pattern: str, plain: str) -> bool:
    """Whether a name matches a pattern."""
    inside, head = _plain_name(pattern), ""
    if inside.startswith("*."):
        inside, head = inside[2:], r"(?:.*\.)?"
    text = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in inside)
    return re.fullmatch(head + text, plain, re.DOTALL) is not None


# ---------------------------------------------------------------------------------------------------
# What follows for an optimizer


@dataclass(frozen=True, eq=False)
class Setting:
    """What holds for the parameters that the same rules mean."""

    rules: tuple[int, ...] = ()  # their numbers, from 1
    overrides: tuple[tuple[str, Any], ...] = ()  # by the spec's names, in the order of the rules
    train: bool = True
    view: str | None = None  # vector, first or last: how the algorithm sees the axes

    def over(
        self, hypers: Mapping[str, Any], scaled: Callable[[Any, float], Any] = lambda x, k: x * k
    ) -> dict[str, Any]:
        """The hyperparameters that hold; `scaled` says what so many times a value is."""
        now = dict(hypers)
        for name, value in self.overrides:
            now[name] = scaled(now[name], value.factor) if isinstance(value, Times) else value
        return now

    def seen(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape in which the algorithm sees a parameter of some shape."""
        sizes = tuple(shape)
        if self.view == "vector" and len(sizes) > 1:
            return (math.prod(sizes),)
        if self.view == "first" and len(sizes) > 2:
            return sizes[0], math.prod(sizes[1:])
        if self.view == "last" and len(sizes) > 2:
            return math.prod(sizes[:-1]), sizes[-1]
        return sizes

    @property
    def label(self) -> str:
        """What to call these parameters: nothing where no rule means them."""
        return f"rules {' '.join(map(str, self.rules))}" if self.rules else ""


class Rules:
    """The rules of one optimizer, checked.

    Args:
        owner: the optimizer's name, for messages.
        given: the rules.
        domains: the optimizer's hyperparameters by the names that its users know.
        spelling: those names that differ from the spec's: the spec's, or a tuple of them.
        hypers: the hyperparameters that hold otherwise, by the spec's names.
        unchecked: says which values are tensors or schedules.
        together: states of all parameters together, which the optimizer has.
        elementwise: whether every number goes its own way, so that it does not matter how axes are seen.
        choices: the hyperparameters that decide, for all parameters, on what a step does.
    """

    def __init__(
        self,
        owner: str,
        given: Sequence[Rule],
        domains: Mapping[str, Domain],
        spelling: Mapping[str, str | tuple[str, ...]],
        hypers: Mapping[str, Any],
        unchecked: Callable[[Domain, Any], bool],
        together: Iterable[str] = (),
        elementwise: bool = False,
        choices: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(given, Rule) or not isinstance(given, Iterable):
            raise TypeError(f"{owner}: rules must be a list of rules, got {given!r}. Pass rules=[...].")
        self.owner, self.given, self.spelling = owner, tuple(given), dict(spelling)
        for rule in self.given:
            if type(rule).__name__ == "Rule" and not isinstance(rule, Rule):
                raise TypeError(
                    f"{owner}: {rule!r} is a Rule of {type(rule).__module__}. Take the one of the package "
                    "that the optimizer is from."
                )
            if not isinstance(rule, Rule):
                raise TypeError(
                    f"{owner}: rules must be a list of rules, got {rule!r} in it. Pass, for example, "
                    'Rule("*.bias", weight_decay=0.0).'
                )
        if self.given and together:
            raise ValueError(
                f"{owner}: {', '.join(together)} is kept for all parameters together, and rules would part "
                "them. Leave rules out, or take an optimizer for each part."
            )
        self.elementwise, self.choices = elementwise, choices or {}
        self.domains: dict[str, Domain] = {}  # by the spec's names
        self.words: dict[str, str] = {}  # the spec's names as users write them
        for word, domain in domains.items():
            names = self.spelling.get(word, word)
            entries = [names] if isinstance(names, str) else list(names)
            for i, name in enumerate(entries):
                self.domains[name] = domain if isinstance(names, str) else domain.part(i)
                self.words[name] = word if isinstance(names, str) else f"{word}[{i}]"
        self.settings: dict[tuple[int, ...], Setting] = {(): Setting()}
        self.overrides = [
            self._overrides(f"rule {n}", rule, hypers, unchecked)
            for n, rule in enumerate(self.given, 1)
        ]

    def _overrides(
        self,
        place: str,
        rule: Rule,
        hypers: Mapping[str, Any],
        unchecked: Callable[[Domain, Any], bool],
    ) -> dict[str, Any]:
        """What a rule sets, by the spec's names, checked."""
        made: dict[str, Any] = {}
        for word, value in rule.hypers.items():
            names = self.spelling.get(word, word)
            if isinstance(names, tuple):
                if not isinstance(value, (tuple, list)) or len(value) != len(names):
                    raise TypeError(
                        f"{self.owner}: {word} of {place} must be a tuple ({', '.join(names)}), got "
                        f"{value!r}."
                    )
                made.update(zip(names, value, strict=True))
            elif names in self.domains:
                made[names] = value
            else:
                raise TypeError(f"{self.owner}: {place}, {rule}, {self._unknown(word)}")
        for name, value in made.items():
            domain, called = self.domains[name], f"{self.words[name]} of {place}"
            if isinstance(value, Times):
                base = hypers[name]
                if domain.kind != "float" or domain.many:
                    raise TypeError(f"{self.owner}: {called} must be {domain.phrase}, got {value!r}.")
                if base is None:
                    raise TypeError(f"{self.owner}: {called} is {value!r} of None. Give it a value.")
                if not unchecked(domain, base):
                    domain.check(self.owner, called, float(base) * value.factor)
            elif not unchecked(domain, value):
                domain.check(self.owner, called, value)
        chosen = {k: x for k, x in made.items() if not isinstance(x, Times)}
        if self.choices and told(self.choices, {**hypers, **chosen}) != told(self.choices, hypers):
            odd = [self.words[k] for k in chosen if k in self.choices.values()]
            raise ValueError(
                f"{self.owner}: {', '.join(odd)} of {place} decides on what a step does, which is the same "
                "for all parameters here. Leave it out, or take an optimizer for each part."
            )
        return made

    def _unknown(self, word: str) -> str:
        users = list(dict.fromkeys(w.partition("[")[0] for w in self.words.values()))
        close = difflib.get_close_matches(word, [*users, *self.domains, *_CONDITIONS], 1)
        hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(users)}."
        return f"sets {word}, which is no hyperparameter of {self.owner}. {hint}"

    def assign(
        self,
        parameters: Sequence[tuple[str | None, Sequence[int]]],
        remedy: str = "Give it one.",
        whole: bool = True,
    ) -> list[Setting]:
        """What holds for each parameter.

        Args:
            parameters: their names and shapes; no name where there is none.
            remedy: how parameters get names.
            whole: whether these are all, so that a rule which means none of them is a mistake.

        Raises:
            ValueError: a rule means no parameter, or goes by names that are missing.
        """
        for n, rule in enumerate(self.given, 1):
            if rule.named and any(name is None for name, _ in parameters):
                raise ValueError(
                    f"{self.owner}: rule {n}, {rule}, goes by names, and the parameters have none. {remedy}"
                )
            if whole and parameters:
                self._used(n, rule, [(name or "", len(shape)) for name, shape in parameters])
        return [self._setting(name or "", len(shape)) for name, shape in parameters]

    def _used(self, n: int, rule: Rule, parameters: Sequence[tuple[str, int]]) -> None:
        """Refuse a rule that means nothing, or has a name that nothing has."""
        known = {_plain_name(name): name for name, _ in parameters}
        strange = [x for x in rule.names or () if _plain_name(x) not in known]
        if not strange and any(rule.means(*p) for p in parameters):
            return
        what = f"has the name {strange[0]!r}, which no parameter has" if strange else "means no parameter"
        wanted = [strange[0]] if strange else [*rule.patterns, *(rule.names or ())]
        by_name = {name for name, ndim in parameters if any(_matches(p, _plain_name(name)) for p in wanted)}
        if wanted and not by_name:
            hint = _closest(wanted, known)
        else:
            axes = sorted({ndim for name, ndim in parameters if name in by_name or not wanted})
            hint = f"{'Those' if wanted else 'The'} parameters have {_listed(axes)} ax{'ei'[axes == [1]]}s."
        raise ValueError(f"{self.owner}: rule {n}, {rule}, {what}. {hint}")

    def _setting(self, name: str, ndim: int) -> Setting:
        meant = tuple(n for n, rule in enumerate(self.given, 1) if rule.means(name, ndim))
        if meant not in self.settings:
            train, view = True, None
            for n in meant:
                rule = self.given[n - 1]
                train = train if rule.train is None else rule.train
                if rule.as_vector is not None or rule.as_matrix is not None:
                    view = "vector" if rule.as_vector else rule.as_matrix
            overrides = tuple(pair for n in meant for pair in self.overrides[n - 1].items())
            self.settings[meant] = Setting(meant, overrides, train, None if self.elementwise else view)
        return self.settings[meant]

    def assignment(
        self,
        hypers: Mapping[str, Any],
        parameters: Iterable[tuple[str, Sequence[int], Setting]],
    ) -> Assignment:
        """The table of what holds."""
        rows = []
        for name, shape, setting in parameters:
            now = setting.over(hypers, _shown_product)
            changed = {self.words[name]: _shown(now[name]) for name, _ in setting.overrides}
            seen = setting.seen(shape)
            seen_as = seen if setting.train and seen != tuple(shape) else None
            rows.append(
                Assigned(name, tuple(shape), setting.rules, changed, setting.train, seen_as)
            )
        return Assignment(self.owner, self.given, tuple(rows))


_CONDITIONS = "names ndim max_ndim min_ndim train as_vector as_matrix".split()


def _closest(wanted: Sequence[str], known: Mapping[str, str]) -> str:
    """Which names there are, the closest first."""
    near: dict[str, float] = {}
    for word in wanted:
        plain = _plain_name(word).replace("*", "").strip(".")
        for name in known:
            tails = [name.split(".", i)[-1] for i in range(name.count(".") + 1)]
            ratios = [difflib.SequenceMatcher(None, plain, tail).ratio() for tail in tails]
            near[name] = max([near.get(name, 0.0), *ratios])
    best = sorted(near, key=lambda name: -near[name])[:3]
    there_are = "The closest names are" if len(known) > 3 else "There are"
    return f"{there_are} {_listed([known[x] for x in best])}."


def _listed(words: Sequence[Any]) -> str:
    """One, two and three."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def _shown(value: Any) -> Any:
    """A value as people write it."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


@dataclass(frozen=True)
class _Product:
    """A schedule so many times, as the table has it."""

    factor: float
    value: Any

    def __repr__(self) -> str:
        return f"{self.factor!r} * {self.value!r}"


def _shown_product(value: Any, factor: float) -> Any:
    value = _shown(value)
    return value * factor if isinstance(value, numbers.Real) else _Product(factor, value)


class Assigned(NamedTuple):
    """What holds for a parameter."""

    name: str
    shape: tuple[int, ...]
    rules: tuple[int, ...]  # the rules that mean it, by their numbers
    hypers: dict[str, Any]  # what they set, by the names that users know
    train: bool
    seen_as: tuple[int, ...] | None  # the shape in which the algorithm sees it, if another

    def __str__(self) -> str:
        words = [f"{name}={value!r}" for name, value in self.hypers.items()]
        if self.seen_as is not None:
            words.append(f"seen as {self.seen_as}")
        return ", ".join(words) if self.train else "not trained"


@dataclass(frozen=True, repr=False)
class Assignment:
    """Which rules hold for which parameter; printed, a table."""

    owner: str
    rules: tuple[Rule, ...]
    rows: tuple[Assigned, ...]

    def __repr__(self) -> str:
        head = [f"rule {n}: {rule}" for n, rule in enumerate(self.rules, 1)]
        cells = [("parameter", "shape", "rules", "what they set")]
        for row in self.rows:
            numbered = " ".join(map(str, row.rules)) or "-"
            cells.append((row.name or "params", str(row.shape), numbered, str(row)))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        return "\n".join([self.owner, *head, "", *lines])
