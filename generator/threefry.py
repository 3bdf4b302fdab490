"""Random numbers from a counter: Threefry-2x32 with 20 rounds, the same bits on every backend.

In: keys and counters, words of 32 bits. Out: words. Must not know: any framework; the text below is
the one definition, run as it stands by interpret.py and copied into each backend's runtime by
render.py, where the words that it is written in (`word`, `packed`, `counted`, `added`, ...) are the
framework's own.

There is no state: a number is a function of where it is drawn (Salmon et al., Parallel Random Numbers:
As Easy as 1, 2, 3, SC 2011). For a given seed no two draws share a key and a counter:

    key of a step     Threefry under the two words of the seed, of the counter (t, source)
    a number          Threefry under the key of the step, of the counter (position, stream)

t is the step, source what is drawn for (a program's noise sources are 0, 1, ...), stream the
parameter's place in its optimizer, position that of the number in its tensor, row by row. Threefry is a
bijection of counters, so different (t, source) have different keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def word(x: int) -> Any:
    """A word of an integer, modulo 2**32; with an axis, since scalars warn where they wrap around."""
    return np.array([x & 0xFFFFFFFF], np.uint32)


def packed(words: Sequence[Any]) -> Any:
    """Words as one array."""
    return np.concatenate(words)


def counted(count: int, like: Any) -> Any:
    """The words 0, 1, ..., as many as there are numbers."""
    return np.arange(count, dtype=np.uint32)


def added(a: Any, b: Any) -> Any:
    """The sum modulo 2**32."""
    return a + b


def rotated(x: Any, k: int) -> Any:
    """The bits of words moved up by k, those beyond the top to the bottom."""
    return x << k | x >> (32 - k)


def moved(x: Any, k: int) -> Any:
    """The bits of integers moved down by k."""
    return x >> k


# <text>


ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(k0: Any, k1: Any, x0: Any, x1: Any) -> tuple[Any, Any]:
    """Threefry-2x32 with 20 rounds: two words of a key and a counter, of two words each."""
    keys = k0, k1, k0 ^ k1 ^ word(0x1BD11BDA)
    x0, x1 = added(x0, k0), added(x1, k1)
    for block in range(5):
        for k in ROTATIONS[block % 2]:
            x0 = added(x0, x1)
            x1 = rotated(x1, k) ^ x0
        x0 = added(x0, keys[(block + 1) % 3])
        x1 = added(added(x1, keys[(block + 2) % 3]), word(block + 1))
    return x0, x1


def random_key(seed: Any, t: Any, source: int) -> Any:
    """What one source draws with in step t, three words; the last is the stream, here 0."""
    return packed([*threefry(word(seed), word(moved(seed, 32)), word(t), word(source)), word(0)])


def in_stream(key: Any, stream: int) -> Any:
    """The key for one parameter, whose place in the optimizer is its stream."""
    return packed([key[:2], word(stream)])


def of_parameter(sources: Sequence[str], s: Any, stream: int) -> Any:
    """A step's scalars with the keys of one parameter in place of those that all have."""
    return s._replace(**{k: in_stream(getattr(s, k), stream) for k in sources}) if sources else s


def random_words(key: Any, count: int, like: Any) -> tuple[Any, Any]:
    """Two random words for each of as many numbers, in the place of a tensor."""
    if count > 1 << 32:
        raise ValueError(f"{count} numbers are more than a stream has, 2**32. Split the tensor.")
    return threefry(key[0:1], key[1:2], counted(count, like), key[2:3])
