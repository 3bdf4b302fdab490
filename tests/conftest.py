"""Shared by all tests: the tests' own modules are importable, threads and memory are few."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")

LARGE = 3 * 2**30  # bytes; frameworks keep whatever they compiled


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """After a test, let go of what was compiled for it where much is held."""
    yield
    if resident() > LARGE:
        for framework in ("jax", "torch", "tensorflow"):
            runner = sys.modules.get(f"backends.{framework}.runner")
            if runner is not None:
                runner.forget()
        gc.collect()
