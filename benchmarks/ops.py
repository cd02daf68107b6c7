"""The hand-written operations compared with other implementations, on one device.

    python -m benchmarks.ops

The device uses all cores. The result and the gradient of each implementation are compared with
those of the plain one; then all are timed in turns. Writes ops.json and ops.md into --out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from alexnet_jax import parallel
from alexnet_jax.config import default

_ONE_DEVICE = default()
_ONE_DEVICE.model.towers = 1
parallel.prepare_host(_ONE_DEVICE)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax import lax  # noqa: E402

from alexnet_jax.model import conv, norm, pool  # noqa: E402

HERE = Path(__file__).parent
LRN = dict(size=5, k=2.0, alpha=1e-4, beta=0.75)


def pool_plain(x: jax.Array) -> jax.Array:
    """As most libraries implement it, with XLA's gradient."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


@jax.custom_vjp
def pool_masks(x: jax.Array) -> jax.Array:
    """The gradient as nine masks, each spread over the map by a dilating pad."""
    return pool_plain(x)


def _pool_masks_bwd(saved: tuple, g: jax.Array) -> tuple[jax.Array]:
    x, y = saved
    b, h, w, c = x.shape
    out_h, out_w = y.shape[1:3]
    taken, dx = jnp.zeros(y.shape, bool), jnp.zeros_like(x)
    for i, j in np.ndindex(3, 3):
        stop = (b, i + 2 * out_h - 1, j + 2 * out_w - 1, c)
        first = (lax.slice(x, (0, i, j, 0), stop, (1, 2, 2, 1)) == y) & ~taken
        taken |= first
        holes = ((0, 0, 0), (i, h - stop[1], 1), (j, w - stop[2], 1), (0, 0, 0))
        dx += lax.pad(jnp.where(first, g, 0), jnp.zeros((), g.dtype), holes)
    return (dx,)


pool_masks.defvjp(lambda x: (pool_plain(x), (x, pool_plain(x))), _pool_masks_bwd)


def lrn_plain(x: jax.Array) -> jax.Array:
    """As most libraries implement it, with XLA's gradient."""
    padded = jnp.pad(x * x, ((0, 0), (0, 0), (0, 0), (2, 2)))
    total = sum(padded[..., i : i + x.shape[-1]] for i in range(5))
    return x / (2.0 + 1e-4 * total) ** 0.75


def _lrn_by_hand(window_sum: Callable[[jax.Array], jax.Array]) -> Callable:
    """A hand-written gradient without barriers, which keeps nothing but the input."""

    @jax.custom_vjp
    def lrn(x: jax.Array) -> jax.Array:
        r = lax.rsqrt(2.0 + 1e-4 * window_sum(x * x))
        return x * (r * jnp.sqrt(r))

    def backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
        s = 2.0 + 1e-4 * window_sum(x * x)
        r = lax.rsqrt(s)
        power = r * jnp.sqrt(r)
        return (g * power - 1.5e-4 * x * window_sum(g * x * power / s),)

    lrn.defvjp(lambda x: (lrn(x), x), backward)
    return lrn


def _padded_slices(x: jax.Array) -> jax.Array:
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (2, 2)))
    return sum(padded[..., i : i + x.shape[-1]] for i in range(5))


def _shifted_pads(x: jax.Array) -> jax.Array:
    zero, still = jnp.zeros((), x.dtype), ((0, 0, 0),) * 3
    return sum(lax.pad(x, zero, (*still, (-d, d, 0))) for d in range(-2, 3))


def _band(x: jax.Array) -> jax.Array:
    i = np.arange(x.shape[-1])
    return x @ (np.abs(i[:, None] - i) <= 2).astype(np.float32)


