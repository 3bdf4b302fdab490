"""One network on real images, trained in four frameworks with the same optimizer and schedule.

    python examples/digits.py
    python examples/digits.py --optimizer nadam --schedule one_cycle --lr 3e-3 --set beta2=0.99
    python examples/digits.py --optimizer lion --gradients-from jax --frameworks jax tensorflow

Two parts, from the same weights and with the same batches:

1.  Each framework differentiates by itself (NumPy by hand). Their matrix products and tanh round in
    different ways, so the gradients differ in the last bit and the runs drift apart, a little.
2.  One framework's gradients are fed to all. What is left is the optimizer and the schedule, and
    those are the same equations: after every step every parameter is the same to its last bit.

The images are scikit-learn's digits (1,797 of 8 x 8 pixels), which come with the package. Needs
`pip install scikit-learn matplotlib rich` and whichever of PyTorch, JAX and TensorFlow are there.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import inspect
import os
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices this small are slower on many threads
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # equal bits are promised on the CPU
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

Arrays = dict[str, Any]  # w1, b1, w2, b2 as NumPy arrays


# --------------------------------------------------------------------------------------------------
# What is trained, and with what


class Images(NamedTuple):
    """Standardised images, one a row, and their digits."""

    x: Any
    y: Any


@dataclass(frozen=True)
class Rule:
    """A schedule by name, with the spec's hyperparameters; some of these may be schedules."""

    name: str
    hypers: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """An optimizer by name, with the spec's hyperparameters, and its learning rate."""

    optimizer: str
    hypers: Mapping[str, Any]
    lr: float
    schedule: Rule | None  # None: the rate is constant


