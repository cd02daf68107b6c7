"""Response normalization over channels as one kernel per pass, for GPUs.

The kernels read the maps once and write the result once, in the maps' own type, and compute in
float32: what the plain form in `model.norm` computes in several passes over float32 copies. They
are written in Pallas, for its Triton backend. `tests/model/test_lrn_kernel.py` compares them with a
loop, in Pallas's interpreter.

A window sum over channels is a product with a band of ones, which the matrix units compute faster
than other units add shifted copies. To keep the sum as exact as float32, each term is split into
bfloat16 parts, whose products with one are exact.

Shapes: R pixels of one block, L channels of one block (a power of two).
"""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_MOST_LANES = 128
"""Channels of a block at most; maps with more are worked through in overlapping blocks."""

_ALIGNED = 8
"""Blocks start at multiples of this many channels, so that loads are wide."""

_BLOCK = 8192
"""Elements of a block, about; the fastest of those in benchmarks/results/device-h200.md."""

_WARPS = 4


@dataclasses.dataclass(frozen=True)
class Constants:
    """Those of `model.norm.local_response_norm`."""

    size: int
    k: float
    alpha: float
    beta: float

    @property
    def before(self) -> int:
        """Channels of a window before its own."""
        return (self.size - 1) // 2

    @property
    def after(self) -> int:
        """Channels of a window after its own; one more than before if the size is even."""
        return self.size - 1 - self.before


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """How maps of a number of channels are cut into blocks.

    Attributes:
      rows: pixels of a block.
      lanes: channels of a block.
      halo: channels at either end of a block that are read for their neighbours only.
      number: blocks beside each other.
    """

    rows: int
    lanes: int
    halo: int
    number: int

    @property
    def step(self) -> int:
        """Channels from the start of one block to that of the next."""
        return self.lanes - 2 * self.halo


