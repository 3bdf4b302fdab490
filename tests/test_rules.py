"""Rules: what they mean, the same on every backend; what is refused, word by word; the table."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import pickle
from typing import Any

import numpy as np
import pytest

from backends import discover, load
from backends.rules import Rule, Times
from backends.running import Run
from generator import catalogue, verify

BACKENDS = discover()
SHAPES = ((4, 3), (3,), (), (2, 3, 2), (5,), (0, 2))
STEPS = 20


def decayed(package: Any) -> list[Any]:
    """Decay of matrices only, a smaller step for some, an average of its own for another, one frozen."""
    return [
        package.Rule(max_ndim=1, weight_decay=0.0),
        package.Rule("1", "[2]", lr=package.Times(0.5)),
        package.Rule(names=["3"], beta1=0.5, eps=1e-3),
        package.Rule("2", lr=package.Times(0.5)),
        package.Rule("4", train=False),
    ]


def shaped(package: Any) -> list[Any]:
    """A tensor that is seen as a matrix, a matrix that is seen as a vector."""
    return [
        package.Rule(min_ndim=3, as_matrix="last", clip=0.5),
        package.Rule("0", as_vector=True, lr=package.Times(0.25)),
        package.Rule("4", train=False),
    ]


def turned(package: Any) -> list[Any]:
    """For what is computed at other points, or given besides."""
    return [
        package.Rule("0", as_vector=True, lr=package.Times(0.5)),
        package.Rule("3", as_matrix="first"),
        package.Rule("4", train=False),
    ]


def averaged(package: Any) -> list[Any]:
    """What a state of step scope depends on."""
    return [package.Rule(max_ndim=1, beta1=0.5), package.Rule("3", train=False)]


LR = 2.0**-7  # which float32 holds, as Keras does
CASES = {
    "adamw": (decayed, {"lr": LR, "weight_decay": 0.1}),
    "clip_by_global_norm > adamw": (decayed, {"lr": LR, "weight_decay": 0.1, "max_norm": 0.5}),
    "adafactor": (shaped, {"lr": LR}),
    "clip_by_global_norm > adafactor": (shaped, {"lr": LR, "max_norm": 0.5}),
    "nadam": (averaged, {"lr": LR}),
    "storm": (turned, {"lr": LR}),
    "sophia": (turned, {"lr": LR}),
}


def inputs(dtype: str) -> tuple[list[Any], list[list[Any]]]:
    rng = np.random.default_rng(5)
    params = [np.asarray(rng.standard_normal(s)).astype(dtype) for s in SHAPES]
    grads = [
        [np.asarray(rng.standard_normal(s) * 10.0 ** (k % 5 - 2)).astype(dtype) for s in SHAPES]
        for k in range(STEPS)
    ]
    return params, grads


def besides(name: str, grads: list[list[Any]], i: int | None = None, shape: Any = None) -> dict[str, Any]:
    """What storm and sophia take besides: for all parameters, or for one in some shape."""

    def rolled(k: int) -> list[list[Any]]:
        made = [*grads[k:], *grads[:k]]
        return made if i is None else [[g[i].reshape(shape)] for g in made]

    if name == "storm":
        return {"further": [[g] for g in rolled(1)]}
    return {"given": [{"hessian_diagonal": g} for g in rolled(1)]} if name == "sophia" else {}


def apart(name: str, dtype: str) -> tuple[list[Any], list[Any]]:
    """Each parameter with a NumPy optimizer of its own; clipping before that, over all that are trained."""
    package = importlib.import_module("generated.numpy")
    runner = importlib.import_module(BACKENDS["numpy"].runner)
    made, fixed = CASES[name]
    rules = made(OURS)
    params, grads = inputs(dtype)
    meant = [[r for r in rules if r.means(f"[{i}]", p.ndim)] for i, p in enumerate(params)]
    trained = [i for i in range(len(params)) if not any(r.train is False for r in meant[i])]
    hypers = {k: v for k, v in fixed.items() if k != "max_norm"}
    if "max_norm" in fixed:
        clipped = [
            package.clip_by_global_norm([g[i] for i in trained], max_norm=fixed["max_norm"]) for g in grads
        ]
        for g, made_of_it in zip(grads, clipped, strict=True):
            for i, x in zip(trained, made_of_it, strict=True):
                g[i] = x
    ends: list[Any] = []
    states: list[Any] = []
    for i, p in enumerate(params):
        if i not in trained:
            ends.append(p)
            states.append({})
            continue
        own, shape = dict(hypers), p.shape
        for r in meant[i]:
            for k, v in r.hypers.items():
                own[k] = own[k] * v.factor if isinstance(v, Times) else v
            shape = (p.size,) if r.as_vector else shape
            last, first = (p.size // (p.shape or (1,))[-1], -1), ((p.shape or (1,))[0], -1)
            shape = {"last": last, "first": first}.get(r.as_matrix or "", shape)
        alone, extra = [[g[i].reshape(shape)] for g in grads], besides(name, grads, i, shape)
        run = Run(package, name.split(" > ")[-1], [p.reshape(shape)], alone, own, **extra)
        outcome = runner.trajectory(run, "numpy")
        ends.append(outcome.params[0].reshape(p.shape))
        states.append(outcome.states[0])
    return ends, states


class OURS:
    Rule, Times = Rule, Times


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_a_parameter_under_rules_has_the_bits_of_an_optimizer_of_its_own(
    name: str, backend: str, tmp_path: Any
) -> None:
    try:
        runner = importlib.import_module(BACKENDS[backend].runner)
    except ImportError as missing:
        pytest.skip(str(missing))
    (entry,) = catalogue.entries([name])
    package = verify.built([entry], load(f"backends.{backend}"), tmp_path)
    hypers = {p.name: p.default for p in entry.program.parameters} | CASES[name][1]
    additive = entry.lowered.delta is not None
    scalars = {s.name for s in entry.lowered.scalar_states}
    modes = [m for m in BACKENDS[backend].modes if m not in runner.POLICY.slow]
    modes = [m for m in modes if additive or m not in runner.POLICY.additive]
    turn = modes[list(CASES).index(name) % len(modes)]
    for dtype in ("float32", "float64"):
        ends, states = apart(name, dtype)
        params, grads = inputs(dtype)
        for mode in modes:
            if mode in runner.POLICY.compiled and (dtype == "float64" or mode != turn):
                continue  # which parameter has which hyperparameters is no matter of precision or mode
            extra = besides(name, grads)
            run = Run(package, entry.program.name, params, grads, hypers, rules=CASES[name][0], **extra)
            got = runner.trajectory(run, mode)
            for i, (want, end) in enumerate(zip(ends, got.params, strict=True)):
                assert verify.distance(want, end) == 0, (mode, dtype, i)
                assert end.size == 0 or i == 4 or states[i] == {} or not np.array_equal(end, params[i])
            for i, (want, slot) in enumerate(zip(states, got.states, strict=True)):
                slot = {k: v for k, v in slot.items() if v is not None}
                assert slot.keys() == want.keys(), (mode, dtype, i)
                for k, v in want.items():
                    x = slot[k].reshape(v.shape)
                    if k in scalars:  # kept as a double here, rounded there
                        v, x = v.astype(dtype), x.astype(dtype)
                    assert verify.distance(v, x) == 0, (mode, dtype, i, k)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("store", ["nearest", "master", "kahan", "stochastic"])
def test_rules_and_storage(store: str, backend: str) -> None:
    """Narrow parameters under rules end where NumPy's do."""
    pytest.importorskip("ml_dtypes")
    try:
        runner = importlib.import_module(BACKENDS[backend].runner)
    except ImportError as missing:
        pytest.skip(str(missing))
    ours = importlib.import_module(BACKENDS["numpy"].runner)
    params, grads = inputs("bfloat16")
    case: dict[str, Any] = dict(rules=shaped, options={"store": store, "states": "8bit"})
    given = params, grads[:5], CASES["adafactor"][1]
    packages = (importlib.import_module(f"generated.{name}") for name in ("numpy", backend))
    want, got = (Run(made, "adafactor", *given, **case) for made in packages)
    ends = ours.trajectory(want, "numpy").params
    for p, q in zip(ends, runner.trajectory(got, BACKENDS[backend].modes[0]).params, strict=True):
        assert verify.distance(p, q) == 0
    assert np.array_equal(ends[4], params[4]) and not np.array_equal(ends[3], params[3])


