"""The operations a tower is made of, each with a gradient that is cheap on every platform.

Four of them carry a hand-written VJP, because what XLA derives is slow on CPU or keeps more memory
than it must: local response normalization (a root of its sum is kept, not the sum and its powers),
max pooling (a byte an output in place of a scatter), ReLU (told from its output) and convolution
(apart for each tower under `vmap`, where XLA would otherwise differentiate one grouped convolution
as a 3-D one). None changes a value: `tests/models` compares each with the plain form, value and
gradient.

Shapes: B images, H x W pixels, C channels of one tower.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_stored = lax.optimization_barrier
"""Marks what is computed once and kept in memory. XLA would rather compute a sum of squares again
for each place that reads it, at the price of all that this needs to be kept."""

TOWER = "tower"
"""The mapped axis that the two halves of the network exchange over."""


def gather_channels(x: jax.Array) -> jax.Array:
    """All towers' channels side by side: `[..., C]` of each to `[..., towers * C]` in all.

    Gathered over a new first axis: XLA would lay out a gather along the last one channels first,
    and everything before and after it with it.
    """
    gathered = lax.all_gather(x, TOWER)
    return jnp.concatenate([gathered[i] for i in range(gathered.shape[0])], -1)


@jax.custom_vjp
def sum_over_towers(x: jax.Array) -> jax.Array:
    """The sum of all towers' `x`, for what every tower then does the same with: the logits.

    Its gradient is the sum of what all towers ask of it. They ask the same, so that it needs no
    exchange, where the transpose of `psum` is another `psum`.
    """
    return lax.psum(x, TOWER)


def _sum_over_towers_fwd(x):
    return sum_over_towers(x), None


def _sum_over_towers_bwd(saved, g):
    del saved
    return (lax.axis_size(TOWER) * g,)


sum_over_towers.defvjp(_sum_over_towers_fwd, _sum_over_towers_bwd)


# --------------------------------------------------------------------------- convolution


def _unrolled(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`fn`, which under `vmap` runs once a batch element instead of as one batched operation."""
    mapped = jax.custom_batching.custom_vmap(fn)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: Sequence[bool], *args: jax.Array):
        def pick(i: int) -> list[jax.Array]:
            return [x[i] if b else x for x, b in zip(args, in_batched, strict=True)]

        return jnp.stack([fn(*pick(i)) for i in range(axis_size)]), True

    return mapped


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(
    x_BxHxWxC: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]
) -> jax.Array:
    """2-D convolution (cross-correlation), NHWC by HWIO.

    Args:
      x_BxHxWxC: images or feature maps.
      kernel: `[h, w, C, K]`.
      stride: pixels between two applications, in both directions.
      padding: zeros added before and after, in both directions.

    Returns:
      `[B, H', W', K]` with `H' = floor((H + sum(padding) - h) / stride) + 1`.
    """
    return _unrolled(functools.partial(_plain_conv, stride=stride, padding=padding))(
        x_BxHxWxC, kernel
    )


def _plain_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _conv_fwd(x, kernel, stride, padding):
    return conv(x, kernel, stride, padding), (x, kernel)


def _conv_bwd(stride, padding, saved, g):
    # Linear in each argument, so each transpose is exact and needs no forward values. The two are
    # separate calls so that the gradient of the first layer's images, never used, is dropped.
    x, kernel = saved

    def input_gradient(kernel, g):
        transpose = jax.linear_transpose(lambda x: _plain_conv(x, kernel, stride, padding), x)
        return transpose(g)[0]

    def kernel_gradient(x, g):
        transpose = jax.linear_transpose(lambda k: _plain_conv(x, k, stride, padding), kernel)
        return transpose(g)[0]

    return _unrolled(input_gradient)(kernel, g), _unrolled(kernel_gradient)(x, g)


conv.defvjp(_conv_fwd, _conv_bwd)


