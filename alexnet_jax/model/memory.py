"""What is kept in memory between two operations, and how much of it at a time."""

from collections.abc import Callable

import jax
from jax import lax

from alexnet_jax.model import derivatives

stored = lax.optimization_barrier
"""Marks a value to be computed once and kept in memory. XLA would otherwise recompute a sum of
squares wherever it is read, which costs more time than the memory is worth."""

_PART = 300_000
"""Elements of a part: with what is made of them on the way, they fill the cache of a core."""


def part_size(count: int, most: float) -> int:
    """The largest divisor of `count` that is at most `most`; 1 if that is less."""
    return max((n for n in range(1, count + 1) if count % n == 0 and n <= most), default=1)


def by_parts(fn: Callable[[jax.Array], jax.Array], x: jax.Array, size: int) -> jax.Array:
    """`fn(x)` of images, `size` of them at a time in a loop, if those are not all.

    Args:
      fn: computes images, each alone.
      x: `[B, ...]`.
      size: a divisor of B.
    """
    if size == x.shape[0]:
        return fn(x)
    # Stored: fused with the loop's write, the last operation would be computed by one thread.
    y = lax.map(lambda x: stored(fn(x)), x.reshape(-1, size, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def in_parts(fn: Callable[[jax.Array], jax.Array], x: jax.Array, elements: int) -> jax.Array:
    """`fn(x)` of images; on a CPU a few of them at a time, whose values stay in the cache.

    It is all of them where no divisor of their number is near the number that fits.

    Args:
      fn: computes images, each alone.
      x: `[B, ...]`.
      elements: of the first result in `fn`, per image.
    """
    fit = _PART / elements
    size = part_size(x.shape[0], fit)
    if 4 * size < fit or not derivatives.are_for_cpu():
        return fn(x)
    return by_parts(fn, x, size)