@pytest.mark.parametrize("name", BACKENDS)
def test_rules_where_something_is_kept_for_all_together(name: str) -> None:
    made = package(name)
    rules = [made.Rule(max_ndim=1, train=False)]
    params: Any = [tree()]
    if name == "torch":
        torch = importlib.import_module("torch")
        params = [[torch.nn.Parameter(torch.ones(2))]]
    with pytest.raises(ValueError) as caught:
        made.create("sgd_hd", *(params if name in ("numpy", "torch") else []), rules=rules)
    message = "is kept for all parameters together, and rules would part them. Leave rules out, or take an"
    assert message in str(caught.value)


@pytest.mark.parametrize("name", BACKENDS)
def test_muon_under_rules(name: str) -> None:
    """What Muon is not for may be left untrained; a matrix may be for the other optimizer."""
    made = package(name)
    runner = importlib.import_module(BACKENDS[name].runner)
    params, grads = inputs("float32")

    def ends(algorithm: str, rules: Any, count: int, vector: bool = False) -> list[Any]:
        first = params[0].reshape(-1) if vector else params[0]
        given = [[g[0].reshape(first.shape), *g[1:count]] for g in grads[:2]]
        run = Run(made, algorithm, [first, *params[1:count]], given, {"lr": LR}, rules=rules)
        done: list[Any] = runner.trajectory(run, BACKENDS[name].modes[0]).params
        return done

    rest = ends("muon", lambda m: [m.Rule(max_ndim=1, train=False)], 4)
    moved = [not np.array_equal(x, y) for x, y in zip(params, rest, strict=False)]
    assert moved == [True, False, False, True]
    seen = ends("muon_adamw", lambda m: [m.Rule("0", as_vector=True)], 2)
    flat_ = ends("muon_adamw", None, 2, vector=True)
    assert seen[0].tobytes() == flat_[0].tobytes() and seen[1].tobytes() == flat_[1].tobytes()
    assert not np.array_equal(seen[0], ends("muon_adamw", None, 2)[0])


