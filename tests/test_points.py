"""Several gradients a step, and what else a step reads: each shell asks its user for them, and says so."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest

from generator import catalogue, interpret, verify

STEPS = 5
RNG = np.random.default_rng(7)
DATA = RNG.standard_normal((STEPS, 6, 4)).astype(np.float32)
START = [RNG.standard_normal((4, 3)).astype(np.float32), RNG.standard_normal(3).astype(np.float32)]


def reference(name, gradient, inputs=lambda step, points: {}):
    """The lowered program with gradients of a function of the parameters."""
    (entry,) = catalogue.entries([name])
    runs = [interpret.Exact(entry.lowered, p.copy()) for p in START]
    for step in range(STEPS):
        points = [r.theta for r in runs]
        again = lambda _, at, s=step: gradient(s, at)  # noqa: E731
        given = inputs(step, points)
        interpret.step(runs, gradient(step, points), verify.defaults(entry.program), None, given, again)
    return [r.theta for r in runs]


def same(got, want):
    for a, b in zip(got, want, strict=True):
        assert verify.distance(np.asarray(a), b) == 0


# A loss of which every framework's own derivative has the same bits: 0.5 * |p|^2 / 2, a batch apart.


def gradient_of(step, params):
    return [p * np.float32(0.5) if step % 2 else p * np.float32(0.25) for p in params]


def full_gradient(params):
    return [p * np.float32(0.125) for p in params]


# NumPy --------------------------------------------------------------------------------------------


def test_numpy():
    from generated.numpy import SVRG, AdamWSAM

    params = [p.copy() for p in START]
    optimizer = AdamWSAM(params)
    for step in range(STEPS):
        optimizer.step(lambda p, s=step: gradient_of(s, p))
    same(params, reference("adamw_sam", gradient_of))

    params, asked = [p.copy() for p in START], []

    def full(p):
        asked.append(optimizer.steps)
        return full_gradient(p)

    optimizer = SVRG(params, period=3)
    for step in range(STEPS):
        optimizer.step(lambda p, s=step: gradient_of(s, p), full_gradient=full)
    assert asked == [0, 3]  # only where it is read


def test_numpy_refuses():
    from generated.numpy import STORM, SVRG, AdamW, Sophia

    params = [p.copy() for p in START]
    with pytest.raises(TypeError, match=r"STORM takes several gradients a step\. Pass a function"):
        STORM(params).step(params)
    with pytest.raises(TypeError, match=r"SVRG: step reads full_gradient\. Pass full_gradient=\.\.\."):
        SVRG(params).step(lambda p: p)
    with pytest.raises(TypeError, match=r"AdamW: step was given h; it reads nothing but gradients"):
        AdamW(params).step(params, h=params)
    with pytest.raises(ValueError, match=r"the hessian_diagonal of \[0\] has shape \(3,\)"):
        Sophia(params).step(full_gradient(params), hessian_diagonal=[params[1], params[1]])
    same(params, START)


def test_numpy_is_as_before_where_a_further_gradient_fails():
    from generated.numpy import STORM

    params = [p.copy() for p in START]
    optimizer, calls = STORM(params), []

    def gradient(p):
        calls.append([x.copy() for x in p])
        if len(calls) == 4:
            raise RuntimeError("no more memory")
        return [x * np.float32(0.5) for x in p]

    optimizer.step(gradient)
    after, state = [p.copy() for p in params], optimizer.state_dict()
    with pytest.raises(RuntimeError, match="no more memory"):
        optimizer.step(gradient)
    same(calls[3], START)  # where it was asked for: a step behind
    same(params, after)
    assert optimizer.state_dict()["steps"] == state["steps"]
    assert all(optimizer.state[k]["step"] == 1 for k in optimizer.state)
    both = iter([True, False])
    with pytest.raises(ValueError, match="has a first gradient in this step and no further one"):
        optimizer.step(lambda p: [p[0], p[1] if next(both) else None])
    same(params, after)


def test_a_function_may_use_its_memory_again():
    from generated.numpy import AdamWSAM

    params, memory = [p.copy() for p in START], [np.empty_like(p) for p in START]

    def gradient(p):
        for out, x in zip(memory, p, strict=True):
            np.multiply(x, np.float32(0.25), out=out)
        return memory

    optimizer = AdamWSAM(params)
    for _ in range(STEPS):
        optimizer.step(gradient)
    same(params, reference("adamw_sam", lambda step, at: [p * np.float32(0.25) for p in at]))


# PyTorch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("set_to_none", [True, False, "forgotten"])
def test_torch(set_to_none):
    torch = pytest.importorskip("torch")
    from generated.torch import AdamWSAM

    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in START]
    optimizer = AdamWSAM(params)
    for step in range(STEPS):

        def closure(step=step):
            if set_to_none != "forgotten":
                optimizer.zero_grad(set_to_none)
            loss = sum((p * p).sum() * (0.25 if step % 2 else 0.125) for p in params)
            loss.backward()
            return loss

        before = [p.detach().clone() for p in params]
        loss = optimizer.step(closure)
        first = sum(float((p * p).sum()) for p in before) * (0.25 if step % 2 else 0.125)
        assert float(loss.detach()) == pytest.approx(first)
        same([p.grad for p in params], gradient_of(step, [p.numpy() for p in before]))
    same([p.detach().numpy() for p in params], reference("adamw_sam", gradient_of))


def test_torch_refuses():
    torch = pytest.importorskip("torch")
    from generated.torch import STORM, SVRG, AdamW, Sophia

    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in START]
    with pytest.raises(TypeError, match=r"STORM takes several gradients a step\. Pass a closure"):
        STORM(params).step()
    with pytest.raises(TypeError, match=r"SVRG: step reads full_gradient\. Pass full_gradient=\.\.\."):
        SVRG(params).step(lambda: None)
    with pytest.raises(ValueError, match=r"STORM: the closure left no gradient\. Call backward\(\)"):
        STORM(params).step(lambda: (params[0] ** 2).sum())
    with pytest.raises(TypeError, match=r"AdamW: step was given h; it reads nothing but gradients"):
        AdamW(params).step(h=1)
    optimizer = Sophia(params)
    for p in params:
        p.grad = p.detach().clone()
    with pytest.raises(ValueError, match="must be a list with a tensor for each of the 2 parameters, got 1"):
        optimizer.step(hessian_diagonal=[params[0]])
    with pytest.raises(ValueError, match=r"of a parameter of shape \(4, 3\) has shape \(3,\)"):
        optimizer.step(hessian_diagonal=[params[1], params[1]])
    assert not optimizer.state
    optimizer, calls = STORM(params), []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no more memory")
        for p in params:
            p.grad = p.detach() * 0.5

    with pytest.raises(RuntimeError, match="no more memory"):
        optimizer.step(closure)
    same([p.detach().numpy() for p in params], START)
    assert not optimizer.state


# JAX ----------------------------------------------------------------------------------------------


def test_jax():
    jax = pytest.importorskip("jax")
    from generated.jax import adamw_sam, svrg

    def loss(params, scale):
        return sum((p * p).sum() for p in params) * scale

    optimizer = adamw_sam()

    @jax.jit
    def step(params, state, scale):
        return optimizer.step(params, jax.grad(lambda p: loss(p, scale)), state)

    @jax.jit
    def added(params, state, scale):
        gradient = jax.grad(lambda p: loss(p, scale))
        updates, state = optimizer.update(gradient(params), state, params, gradient=gradient)
        return [p + u for p, u in zip(params, updates, strict=True)], state

    for one in (step, added):
        params, state = [jax.numpy.asarray(p) for p in START], None
        state = optimizer.init(params)
        for k in range(STEPS):
            params, state = one(params, state, np.float32(0.25 if k % 2 else 0.125))
        same(params, reference("adamw_sam", gradient_of))

    made = svrg(period=2)
    read = []

    @jax.jit
    def with_full(params, state):
        def full(p):
            jax.debug.callback(lambda: read.append(1))
            return [x * 0.125 for x in p]

        return made.step(params, lambda p: [x * 0.5 for x in p], state, full_gradient=full)

    params = [jax.numpy.asarray(p) for p in START]
    state = made.init(params)
    for _ in range(4):
        params, state = with_full(params, state)
    jax.effects_barrier()
    assert len(read) == 2  # only where it is read, compiled as well


def test_jax_refuses():
    jax = pytest.importorskip("jax")
    from generated.jax import adamw, sophia, storm

    params = [jax.numpy.asarray(p) for p in START]
    optimizer = storm()
    state = optimizer.init(params)
    with pytest.raises(TypeError, match=r"storm takes several gradients a step\. Pass a function"):
        optimizer.step(params, params, state)
    with pytest.raises(TypeError, match=r"storm takes several gradients a step\. Pass a function"):
        optimizer.update(params, state, params)
    other = sophia()
    with pytest.raises(TypeError, match=r"sophia: a step reads hessian_diagonal\. Pass hessian_diagonal"):
        other.step(params, params, other.init(params))
    with pytest.raises(ValueError, match=r"the hessian_diagonal of \[0\] has shape \(3,\)"):
        other.step(params, params, other.init(params), hessian_diagonal=[params[1], params[1]])
    plain = adamw()
    with pytest.raises(TypeError, match=r"adamw: step was given h; it reads nothing but gradients"):
        plain.step(params, params, plain.init(params), h=1)


# TensorFlow ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [None, False, True], ids=["eager", "graph", "xla"])
def test_tensorflow(compiled):
    tf = pytest.importorskip("tensorflow")
    from generated.tensorflow import AdamWSAM

    variables = [tf.Variable(p) for p in START]
    optimizer = AdamWSAM(learning_rate=float(np.float32(1e-3)))
    optimizer.build(variables)

    def train(scale):
        def gradient():
            with tf.GradientTape() as tape:
                loss = tf.add_n([tf.reduce_sum(v * v) for v in variables]) * scale
            return tape.gradient(loss, variables)

        optimizer.step(gradient, variables)

    step = train if compiled is None else tf.function(train, jit_compile=compiled)
    for k in range(STEPS):
        step(tf.constant(0.25 if k % 2 else 0.125))
    (entry,) = catalogue.entries(["adamw_sam"])
    hypers = {**verify.defaults(entry.program), "lr": float(np.float32(1e-3))}
    runs = [interpret.Exact(entry.lowered, p.copy()) for p in START]
    for k in range(STEPS):
        again = lambda _, at, s=k: gradient_of(s, at)  # noqa: E731
        interpret.step(runs, gradient_of(k, [r.theta for r in runs]), hypers, None, None, again)
    same([v.numpy() for v in variables], [r.theta for r in runs])


def test_tensorflow_in_fit():
    """A model whose train_step lets the optimizer ask for gradients."""
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    from generated.tensorflow import AdamWSAM

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            x, y = data
            losses = []

            def gradient():
                with tf.GradientTape() as tape:
                    loss = self.compute_loss(x, y, self(x, training=True))
                losses.append(loss)
                return tape.gradient(loss, self.trainable_variables)

            self.optimizer.step(gradient, self.trainable_variables)
            return {"first": losses[0]}

    model = Model()
    with pytest.raises(ValueError, match=r"there are no variables yet\. Call the model once"):
        AdamWSAM().step(lambda: [], model.trainable_variables)
    model(DATA[0])
    model.compile(optimizer=AdamWSAM(learning_rate=0.1), loss="mse")
    x = DATA.reshape(-1, 4)
    y = x @ np.array([[1.0], [-2.0], [0.5], [0.0]], np.float32)
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, epochs=12, batch_size=10, verbose=0)
    assert model.evaluate(x, y, verbose=0) < 0.2 * before


def test_tensorflow_refuses():
    tf = pytest.importorskip("tensorflow")
    from generated.tensorflow import STORM, AdamW, Sophia

    variables = [tf.Variable(p) for p in START]
    grads = [tf.constant(p) for p in START]
    with pytest.raises(TypeError, match=r"STORM takes several gradients a step\. Call optimizer\.step"):
        STORM().apply(grads, variables)
    with pytest.raises(TypeError, match=r"STORM takes several gradients a step\. Call optimizer\.step"):
        STORM().step(grads, variables)
    with pytest.raises(TypeError, match=r"Sophia: step reads hessian_diagonal\. Pass"):
        Sophia().step(grads, variables)
    with pytest.raises(TypeError, match=r"Sophia reads more than gradients\. Call optimizer\.step"):
        Sophia().apply(grads, variables)
    with pytest.raises(TypeError, match=r"AdamW: step was given h; it reads nothing but gradients"):
        AdamW().step(grads, variables, h=1)
    optimizer, calls = STORM(), []

    def gradient():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no more memory")
        return grads

    with pytest.raises(RuntimeError, match="no more memory"):
        optimizer.step(gradient, variables)
    same([v.numpy() for v in variables], START)
    assert int(optimizer.iterations) == 0
    optimizer.step(lambda: grads, variables)
    assert int(optimizer.iterations) == 1


# Saving and evaluating at the right point -----------------------------------------------------------


def test_numpy_warns_where_evaluation_parameters_are_resumed():
    from generated.numpy import Nesterov

    params = [p.copy() for p in START]
    optimizer = Nesterov(params)
    optimizer.step(gradient_of(0, params))
    state = optimizer.state_dict()
    with optimizer.evaluation():
        wrong = [p.copy() for p in params]
    again = Nesterov(wrong)
    again.load_state_dict(state)
    with pytest.warns(UserWarning, match="the parameters are those to evaluate with"):
        again.step(gradient_of(0, wrong))
    again = Nesterov(params)
    again.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.step(gradient_of(0, params))


def test_torch_warns_where_it_is_evaluated_or_resumed_at_the_wrong_point():
    torch = pytest.importorskip("torch")
    from generated.torch import AdamW, Nesterov

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = Nesterov(model.parameters())
    handle = optimizer.watch(model)
    x = torch.from_numpy(DATA[0])
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)  # nothing has been done yet
    model.train()
    model(x).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    model.eval()
    with pytest.warns(UserWarning, match="the model is evaluated with the point at which the next"):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with optimizer.evaluation():
            model(x)
            other = torch.nn.Linear(4, 1)
            other.load_state_dict(model.state_dict())
        handle.remove()
        model(x)
    resumed = Nesterov(other.parameters())
    resumed.load_state_dict(state)
    other(x).sum().backward()
    with pytest.warns(UserWarning, match="the parameters are those to evaluate with"):
        resumed.step()
    plain = AdamW(model.parameters())
    plain.watch(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
        right = Nesterov(model.parameters())
        right.load_state_dict(state)
        right.step()


@pytest.mark.parametrize("evaluating", [True, False])
def test_keras_warns_where_evaluation_weights_are_resumed(evaluating, tmp_path):
    keras = pytest.importorskip("keras")
    from generated.tensorflow import Nesterov

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer=Nesterov(0.1), loss="mse")
    x, y = DATA.reshape(-1, 4), DATA.reshape(-1, 4)[:, :1]
    model.train_on_batch(x, y)
    with model.optimizer.evaluation() if evaluating else contextlib.nullcontext():
        model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        loaded.train_on_batch(x, y)
    told = [w for w in found if "the variables hold the weights to evaluate with" in str(w.message)]
    assert len(told) == evaluating