def conv1_plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of a tower."""
    return conv.conv(x, kernel, 4, (0, 3))


def conv1_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Space to depth: 4 x 4 pixels become 48 channels, and the 11 x 11 kernel one of 3 x 3."""

    def blocks(x: jax.Array, n: int) -> jax.Array:
        b, h, w, c = x.shape
        x = jnp.pad(x, ((0, 0), (0, 4 * n - h), (0, 4 * n - w), (0, 0)))
        x = x.reshape(b, n, 4, n, 4, c).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, n, n, 16 * c)

    by_output = kernel.transpose(3, 0, 1, 2)
    return conv.conv(blocks(x, 57), blocks(by_output, 3).transpose(1, 2, 3, 0), 1, (0, 0))


def seconds(fn: Callable, *args: jax.Array) -> float:
    """The time of one call, until its result is ready."""
    before = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - before


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    generator = np.random.default_rng(0)

    def numbers(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * generator.standard_normal(shape, np.float32))

    pools = {
        "plain": pool_plain,
        "nine masks": pool_masks,
        "ours": lambda x: pool.max_pool(x, 3, 2),
    }
    norms = {
        "plain": lrn_plain,
        "by hand, padded slices": _lrn_by_hand(_padded_slices),
        "by hand, shifted pads": _lrn_by_hand(_shifted_pads),
        "by hand, banded matrix product": _lrn_by_hand(_band),
        "ours": lambda x: norm.local_response_norm(x, **LRN),
    }
    convs = {"ours": conv1_plain, "space to depth": conv1_blocks}
    b, rows = args.batch_size, []
    for title, forms, shapes in (
        ("max pool 3 x 3 / 2", pools, [(b, 55, 55, 48)]),
        ("max pool 3 x 3 / 2", pools, [(b, 27, 27, 128)]),
        ("LRN", norms, [(b, 55, 55, 48)]),
        ("LRN", norms, [(b, 27, 27, 128)]),
        ("conv1, gradient of the kernel", convs, [(b, 224, 224, 3), (11, 11, 3, 48)]),
    ):
        inputs = [numbers(*shape, scale=30.0 if i == 0 else 1.0) for i, shape in enumerate(shapes)]
        programs, expected = {}, None
        for name, fn in forms.items():

            def both(*inputs: jax.Array, fn: Callable = fn) -> tuple:
                *fixed, last = inputs[:-1]  # the argument to differentiate
                y, back = jax.vjp(lambda x: fn(*fixed, x), last)
                return y, back(inputs[-1])[0]

            forward = jax.jit(fn)
            weights = numbers(*jax.eval_shape(fn, *inputs).shape)
            weights = weights if expected is None else expected[2]
            program = jax.jit(both)
            y, gradient = program(*inputs, weights)
            if expected is None:
                expected = (y, gradient, weights)
            for ours, theirs in zip((y, gradient), expected, strict=False):
                error = jnp.abs(ours - theirs).max() / jnp.abs(theirs).max()
                assert error < 1e-4, (title, name, error)
            jax.block_until_ready(forward(*inputs))
            programs[name] = (forward, program, weights)
        times = {name: ([], []) for name in programs}
        for _ in range(args.rounds):
            for name, (forward, program, weights) in programs.items():
                times[name][0].append(seconds(forward, *inputs))
                times[name][1].append(seconds(program, *inputs, weights))
        for name, (forward_times, both_times) in times.items():
            rows.append(
                {
                    "operation": f"{title}, {' x '.join(map(str, shapes[0]))}",
                    "form": name,
                    "forward_ms": 1e3 * statistics.median(forward_times),
                    "both_ms": 1e3 * statistics.median(both_times),
                }
            )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ops.json").write_text(json.dumps(rows, indent=2) + "\n")
    lines = ["| operation | form | forward, ms | with gradient, ms |", "|---|---|---|---|"]
    lines += [
        f"| {r['operation']} | {r['form']} | {r['forward_ms']:.1f} | {r['both_ms']:.1f} |"
        for r in rows
    ]
    text = "\n".join(lines) + "\n"
    (args.out / "ops.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
