"""The catalogue: one algorithm a file, declared once as equations. Data, no logic.

A spec is a decorated function, called once to record what it says. Its signature is the public
signature, its annotations are domains, its body is a list of equations that are executed exactly in
the order and with the grouping in which they are written.

    from generator.language import *

    v = names("v")


    @optimizer("HeavyBall")
    def heavy_ball(lr: NonNegative = 1e-2, mu: Decay = 0.9):
        (docstring: title, Source:, Note:, Args:)
        v[0] = 0
        v[t] = mu * v[t-1] + g[t]
        theta[t] = theta[t-1] - lr * v[t]

Where: a spec of the catalogue is specs/optimizers/NAME.py (or schedules, transforms), with a
    reference NAME, written from the paper, in tests/papers.py. Any file of your own is as good:
    `python -m generator build FILE --backend torch --out my_package/`.
Time: an optimizer counts steps, t = 1, 2, ...; g[t] is the gradient at theta[t-1], and theta[t] is
    defined. A transform defines u[t]. A schedule counts finished steps, n = 0, 1, ..., and defines
    lr[n].
Names: names("m v") declares names. `m[0] = value` makes m a state; without it m is a temporary.
    A name is defined once, before its use, and read at t or t-1. A state starts as a number, a
    hyperparameter or theta[0]; `g[0] = first(g)` keeps the gradient.
Domains of hyperparameters: NonNegative, Positive, Decay (0 <= x < 1), Real; Count (0, 1, ...),
    PositiveCount; bool; Choice["a", "b"]; Schedule; Annotated[float, Domain(low, high)] with both
    ends (low_open=True, high_open=True: without), Annotated[int, Domain(low, high)]; of these
    tuple[Real, ...] and Optional[Real].
Operations: + - * / ** elementwise; sqrt abs sign minimum maximum; exp log cos floor pi in step
    scope; where(condition, a, b) chooses, equal(a, b) compares, finite(x) asks whether x is neither
    infinite nor NaN, & | ~ join conditions; // and % on integers. A constant of the file,
    EPS = 1e-3, is a number like any other.
Reductions: sum mean norm rms of one parameter's tensor; row_sum row_mean row_norm row_rms, and the
    same of columns (col_sum, ...), of a matrix; mean_but_first mean_but_last over all axes but one,
    repeated to the tensor's shape; global_sum global_norm over all parameters. A state that follows
    from these is one number for all parameters, which then share one count of steps t, and is kept
    once.
Matrices: a parameter with two axes or more is a matrix, or a stack of matrices, those of its last
    two axes. x @ y is the product, x.T the transpose; rows and cols are numbers, too, and what
    follows from them alone is computed in double, sqrt(maximum(1, rows / cols)). Products are the
    one operation whose last bits differ between libraries.
Regions: `with case(matrix):` and `with case(vector):` for parameters with two axes or more, and
    with fewer; in the former also `with case(rows > cols):`. What is for matrices only begins with
    require(matrix), and other parameters are refused. `with when(condition):` and
    `with otherwise():` are for steps: a condition on t decides for all parameters at once, and a
    state that is not set keeps its value, as theta does.
Choices: a condition of bools, equal(choice, "a"), equal(option, None) and number > 0, joined by & | ~,
    is decided once and for all when an optimizer is made: in `with when(nesterov):` nothing is computed,
    and no state exists, where nesterov is False, as in `with when(momentum > 0):` where momentum is 0.
    A number that a schedule or a tensor brings counts as above 0. What may be None is read in a region
    only where it is not, `with when(~equal(mu, None)):`. Regions of all words of a choice cover each
    other.
Gradients: `g[t] = grad(point)` where the gradient is not taken at theta[t-1]; evaluate(x[t]) names
    what the model is evaluated with where that is not theta. `h[t] = grad(point)` takes one more in
    the same step, at a point of what is known by then, g[t] included.
Inputs: `D = oracle("D")` is something shaped like theta that the caller knows (a Hessian's diagonal),
    `loss = oracle("loss", shape="scalar", scope="global")` a number. One that is read inside of
    `with when(...)` is asked for only in those steps.
Noise: `xi = noise("xi")` is a standard normal tensor shaped like theta, other numbers for each step,
    parameter and source. The program gets a hyperparameter seed with it.
Networks: `W = meta("W", (16, 8))` is a meta-parameter, an array that the caller gives once, with the
    hyperparameters. `x[t] = stack(g[t], m[t], 1 / sqrt(t))` puts tensors and numbers side by side as
    features, on which everything elementwise works; `dense(W, b, x[t])` is the layer b + W x, added
    from left to right; `entry(x[t], 1)` is the first feature.
Loops: `x[0] = start`, then `for k in iterate(count):` with `x[k] = f(x[k-1])`; x[count] is the
    result; over tensors the count is a number. A tuple hyperparameter is read as boundaries[k],
    k = 1, ..., length(boundaries).
Composition: `chain(clip_by_norm, adamw, polyak_average)`: transforms, one optimizer, transforms of
    what it adds to theta[t-1] (decoupled_weight_decay), wrappers; on the command line
    "clip_by_norm > adamw > polyak_average". A wrapper has theta[t] follow from
    `inner = update(g[t])`, the new parameters of what it wraps; in `with when(equal(t % k, 0)):`
    that happens, and is counted, every k steps. In a region that sums over all parameters decide on
    (skip_nonfinite), both ways are computed and one is chosen, and t counts the updates alone.
    `route(muon, adamw)`, or "muon | adamw": the first for matrices, the second for other
    parameters, at the rate lr * adamw_lr_ratio.
Learning: `hypergradient(adam, wrt="lr")` is adam with lr learnt by hypergradient descent, from the
    derivatives of its own equations; `kappa` is the step size of that. On the command line
    "hypergradient(adam, lr)".
Relations: require(condition) refuses hyperparameters that do not fit each other.

What can be declared and has no code yet is refused by name: `python -m generator show FILE` says so.

Docstring: a title; in a schedule its value at 0, at each boundary and after the end; `Source:`;
a `Note:` for each difference from the source or from a well-known implementation that matters to
a user (a line indented deeper goes on with the one before); `Args:`, a phrase for each
hyperparameter.

House rules. Additive form, theta[t] = theta[t-1] - ..., where the paper allows it. A step is
written lr * (numerator / denominator): it does not underflow before it is normalised, and adamw
without decay has the bits of adam. A fraction of a length is formed first, base * (n / total): it
is exactly 1 at the end, so that a decay to 0 ends at 0 and not beside it. Clocks stay at or above
0, also in branches that are not taken. Reserved words (s, n, ...) cannot name a state: what a paper
calls s or n is v or w here.
"""
