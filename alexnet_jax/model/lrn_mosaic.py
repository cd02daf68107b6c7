"""Response normalization over channels as one kernel per pass, for TPUs.

As in `model.lrn_kernel`, the maps are read once and the result is written once, in the maps' own
type, computed in float32. Written in Pallas, for its Mosaic backend;
`tests/model/test_lrn_kernel.py` compares it with a loop, in Pallas's interpreter.

XLA lays feature maps out on a TPU with the images side by side in the lanes of its registers and
the channels in their sublanes. The kernels take them like that, so that nothing is moved before or
after, and a window is a sum of arrays shifted by whole sublanes.

Shapes: N pixels of all towers, C channels, B images.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.model.lrn_kernel import Constants, powers, respond_by

_LANES = 512
"""Images of a block at most; registers have 128 lanes."""

_BLOCK = 2**17
"""Elements of a block, about: with some ten arrays of them in float32, a third of 16 MB of VMEM."""


def fits(x: jax.Array, constants: Constants) -> bool:
    """Whether the kernels can normalize these maps `[B, H, W, C]`."""
    narrow = x.dtype in (jnp.float32, jnp.bfloat16)
    return x.ndim == 4 and narrow and constants.k > 0 and x.size > 0


def respond(x_BxHxWxC: jax.Array, constants: Constants, interpret: bool = False) -> jax.Array:
    """`x / (k + alpha * sum x^2) ** beta`, the sum over neighbours along the last axis.

    Args:
      x_BxHxWxC: maps that `fits` accepts.
      constants: of the normalization.
      interpret: whether Pallas interprets the kernels, on any platform.

    Returns:
      The shape and type of `x_BxHxWxC`.
    """
    return respond_by(x_BxHxWxC, constants, interpret, _call)


def _call(constants: Constants, interpret: bool, *maps: jax.Array) -> jax.Array:
    """Runs a kernel: the forward one on the maps, the backward one on them and a gradient."""

    @jax.custom_batching.custom_vmap
    def run(*maps_NxCxB: jax.Array) -> jax.Array:
        return _pallas_call(constants, interpret, *maps_NxCxB)

    @run.def_vmap
    def rule(axis_size: int, in_batched: list[bool], *maps: jax.Array):
        # Pixels are independent: those of every tower are more of them.
        whole = [
            x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            for x, batched in zip(maps, in_batched, strict=True)
        ]
        y = run(*(x.reshape(-1, *x.shape[2:]) for x in whole))
        return y.reshape(axis_size, -1, *y.shape[1:]), True

    images, height, width, channels = maps[0].shape
    y = run(*(x.transpose(1, 2, 3, 0).reshape(-1, channels, images) for x in maps))
    return y.reshape(height, width, channels, images).transpose(3, 0, 1, 2)


def _pallas_call(constants: Constants, interpret: bool, *maps_NxCxB: jax.Array) -> jax.Array:
    # Imported when first used: most runs are on a CPU and need only the plain form.
    from jax.experimental import pallas as pl

    x = maps_NxCxB[0]
    pixels, channels, images = x.shape
    lanes = min(images, _LANES)
    rows = min(max(_BLOCK // (channels * max(lanes, 128)), 1), pixels)

    def kernel(*refs: Any) -> None:
        *reads, write = refs
        write[...] = _block(constants, *(ref[...] for ref in reads)).astype(x.dtype)

    block = pl.BlockSpec((rows, channels, lanes), lambda i, j: (i, 0, j))
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(math.ceil(pixels / rows), math.ceil(images / lanes)),
        in_specs=[block] * len(maps_NxCxB),
        out_specs=block,
        interpret=interpret,
        name="lrn_backward" if len(maps_NxCxB) > 1 else "lrn_forward",
    )(*maps_NxCxB)


def _block(constants: Constants, x_NxCxB: jax.Array, g_NxCxB: jax.Array | None = None) -> jax.Array:
    """The response of one block, or given its gradient that of `x_NxCxB`; float32."""
    before, after = constants.before, constants.after
    x = x_NxCxB.astype(jnp.float32)
    s = constants.k + constants.alpha * _window_sum(x * x, before, after)
    power, next_power = powers(s, constants.beta)
    if g_NxCxB is None:
        return x * power
    # The formula of the gradient is in `model.norm`.
    g = g_NxCxB.astype(jnp.float32)
    inner = _window_sum(g * x * next_power, after, before)
    return g * power - (2 * constants.alpha * constants.beta) * x * inner


def _window_sum(v_NxCxB: jax.Array, before: int, after: int) -> jax.Array:
    """Sums of `before + 1 + after` neighbours along the channels, clipped at the ends."""
    channels = v_NxCxB.shape[1]
    total = v_NxCxB
    for distance in range(1, max(before, after) + 1):
        if distance >= channels:
            break
        zeros = jnp.zeros_like(v_NxCxB[:, :distance])
        if distance <= before:
            kept = lax.slice_in_dim(v_NxCxB, 0, channels - distance, axis=1)
            total = total + jnp.concatenate([zeros, kept], axis=1)
        if distance <= after:
            kept = lax.slice_in_dim(v_NxCxB, distance, channels, axis=1)
            total = total + jnp.concatenate([kept, zeros], axis=1)
    return total
