"""The operations a tower is made of, each with a gradient that is cheap on every platform.

Three of them carry a hand-written VJP, because what XLA derives is slow on CPU: local response
normalization (its power is computed once and reused), max pooling (strided masks in place of a
scatter) and convolution (kept apart for each tower under `vmap`, where XLA would otherwise
differentiate one grouped convolution as a 3-D one). None changes a value: `tests/models` compares
each with the plain form, value and gradient.

Shapes: B images, H x W pixels, C channels of one tower.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

TOWER = "tower"
"""The mapped axis that the two halves of the network exchange over."""


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


def _tap(x: jax.Array, i: int, j: int, out_h: int, out_w: int, stride: int) -> jax.Array:
    """What tap (i, j) of every window sees: `[B, out_h, out_w, C]`."""
    b, _, _, c = x.shape
    stop = (b, i + (out_h - 1) * stride + 1, j + (out_w - 1) * stride + 1, c)
    return lax.slice(x, (0, i, j, 0), stop, (1, stride, stride, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(x_BxHxWxC: jax.Array, window: int, stride: int) -> jax.Array:
    """Maximum over `window` x `window` squares, `stride` apart, overlapping if stride < window.

    The first maximum of a window, row by row, gets the whole gradient, as in XLA's own rule.
    """
    _, h, w, _ = x_BxHxWxC.shape
    return lax.reduce_window(
        x_BxHxWxC,
        -jnp.inf,
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), (0, _overhang(h, window, stride)), (0, _overhang(w, window, stride)), (0, 0)),
    )


def _max_pool_fwd(x, window, stride):
    y = max_pool(x, window, stride)
    return y, (x, y)


def _max_pool_bwd(window, stride, saved, g):
    x, y = saved
    _, h, w, _ = x.shape
    _, out_h, out_w, _ = y.shape
    over_h, over_w = _overhang(h, window, stride), _overhang(w, window, stride)
    padded = jnp.pad(x, ((0, 0), (0, over_h), (0, over_w), (0, 0)), constant_values=-jnp.inf)
    zero = jnp.zeros((), g.dtype)
    taken = jnp.zeros(y.shape, bool)
    dx = jnp.zeros(x.shape, g.dtype)
    for i in range(window):
        for j in range(window):
            first = (_tap(padded, i, j, out_h, out_w, stride) == y) & ~taken
            taken = taken | first
            # Spread this tap's share back over the pixels it came from: a pad with holes.
            after_h = h - (i + (out_h - 1) * stride + 1)
            after_w = w - (j + (out_w - 1) * stride + 1)
            dx = dx + lax.pad(
                jnp.where(first, g, zero),
                zero,
                ((0, 0, 0), (i, after_h, stride - 1), (j, after_w, stride - 1), (0, 0, 0)),
            )
    return (dx,)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


def avg_pool(x_BxHxWxC: jax.Array, window: int, stride: int) -> jax.Array:
    """Mean over squares; an overhanging window counts only the pixels it holds (cuda-convnet)."""
    _, h, w, _ = x_BxHxWxC.shape
    padding = ((0, 0), (0, _overhang(h, window, stride)), (0, _overhang(w, window, stride)), (0, 0))

    def total(x):
        return lax.reduce_window(
            x, jnp.zeros((), x.dtype), lax.add, (1, window, window, 1),
            (1, stride, stride, 1), padding,
        )  # fmt: skip

    return total(x_BxHxWxC) / total(jnp.ones((1, h, w, 1), x_BxHxWxC.dtype))


# --------------------------------------------------------------------------- normalization


def _window_sum(x: jax.Array, axes: tuple[int, ...], before: int, after: int) -> jax.Array:
    """Sum over a window of `before + 1 + after` along each axis, clipped at the borders."""
    for axis in axes:
        size = x.shape[axis]
        padding = [(0, 0, 0)] * x.ndim
        padding[axis] = (before, after, 0)
        padded = lax.pad(x, jnp.zeros((), x.dtype), padding)
        x = sum(lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(before + 1 + after))
    return x


def _inverse_power(s: jax.Array, beta: float) -> jax.Array:
    if beta == 0.75:  # two square roots in place of a logarithm and an exponential
        r = lax.rsqrt(s)
        return r * jnp.sqrt(r)
    return s**-beta


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _respond(x, axes, size, k, alpha, beta):
    # Centred as in section 3.3: i - n/2 .. i + n/2, an even window leaning forward like Caffe's.
    before = (size - 1) // 2
    s = k + alpha * _window_sum(x * x, axes, before, size - 1 - before)
    return x * _inverse_power(s, beta)


def _respond_fwd(x, axes, size, k, alpha, beta):
    return _respond(x, axes, size, k, alpha, beta), x


def _respond_bwd(axes, size, k, alpha, beta, x, g):
    # y_i = x_i s_i^-b, so dx_i = g_i s_i^-b - 2ab x_i sum_{j: i in window(j)} g_j x_j s_j^(-b-1).
    # Only x is kept from the forward pass: s costs less to compute again than to store.
    before = (size - 1) // 2
    after = size - 1 - before
    s = k + alpha * _window_sum(x * x, axes, before, after)
    p = _inverse_power(s, beta)
    inner = _window_sum(g * x * p / s, axes, after, before)
    return (g * p - (2 * alpha * beta) * x * inner,)


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
    of this tower, or of the whole network with `across_towers`, where each tower sees the edge
    channels of its neighbours (one exchange of `size - 1` channels).
    """
    if not across_towers:
        return _respond(x_BxHxWxC, (3,), size, k, alpha, beta)
    channels, halo = x_BxHxWxC.shape[-1], size // 2
    edges = jnp.stack([x_BxHxWxC[..., :halo], x_BxHxWxC[..., channels - halo :]])
    edges_Tx2xBxHxWxh = lax.all_gather(edges, TOWER)
    towers, me = edges_Tx2xBxHxWxh.shape[0], lax.axis_index(TOWER)
    left = edges_Tx2xBxHxWxh[jnp.maximum(me - 1, 0), 1] * (me > 0)
    right = edges_Tx2xBxHxWxh[jnp.minimum(me + 1, towers - 1), 0] * (me < towers - 1)
    y = _respond(jnp.concatenate([left, x_BxHxWxC, right], -1), (3,), size, k, alpha, beta)
    return y[..., halo : halo + channels]


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


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}
