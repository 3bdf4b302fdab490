"""torch.optim beside the catalogue: which of its optimizers take the same steps, and with what options.

In: a `Run` with a constant learning rate. Out: the first parameter after it, by torch's own optimizer.
Must not know: the generated code. Read from torch 2.13.0, `torch/optim/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from backends.running import Run

Hypers = Mapping[str, Any]

NATIVE: dict[str, Callable[[list[Any], Hypers], Any]] = {
    # p - lr g
    "sgd": lambda p, h: torch.optim.SGD(p, lr=h["lr"]),
    # v = (1 - beta) b with b = beta b + g; dampening = beta would leave the first step undamped
    "momentum": lambda p, h: torch.optim.SGD(p, lr=h["lr"] * (1 - h["beta"]), momentum=h["beta"]),
    # b = mu b + g, lr outside
    "heavy_ball": lambda p, h: torch.optim.SGD(p, lr=h["lr"], momentum=h["mu"]),
    # y - lr (g + beta b) is the look-ahead point theta - beta v, as v = lr b while lr is constant
    "nesterov": lambda p, h: torch.optim.SGD(p, lr=h["lr"], momentum=h["beta"], nesterov=True),
    # weight_decay is added to the gradient
    "sgd_l2": lambda p, h: torch.optim.SGD(p, lr=h["lr"], weight_decay=h["weight_decay"]),
    # see DIFFERENT
    "rmsprop": lambda p, h: torch.optim.RMSprop(p, lr=h["lr"], alpha=h["gamma"], eps=h["eps"]),
    # eps is added to sqrt(v) / sqrt(1 - beta2**t), the corrected root
    "adam": lambda p, h: torch.optim.Adam(p, **_adam(h)),
    # p (1 - lr weight_decay) first, then adam's step, which does not read p: one subtraction here
    "adamw": lambda p, h: torch.optim.AdamW(p, **_adam(h), weight_decay=h["weight_decay"]),
    # see DIFFERENT
    "amsgrad": lambda p, h: torch.optim.Adam(p, **_adam(h), amsgrad=True),
    # the sum starts at 0, eps outside the root, lr_decay = 0
    "adagrad": lambda p, h: torch.optim.Adagrad(p, lr=h["lr"], eps=h["eps"]),
    # sqrt(a + eps) / sqrt(v + eps) g
    "adadelta": lambda p, h: torch.optim.Adadelta(p, lr=h["lr"], rho=h["rho"], eps=h["eps"]),
    # see DIFFERENT
    "radam": lambda p, h: torch.optim.RAdam(p, **_adam(h)),
    # see DIFFERENT
    "adamax": lambda p, h: torch.optim.Adamax(p, **_adam(h)),
    # momentum_decay is psi; eps is added to the corrected root
    "nadam": lambda p, h: torch.optim.NAdam(p, **_adam(h), momentum_decay=h["psi"]),
    # see DIFFERENT; an average is the sum times 1 - mu, which the norm takes out again
    "muon": lambda p, h: torch.optim.Muon(p, lr=h["lr"], momentum=h["mu"], weight_decay=0.0),
    # torch's own definitions, with every option
    "sgd_torch": lambda p, h: torch.optim.SGD(p, **_bundled(h)),
    "adam_torch": lambda p, h: torch.optim.Adam(p, **_bundled(h)),
    "adamw_torch": lambda p, h: torch.optim.AdamW(p, **_bundled(h)),
    "rmsprop_torch": lambda p, h: torch.optim.RMSprop(p, **_bundled(h)),
    "adagrad_torch": lambda p, h: torch.optim.Adagrad(p, **_bundled(h)),
    "adadelta_torch": lambda p, h: torch.optim.Adadelta(p, **_bundled(h)),
    "adamax_torch": lambda p, h: torch.optim.Adamax(p, **_bundled(h)),
    "nadam_torch": lambda p, h: torch.optim.NAdam(p, **_bundled(h)),
    "radam_torch": lambda p, h: torch.optim.RAdam(p, **_bundled(h)),
    "rprop_torch": lambda p, h: torch.optim.Rprop(p, **_bundled(h)),
    "asgd_torch": lambda p, h: torch.optim.ASGD(p, **_bundled(h)),
    # None is 2**-23, whatever the parameter's dtype
    "adafactor_torch": lambda p, h: torch.optim.Adafactor(
        p, **_bundled({**h, "eps1": 2.0**-23 if h["eps1"] is None else h["eps1"]})
    ),
    # see DIFFERENT
    "muon_torch": lambda p, h: torch.optim.Muon(p, **_bundled(h)),
    # see DIFFERENT
    "adafactor": lambda p, h: torch.optim.Adafactor(
        p, lr=h["lr"], eps=(h["eps1"], h["eps2"]), d=h["clip"]
    ),
}

DIFFERENT: dict[str, str] = {
    "muon_adamw": "torch has none",
    "rmsprop": "adds eps to the root, the spec under it",
    "amsgrad": "takes the maximum before the bias correction, the spec after it",
    "radam": "rectifies where rho > 5, the spec where rho > 4, and adds eps before the correction",
    "adamax": "adds eps to the absolute gradient inside the maximum, the spec to the norm",
    "adabelief": "torch has none",
    "yogi": "torch has none",
    "lion": "torch has none",
    "adan": "torch has none",
    "signum": "torch has none",
    "lars": "torch has none",
    "lamb": "torch has none",
    "muon": "multiplies matrices in bfloat16, the spec in the parameter's precision",
    "muon_torch": "multiplies matrices in bfloat16, the spec in the parameter's precision",
    "adafactor": "bounds the second moment by eps1, the spec adds eps1 to the squared gradient",
    "schedule_free_sgd": "torch has none",
    "schedule_free_adamw": "torch has none",
}

# Hyperparameters with which optimizers of DIFFERENT take the spec's steps after all.
WHERE: dict[str, Hypers] = {
    "rmsprop": {"eps": 0.0},  # nothing to place
    "adamax": {"eps": 0.0},  # nothing to place
    "adafactor": {"eps1": 0.0},  # nothing to add
}


def _adam(h: Hypers) -> dict[str, Any]:
    return {"lr": h["lr"], "betas": (h["beta1"], h["beta2"]), "eps": h["eps"]}


# What torch's users pass as one tuple.
BUNDLES = {
    "betas": ("beta1", "beta2"),
    "etas": ("etaminus", "etaplus"),
    "step_sizes": ("step_size_min", "step_size_max"),
    "eps": ("eps1", "eps2"),
}


def _bundled(h: Hypers) -> dict[str, Any]:
    """A dialect's hyperparameters as torch has them."""
    parts = {x for members in BUNDLES.values() for x in members}
    whole = {k: tuple(h[x] for x in members) for k, members in BUNDLES.items() if members[0] in h}
    return {**{k: x for k, x in h.items() if k not in parts}, **whole}


def agrees(name: str, hypers: Hypers) -> bool:
    """Whether torch's own optimizer has the spec's equations with these hyperparameters."""
    if name not in NATIVE:
        return False
    values = WHERE.get(name, {} if name not in DIFFERENT else None)
    return values is not None and all(hypers[k] == v for k, v in values.items())


def native(run: Run) -> Any:
    """The first parameter after the run by torch's own optimizer, or None where it has no such one."""
    if run.schedule is not None or not agrees(run.name, run.hypers):
        return None
    return trained(run)


def trained(run: Run) -> Any:
    """The same for every optimizer of NATIVE, whether it agrees or not."""
    p = torch.nn.Parameter(torch.tensor(run.params[0], device=run.device))
    before = torch.get_default_dtype()
    torch.set_default_dtype(p.dtype)  # step counts and NAdam's mu_product are of this dtype
    try:
        optimizer = NATIVE[run.name]([p], run.hypers)
        for grads in run.grads:
            p.grad = torch.tensor(grads[0], device=run.device)
            optimizer.step()
    finally:
        torch.set_default_dtype(before)
    return p.detach().cpu().numpy()