# ---------------------------------------------------------------------------------------------------
# What a rule means


@pytest.mark.parametrize(
    ("rule", "name", "ndim", "means"),
    [
        (Rule("*.bias", lr=1), "layers[0].bias", 1, True),
        (Rule("*.bias", lr=1), "bias", 1, True),
        (Rule("*.bias", lr=1), "layers[0].bias2", 1, False),
        (Rule("*.bias", lr=1), "unbias", 1, False),
        (Rule("*bias", lr=1), "unbias", 1, True),
        (Rule("layers[0].*", lr=1), "layers.0.weight", 2, True),
        (Rule("layers/0/*", lr=1), "layers[0].weight", 2, True),
        (Rule("layers.0.*", lr=1), "layers[10].weight", 2, False),
        (Rule("layers[?].*", lr=1), "layers[7].weight", 2, True),
        (Rule("layers[?].*", lr=1), "layers[17].weight", 2, False),
        (Rule("dense/kernel", lr=1), "dense/kernel:0", 2, True),
        (Rule("a+b(c)", lr=1), "a+b(c)", 2, True),
        (Rule("a.b", lr=1), "axb", 2, False),
        (Rule("*", lr=1), "", 0, True),
        (Rule("*.a", "*.b", lr=1), "x.b", 2, True),
        (Rule(names=["x[0]"], lr=1), "x.0", 2, True),
        (Rule(names=["x"], lr=1), "x.0", 2, False),
        (Rule(max_ndim=1, lr=1), "x", 0, True),
        (Rule(max_ndim=1, lr=1), "x", 2, False),
        (Rule(ndim=2, lr=1), "x", 2, True),
        (Rule(min_ndim=3, lr=1), "x", 2, False),
        (Rule("*.w", min_ndim=2, max_ndim=3, lr=1), "x.w", 3, True),
        (Rule("*.w", min_ndim=2, max_ndim=3, lr=1), "x.w", 4, False),
        (Rule("*.w", ndim=2, lr=1), "x.v", 2, False),
    ],
)
def test_which_parameters_a_rule_means(rule: Rule, name: str, ndim: int, means: bool) -> None:
    assert rule.means(name, ndim) is means