def _blocks(channels: int, size: int) -> _Blocks:
    lanes = min(max(1 << (channels - 1).bit_length(), 16), _MOST_LANES)
    halo = 0 if channels <= lanes else -(-(size - 1) // _ALIGNED) * _ALIGNED
    step = lanes - 2 * halo
    number = math.ceil(channels / step) if step > 0 else 0
    return _Blocks(max(_BLOCK // lanes, 16), lanes, halo, number)


@functools.cache
def available() -> bool:
    """Whether this JAX has Pallas's Triton backend, which 0.12 calls deprecated."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def fits(x: jax.Array, constants: Constants) -> bool:
    """Whether the kernels can normalize these maps; otherwise a form in `model.norm` must."""
    narrow = x.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    blocks = _blocks(x.shape[-1], constants.size)
    # Indices are int32. With k = 0 a sum over channels that are not there would be 0.
    small = blocks.number > 0 and x.size < 2**31
    return narrow and small and constants.k > 0 and available()


Call = Callable[..., jax.Array]
"""Runs a kernel on `(constants, interpret, *maps)`: the forward pass on the maps, the backward pass
on them and a gradient."""


def respond(x: jax.Array, constants: Constants, interpret: bool = False) -> jax.Array:
    """`x / (k + alpha * sum x^2) ** beta`, the sum over neighbours along the last axis.

    Args:
      x: maps, channels last, that `fits` accepts.
      constants: of the normalization.
      interpret: whether Pallas interprets the kernels, on any platform.

    Returns:
      The shape and type of `x`.
    """
    return respond_by(x, constants, interpret, _call)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def respond_by(x: jax.Array, constants: Constants, interpret: bool, call: Call) -> jax.Array:
    """`respond`, and its gradient, by the kernels of `call`."""
    return call(constants, interpret, x)


def _respond_fwd(x, constants, interpret, call):
    return respond_by(x, constants, interpret, call), x


def _respond_bwd(constants, interpret, call, x, g):
    return (_gradient(x, g, constants, interpret, call),)


respond_by.defvjp(_respond_fwd, _respond_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _gradient(x, g, constants, interpret, call):
    """The gradient of `x`, given that of the response; differentiated itself as a formula."""
    return call(constants, interpret, x, g)


def _gradient_fwd(x, g, constants, interpret, call):
    return _gradient(x, g, constants, interpret, call), (x, g)


def _gradient_bwd(constants, interpret, call, saved, h):
    del interpret, call
    channel = jnp.arange(saved[0].shape[-1])
    distance = channel[:, None] - channel
    band = (distance >= -constants.before) & (distance <= constants.after)

    def formula(x):
        wide = x.astype(jnp.float32)
        total = jnp.matmul(wide * wide, band.astype(jnp.float32), precision="highest")
        y = wide * (constants.k + constants.alpha * total) ** -constants.beta
        return y.astype(x.dtype)

    return jax.vjp(lambda x, g: jax.vjp(formula, x)[1](g)[0], *saved)[1](h)


_gradient.defvjp(_gradient_fwd, _gradient_bwd)


def _call(constants: Constants, interpret: bool, *maps: jax.Array) -> jax.Array:
    """Runs a kernel: the forward one on the maps, the backward one on them and a gradient."""

    @jax.custom_batching.custom_vmap
    def run(*maps: jax.Array) -> jax.Array:
        return _pallas_call(constants, interpret, *maps)

    @run.def_vmap
    def rule(axis_size: int, in_batched: list[bool], *maps: jax.Array):
        # Pixels are independent: one more axis is more pixels.
        whole = [
            x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            for x, batched in zip(maps, in_batched, strict=True)
        ]
        return run(*whole), True

    return run(*maps)


def _pallas_call(constants: Constants, interpret: bool, *maps: jax.Array) -> jax.Array:
    # Imported when first used: most runs are on a CPU and need only the plain form.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    x = maps[0]
    channels = x.shape[-1]
    pixels, blocks = x.size // channels, _blocks(channels, constants.size)

    def kernel(*refs: Any) -> None:
        *reads, write = refs
        ids = pl.program_id(0), pl.program_id(1)
        shape = (blocks.rows, blocks.lanes)
        row = ids[0] * blocks.rows + lax.broadcasted_iota(jnp.int32, shape, 0)
        lane = lax.broadcasted_iota(jnp.int32, shape, 1)
        channel = ids[1] * blocks.step - blocks.halo + lane
        there = (row < pixels) & (channel < channels)
        own = there
        if blocks.number > 1:
            there = there & (channel >= 0)
            own = there & (lane >= blocks.halo) & (lane < blocks.lanes - blocks.halo)
        where = row * channels + channel
        values = [triton.load(ref.at[where], mask=there, other=0) for ref in reads]
        out = _block(constants, *values)
        triton.store(write.at[where], out.astype(x.dtype), mask=own)

    y = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((x.size,), x.dtype),
        grid=(math.ceil(pixels / blocks.rows), blocks.number),
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name="lrn_backward" if len(maps) > 1 else "lrn_forward",
    )(*(m.reshape(-1) for m in maps))
    return y.reshape(x.shape)


def _block(constants: Constants, x_RxL: jax.Array, g_RxL: jax.Array | None = None) -> jax.Array:
    """The response of one block, or given its gradient that of `x_RxL`; float32."""
    before, after, beta = constants.before, constants.after, constants.beta
    # Squares of bfloat16 have 16 significant bits.
    parts = 2 if x_RxL.dtype == jnp.bfloat16 else 3
    x = x_RxL.astype(jnp.float32)
    s = constants.k + constants.alpha * _window_sum(x * x, before, after, parts)
    power, next_power = powers(s, beta)
    if g_RxL is None:
        return x * power
    # The formula of the gradient is in `model.norm`.
    g = g_RxL.astype(jnp.float32)
    inner = _window_sum(g * x * next_power, after, before, parts)
    return g * power - (2 * constants.alpha * beta) * x * inner


def powers(s: jax.Array, beta: float) -> tuple[jax.Array, jax.Array]:
    """`s ** -beta` and `s ** -(beta + 1)`, by what the units of a device are fast at."""
    if beta == 0.75:
        root = lax.rsqrt(s)
        power = root * jnp.sqrt(root)
        return power, root * root * power
    power = jnp.exp2(-beta * jnp.log2(s))
    return power, power / s


def _window_sum(v_RxL: jax.Array, before: int, after: int, parts: int) -> jax.Array:
    """Sums of `before + 1 + after` neighbours, as exact as `parts` times 8 significant bits."""
    lanes = v_RxL.shape[1]
    distance = lax.broadcasted_iota(jnp.int32, (lanes, lanes), 0) - lax.broadcasted_iota(
        jnp.int32, (lanes, lanes), 1
    )
    band = ((distance >= -before) & (distance <= after)).astype(jnp.bfloat16)
    total = jnp.zeros_like(v_RxL)
    for _ in range(parts):
        # The upper half of a float32 is a bfloat16. Cut off and not rounded, what remains is exact.
        bits = lax.bitcast_convert_type(v_RxL, jnp.uint32) & jnp.uint32(0xFFFF0000)
        part = lax.bitcast_convert_type(bits, jnp.float32)
        total = total + jnp.dot(part.astype(jnp.bfloat16), band, preferred_element_type=jnp.float32)
        v_RxL = v_RxL - part
    return total
