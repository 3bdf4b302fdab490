"""Sharded arrays under jax.jit: XLA communicates, and the bits are those of whole arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# One process with eight devices: elementwise, and sums for each tensor.
SPECS = ("adamw", "lars")
SCRIPT = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import generated.jax as package

assert len(jax.devices()) == 8
mesh = Mesh(np.array(jax.devices()), ("x",))
rng = np.random.default_rng(0)
SHAPES = {"rows": (16, 24), "cols": (3, 16)}
AXES = {"rows": ("x",), "cols": (None, "x")}


def drawn():
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()}


def sharded(tree):
    at = {k: NamedSharding(mesh, PartitionSpec(*a)) for k, a in AXES.items()}
    return {k: jax.device_put(x, at[k]) for k, x in tree.items()}


start, grads = drawn(), [drawn() for _ in range(3)]
for name in sys.argv[1:]:
    optimizer = package.create(name)
    step, init = jax.jit(optimizer.step), jax.jit(optimizer.init)
    ends = []
    for put in (jax.device_put, sharded):
        params = put(start)
        state = init(params)
        for g in grads:
            params, state = step(params, put(g), state)
        ends.append(jax.tree.leaves((params, state)))
    assert "x" in str(params["rows"].sharding), name  # it stays sharded
    for a, b in zip(*ends, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name
    text = step.lower(params, put(grads[0]), state).compile().as_text()
    words = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
    print(name, any(word in text for word in words))
"""


def test_jax_shards_with_the_bits_of_whole_arrays() -> None:
    """Elementwise programs communicate nothing, others do; the sum's tree is the same."""
    pytest.importorskip("jax")
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT, *SPECS],
        cwd=Path(__file__).parents[1], env=env, capture_output=True, text=True, check=False,
    )
    assert made.returncode == 0, made.stderr
    said = dict(line.split() for line in made.stdout.splitlines())
    assert said == {name: str(name != "adamw") for name in SPECS}