def test_rules_are_plain_data() -> None:
    rules = [
        Rule("*.bias", "a.*", max_ndim=1, weight_decay=0.0),
        Rule(names=["x", "y"], train=False),
        Rule(min_ndim=3, as_matrix="first", as_vector=False, beta1=0.5),
    ]
    for rule in rules:
        config = json.loads(json.dumps(rule.config()))
        assert Rule.from_config(config) == rule and hash(Rule.from_config(config)) == hash(rule)
        assert eval(repr(rule)) == rule and pickle.loads(pickle.dumps(rule)) == rule
    assert len(set(rules)) == 3 and Rule("*", lr=Times(0.5)) != Rule("*", lr=Times(0.25))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Rule(lr=1.0),
            ValueError,
            "Rule(lr=1.0) does not say which parameters it means. Give a pattern, names, ndim, max_ndim or "
            'min_ndim; "*" means all.',
        ),
        (
            lambda: Rule("*"),
            ValueError,
            'Rule("*") changes nothing. Say what holds, for example weight_decay=0.0 or train=False.',
        ),
        (
            lambda: Rule(1, lr=1.0),
            TypeError,
            "Rule(1, lr=1.0): a pattern must be text, got 1. By the number of axes a rule goes with ndim, "
            "max_ndim or min_ndim.",
        ),
        (
            lambda: Rule(["x", "y"], lr=1.0),
            TypeError,
            "Rule(['x', 'y'], lr=1.0): a pattern must be text, got ['x', 'y']. A list of names is "
            "Rule(names=[...]); several patterns are Rule(p, q).",
        ),
        (
            lambda: Rule(names="x", lr=1.0),
            TypeError,
            "Rule: names must be a list of names, got 'x'. Pass names=[...].",
        ),
        (
            lambda: Rule(max_ndim=True, lr=1.0),
            TypeError,
            "Rule(max_ndim=True, lr=1.0): max_ndim must be an integer in [0, inf), got True.",
        ),
        (
            lambda: Rule("*", train=0),
            TypeError,
            'Rule("*", train=0): train must be True or False, got 0.',
        ),
        (
            lambda: Rule("*", as_matrix="rows"),
            ValueError,
            "Rule(\"*\", as_matrix='rows'): as_matrix must be 'first' or 'last', got 'rows'.",
        ),
        (
            lambda: Rule("*", as_matrix="last", as_vector=True),
            ValueError,
            "Rule(\"*\", as_vector=True, as_matrix='last'): a parameter cannot be seen as a vector and as a "
            "matrix. Drop one.",
        ),
        (lambda: Times("x"), TypeError, "Times: the factor must be a finite number, got 'x'."),
        (lambda: Times(float("inf")), TypeError, "Times: the factor must be a finite number, got inf."),
    ],
)
def test_what_is_no_rule_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == message


# ---------------------------------------------------------------------------------------------------
# The same refusals in every package

NAMES = ("layers[0].weight", "layers[0].bias", "layers[1].weight", "layers[1].bias")
WORDS = {"numpy": "lr", "torch": "lr", "jax": "learning_rate", "tensorflow": "learning_rate"}


def tree() -> dict[str, Any]:
    rng = np.random.default_rng(2)

    def layer() -> dict[str, Any]:
        return {"weight": rng.standard_normal((4, 3)), "bias": rng.standard_normal(3)}

    return {"layers": [{k: v.astype(np.float32) for k, v in layer().items()} for _ in range(2)]}


def flat(params: Any) -> list[Any]:
    return [layer[k] for layer in params["layers"] for k in ("weight", "bias")]


def assigned(name: str, **hypers: Any) -> Any:
    """AdamW under rules, over the same four parameters, and its table."""
    if name == "numpy":
        return package(name).AdamW(tree(), **hypers).assignment()
    if name == "jax":
        return package(name).adamw(**hypers).assignment(tree())
    if name == "torch":
        torch = importlib.import_module("torch")
        values = [torch.nn.Parameter(torch.from_numpy(x)) for x in flat(tree())]
        spelled = [n.replace("[", ".").replace("]", "") for n in NAMES]
        return package(name).AdamW(zip(spelled, values, strict=True), **hypers).assignment()
    return package(name).AdamW(**hypers).assignment(variables())


def variables() -> list[Any]:
    keras = importlib.import_module("keras")
    made = []
    for name, x in zip(NAMES, flat(tree()), strict=True):
        *scopes, last = name.replace("[", "/").replace("].", "/").split("/")
        with contextlib.ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(keras.name_scope(scope))
            made.append(keras.Variable(x, name=last, dtype="float32"))
    return made


def package(name: str) -> Any:
    for module in {"tensorflow": ["keras"], "jax": ["jax"], "torch": ["torch"]}.get(name, []):
        pytest.importorskip(module)
    return importlib.import_module(f"generated.{name}")