def digits() -> tuple[Images, Images]:
    """Images to train with and, one in five, images to keep aside."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    aside, rest = np.split(order, [len(x) // 5])
    mean, deviation = x[rest].mean(axis=0), x[rest].std(axis=0)
    # Pixels that are always, or nearly always, black would become huge where they are not.
    x = ((x - mean) / np.maximum(deviation, 1.0)).astype(np.float32)
    return Images(x[rest], y[rest]), Images(x[aside], y[aside])


def first_weights(hidden: int) -> Arrays:
    """The weights that every framework starts from."""
    rng = np.random.default_rng(1)
    return {
        "w1": (rng.standard_normal((64, hidden)) / np.sqrt(64)).astype(np.float32),
        "b1": np.zeros(hidden, np.float32),
        "w2": (rng.standard_normal((hidden, 10)) / np.sqrt(hidden)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }


def batches(images: Images, size: int, epochs: int) -> Iterator[Images]:
    """The same batches for every framework; what does not fill one is left out of its epoch."""
    rng = np.random.default_rng(2)
    for _ in range(epochs):
        order = rng.permutation(len(images.x))
        for first in range(0, len(order) - size + 1, size):
            chosen = order[first : first + size]
            yield Images(images.x[chosen], images.y[chosen])


def logits(params: Arrays, x: Any) -> Any:
    """The network: 64 pixels, a hidden layer with tanh, 10 digits."""
    return np.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def mean_loss(params: Arrays, images: Images) -> float:
    """Cross-entropy in double precision: one yardstick for all, so that equal weights measure equal."""
    z = logits({k: p.astype(np.float64) for k, p in params.items()}, images.x.astype(np.float64))
    z = z - z.max(axis=1, keepdims=True)
    chosen = z[np.arange(len(z)), images.y]
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - chosen))


def accuracy(params: Arrays, images: Images) -> float:
    """The share of images whose digit is the likeliest."""
    return float(np.mean(logits(params, images.x).argmax(axis=1) == images.y))


# --------------------------------------------------------------------------------------------------
# The network in each framework


class Network(NamedTuple):
    """What the experiment asks of a framework; arrays come and go as NumPy's.

    Attributes:
        train: one step with the framework's own gradients.
        gradients: these gradients.
        apply: one step with gradients from anywhere.
        params: the parameters, at which the next gradient is taken.
        evaluated: the parameters to evaluate with; `nesterov` looks ahead, so there they are others.
    """

    train: Callable[[Images], None]
    gradients: Callable[[Images], Arrays]
    apply: Callable[[Arrays], None]
    params: Callable[[], Arrays]
    evaluated: Callable[[], Arrays]


def with_numpy(start: Arrays, recipe: Recipe) -> Network:
    """The backward pass is written by hand; the optimizer works in place."""
    from generated import numpy as package

    theta = {k: p.copy() for k, p in start.items()}
    rate = learning_rate(package.create, recipe)
    optimizer = package.create(recipe.optimizer, theta, lr=rate, **recipe.hypers)

    def gradients(batch: Images) -> Arrays:
        x, y = batch
        hidden = np.tanh(x @ theta["w1"] + theta["b1"])
        z = hidden @ theta["w2"] + theta["b2"]
        e = np.exp(z - z.max(axis=1, keepdims=True))
        dz = e / e.sum(axis=1, keepdims=True)  # softmax
        dz[np.arange(len(y)), y] -= 1
        dz /= np.float32(len(y))
        dh = (dz @ theta["w2"].T) * (1 - hidden * hidden)
        return {"w1": x.T @ dh, "b1": dh.sum(axis=0), "w2": hidden.T @ dz, "b2": dz.sum(axis=0)}

    def train(batch: Images) -> None:
        optimizer.step(gradients(batch))

    def params() -> Arrays:
        return {k: p.copy() for k, p in theta.items()}

    def evaluated() -> Arrays:
        with optimizer.evaluation():
            return params()

    return Network(train, gradients, optimizer.step, params, evaluated)


def with_torch(start: Arrays, recipe: Recipe) -> Network:
    """Parameters, an optimizer over them and a scheduler on the optimizer."""
    import torch

    from generated import torch as package

    theta = {k: torch.nn.Parameter(torch.tensor(p)) for k, p in start.items()}
    optimizer = package.create(recipe.optimizer, theta.values(), lr=recipe.lr, **recipe.hypers)

    def part(value: Any) -> Any:
        """A schedule among a schedule's hyperparameters: `Cosine.of(total=100)`."""
        if isinstance(value, Rule):
            schedule = getattr(package, class_of("schedules", value.name).__name__)
            return schedule.of(**without_rate(value))
        return tuple(map(part, value)) if isinstance(value, tuple) else value

    def without_rate(rule: Rule) -> dict[str, Any]:
        """In PyTorch a schedule starts from its optimizer's lr."""
        return {k: part(v) for k, v in rule.hypers.items() if k != "base_lr"}

    scheduler = None
    if recipe.schedule is not None:
        hypers = without_rate(recipe.schedule)
        scheduler = package.create(recipe.schedule.name, optimizer, **hypers)

    def backward(batch: Images) -> None:
        x, y = map(torch.from_numpy, batch)
        z = torch.tanh(x @ theta["w1"] + theta["b1"]) @ theta["w2"] + theta["b2"]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(z, y).backward()

    def step() -> None:
        optimizer.step()
        if scheduler is not None:
            scheduler.step()

    def train(batch: Images) -> None:
        backward(batch)
        step()

    def gradients(batch: Images) -> Arrays:
        backward(batch)
        return {k: p.grad.numpy().copy() for k, p in theta.items()}

    def apply(grads: Arrays) -> None:
        for k, p in theta.items():
            p.grad = torch.tensor(grads[k])
        step()

    def params() -> Arrays:
        return {k: p.detach().numpy().copy() for k, p in theta.items()}

    def evaluated() -> Arrays:
        with optimizer.evaluation():
            return params()

    return Network(train, gradients, apply, params, evaluated)


