"""Convolutions with fewer multiplications, by Winograd's minimal filtering, for CPUs.

F(m x m, q x q) computes a tile of m x m outputs of a q x q convolution from (m + q - 1)**2 products
per pair of channels, instead of (m q)**2: the images and the kernels are evaluated as polynomials
at m + q - 1 points, multiplied there, and the result is interpolated (Lavin and Gray, "Fast
Algorithms for Convolutional Neural Networks", 2015; the matrices are those of Toom and Cook). The
gradients are transposes, so they have the same number of products. Rounding errors are larger than
those of a direct sum, about ten times for F(5 x 5, 3 x 3) and F(4 x 4, 5 x 5).

A convolution of stride s is one of stride 1 over blocks of s x s pixels, whose channels lie side by
side.

Shapes: N images, H x W pixels, C channels, K kernels; T x T tiles, and a = m + q - 1 points.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.model.memory import by_parts, part_size, stored

_SIZES = (3, 5)
"""Sides of kernels, q."""

_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0, -0.5, 2.0)
"""Where polynomials are evaluated, besides infinity, as many of these as are needed. Among small
powers of two they have the smallest errors."""

_CHUNK_BYTES = 16e6
"""Size of the evaluated images and the products of one chunk, which stay in the last-level cache;
two devices share it."""

_CHANNELS = 24
"""The smallest C K / (C + K) for which the products that are saved take longer than the sums that
are added."""

_ROWS = 64
"""The fewest tiles in a chunk for which the matrix products are efficient and evaluating the
kernels takes a small part of the time."""


class _Plan(NamedTuple):
    """How a convolution is divided.

    Attributes:
      size: side of the kernel in blocks, q.
      outputs: height and width of the result.
      tile: side of a tile of outputs, m.
      chunk: images at a time.
    """

    size: int
    outputs: tuple[int, int]
    tile: int
    chunk: int = 1

    @property
    def points(self) -> int:
        return self.tile + self.size - 1

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles along the height and the width; the last ones may hang over."""
        rows, columns = (math.ceil(n / self.tile) for n in self.outputs)
        return rows, columns

    @property
    def full(self) -> tuple[int, int]:
        """Height and width of whole tiles."""
        return self.tile * self.tiles[0], self.tile * self.tiles[1]

    @property
    def products(self) -> int:
        """Products per image and pair of channels."""
        return math.prod(self.tiles) * self.points**2


