"""A small network over each number of a parameter: its features, side by side along a first axis.

In: features, weights and biases. Out: features. Must not know: any framework; the text below is the one
definition, run as it stands by interpret.py and copied into each backend's runtime by render.py, where
`reshape` and `guard` are the framework's own words.

A layer is no matrix product, which each library adds up in an order of its own: its sums are added from
left to right, one feature after the other, for all outputs and numbers at once.
"""

from __future__ import annotations

from typing import Any

from generator.normal import guard
from generator.summation import reshape

# <text>


def dense(weights: Any, bias: Any, x: Any) -> Any:
    """The layer bias + weights[:, 0] * x[0] + weights[:, 1] * x[1] + ..., from left to right."""
    fl, ones = guard(x), [1] * (len(x.shape) - 1)
    total = reshape(bias, [-1, *ones])
    for k in range(int(weights.shape[1])):
        total = total + fl(reshape(weights[:, k], [-1, *ones]) * x[k])
    return total
