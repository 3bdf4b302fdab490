"""Measures in a process of its own, which is replaced when it holds much.

Frameworks keep whatever they compiled, and the more objects a process has, the longer its garbage collector
takes. In: what `verify.job` takes. Out: its rows.
"""

from __future__ import annotations

import atexit
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from conftest import resident

from generator import verify

MUCH = 5 * 2**30  # bytes
_pool: ProcessPoolExecutor | None = None


def job(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
    """`verify.job` in the other process."""
    global _pool
    if _pool is None:
        _pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        atexit.register(_pool.shutdown)
    held = MUCH
    try:
        rows, held = _pool.submit(_job, arguments, options).result()
    finally:
        if held >= MUCH:  # or it failed
            _pool.shutdown(cancel_futures=True)
            _pool = None
    return rows


def _job(arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    return verify.job(*arguments, **options), resident()