def locally_connected(
    x_BxHxWxC: jax.Array, kernel: jax.Array, size: int, padding: tuple[int, int]
) -> jax.Array:
    """A convolution whose kernel differs at every position (cuda-convnet's `local` layer).

    Args:
      x_BxHxWxC: feature maps.
      kernel: `[H', W', C * size * size, K]`.
      size: window side, stride 1.
      padding: zeros added before and after, in both directions.

    Returns:
      `[B, H', W', K]`.
    """
    return lax.conv_general_dilated_local(
        x_BxHxWxC,
        kernel,
        (1, 1),
        (padding, padding),
        (size, size),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


# --------------------------------------------------------------------------- pooling


def pooled_size(size: int, window: int, stride: int) -> int:
    """Outputs of a pooling along one side: the last window may hang over (cuda-convnet's ceil)."""
    return max(math.ceil((size - window) / stride), 0) + 1


def _overhang(size: int, window: int, stride: int) -> int:
    return max((pooled_size(size, window, stride) - 1) * stride + window - size, 0)


def _pad_to_windows(x: jax.Array, window: int, stride: int, value: float) -> jax.Array:
    """Adds pixels of `value` where the last windows hang over."""
    _, h, w, _ = x.shape
    over_h, over_w = _overhang(h, window, stride), _overhang(w, window, stride)
    if not over_h and not over_w:
        return x
    return jnp.pad(x, ((0, 0), (0, over_h), (0, over_w), (0, 0)), constant_values=value)


def _max_and_tap(x: jax.Array, window: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """The maximum of every window and which of its pixels that is, row by row: uint8 or int32."""
    b, h, w, c = x.shape
    out_h, out_w = pooled_size(h, window, stride), pooled_size(w, window, stride)
    x = _pad_to_windows(x, window, stride, -jnp.inf)  # never a maximum
    kind = jnp.uint8 if window * window < 255 else jnp.int32

    def tap(number: int) -> jax.Array:
        """What pixel `number` of every window is: `[b, out_h, out_w, c]`."""
        i, j = divmod(number, window)
        stop = (b, i + (out_h - 1) * stride + 1, j + (out_w - 1) * stride + 1, c)
        return lax.slice(x, (0, i, j, 0), stop, (1, stride, stride, 1))

    best, taps = tap(0), jnp.zeros((b, out_h, out_w, c), kind)
    for number in range(1, window * window):
        candidate = tap(number)
        taps = jnp.where(candidate > best, kind(number), taps)
        best = jnp.maximum(best, candidate)
    return best, taps


def max_pool(x_BxHxWxC: jax.Array, window: int, stride: int) -> jax.Array:
    """Maximum over `window` x `window` squares, `stride` apart, overlapping if stride < window.

    The first maximum of a window, row by row, gets the whole gradient, as in XLA's own rule.
    """
    return _max_pool(x_BxHxWxC, window, stride, x_BxHxWxC.shape[1:3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, stride, size):
    del size
    return _max_and_tap(x, window, stride)[0]


def _max_pool_fwd(x, window, stride, size):
    del size
    # A byte an output says where the gradient goes; the maps themselves need not be kept.
    return _max_and_tap(x, window, stride)


def _max_pool_bwd(window, stride, size, taps, g):
    # Pixel stride * i + p of a side is seen by windows i - a as their pixel p + stride * a. So the
    # gradient, with each side split into (i, p), is a sum over a of the windows' gradients where
    # the maximum was that pixel: neither a scatter nor a sum of maps that are mostly zero.
    b, out_h, out_w, c = g.shape
    h, w = size
    reach = -(-window // stride)  # windows that see a pixel, along one side
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
        # No window holds `nowhere + 1`.
        pixel = np.where(inside, rows[:, None] * window + columns[None], nowhere + 1)
        pixel = jnp.asarray(pixel, taps.dtype)[None, None, :, None, :, None]
        dx = dx + jnp.where(windows(taps, a) == pixel, windows(g, a), 0)
    dx = dx.reshape(b, sides[0] * stride, sides[1] * stride, c)
    # Where windows are further apart than they are wide, the last pixels are seen by none.
    missing = [max(n - m, 0) for n, m in zip((h, w), dx.shape[1:3], strict=True)]
    if any(missing):
        dx = jnp.pad(dx, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
    return (dx[:, :h, :w],)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


def avg_pool(x_BxHxWxC: jax.Array, window: int, stride: int) -> jax.Array:
    """Mean over squares; an overhanging window counts only the pixels it holds (cuda-convnet)."""
    _, h, w, _ = x_BxHxWxC.shape

    def total(x: jax.Array) -> jax.Array:
        # One side after the other, by slices: on CPU XLA's windows take longer, their gradient too.
        x = _pad_to_windows(x, window, stride, 0)
        for axis, size in ((1, h), (2, w)):
            reach = stride * (pooled_size(size, window, stride) - 1) + 1
            x = sum(lax.slice_in_dim(x, i, i + reach, stride, axis) for i in range(window))
        return x

    return total(x_BxHxWxC) / total(jnp.ones((1, h, w, 1), x_BxHxWxC.dtype))


# --------------------------------------------------------------------------- normalization


def _window_sum(x: jax.Array, axes: tuple[int, ...], before: int, after: int) -> jax.Array:
    """Sum over a window of `before + 1 + after` along each axis, clipped at the borders."""
    for axis in axes:
        size, padding = x.shape[axis], [(0, 0)] * x.ndim
        padding[axis] = (before, after)
        x = jnp.pad(x, padding)
        x = sum(lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(before + after + 1))
    return x


def _keep(s: jax.Array, beta: float) -> jax.Array:
    """What is kept of s: where beta is 3/4 a root of 1/s, of which the rest are products."""
    return jnp.sqrt(lax.rsqrt(s)) if beta == 0.75 else s


def _powers(kept: jax.Array, beta: float) -> tuple[jax.Array, jax.Array]:
    """`s ** -beta` and `s ** -(beta + 1)`, from what `_keep` made of s."""
    if beta == 0.75:
        square = kept * kept
        return square * kept, square * square * square * kept
    power = kept**-beta
    return power, power / kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _respond(x, axes, size, k, alpha, beta):
    return _respond_fwd(x, axes, size, k, alpha, beta)[0]


def _respond_fwd(x, axes, size, k, alpha, beta):
    # Centred as in section 3.3: i - n/2 .. i + n/2, an even window leaning forward like Caffe's.
    before = (size - 1) // 2
    x = _stored(x)
    s = k + alpha * _window_sum(x * x, axes, before, size - 1 - before)
    kept = _stored(_keep(s, beta))
    return x * _powers(kept, beta)[0], (x, kept)


def _respond_bwd(axes, size, k, alpha, beta, saved, g):
    # y_i = x_i s_i^-b, so dx_i = g_i s_i^-b - 2ab x_i sum_{j: i in window(j)} g_j x_j s_j^-(b+1).
    # Stored again, or XLA would keep the forward pass's powers for here.
    x, kept = saved[0], _stored(saved[1])
    before = (size - 1) // 2
    power, next_power = _powers(kept, beta)
    inner = _window_sum(_stored(g * x * next_power), axes, size - 1 - before, before)
    return (g * power - (2 * alpha * beta) * x * inner,)


_respond.defvjp(_respond_fwd, _respond_bwd)


def local_response_norm(
    x_BxHxWxC: jax.Array,
    *,
    size: int,
    k: float,
    alpha: float,
    beta: float,
    across_towers: bool = False,
) -> jax.Array:
    """Normalization over `size` neighbouring channels: `x / (k + alpha * sum x^2) ** beta`.

    Section 3.3 of the paper. `alpha` multiplies the plain sum; divide it by `size` beforehand for
    the convention of cuda-convnet and Caffe. The window is clipped at the first and last channel:
    of this tower, or of the whole network with `across_towers`, where each tower sees the
    `size // 2` edge channels of its neighbours.
    """
    if not across_towers:
        return _respond(x_BxHxWxC, (3,), size, k, alpha, beta)
    channels, halo = x_BxHxWxC.shape[-1], size // 2
    left, right = _neighbours(x_BxHxWxC[..., :halo], x_BxHxWxC[..., channels - halo :])
    y = _respond(jnp.concatenate([left, x_BxHxWxC, right], -1), (3,), size, k, alpha, beta)
    return y[..., halo : halo + channels]


def _neighbours(first: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last channels of the tower before and the first of the one after; zeros at the ends.

    Across each seam the two towers swap what the other needs: the seams after towers 0, 2, ... at
    once, then those after 1, 3, ...; of two towers there is one seam, and one exchange.
    """
    towers, me = lax.axis_size(TOWER), lax.axis_index(TOWER)
    before = after = jnp.zeros_like(first)
    for start in range(min(2, towers - 1)):
        partner = np.arange(towers)
        for i in range(start, towers - 1, 2):
            partner[[i, i + 1]] = i + 1, i
        ahead, behind = jnp.asarray(partner)[me] > me, jnp.asarray(partner)[me] < me
        swaps = [(i, int(j)) for i, j in enumerate(partner)]
        got = lax.ppermute(jnp.where(ahead, last, first), TOWER, swaps)
        before, after = jnp.where(behind, got, before), jnp.where(ahead, got, after)
    return before, after


def within_map_norm(
    x_BxHxWxC: jax.Array, *, size: int, k: float, alpha: float, beta: float
) -> jax.Array:
    """The same over a `size` x `size` square of one feature map (cuda-convnet's `rnorm`)."""
    return _respond(x_BxHxWxC, (1, 2), size, k, alpha, beta)


# --------------------------------------------------------------------------- dropout


def dropout_mask(
    key: jax.Array, index_B: jax.Array, tower: jax.Array | int, shape: tuple[int, ...], rate: float
) -> jax.Array:
    """Which units stay: `[B, *shape]` bool.

    Each example's mask depends on the key (one a step and layer), the example's index in the data
    set and the tower alone, so that a run does not depend on how many devices share the batch.
    """

    def one(index: jax.Array) -> jax.Array:
        example_key = jax.random.fold_in(jax.random.fold_in(key, index), tower)
        return jax.random.bernoulli(example_key, 1 - rate, shape)

    return jax.vmap(one)(index_B)


# --------------------------------------------------------------------------- activation


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`, with gradient 0 at 0, told from its output: the input need not be kept."""
    return jnp.maximum(x, 0)


def _relu_fwd(x):
    y = _stored(relu(x))
    return y, y


def _relu_bwd(y, g):
    return (jnp.where(y > 0, g, 0),)


relu.defvjp(_relu_fwd, _relu_bwd)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}