REFUSED = [
    (
        lambda m: [m.Rule("*.bais", weight_decay=0.0)],
        ValueError,
        'rule 1, Rule("*.bais", weight_decay=0.0), means no parameter. The closest names are '
        "layers[0].bias, layers[1].bias and layers[0].weight.",
    ),
    (
        lambda m: [m.Rule("*.bias", weight_decay=0.0), m.Rule(min_ndim=3, weight_decay=0.0)],
        ValueError,
        "rule 2, Rule(min_ndim=3, weight_decay=0.0), means no parameter. The parameters have 1 and 2 axes.",
    ),
    (
        lambda m: [m.Rule("*.bias", ndim=2, weight_decay=0.0)],
        ValueError,
        'rule 1, Rule("*.bias", ndim=2, weight_decay=0.0), means no parameter. Those parameters have 1 axis.',
    ),
    (
        lambda m: [m.Rule(names=["layers[0].bias", "layers[0].w"], weight_decay=0.0)],
        ValueError,
        "rule 1, Rule(names=['layers[0].bias', 'layers[0].w'], weight_decay=0.0), has the name "
        "'layers[0].w', which no parameter has. The closest names are layers[0].weight, layers[0].bias and "
        "layers[1].weight.",
    ),
    (
        lambda m: [m.Rule("*.bias", weight_decya=0.0)],
        TypeError,
        'rule 1, Rule("*.bias", weight_decya=0.0), sets weight_decya, which is no hyperparameter of OWNER. '
        "Did you mean weight_decay?",
    ),
    (
        lambda m: [m.Rule("*.bias", max_dim=1)],
        TypeError,
        'rule 1, Rule("*.bias", max_dim=1), sets max_dim, which is no hyperparameter of OWNER. '
        "Did you mean max_ndim?",
    ),
    (
        lambda m: [m.Rule("*.bias", weight_decay=-1)],
        ValueError,
        "weight_decay of rule 1 must be a number in [0, inf), got -1.",
    ),
    (
        lambda m: [m.Rule("*.bias", lr="0.1")],
        TypeError,
        "LR of rule 1 must be a number in [0, inf), got '0.1'. Pass a number, not text.",
    ),
    (
        lambda m: [m.Rule("*.bias", weight_decay=m.Times(-2))],
        ValueError,
        "weight_decay of rule 1 must be a number in [0, inf), got -1.0.",
    ),
    (
        lambda m: m.Rule("*.bias", lr=0.5),
        TypeError,
        'rules must be a list of rules, got Rule("*.bias", lr=0.5). Pass rules=[...].',
    ),
    (
        lambda m: ["*.bias"],
        TypeError,
        "rules must be a list of rules, got '*.bias' in it. Pass, for example, "
        'Rule("*.bias", weight_decay=0.0).',
    ),
]


@pytest.mark.parametrize("name", BACKENDS)
def test_rules_that_do_not_fit_are_refused(name: str) -> None:
    made = package(name)
    owner = "adamw" if name == "jax" else "AdamW"
    for rules, error, message in REFUSED:
        with pytest.raises(error) as caught:
            assigned(name, rules=rules(made), weight_decay=0.5)
        text = message.replace("OWNER", owner).replace("LR of", f"{WORDS[name]} of")
        said = str(caught.value)
        if name in ("torch", "tensorflow"):  # names as their users write them
            said, text = (x.replace("/", ".") for x in (said, text))
            said, text = (x.replace("[", ".").replace("]", "") for x in (said, text))
        assert said == f"{owner}: {text}", name


TABLE = """OWNER
rule 1: Rule(max_ndim=1, weight_decay=0.0)
rule 2: Rule("layers[0].*", lr=Times(0.5))
rule 3: Rule("layers[1].bias", train=False)

parameter         shape   rules  what they set
layers[0].weight  (4, 3)  2      LR=0.25
layers[0].bias    (3,)    1 2    weight_decay=0.0, LR=0.25
layers[1].weight  (4, 3)  -
layers[1].bias    (3,)    1 3    not trained"""


@pytest.mark.parametrize("name", BACKENDS)
def test_the_table(name: str) -> None:
    made = package(name)
    rules = [
        made.Rule(max_ndim=1, weight_decay=0.0),
        made.Rule("layers[0].*", lr=made.Times(0.5)),
        made.Rule("layers[1].bias", train=False),
    ]
    table = assigned(name, rules=rules, **{WORDS[name]: 0.5})
    lines = str(table).splitlines()
    want = TABLE.replace("OWNER", "adamw" if name == "jax" else "AdamW").replace("LR=", f"{WORDS[name]}=")
    if name == "jax":  # which sorts the keys of dictionaries
        lines[6:8], lines[8:10] = lines[7:5:-1], lines[9:7:-1]
    text = "\n".join(lines)
    if name in ("torch", "tensorflow"):
        want = "\n".join([*want.splitlines()[:5], *(" ".join(x.split()) for x in want.splitlines()[5:])])
        text = "\n".join([*lines[:5], *(" ".join(x.split()) for x in lines[5:])])
        text = text.replace("layers.0.", "layers[0].").replace("layers.1.", "layers[1].")
        text = text.replace("layers/0/", "layers[0].").replace("layers/1/", "layers[1].")
    assert text == want
    (last,) = [row for row in table.rows if row.rules == (1, 3)]
    assert last.train is False and last.shape == (3,)


