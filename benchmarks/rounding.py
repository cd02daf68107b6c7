"""What Winograd's algorithm rounds: convolutions against float64, and training steps on a CPU.

    python -m benchmarks.rounding

Errors are those of the convolutions of `paper`, one tower, 24 images, against direct sums in
float64. Steps are the first four of the full network at batch 128: how far those by Winograd's
algorithm are from those by direct sums, and how far direct sums from weights that are each the next
float above or below. Writes rounding.json and rounding.md into --out; takes a quarter of an hour.
"""

import argparse
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax import parallel
from alexnet_jax.config import presets
from alexnet_jax.config.table import Layer, conv_size, read_layers
from alexnet_jax.model import conv
from alexnet_jax.model.derivatives import for_cpu
from benchmarks import device

HERE = Path(__file__).parent
IMAGES = 24
PARTS = ("values", "gradient of the images", "gradient of the kernel")


def convolutions() -> list[tuple[Layer, tuple[int, int, int]]]:
    """The convolutions of `paper` and the shapes of their inputs, in one tower."""
    config = presets.get("paper")
    shape, found = (config.data.crop_size, config.data.crop_size, 3), []
    for number, layer in enumerate(read_layers(config.model)):
        if layer.kind == "conv":
            towers = config.model.towers if layer.exchange == "inputs" and number else 1
            found.append((layer, (*shape[:2], shape[2] * towers)))
            side = conv_size(shape[0], layer)
            shape = (side, side, layer.features)
            for op in layer.operations:
                shape = op.shape(shape)
    return found


def of_layer(layer: Layer, shape: tuple[int, int, int]) -> dict:
    """Root mean squares of the errors, as shares of those of the exact arrays."""
    rng, side = np.random.default_rng(0), conv_size(shape[0], layer)
    shapes = [
        (IMAGES, *shape),
        (layer.kernel, layer.kernel, shape[2], layer.features),
        (IMAGES, side, side, layer.features),
    ]
    # Rounded first, so that all of them compute the same.
    x, kernel, g = (np.float32(rng.normal(size=size)) for size in shapes)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (layer.stride,) * 2, (layer.padding,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    def ours(x, kernel, fast):
        return conv.conv(x, kernel, layer.stride, layer.padding, "highest", fast)

    def all_three(fn, x, kernel, g):
        y, back = jax.vjp(fn, x, kernel)
        return y, *back(g)

    with jax.enable_x64(True):
        wide = [jnp.asarray(array, jnp.float64) for array in (x, kernel, g)]
        exact = [np.asarray(array) for array in jax.jit(functools.partial(all_three, plain))(*wide)]
    errors = {}
    for name, fast in (("winograd", True), ("direct", False)):
        fn = functools.partial(all_three, functools.partial(ours, fast=fast))
        found = jax.jit(for_cpu(fn))(x, kernel, g)
        errors[name] = [
            float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))
            for a, b in zip(found, exact, strict=True)
        ]
    return errors


def of_steps(name: str) -> dict:
    """Differences of losses and of updates, as `device.differences` counts them."""
    outcomes = {}
    for winograd in (False, True):
        config = device.network(name, batch=128)
        config.model.winograd = winograd
        step = device.Step(config, device.place("vmap", jax.devices("cpu")), {})
        outcomes[winograd] = step.run()
        if not winograd:
            rounded = step.run(device.rounded(step.first))
    return {
        "winograd": device.differences(outcomes[True], outcomes[False], step.first),
        "rounded weights": device.differences(rounded, outcomes[False], step.first),
    }


def table(result: dict) -> str:
    """The result as a page."""
    lines = [
        f"Convolutions of `paper`, one tower, {IMAGES} images, float32: errors as shares of the "
        "root mean square, by Winograd's algorithm / by direct sums. conv1's gradient of the "
        "images is direct in both.",
        "",
        "| layer | " + " | ".join(PARTS) + " |",
        "|---" * 4 + "|",
    ]
    for name, errors in result["convolutions"].items():
        pairs = zip(errors["winograd"], errors["direct"], strict=True)
        lines.append(f"| {name} | " + " | ".join(f"{a:.1e} / {b:.1e}" for a, b in pairs) + " |")
    lines += [
        "",
        "Four steps of the full network at batch 128, against those by direct sums:",
        "",
        "| preset | losses, Winograd | rounded weights | updates, Winograd | rounded weights |",
        "|---" * 5 + "|",
    ]
    for name, found in result["steps"].items():
        (loss, update), (other_loss, other_update) = found["winograd"], found["rounded weights"]
        cells = f"{loss:.1e} | {other_loss:.1e} | {update:.2%} | {other_update:.2%}"
        lines.append(f"| `{name}` | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    parallel.prepare_host(presets.get("paper"))
    result = {
        "convolutions": {layer.name: of_layer(layer, shape) for layer, shape in convolutions()},
        "steps": {name: of_steps(name) for name in ("article", "paper", "source")},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rounding.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "rounding.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