def _plan(
    x: jax.Array, kernel: Sequence[int], stride: int, padding: tuple[int, int]
) -> _Plan | None:
    """The plan for images and a kernel of this shape; None where direct sums take less time.

    It is for float32 only: narrower numbers would lose too much.
    """
    (count, height, width, channels), (side, other, _, features) = x.shape, kernel
    size = math.ceil(side / stride)
    channels *= stride**2
    suits = x.dtype == jnp.float32 and side == other and size in _SIZES
    if not suits or channels * features < _CHANNELS * (channels + features):
        return None
    rows, columns = ((n + sum(padding) - side) // stride + 1 for n in (height, width))
    largest = len(_POINTS) + 2 - size
    tiled = [_Plan(size, (rows, columns), tile) for tile in range(1, largest + 1)]
    plan = min(tiled, key=lambda plan: plan.products)  # Of several, that with the smallest errors.
    chunk = part_size(count, _CHUNK_BYTES / (4 * plan.products * (channels + features)))
    return plan._replace(chunk=chunk) if chunk * math.prod(plan.tiles) >= _ROWS else None


@functools.cache
def _matrices(tile: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices that evaluate an image, `[a, a]`, a kernel, `[a, q]`, and an output, `[a, m]`.

    With them, `out.T @ ((kernel @ g) * (image @ d))` is the correlation of d with g.
    """
    points = np.array(_POINTS[: tile + size - 2])
    # The last row is the point at infinity: the leading coefficient.
    out = np.vstack([np.vander(points, tile, increasing=True), np.eye(tile)[-1]])
    kernel = np.vstack([np.vander(points, size, increasing=True), np.eye(size)[-1]])
    image = np.zeros((len(points) + 1, len(points) + 1))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        kernel[i] /= np.prod(point - others)
        image[i, :-1] = np.poly(others)[::-1]
    image[-1] = np.poly(points)[::-1]
    return image, kernel, out


def _combined(matrix: np.ndarray, parts: Iterable[jax.Array]) -> jax.Array:
    """`matrix @ parts`: sums of arrays, along a new first axis."""
    parts = list(parts)

    def combined(row: np.ndarray) -> jax.Array:
        terms = [float(c) * x for c, x in zip(row, parts, strict=True) if c]
        return functools.reduce(operator.add, terms)

    # Stored: XLA would otherwise compute the sums anew for each sum of them.
    return stored(jnp.stack([combined(row) for row in matrix]))


def _both_sides(matrix: np.ndarray, grid: jax.Array) -> jax.Array:
    """`matrix @ grid @ matrix.T` along the first two axes, which change places."""
    half = _combined(matrix, grid)
    return _combined(matrix, half.swapaxes(0, 1))


def _evaluated(matrix: np.ndarray, x: jax.Array, tile: int, tiles: tuple[int, int]) -> jax.Array:
    """`matrix @ tile @ matrix.T`, transposed, of tiles that lie `tile` pixels apart.

    Returns:
      `[a, a, n, T, T, C]`.
    """
    rows, columns = (
        [slice(i, i + tile * (n - 1) + 1, tile) for i in range(matrix.shape[1])] for n in tiles
    )
    half = _combined(matrix, [x[:, row] for row in rows])
    return _combined(matrix, [half[:, :, :, column] for column in columns])


def _padded(x: jax.Array, before: int, sides: Sequence[int]) -> jax.Array:
    """`x` with zeros before it and zeros, or fewer pixels, at its end: `[n, *sides, C]`."""
    ends = [side - before - n for side, n in zip(sides, x.shape[1:3], strict=True)]
    config = [(0, 0, 0), *((before, end, 0) for end in ends), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _image_blocks(x: jax.Array, stride: int, before: int, plan: _Plan) -> jax.Array:
    """The blocks of padded images that the tiles read: `[n, rows, columns, stride**2 * C]`."""
    count, channels = x.shape[0], x.shape[-1]
    rows, columns = (plan.tile * n + plan.size - 1 for n in plan.tiles)
    x = _padded(x, before, (rows * stride, columns * stride))
    x = x.reshape(count, rows, stride, columns, stride * channels)
    # The rows of pixels of a block, one after the other: a transpose would be five times as slow.
    return jnp.concatenate([x[:, :, i] for i in range(stride)], -1)


def _kernel_blocks(kernel: jax.Array, stride: int, size: int) -> jax.Array:
    """The kernel of the convolution over blocks: `[q, q, stride**2 * C, K]`."""
    side, _, channels, features = kernel.shape
    more = size * stride - side
    kernel = jnp.pad(kernel, ((0, more), (0, more), (0, 0), (0, 0)))
    kernel = kernel.reshape(size, stride, size, stride, channels, features).swapaxes(1, 2)
    return kernel.reshape(size, size, -1, features)


def _chunks(x: jax.Array, size: int) -> jax.Array:
    return x.reshape(-1, size, *x.shape[1:])


def conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]
) -> jax.Array | None:
    """2-D convolution (cross-correlation), NHWC by HWIO.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[h, w, C, K]`.
      stride: pixels between two applications, in both directions.
      padding: zeros added before and after, in both directions.

    Returns:
      `[N, H', W', K]`, as `model.conv.conv`; None where the direct sum takes less time.
    """
    plan = _plan(x, kernel.shape, stride, padding)
    if plan is None:
        return None
    for_image, for_kernel, for_output = _matrices(plan.tile, plan.size)
    kernels = _both_sides(for_kernel, _kernel_blocks(kernel, stride, plan.size))
    height, width = plan.outputs

    def one(x: jax.Array) -> jax.Array:
        x = _image_blocks(x, stride, padding[0], plan)
        images = _evaluated(for_image, x, plan.tile, plan.tiles)
        products = jnp.einsum("pqnijc,pqck->pqnijk", images, kernels, precision="highest")
        y = _both_sides(for_output.T, products)  # [m, m, n, T, T, K]
        y = y.transpose(2, 3, 0, 4, 1, 5).reshape(y.shape[2], *plan.full, y.shape[-1])
        return y[:, :height, :width]

    return by_parts(one, x, plan.chunk)


def input_gradient(
    kernel: jax.Array, g: jax.Array, stride: int, padding: tuple[int, int]
) -> jax.Array | None:
    """The gradient of `conv` with respect to its images.

    Args:
      kernel: `[h, w, C, K]`.
      g: the gradient of the result, `[N, H', W', K]`.
      stride: see `conv`.
      padding: see `conv`.

    Returns:
      `[N, H, W, C]`; None where the direct sum takes less time.
    """
    if stride != 1:
        return None
    before, after = (kernel.shape[0] - 1 - n for n in padding)
    return conv(g, kernel[::-1, ::-1].swapaxes(2, 3), 1, (before, after))


def kernel_gradient(
    x: jax.Array, g: jax.Array, sides: tuple[int, int], stride: int, padding: tuple[int, int]
) -> jax.Array | None:
    """The gradient of `conv` with respect to its kernel.

    Args:
      x: the images, `[N, H, W, C]`.
      g: the gradient of the result, `[N, H', W', K]`.
      sides: of the kernel, h and w.
      stride: see `conv`.
      padding: see `conv`.

    Returns:
      `[h, w, C, K]`; None where the direct sum takes less time.
    """
    shape = (*sides, x.shape[-1], g.shape[-1])
    plan = _plan(x, shape, stride, padding)
    if plan is None:
        return None
    for_image, for_kernel, for_output = _matrices(plan.tile, plan.size)

    def add(sums: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, g = chunk
        x = _image_blocks(x, stride, padding[0], plan)
        g = _padded(g, 0, plan.full)
        images = _evaluated(for_image, x, plan.tile, plan.tiles)
        outputs = _evaluated(for_output, g, plan.tile, plan.tiles)
        return sums + jnp.einsum("pqnijc,pqnijk->pqck", images, outputs, precision="highest"), None

    zeros = jnp.zeros((plan.points, plan.points, shape[2] * stride**2, shape[3]), x.dtype)
    sums, _ = lax.scan(add, zeros, (_chunks(x, plan.chunk), _chunks(g, plan.chunk)))
    blocks = _both_sides(for_kernel.T, sums)
    return _transposed(lambda kernel: _kernel_blocks(kernel, stride, plan.size), shape, blocks)


def _transposed(
    fn: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], g: jax.Array
) -> jax.Array:
    """The gradient of an array of this shape, where `g` is that of its image under linear `fn`."""
    return jax.linear_transpose(fn, jax.ShapeDtypeStruct(shape, g.dtype))(g)[0]