@pytest.mark.parametrize("name", BACKENDS)
def test_no_rules_no_table_to_speak_of(name: str) -> None:
    rows = assigned(name).rows
    assert len(rows) == 4 and all(r.rules == () and r.hypers == {} and r.train for r in rows)


# ---------------------------------------------------------------------------------------------------
# NumPy


def gradients(steps: int) -> list[Any]:
    rng = np.random.default_rng(3)
    made = []
    for _ in range(steps):
        g = tree()
        for layer in g["layers"]:
            for k, x in layer.items():
                layer[k] = rng.standard_normal(x.shape).astype(np.float32)
        made.append(g)
    return made


def same(a: Any, b: Any) -> None:
    for x, y in zip(flat(a), flat(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def numpys(cls: str = "AdamW", **hypers: Any) -> tuple[Any, Any]:
    made = package("numpy")
    rules = [
        made.Rule("*.bias", weight_decay=0.0, lr=made.Times(0.5)),
        made.Rule("layers[1].*", as_vector=True, beta1=0.5),
    ]
    params = tree()
    return getattr(made, cls)(params, rules=rules, **hypers), params


def test_numpy_goes_on_from_a_saved_state() -> None:
    (a, p), (b, q) = numpys("LAMB"), numpys("LAMB")
    grads = gradients(4)
    for g in grads[:2]:
        a.step(g)
    b.load_state_dict(a.state_dict())
    for x, y in zip(flat(p), flat(q), strict=True):
        y[...] = x
    for g in grads[2:]:
        a.step(g)
        b.step(g)
    same(p, q)
    with pytest.raises(ValueError, match=r"the saved m of layers\[1\]\.weight has shape \(12,\)"):
        package("numpy").LAMB(tree()).load_state_dict(a.state_dict())


def test_numpy_attributes_and_schedules_go_through_rules() -> None:
    made = package("numpy")
    optimizer, params = numpys(lr=made.Cosine(0.5, total=3))
    assert "lr=0.5 * Cosine(base_lr=0.5, total=3, end=0.0)" in str(optimizer.assignment())
    grads = gradients(3)
    for n, g in enumerate(grads):
        optimizer.step(g)
        if n == 1:
            optimizer.lr, optimizer.weight_decay = 0.25, 0.125
    for i, hypers in enumerate([{}, {}, {"beta1": 0.5}, {"beta1": 0.5}]):
        p = flat(tree())[i]
        alone = made.AdamW(p, **hypers)
        for n, g in enumerate(grads):
            alone.lr = (made.Cosine(0.5, total=3)(n) if n < 2 else 0.25) * (0.5 if i % 2 else 1.0)
            alone.weight_decay = 0.0 if i % 2 else 0.125 if n == 2 else 0.01
            alone.step(flat(g)[i])
        assert p.tobytes() == flat(params)[i].tobytes()
    with pytest.raises(ValueError, match=r"lr must be a number in \[0, inf\), got -1"):
        optimizer.lr = -1


def test_a_product_outside_its_domain_is_refused() -> None:
    made = package("numpy")
    rules = [made.Rule("*.bias", beta1=made.Times(1.05)), made.Rule("*.bias", beta1=made.Times(1.05))]
    with pytest.raises(ValueError, match=r"AdamW: beta1 of rule 1 must be a number in \[0, 1\), got 1\.08"):
        made.AdamW(tree(), beta1=0.99, rules=[made.Rule("*.bias", beta1=made.Times(1.1))])
    with pytest.raises(ValueError, match=r"AdamW: beta1 must be a number in \[0, 1\), got 1\.0"):
        made.AdamW(tree(), beta1=0.95, rules=rules)


# ---------------------------------------------------------------------------------------------------
# PyTorch


def torchs(rules: Any, cls: str = "AdamW", **hypers: Any) -> tuple[Any, list[Any]]:
    torch = importlib.import_module("torch")
    values = [torch.nn.Parameter(torch.from_numpy(x)) for x in flat(tree())]
    spelled = [n.replace("[", ".").replace("]", "") for n in NAMES]
    made = getattr(package("torch"), cls)
    return made(zip(spelled, values, strict=True), rules=rules, **hypers), values


def torch_step(optimizer: Any, values: list[Any], g: Any) -> None:
    torch = importlib.import_module("torch")
    for p, x in zip(values, flat(g), strict=True):
        p.grad = torch.from_numpy(x)
    optimizer.step()


def test_torch_rules_are_param_groups() -> None:
    made = package("torch")
    rules = [made.Rule(max_ndim=1, weight_decay=0.0), made.Rule("layers.1.*", lr=0.25, betas=(0.5, 0.75))]
    optimizer, values = torchs(rules, lr=0.5)
    groups = [(g["lr"], g["betas"], g["weight_decay"], g["param_names"]) for g in optimizer.param_groups]
    assert groups == [
        (0.5, (0.9, 0.999), 0.01, ["layers.0.weight"]),
        (0.5, (0.9, 0.999), 0.0, ["layers.0.bias"]),
        (0.25, (0.5, 0.75), 0.01, ["layers.1.weight"]),
        (0.25, (0.5, 0.75), 0.0, ["layers.1.bias"]),
    ]
    schedule = made.Linear(optimizer, total=2)
    torch_step(optimizer, values, gradients(1)[0])
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.25, 0.25, 0.125, 0.125]
    assert optimizer.assignment().rows[2].hypers == {"lr": 0.125, "betas[0]": 0.5, "betas[1]": 0.75}


def test_torch_goes_on_from_a_saved_state() -> None:
    made = package("torch")
    rules = [
        made.Rule("*.bias", weight_decay=0.0),
        made.Rule("layers.1.weight", as_vector=True),
        made.Rule("layers.1.bias", train=False),
    ]
    (a, p), (b, q) = torchs(rules, "LAMB"), torchs(rules, "LAMB")
    grads = gradients(4)
    for g in grads[:2]:
        torch_step(a, p, g)
    c = copy.deepcopy(a)
    b.load_state_dict(a.state_dict())
    assert str(c.assignment()) == str(b.assignment()) == str(a.assignment())
    for x, y in zip(p, q, strict=True):
        y.data.copy_(x.data)
    for g in grads[2:]:
        torch_step(a, p, g)
        torch_step(b, q, g)
    for x, y, start in zip(p, q, flat(tree()), strict=True):
        assert x.detach().numpy().tobytes() == y.detach().numpy().tobytes()
        assert (x.detach().numpy().tobytes() == start.tobytes()) == (x is p[3])
    assert p[3] not in a.state and a.state[p[2]]["m"].shape == (12,)
    a.zero_grad()
    assert p[3].grad is None


def test_torch_parameters_without_names() -> None:
    torch = importlib.import_module("torch")
    made = package("torch")
    values = [torch.nn.Parameter(torch.from_numpy(x)) for x in flat(tree())]
    with pytest.raises(ValueError) as caught:
        made.AdamW(values, rules=[made.Rule("*.bias", weight_decay=0.0)])
    assert str(caught.value) == (
        'AdamW: rule 1, Rule("*.bias", weight_decay=0.0), goes by names, and the parameters have none. '
        "Pass model.named_parameters()."
    )
    optimizer = made.AdamW(values, rules=[made.Rule(max_ndim=1, weight_decay=0.0)])
    assert [r.name for r in optimizer.assignment().rows] == ["0/0", "1/0", "0/1", "1/1"]
    more = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer.add_param_group({"params": more, "lr": 0.5})
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups[2:]] == [(0.5, 0.0), (0.5, 0.01)]
    with pytest.raises(ValueError, match="lr of param group 4 must be a number"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": -1})
    assert len(optimizer.param_groups) == 4


def test_torch_refuses_half_a_tuple() -> None:
    made = package("torch")
    for value in (0.5, (0.5,), made.Times(0.5)):
        with pytest.raises(TypeError) as caught:
            torchs([made.Rule("*.bias", betas=value)])
        assert str(caught.value) == f"AdamW: betas of rule 1 must be a tuple (beta1, beta2), got {value!r}."


# ---------------------------------------------------------------------------------------------------
# JAX


def test_jax_rules_under_jit_with_schedules() -> None:
    jax = pytest.importorskip("jax")
    made, numpy = package("jax"), package("numpy")

    def rules(m: Any) -> list[Any]:
        return [m.Rule("*.bias", weight_decay=0.0), m.Rule("layers.1.*", lr=m.Times(0.1))]

    ours = made.adamw(made.warmup_cosine(0.5, warmup=2, total=5), rules=rules(made))
    theirs = tree()
    reference = numpy.AdamW(theirs, numpy.WarmupCosine(0.5, warmup=2, total=5), rules=rules(numpy))
    params = tree()
    state = ours.init(params)
    step = jax.jit(ours.step)
    for g in gradients(5):
        params, state = step(params, g, state)
        reference.step(g)
    same(params, theirs)
    assert repr(ours).endswith(
        'rules=[Rule("*.bias", weight_decay=0.0), Rule("layers.1.*", lr=Times(0.1))])'
    )


def test_jax_leaves_what_is_not_trained() -> None:
    jax = pytest.importorskip("jax")
    made = package("jax")
    optimizer = made.schedule_free_adamw(rules=[made.Rule("*.bias", train=False)])
    params, g = tree(), gradients(1)[0]
    state = optimizer.init(params)
    assert len(jax.tree.leaves(state.tensors)) == 2 * len(state.tensors)
    updates, after = optimizer.update(g, state, params)
    assert not np.asarray(updates["layers"][0]["bias"]).any()
    assert jax.tree.structure(after) == jax.tree.structure(state)
    new, after = optimizer.step(params, g, state)
    shown = optimizer.evaluation_params(new, after)
    for x, y in zip(flat(params)[1::2], flat(shown)[1::2], strict=True):
        assert x.tobytes() == np.asarray(y).tobytes()
    with pytest.raises(ValueError, match="the state belongs to other parameters"):
        made.schedule_free_adamw().step(params, g, state)


def test_jax_paths_are_those_of_numpy() -> None:
    pytest.importorskip("jax")
    rows = package("jax").adamw().assignment({"a": [np.ones(2), (np.ones(2), {"b": np.ones(2)})]}).rows
    assert [r.name for r in rows] == ["a[0]", "a[1][0]", "a[1][1].b"]


# ---------------------------------------------------------------------------------------------------
# TensorFlow


def test_keras_rules_in_a_configuration() -> None:
    pytest.importorskip("keras")
    made = package("tensorflow")
    rules = [
        made.Rule("*.bias", "x", max_ndim=1, weight_decay=np.float64(0.0)),
        made.Rule("layers.1.*", lr=made.Times(0.5), weight_decay=made.Linear(0.5, total=10)),
        made.Rule(names=["layers/0/weight"], train=False),
    ]
    optimizer = made.AdamW(0.5, rules=rules)
    config = json.loads(json.dumps(optimizer.get_config()))
    again = made.AdamW.from_config(config)
    assert str(again.assignment(variables())) == str(optimizer.assignment(variables()))
    assert again.get_config() == optimizer.get_config()
    assert made.AdamW.from_config({**config, "rules": []}).get_config()["rules"] == []


def test_keras_table_before_and_after_build() -> None:
    pytest.importorskip("keras")
    made = package("tensorflow")
    optimizer = made.AdamW(0.5, rules=[made.Rule("*.bias", lr=0.25)])
    with pytest.raises(RuntimeError) as caught:
        optimizer.assignment()
    assert str(caught.value) == (
        "AdamW: which parameters there are is not known before build. Pass them: "
        "optimizer.assignment(model.trainable_variables)."
    )
    known = variables()
    optimizer.exclude_from_weight_decay(var_names=["weight"])
    before = str(optimizer.assignment(known))
    optimizer.build(known)
    assert str(optimizer.assignment()) == before
    assert [r.hypers for r in optimizer.assignment().rows] == [
        {"weight_decay": 0.0},
        {"learning_rate": 0.25},
        {"weight_decay": 0.0},
        {"learning_rate": 0.25},
    ]


def test_keras_fits_under_rules() -> None:
    keras = pytest.importorskip("keras")
    made = package("tensorflow")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    rules = [made.Rule("*.bias", weight_decay=0.0), made.Rule("*dense*", ndim=2, train=False)]
    model.compile(optimizer=made.Lion(0.1, weight_decay=0.5, rules=rules), loss="mse")
    before = [v.numpy() for v in model.trainable_variables]
    model.fit(np.ones((4, 3), np.float32), np.ones((4, 1), np.float32), epochs=2, verbose=0)
    moved = [not np.array_equal(x, v.numpy()) for x, v in zip(before, model.trainable_variables, strict=True)]
    assert moved == [False, True, False, True]
    assert len(model.optimizer.variables) == 4  # iterations, learning rate, two averages