def with_jax(start: Arrays, recipe: Recipe) -> Network:
    """Pure functions under jit; `optimizer.step` gives the new parameters themselves."""
    import jax
    import jax.numpy as jnp

    from generated import jax as package

    rate = learning_rate(package.create, recipe)
    optimizer = package.create(recipe.optimizer, lr=rate, **recipe.hypers)
    theta = {k: jnp.asarray(p) for k, p in start.items()}
    state = optimizer.init(theta)

    def loss(p: Any, x: Any, y: Any) -> Any:
        z = jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1))

    @jax.jit
    def trained(p: Any, state: Any, x: Any, y: Any) -> Any:
        _, grads = jax.value_and_grad(loss)(p, x, y)
        return optimizer.step(p, grads, state)

    slope, stepped = jax.jit(jax.grad(loss)), jax.jit(optimizer.step)

    def train(batch: Images) -> None:
        nonlocal theta, state
        theta, state = trained(theta, state, *batch)

    def gradients(batch: Images) -> Arrays:
        return {k: np.asarray(g) for k, g in slope(theta, *batch).items()}

    def apply(grads: Arrays) -> None:
        nonlocal theta, state
        theta, state = stepped(theta, grads, state)

    def params() -> Arrays:
        return {k: np.asarray(p) for k, p in theta.items()}

    def evaluated() -> Arrays:
        return {k: np.asarray(p) for k, p in optimizer.evaluation_params(theta, state).items()}

    return Network(train, gradients, apply, params, evaluated)


def with_tensorflow(start: Arrays, recipe: Recipe) -> Network:
    """A gradient tape and `optimizer.apply` in one tf.function."""
    import tensorflow as tf

    from generated import tensorflow as package

    rate = learning_rate(package.create, recipe)
    optimizer = package.create(recipe.optimizer, lr=rate, **recipe.hypers)
    theta = {k: tf.Variable(p, name=k) for k, p in start.items()}
    variables = list(theta.values())
    optimizer.build(variables)

    @tf.function
    def slope(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            z = tf.tanh(x @ theta["w1"] + theta["b1"]) @ theta["w2"] + theta["b2"]
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=z)
            loss = tf.reduce_mean(losses)
        return tape.gradient(loss, variables)

    @tf.function
    def step(grads: Any) -> None:
        optimizer.apply(grads, variables)

    @tf.function
    def trained(x: Any, y: Any) -> None:
        step(slope(x, y))

    def train(batch: Images) -> None:
        trained(*batch)

    def gradients(batch: Images) -> Arrays:
        return {k: g.numpy() for k, g in zip(theta, slope(*batch), strict=True)}

    def apply(grads: Arrays) -> None:
        step([tf.constant(grads[k]) for k in theta])

    def params() -> Arrays:
        return {k: p.numpy() for k, p in theta.items()}

    def evaluated() -> Arrays:
        with optimizer.evaluation():
            return params()

    return Network(train, gradients, apply, params, evaluated)


FRAMEWORKS = {"numpy": with_numpy, "torch": with_torch, "jax": with_jax, "tensorflow": with_tensorflow}
TITLES = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow"}


def learning_rate(create: Callable[..., Any], recipe: Recipe) -> Any:
    """A number or a schedule: what NumPy, JAX and Keras take as the learning rate."""

    def made(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(made, value))
        if isinstance(value, Rule):
            return create(value.name, **{k: made(v) for k, v in value.hypers.items()})
        return value

    return recipe.lr if recipe.schedule is None else made(recipe.schedule)


# --------------------------------------------------------------------------------------------------
# The two parts


