"""Shared by all tests: the tests' own modules are importable, threads and memory are few."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")

MORE = 2 * 2**30  # bytes; frameworks keep whatever they compiled


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


class Memory:
    """What was held after the last time that everything was let go.

    It is growth that counts: part of the memory never comes back, and a process that let go after every
    test once it holds that much would compile everything anew for each.
    """

    held = 2**30

    @classmethod
    def let_go(cls) -> None:
        """Make the frameworks forget what they compiled, and give the memory back."""
        for framework in ("jax", "torch", "tensorflow"):
            runner = sys.modules.get(f"backends.{framework}.runner")
            if runner is not None:
                runner.forget()
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        cls.held = resident()


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """After a test, let go of what was compiled for the last ones where that is much."""
    yield
    if resident() > Memory.held + MORE:
        Memory.let_go()
