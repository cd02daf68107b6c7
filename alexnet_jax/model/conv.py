"""Convolutions with shared and with unshared kernels.

`conv` has a hand-written VJP: under `vmap` XLA would otherwise differentiate the towers'
convolutions as one grouped convolution, which becomes a slow 3-D one. `tests/model` compares values
and gradients with the plain form.

Shapes: B images, H x W pixels, C channels of one tower, K kernels.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.model import winograd
from alexnet_jax.model.derivatives import by_platform, custom_vjp

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _unrolled(fn: Callable[..., jax.Array], side_by_side: bool = False) -> Callable[..., jax.Array]:
    """`fn`, which under `vmap` runs once per batch element instead of as one batched operation.

    With `side_by_side` it runs once, with the last axes of its second argument side by side, where
    the first argument is the same for all elements.
    """
    mapped = jax.custom_batching.custom_vmap(fn)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: Sequence[bool], *args: jax.Array):
        if side_by_side and list(in_batched) == [False, True]:
            shared, each = args
            columns = fn(shared, jnp.concatenate(list(each), -1))
            return jnp.stack(jnp.split(columns, axis_size, -1)), True

        def pick(i: int) -> list[jax.Array]:
            return [x[i] if b else x for x, b in zip(args, in_batched, strict=True)]

        return jnp.stack([fn(*pick(i)) for i in range(axis_size)]), True

    return mapped


def _per_tower(
    direct: Callable[..., jax.Array],
    fast: Callable[..., jax.Array | None] | None,
    side_by_side: bool = True,
) -> Callable[..., jax.Array]:
    """`direct` for each tower; on a CPU `fast`, where that has a result.

    On a CPU it is one call for all towers that have the same first argument, if `side_by_side`:
    along the last axis, each entry of the result then depends on one entry of the second argument
    alone (kernels in, maps out), so that those of all towers can lie side by side. The inputs are
    read once. A GPU would copy the results.
    """

    def on_cpu(*args: jax.Array) -> jax.Array:
        result = fast(*args) if fast else None
        return direct(*args) if result is None else result

    def per_tower(*args: jax.Array) -> jax.Array:
        cpu = _unrolled(on_cpu, side_by_side)
        return by_platform(*args, cpu=cpu, default=_unrolled(direct))

    return per_tower


@functools.partial(custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def conv(
    x_BxHxWxC: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: tuple[int, int],
    precision: lax.PrecisionLike = "highest",
    fast: bool = True,
) -> jax.Array:
    """2-D convolution (cross-correlation), NHWC by HWIO.

    Args:
      x_BxHxWxC: images or feature maps.
      kernel: `[h, w, C, K]`.
      stride: pixels between two applications, in both directions.
      padding: zeros added before and after, in both directions.
      precision: of float32 products, forward and backward; see `config.model.precision`.
      fast: whether `winograd` may compute it on a CPU; see `config.model.winograd`.

    Returns:
      `[B, H', W', K]` with `H' = floor((H + sum(padding) - h) / stride) + 1`.
    """

    def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _plain_conv(x, kernel, stride, padding, precision)

    def by_winograd(x: jax.Array, kernel: jax.Array) -> jax.Array | None:
        return winograd.conv(x, kernel, stride, padding)

    return _per_tower(direct, by_winograd if fast else None)(x_BxHxWxC, kernel)


def _plain_conv(x, kernel, stride, padding, precision):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (padding, padding),
        dimension_numbers=_LAYOUT,
        precision=precision,
    )


def _conv_fwd(x, kernel, stride, padding, precision, fast):
    return conv(x, kernel, stride, padding, precision, fast), (x, kernel)


def _conv_bwd(stride, padding, precision, fast, saved, g):
    # The convolution is linear in each argument, so each transpose is exact and needs no forward
    # values. The two are separate calls, so that the unused gradient of the images is dropped.
    x, kernel = saved

    def input_gradient(kernel, g):
        def forward(x):
            return _plain_conv(x, kernel, stride, padding, precision)

        return jax.linear_transpose(forward, x)(g)[0]

    def input_by_winograd(kernel, g):
        return winograd.input_gradient(kernel, g, stride, padding)

    def kernel_gradient(x, g):
        def forward(kernel):
            return _plain_conv(x, kernel, stride, padding, precision)

        like = jax.ShapeDtypeStruct((*kernel.shape[:-1], g.shape[-1]), kernel.dtype)
        return jax.linear_transpose(forward, like)(g)[0]

    def kernel_by_winograd(x, g):
        return winograd.kernel_gradient(x, g, kernel.shape[:2], stride, padding)

    images = _per_tower(input_gradient, input_by_winograd if fast else None, side_by_side=False)
    kernels = _per_tower(kernel_gradient, kernel_by_winograd if fast else None)
    return images(kernel, g), kernels(x, g)


conv.defvjp(_conv_fwd, _conv_bwd)


def locally_connected(
    x_BxHxWxC: jax.Array,
    kernel: jax.Array,
    size: int,
    padding: tuple[int, int],
    precision: lax.PrecisionLike = "highest",
) -> jax.Array:
    """A convolution whose kernel differs at every position (cuda-convnet's `local` layer).

    Args:
      x_BxHxWxC: feature maps.
      kernel: `[H', W', C * size * size, K]`.
      size: side of the window; the stride is 1.
      padding: zeros added before and after, in both directions.
      precision: of float32 products, forward and backward; see `config.model.precision`.

    Returns:
      `[B, H', W', K]`.
    """
    return lax.conv_general_dilated_local(
        x_BxHxWxC,
        kernel,
        (1, 1),
        (padding, padding),
        (size, size),
        dimension_numbers=_LAYOUT,
        precision=precision,
    )