@dataclass
class Course:
    """What one run leaves: losses over the training images, and the parameters at its end."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    end: Arrays = field(default_factory=dict)

    def record(self, step: int, network: Network, images: Images) -> None:
        """Measure the network after a number of steps."""
        self.end = network.evaluated()
        self.steps.append(step)
        self.losses.append(mean_loss(self.end, images))


@dataclass(frozen=True)
class Experiment:
    """The same for every framework."""

    recipe: Recipe
    train: Images
    aside: Images
    start: Arrays
    batches: Sequence[Images]

    def recorded(self, step: int) -> bool:
        """Whether the loss is measured after this many steps: about a hundred times, and at the end."""
        steps = len(self.batches)
        return step % max(1, steps // 100) == 0 or step == steps

    def try_one_step(self) -> None:
        """Refuse hyperparameters outside their domains before anything takes long."""
        try:
            with_numpy(self.start, self.recipe).train(self.batches[0])
        except (ValueError, TypeError) as wrong:
            raise Refused(str(wrong)) from wrong

    def own_gradients(self, framework: str, tick: Callable[[], None]) -> Course:
        """Part 1: a run with a framework's own gradients."""
        network = FRAMEWORKS[framework](self.start, self.recipe)
        course = Course()
        course.record(0, network, self.train)
        for step, batch in enumerate(self.batches, 1):
            network.train(batch)
            if self.recorded(step):
                course.record(step, network, self.train)
            tick()
        return course

    def same_gradients(
        self, frameworks: Sequence[str], source: str, tick: Callable[[], None]
    ) -> tuple[dict[str, Course], dict[str, int]]:
        """Part 2: runs with the gradients of one framework, and how far they were ever apart in ULP."""
        networks = {name: FRAMEWORKS[name](self.start, self.recipe) for name in frameworks}
        courses = {name: Course() for name in frameworks}
        apart = dict.fromkeys(frameworks, 0)
        for name, network in networks.items():
            courses[name].record(0, network, self.train)
        for step, batch in enumerate(self.batches, 1):
            grads = networks[source].gradients(batch)
            for network in networks.values():
                network.apply(grads)
            params = {name: network.params() for name, network in networks.items()}
            for name in frameworks:
                apart[name] = max(apart[name], ulps(params[name], params[frameworks[0]]))
                if self.recorded(step):
                    courses[name].record(step, networks[name], self.train)
            tick()
        return courses, apart


def ulps(a: Arrays, b: Arrays) -> int:
    """The largest distance of two float32 parameters, in units in the last place."""
    return max(int(np.abs(_place(a[k]) - _place(b[k])).max()) for k in a)


def _place(x: Any) -> Any:
    """Where a float32 stands in the row of all floats: neighbours differ by 1, -0 and +0 by 1, too."""
    bits = x.view(np.int32).astype(np.int64)
    place = np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)
    return np.where(np.isnan(x), 2**31, place)  # whatever its bits, NaN is NaN


# --------------------------------------------------------------------------------------------------
# The command line


class Refused(Exception):
    """A mistake of the user's; its text is one line."""


def names(kind: str) -> list[str]:
    """All optimizers, or all schedules, by their specs' names."""
    return [m.name for m in pkgutil.iter_modules(importlib.import_module(f"generated.numpy.{kind}").__path__)]


def class_of(kind: str, name: str) -> Any:
    """The NumPy package's class: its parameters are the spec's hyperparameters."""
    module = importlib.import_module(f"generated.numpy.{kind}.{name}")
    return getattr(module, module.__all__[0])


def checked(kind: str, name: str) -> str:
    """The name, if there is such an optimizer or schedule."""
    if name not in names(kind):
        raise Refused(f"no {kind[:-1]} is called {name!r}. {suggestion(name, names(kind))}")
    return name


def suggestion(word: str, known: Sequence[str]) -> str:
    """What may have been meant, or else everything there is."""
    close = difflib.get_close_matches(word, known, 1)
    return f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(known)}."


def hypers_of(kind: str, name: str) -> dict[str, Any]:
    """Hyperparameters and their defaults, the learning rate apart."""
    parameters = inspect.signature(class_of(kind, name)).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("params", "lr")}


