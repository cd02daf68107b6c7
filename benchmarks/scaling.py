"""A model, not a measurement: how a training step scales over 2 to 256 devices.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --name="our GPUs" --images_per_second=9000 --devices_per_host=8 \
        --link_gb=300 --network_gb=25

The compute time follows from the rate at which one device trains the whole network (`bench`
measures it with `--config.placement=vmap`); the two devices of a pair share the work. The exchange
time is the amount that `inspect --exchange` computes, divided by the speed of the links in one
direction; it is not overlapped with compute. A step has `--images` images for each pair. A ring
leaves a host through all of its adapters, and the rings of the two towers share them. Writes
scaling.md into --out.
"""

import argparse
import dataclasses
from pathlib import Path

from alexnet_jax import parallel
from alexnet_jax.config import presets, table
from alexnet_jax.parallel import exchange

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Machine:
    """One kind of device and its links.

    Attributes:
      name: of the device.
      images_per_second: rate at which one device trains the whole network.
      rate_from: the source of that number.
      devices_per_host: number of devices that the fast links connect.
      link_gb: GB/s that a device sends over these links, in one direction.
      network_gb: GB/s to other hosts, per device.
      links_from: the source of these numbers.
    """

    name: str
    images_per_second: float
    rate_from: str
    devices_per_host: int
    link_gb: float
    network_gb: float
    links_from: str


# Three passes of 724,406,816 multiply-adds, without the gradient of the images.
FLOP_AN_IMAGE = 4.136e9
ASSUMED = 0.1
PEAKS = {"H100": 989e12, "v5e": 197e12}

MACHINES = (
    Machine(
        "NVIDIA P100 in a DGX-1",
        2987,
        "measured by others in TensorFlow, without LRN, batch 512, synthetic images, May 2017 "
        "(tensorflow/docs, site/en/r1/guide/performance/benchmarks.md)",
        8,
        20,
        6.25,
        "one NVLink of the first generation; four 100 Gb/s adapters for eight GPUs",
    ),
    Machine(
        "NVIDIA H100 SXM",
        ASSUMED * PEAKS["H100"] / FLOP_AN_IMAGE,
        f"assumed: {ASSUMED:.0%} of 989 TFLOP/s in bfloat16",
        8,
        450,
        50,
        "NVLink 4, 900 GB/s both ways; one 400 Gb/s adapter per GPU",
    ),
    Machine(
        "Google TPU v5e",
        ASSUMED * PEAKS["v5e"] / FLOP_AN_IMAGE,
        f"assumed: {ASSUMED:.0%} of 197 TFLOP/s in bfloat16",
        256,
        50,
        50,
        "1,600 Gb/s over four links, of which a pair uses one "
        "(docs.cloud.google.com/tpu/docs/v5e); a slice of 256 is one network",
    ),
)

DEVICES = (2, 4, 8, 16, 32, 64, 128, 256)
BYTES = 4  # gradients and activations are sent as float32


def seconds(machine: Machine, devices: int, images: int, row_split: bool) -> dict[str, float]:
    """Seconds of the parts of a step of `images` per pair, and of a step in two other schemes."""
    config = presets.get("paper")
    if row_split:
        config.model.layers.fc6.exchange = "partial_sums"
    pairs = devices // 2
    config.batch_size = images * pairs
    link = machine.link_gb * 1e9

    def ring(rings: int) -> float:
        """Bytes per second in each of `rings` rings that pass through all hosts."""
        if devices <= machine.devices_per_host:
            return link
        return min(link, machine.network_gb * 1e9 * machine.devices_per_host / rings)

    points = exchange.points(config, pairs)
    between = sum(point.elements for point in points if point.axis == parallel.TOWER)
    gradients = sum(point.elements for point in points if point.axis == parallel.DATA)
    compute = images / (2 * machine.images_per_second)
    parts = {
        "compute": compute,
        "towers": images * between * BYTES / link,
        "gradients": gradients * BYTES / ring(2),
    }
    for scheme in exchange.alternatives(config, devices):
        sent = BYTES * (scheme.gradients + scheme.activations)
        parts[scheme.name] = compute + sent / ring(1)
    return parts


def rows(machine: Machine, images: int) -> list[str]:
    """The table of one machine in Markdown."""
    lines = [
        f"## {machine.name}",
        "",
        f"One device: {machine.images_per_second:,.0f} images/s, {machine.rate_from}. Links: "
        f"{machine.link_gb:g} GB/s among {machine.devices_per_host} devices, "
        f"{machine.network_gb:g} GB/s beyond; {machine.links_from}.",
        "",
        "| devices | batch | compute, ms | towers, ms | gradients, ms | images/s | of ideal | "
        "data parallelism, of ideal | One weird trick, of ideal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for devices in DEVICES:
        parts = seconds(machine, devices, images, row_split=True)
        step = parts["compute"] + parts["towers"] + parts["gradients"]
        ideal = parts["compute"]
        shares = [parts["compute"], parts["towers"], parts["gradients"]]
        cells = [f"{devices}", f"{images * devices // 2:,}"]
        cells += [f"{1e3 * share:.2f}" for share in shares]
        cells += [f"{images * devices / 2 / step:,.0f}", f"{ideal / step:.0%}"]
        cells += [f"{ideal / parts[name]:.0%}" for name in ("data parallelism", "One weird trick")]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def beside_measured() -> list[str]:
    """Data parallelism in the model, compared with a published measurement on the same GPUs."""
    machine, images = MACHINES[0], 512
    parameters = sum(row.parameters for row in table.count(presets.get("paper").model, 224))
    lines = [
        "## The model compared with a measurement",
        "",
        "Plain data parallelism with 512 images per P100, as TensorFlow measured it on the same "
        "machine (the same page). The model contains compute and exchange only.",
        "",
        "| GPUs | measured, images/s | of ideal | model, of ideal |",
        "|---|---|---|---|",
    ]
    for devices, measured in ((2, 5658), (4, 10509), (8, 17822)):
        compute = images / machine.images_per_second
        sent = exchange.ring_all_reduce(parameters, devices) * BYTES
        model = compute / (compute + sent / (machine.link_gb * 1e9))
        ideal = devices * machine.images_per_second
        lines.append(f"| {devices} | {measured:,} | {measured / ideal:.0%} | {model:.0%} |")
    return [*lines, ""]


def main() -> None:
    """Writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128, help="images per step and pair")
    parser.add_argument("--name", help="another machine, instead of those listed here")
    parser.add_argument("--images_per_second", type=float)
    parser.add_argument("--devices_per_host", type=int, default=8)
    parser.add_argument("--link_gb", type=float)
    parser.add_argument("--network_gb", type=float)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    machines = MACHINES
    if args.name:
        if None in (args.images_per_second, args.link_gb, args.network_gb):
            parser.error("--name needs --images_per_second, --link_gb and --network_gb")
        machines = (
            Machine(
                args.name, args.images_per_second, "given", args.devices_per_host, args.link_gb,
                args.network_gb, "given",
            ),
        )  # fmt: skip
    lines = [
        "# Scaling, computed with a model",
        "",
        f"Nothing here was run: `python -m benchmarks.scaling` computed it. {args.images} images "
        "per step and pair of towers, fc6 split by rows, float32 sent, exchange not overlapped "
        'with compute. "Ideal" is the rate of one device times the number of devices.',
        "",
    ]
    for machine in machines:
        lines += rows(machine, args.images)
    if not args.name:
        lines += beside_measured()
    text = "\n".join(lines)
    if not args.name:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "scaling.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
