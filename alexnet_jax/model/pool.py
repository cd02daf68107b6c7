"""Pooling, overlapping or not, with cuda-convnet's ceil rule at the border.

Max pooling has a hand-written VJP: one byte per output says where the gradient goes, instead of a
scatter. `tests/model` compares values and gradients with the plain form.

Shapes: B images, H x W pixels, C channels of one tower.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from alexnet_jax.config.fields import Field
from alexnet_jax.errors import UsageError
from alexnet_jax.model.derivatives import by_platform, custom_vjp
from alexnet_jax.model.operation import Graph, GraphSite, Operation, Shape, Site, of_maps
from alexnet_jax.registry import OPERATIONS


def pooled_size(size: int, window: int, stride: int) -> int:
    """Outputs of a pooling along one side: the last window may hang over (cuda-convnet's ceil)."""
    return max(math.ceil((size - window) / stride), 0) + 1


def _overhang(size: int, window: int, stride: int) -> int:
    return max((pooled_size(size, window, stride) - 1) * stride + window - size, 0)


def _pad_to_windows(x: jax.Array, window: int, stride: int, value: float) -> jax.Array:
    """Adds pixels of `value` where the last windows reach over the border."""
    _, h, w, _ = x.shape
    over_h, over_w = _overhang(h, window, stride), _overhang(w, window, stride)
    if not over_h and not over_w:
        return x
    return jnp.pad(x, ((0, 0), (0, over_h), (0, over_w), (0, 0)), constant_values=value)


def _max_and_tap(
    x: jax.Array,
    window: int,
    stride: int,
    larger: Callable[[jax.Array, jax.Array], jax.Array] = jnp.maximum,
) -> tuple[jax.Array, jax.Array]:
    """The maximum of every window and the number of its pixel, row by row: uint8 or int32."""
    b, h, w, c = x.shape
    out_h, out_w = pooled_size(h, window, stride), pooled_size(w, window, stride)
    x = _pad_to_windows(x, window, stride, -jnp.inf)  # never a maximum
    kind = jnp.uint8 if window * window < 255 else jnp.int32

    def tap(number: int) -> jax.Array:
        """Pixel `number` of every window: `[b, out_h, out_w, c]`."""
        i, j = divmod(number, window)
        stop = (b, i + (out_h - 1) * stride + 1, j + (out_w - 1) * stride + 1, c)
        return lax.slice(x, (0, i, j, 0), stop, (1, stride, stride, 1))

    best, taps = tap(0), jnp.zeros((b, out_h, out_w, c), kind)
    for number in range(1, window * window):
        candidate = tap(number)
        taps = jnp.where(candidate > best, kind(number), taps)
        best = larger(best, candidate)
    return best, taps


def _larger(best: jax.Array, candidate: jax.Array) -> jax.Array:
    """`jnp.maximum`, but of two equal values the first one has the whole derivative."""
    return jnp.where((candidate > best) | jnp.isnan(candidate), candidate, best)


def _plain_max_pool(x, window, stride, size):
    del size
    return _max_and_tap(x, window, stride, _larger)[0]


def max_pool(x_BxHxWxC: jax.Array, window: int, stride: int) -> jax.Array:
    """Maximum over `window` x `window` squares, `stride` apart, overlapping if stride < window.

    The first maximum of a window, row by row, gets the whole gradient, as in XLA's own rule.

    Args:
      x_BxHxWxC: feature maps.
      window: side of a window in pixels.
      stride: pixels between windows, in both directions.

    Returns:
      `[B, H', W', C]` with `H' = ceil((H - window) / stride) + 1`.
    """

    def by_byte(x: jax.Array) -> jax.Array:
        return _max_pool(x, window, stride, x.shape[1:3])

    def by_window(x: jax.Array) -> jax.Array:
        # TPUs have an instruction for the scatter of its gradient; the byte's would be broadcast.
        padding = [(0, _overhang(side, window, stride)) for side in x.shape[1:3]]
        return lax.reduce_window(
            x, np.asarray(-np.inf, x.dtype), lax.max, (1, window, window, 1),
            (1, stride, stride, 1), ((0, 0), *padding, (0, 0)),
        )  # fmt: skip

    return by_platform(x_BxHxWxC, tpu=by_window, default=by_byte)


@functools.partial(custom_vjp, nondiff_argnums=(1, 2, 3), plain=_plain_max_pool)
def _max_pool(x, window, stride, size):
    del size
    return _max_and_tap(x, window, stride)[0]


def _max_pool_fwd(x, window, stride, size):
    del size
    # One byte per output says where the gradient goes; the maps themselves are not saved.
    return _max_and_tap(x, window, stride)


def _max_pool_bwd(window, stride, size, taps, g):
    # Along one side, pixel stride * i + p is pixel p + stride * a of window i - a. So the gradient,
    # with each side split into (i, p), is the sum over a of the gradients of those windows whose
    # maximum was that pixel: neither a scatter nor a sum of maps that are mostly zero.
    b, out_h, out_w, c = g.shape
    h, w = size
    reach = -(-window // stride)  # windows that contain a pixel, along one side
    sides = (out_h + reach - 1, out_w + reach - 1)
    around = ((0, 0), (reach - 1, reach - 1), (reach - 1, reach - 1), (0, 0))
    nowhere = window * window
    taps, g = jnp.pad(taps, around, constant_values=nowhere), jnp.pad(g, around)

    def windows(x: jax.Array, a: tuple[int, int]) -> jax.Array:
        first = [reach - 1 - k for k in a]
        stop = [f + side for f, side in zip(first, sides, strict=True)]
        x = lax.slice(x, (0, *first, 0), (b, *stop, c))
        return x[:, :, None, :, None, :]

    dx = jnp.zeros((), g.dtype)
    for a in np.ndindex(reach, reach):
        rows, columns = (np.arange(stride) + stride * k for k in a)
        inside = (rows[:, None] < window) & (columns[None] < window)
        # No window has its maximum at `nowhere + 1`.
        pixel = np.where(inside, rows[:, None] * window + columns[None], nowhere + 1)
        pixel = jnp.asarray(pixel, taps.dtype)[None, None, :, None, :, None]
        dx = dx + jnp.where(windows(taps, a) == pixel, windows(g, a), 0)
    dx = dx.reshape(b, sides[0] * stride, sides[1] * stride, c)
    # Where windows are further apart than they are wide, no window contains the last pixels.
    missing = [max(n - m, 0) for n, m in zip((h, w), dx.shape[1:3], strict=True)]
    if any(missing):
        dx = jnp.pad(dx, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
    return (dx[:, :h, :w],)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


def avg_pool(x_BxHxWxC: jax.Array, window: int, stride: int) -> jax.Array:
    """Mean over squares; a window that reaches over the border counts its own pixels only.

    This is cuda-convnet's rule.

    Args:
      x_BxHxWxC: feature maps.
      window: side of a window in pixels.
      stride: pixels between windows, in both directions.

    Returns:
      `[B, H', W', C]` with `H' = ceil((H - window) / stride) + 1`.
    """
    _, h, w, _ = x_BxHxWxC.shape

    def total(x: jax.Array) -> jax.Array:
        # One side after the other, by slices: on CPU XLA's `reduce_window` and its gradient take
        # longer.
        x = _pad_to_windows(x, window, stride, 0)
        for axis, size in ((1, h), (2, w)):
            reach = stride * (pooled_size(size, window, stride) - 1) + 1
            parts = [lax.slice_in_dim(x, i, i + reach, stride, axis) for i in range(window)]
            x = functools.reduce(operator.add, parts)
        return x

    return total(x_BxHxWxC) / total(jnp.ones((1, h, w, 1), x_BxHxWxC.dtype))


@dataclasses.dataclass(frozen=True)
class Pool(Operation):
    """What both kinds of pooling share.

    Attributes:
      window: side of a window in pixels.
      stride: pixels between windows.
    """

    group = "pool"
    fields: ClassVar[Mapping[str, Field]] = {
        "window": Field(3, "Side of the pooling window in pixels.", low=1, high=10**4),
        "stride": Field(
            2,
            "Pixels between pooling windows; they overlap where this is less than the window.",
            low=1,
        ),
    }
    function: ClassVar[Callable[[jax.Array, int, int], jax.Array]]
    node: ClassVar[str]
    torch_name: ClassVar[str]

    window: int
    stride: int

    @classmethod
    def of(cls, model: ConfigDict) -> Self:
        """The pooling of `config.model`.

        Raises:
          UsageError: windows are further apart than they are wide.
        """
        window, stride = model.pool.window, model.pool.stride
        if stride > window:
            raise UsageError(
                f"config.model.pool.stride = {stride}: larger than the window {window} skips pixels"
            )
        return cls(window, stride)

    def shape(self, shape: Shape) -> Shape:
        """The number of windows, in place of the number of pixels."""
        side, _, channels = of_maps(shape)
        side = pooled_size(side, self.window, self.stride)
        return (side, side, channels)

    def shape_text(self, shape: Shape) -> str:
        """Such as `ceil((55 - 3) / 2) + 1 = 27`."""
        side = self.shape(shape)[0]
        return f"ceil(({shape[0]} - {self.window}) / {self.stride}) + 1 = {side}"

    def reach(self) -> tuple[int, int, int]:
        """See `Operation.reach`; a window reaches over the border only at the end."""
        return self.window, self.stride, 0

    def __call__(self, x: jax.Array, at: Site) -> jax.Array:
        """Pools every map."""
        del at
        return type(self).function(x, self.window, self.stride)

    def onnx(self, graph: Graph, x: str, at: GraphSite) -> str:
        """One node; ONNX's padding is never a maximum and is not counted in a mean."""
        over = _overhang(at.shape[0], self.window, self.stride)
        window, stride = [self.window] * 2, [self.stride] * 2
        return graph.add(self.node, x, kernel_shape=window, strides=stride, pads=[0, 0, over, over])

    def torch(self, x: str, at: GraphSite) -> str:
        """PyTorch's own ceil rule; it takes no window that is larger than the map."""
        window = min(self.window, at.shape[0])
        return f"F.{self.torch_name}({x}, {window}, {self.stride}, ceil_mode=True)"


class MaxPool(Pool):
    """`max_pool` of every map."""

    function, node, torch_name = max_pool, "MaxPool", "max_pool2d"


class AvgPool(Pool):
    """`avg_pool` of every map."""

    function, node, torch_name = avg_pool, "AveragePool", "avg_pool2d"


OPERATIONS["max_pool"] = MaxPool
OPERATIONS["avg_pool"] = AvgPool