def recipe_of(args: argparse.Namespace, steps: int) -> Recipe:
    """What the command line asks for."""
    optimizer = checked("optimizers", args.optimizer)
    known = list(hypers_of("optimizers", optimizer))
    scheduled = []
    if args.schedule != "none":
        scheduled = list(hypers_of("schedules", checked("schedules", args.schedule)))
    given: dict[str, Any] = {}
    for word in args.set:
        key, equals, text = word.partition("=")
        if key in ("lr", "base_lr"):
            raise Refused(f"--set {word}: the learning rate is --lr {text}.")
        if not equals or key not in known + scheduled:
            owners = f"{optimizer} and {args.schedule}" if scheduled else optimizer
            hint = suggestion(key, known + [s for s in scheduled if s != "base_lr"])
            raise Refused(f"--set {word}: no hyperparameter of {owners}. {hint}")
        try:
            given[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            given[key] = text
    lr = args.lr
    if lr is None:  # the defaults are for long runs at a constant rate
        lr = 3 * inspect.signature(class_of("optimizers", optimizer)).parameters["lr"].default
    # Keras keeps a learning rate that is a number in a float32 variable; a schedule it evaluates in
    # double precision, as all do. So that equal bits can be had without a schedule, too, the number
    # is one that float32 can hold: 0.001 is not, 0.0010000000474974513 is.
    schedule = None
    if args.schedule == "none":
        lr = float(np.float32(lr))
    else:
        schedule = rule_of(args.schedule, lr, steps, {k: v for k, v in given.items() if k in scheduled})
    return Recipe(optimizer, {k: v for k, v in given.items() if k in known}, lr, schedule)


def rule_of(name: str, lr: float, steps: int, given: Mapping[str, Any]) -> Rule:
    """A schedule for a run of some steps; hyperparameters that must be given and are not are sensible."""
    pieces = len(given["schedules"]) if isinstance(given.get("schedules"), tuple) else 2
    sensible: dict[str, Any] = {
        "base_lr": lr,
        "lr_min": 0.0,
        "total": steps,
        "warmup": steps // 10,
        "stable": 7 * steps // 10,
        "decay": 0.5,
        "steps": max(1, steps // 4),
        "step": max(1, steps // 4),
        "scale": max(1, steps // 10),
        "period": max(1, steps // 6),
        "first": max(1, steps // 7),
        "factor": 2,
        "boundaries": tuple(max(1, steps * k // pieces) for k in range(1, pieces)),
        "values": (lr / 10,),
        "schedule": "cosine",
        "schedules": ("linear", "cosine"),
    }

    def part(name: Any, length: int) -> Any:
        """A schedule in a schedule, by name: `--schedule warmup --set schedule=rex`."""
        return rule_of(checked("schedules", name), lr, max(1, length), {}) if isinstance(name, str) else name

    defaults = hypers_of("schedules", name)
    hypers = {k: sensible[k] for k, default in defaults.items() if default is inspect.Parameter.empty}
    hypers.update(given)
    if "schedule" in hypers:
        warmup = hypers["warmup"] if isinstance(hypers["warmup"], int) else 0
        hypers["schedule"] = part(hypers["schedule"], steps - warmup)
    if isinstance(hypers.get("schedules"), tuple):
        hypers["schedules"] = tuple(part(value, steps // pieces) for value in hypers["schedules"])
    return Rule(name, hypers)


@contextmanager
def silence() -> Iterator[None]:
    """Keep what native code writes while it is loaded off the screen; exceptions come through."""
    screen, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)
        os.close(nowhere)


def present(wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """The frameworks that can be imported, and a note on each that cannot."""
    found, notes = [], []
    for name in dict.fromkeys(wanted):
        try:
            with silence():
                importlib.import_module(name)
            found.append(name)
        except ImportError as error:
            notes.append(f"{TITLES[name]} is left out: {error}")
    return found, notes


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--optimizer", default="adamw", help="by its spec's name (adamw)")
    p.add_argument("--schedule", default="warmup_cosine", help="the same, or none (warmup_cosine)")
    p.add_argument("--lr", type=float, help="learning rate, the schedule's base (three times the default)")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any hyperparameter")
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--batch", type=int, default=32, help="images in a batch (32)")
    p.add_argument("--hidden", type=int, default=64, help="width of the hidden layer (64)")
    p.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS), metavar="NAME")
    p.add_argument("--gradients-from", choices=FRAMEWORKS, metavar="NAME", help="for part 2 (torch)")
    p.add_argument("--out", type=Path, default=Path("digits.png"), help="the picture (digits.png)")
    return p


def main() -> int:
    """Run both parts; 1 if any bit differs where none may, 2 if the command line is wrong."""
    began = time.perf_counter()
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges shows as NaN
            return run(parser().parse_args(), began)
    except Refused as mistake:
        print(f"digits.py: {mistake}", file=sys.stderr)
    except ImportError as missing:
        print(f"digits.py: {missing}. pip install scikit-learn matplotlib rich", file=sys.stderr)
    return 2


def run(args: argparse.Namespace, began: float) -> int:
    """The two parts, the table and the picture."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console()
    train, aside = digits()
    if args.epochs < 1 or args.hidden < 1 or not 1 <= args.batch <= len(train.x):
        raise Refused(f"--epochs and --hidden are at least 1, --batch is from 1 to {len(train.x)}.")
    some = list(batches(train, args.batch, args.epochs))
    recipe = recipe_of(args, len(some))
    experiment = Experiment(recipe, train, aside, first_weights(args.hidden), some)
    experiment.try_one_step()
    with console.status("importing frameworks"):
        frameworks, notes = present(args.frameworks)
    for note in notes:
        console.print(note, highlight=False, markup=False)
    source = args.gradients_from or ("torch" if "torch" in frameworks else next(iter(frameworks), ""))
    if source not in frameworks:
        raise Refused(f"gradients cannot come from {source or 'nowhere'}: --frameworks lacks it.")

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        own = {}
        for name in frameworks:
            bar = progress.add_task(f"{TITLES[name]}, own gradients", total=len(some))
            own[name] = experiment.own_gradients(name, lambda bar=bar: progress.advance(bar))
        bar = progress.add_task(f"all, gradients from {TITLES[source]}", total=len(some))
        fed, apart = experiment.same_gradients(frameworks, source, lambda: progress.advance(bar))

    console.print(table(experiment, own, apart, source))
    first = fed[frameworks[0]].losses
    same = not any(apart.values()) and all(
        np.array_equal(course.losses, first, equal_nan=True) for course in fed.values()
    )
    count = sum(p.size for p in experiment.start.values())
    console.print(
        f"{TITLES[source]}'s gradients fed to {len(frameworks)} frameworks: {count:,} parameters over "
        f"{len(some):,} steps, "
        + (
            "[green]0 ULP apart after every step; loss curves identical.[/]"
            if same
            else f"[red]up to {max(apart.values()):,} ULP apart.[/]"
        ),
        highlight=False,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(args.out, experiment, own, fed, apart, source)
    console.print(f"{args.out}   {time.perf_counter() - began:.0f} s", highlight=False)
    return 0 if same else 1


def table(experiment: Experiment, own: Mapping[str, Course], apart: Mapping[str, int], source: str) -> Any:
    """What each framework reached, and how far it is from the first one."""
    from rich.table import Table

    first = next(iter(own))
    made = Table(
        title=title(experiment),
        caption=f"ULP: distance of the farthest parameter from {TITLES[first]}'s, in units in the last "
        "place; with own gradients at the end, with the same gradients after any step",
    )
    made.add_column("framework", no_wrap=True)
    numbers = ("accuracy, held out", "loss, training", "ULP, own gradients")
    for heading in (*numbers, f"ULP, {TITLES[source]}'s gradients"):
        made.add_column(heading, justify="right", no_wrap=heading == numbers[1])
    for name, course in own.items():
        made.add_row(
            f"{TITLES[name]} {version(name).partition('+')[0]}",
            f"{100 * accuracy(course.end, experiment.aside):.2f} %",
            f"{course.losses[-1]:#.7g}",
            f"{ulps(course.end, own[first].end):,}",
            f"{apart[name]:,}",
        )
    return made


def title(experiment: Experiment) -> str:
    """The optimizer, the schedule and the size of the experiment."""
    recipe = experiment.recipe
    rule = recipe.schedule.name if recipe.schedule else "constant rate"
    return f"{recipe.optimizer}, {rule}, lr {recipe.lr:.6g}, {len(experiment.batches):,} steps"


# --------------------------------------------------------------------------------------------------
# The picture

# Of Okabe and Ito's colours, told apart with every kind of colour vision; widths and dashes besides.
COLOURS = {"numpy": "#56B4E9", "torch": "#0072B2", "jax": "#E69F00", "tensorflow": "#000000"}
WIDTHS = {"numpy": 9, "torch": 6, "jax": 3.5, "tensorflow": 1}
DASHES = {"numpy": "-", "torch": "-", "jax": (0, (6, 1.5)), "tensorflow": (0, (1.5, 1))}


def draw(
    out: Path,
    experiment: Experiment,
    own: Mapping[str, Course],
    fed: Mapping[str, Course],
    apart: Mapping[str, int],
    source: str,
) -> None:
    """Three panels: the loss curves, their differences, and the curves with the same gradients."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 5.2), layout="constrained")
    figure.suptitle(
        f"One network (64-{experiment.start['b1'].size}-10) on scikit-learn's digits: {title(experiment)}",
        fontsize="x-large",
    )
    right.sharey(left)
    _curves(left, own, "1.  Each framework's own gradients")
    _differences(middle, own, fed, source)
    farthest = max(apart.values())
    _curves(right, fed, f"2.  {TITLES[source]}'s gradients fed to all: {farthest:,} ULP apart")
    figure.savefig(out, dpi=100)
    plt.close(figure)


def _curves(axes: Any, courses: Mapping[str, Course], heading: str) -> None:
    """Curves on top of each other, each narrower than the one below."""
    from matplotlib.ticker import LogLocator

    for name, course in courses.items():
        style = {"color": COLOURS[name], "linewidth": WIDTHS[name]}
        axes.plot(course.steps, course.losses, label=TITLES[name], **style)
    axes.set(title=heading, xlabel="step", ylabel="loss over all training images", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    axes.legend(labelspacing=0.9, handlelength=3)


def _differences(axes: Any, own: Mapping[str, Course], fed: Mapping[str, Course], source: str) -> None:
    """How far each curve is from the first one's; below its powers of ten the axis has a zero."""
    first = next(iter(own))

    def gaps(courses: Mapping[str, Course], name: str) -> Any:
        return np.abs(np.subtract(courses[name].losses, courses[first].losses))

    for name in own:
        if name != first:
            style = {"color": COLOURS[name], "linestyle": DASHES[name], "linewidth": 1.8}
            axes.plot(own[name].steps, gaps(own, name), label=f"{TITLES[name]}, own gradients", **style)
    farthest = np.max([gaps(fed, name) for name in fed], axis=0)
    label = f"all, {TITLES[source]}'s gradients"
    axes.plot(fed[first].steps, farthest, label=label, color="#009E73", linewidth=4)
    axes.set(title=f"Distance from {TITLES[first]}'s curve", xlabel="step", ylabel="difference of losses")
    axes.set_yscale("symlog", linthresh=1e-13)
    axes.set_ylim(bottom=-2e-14)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.07))


if __name__ == "__main__":
    sys.exit(main())
