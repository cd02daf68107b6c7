"""A model, not a measurement: how a training step scales over 2 to 256 devices.

    python -m benchmarks.scaling --count   # compiles for devices that are not here; about an hour
    python -m benchmarks.scaling

`--count` writes into scaling.json what a step moves through memory in programs compiled for each
kind of device, and skips what is there already; it needs the extras `compile-cuda` and
`compile-tpu`. Without it the model is computed from that file and written into scaling.md; PAGE,
below, says how. With `--share` or `--gradient_bytes` the page is only printed.
"""

import argparse
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.analysis.targets import DEVICES, target
from alexnet_jax.config import presets, table
from alexnet_jax.parallel import exchange
from alexnet_jax.parallel.placement import arrange

RESULTS = Path(__file__).parent / "results"
COUNTS = RESULTS / "scaling.json"

TARGETS = ("h100:4", "a100:4", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
PLACEMENTS = ("mesh", "vmap")
IMAGES = (32, 128, 512)  # per pair of towers
TOWERS, DATA, HYBRID = SCHEMES = ("towers x data", "data parallelism", "One weird trick")
NUMBERS = (2, 4, 8, 16, 32, 64, 128, 256)
BATCHES = (128, 1024, 8192)
ENOUGH = 0.8  # An efficiency below this is where scaling stops.
WORTH = 0.1  # A doubling of the devices that saves less of a step is not worth it.
SLOWER = 8


class Links(NamedTuple):
    """How devices are connected.

    A ring uses `rings` links of a device: two where each neighbour has its own. They connect
    `host` devices; beyond these each device has `network` bytes per second, in one direction.
    """

    rings: int
    host: int
    network: float
    source: str


MACHINES = {
    "h100": Links(1, 8, 50e9, "DGX H100: NVLink 4, one 400 Gb/s adapter per GPU"),
    "a100": Links(1, 8, 25e9, "DGX A100: NVLink 3, one 200 Gb/s adapter per GPU"),
    "v5e": Links(2, 256, 0, "one slice, docs.cloud.google.com/tpu/docs/v5e"),
    "v5p": Links(2, 6144, 0, "one slice, docs.cloud.google.com/tpu/docs/v5p"),
    "v6e": Links(2, 256, 0, "one slice, docs.cloud.google.com/tpu/docs/v6e"),
}


@dataclasses.dataclass(frozen=True)
class Counted:
    """What the programs of one device and placement move.

    Attributes:
      points: images of a step and bytes that it moves, from few to many.
      operations: of each image.
    """

    points: tuple[tuple[int, float], ...]
    operations: float

    def traffic(self, images: float) -> float:
        """Bytes of a step: on the line through the two nearest points on both sides or on one."""
        pairs = list(itertools.pairwise(self.points))
        (x, y), (right, top) = next((p for p in pairs if images <= p[1][0]), pairs[-1])
        return y + (images - x) * (top - y) / (right - x)

    def bend(self) -> float:
        """How far a line through the outer points misses the one between, as a share of it."""
        first, (images, traffic), last = self.points
        return Counted((first, last), 0).traffic(images) / traffic - 1


class Step(NamedTuple):
    """Seconds of the parts of a step."""

    compute: float
    activations: float
    gradients: float

    def seconds(self, overlap: bool) -> float:
        """Seconds of the whole; with `overlap`, gradients are summed during the backward pass.

        That takes two thirds of the compute: it has two products for each of the forward pass.
        """
        backward = 2 * self.compute / 3
        last = max(backward, self.gradients) if overlap else backward + self.gradients
        return self.compute / 3 + self.activations + last


def configuration(row_split: bool) -> ConfigDict:
    """The network whose step is counted."""
    config = presets.get("source")
    config.model.compute_dtype = "bfloat16"
    if row_split:
        config.model.layers.fc6.exchange = "partial_sums"
    return config


@functools.cache
def received(scheme: str, devices: int) -> tuple[float, int, float]:
    """What a device receives, and what it has.

    Returns:
      Bytes of activations for each image of the global batch, elements of gradients in a step, and
      the share of the parameters of its program that it has.
    """
    config = configuration(row_split=scheme == TOWERS)
    if scheme == TOWERS:
        pairs = devices // 2
        points = exchange.points(config, pairs)
        between = sum(point.bytes for point in points if point.axis == parallel.TOWER)
        gradients = sum(point.elements for point in points if point.axis == parallel.DATA)
        return between / pairs, gradients, 1
    config.batch_size = devices
    found = next(one for one in exchange.alternatives(config, devices) if one.name == scheme)
    rows = table.count(config.model, config.data.crop_size)
    dense = sum(row.parameters for row in rows if row.layer.kind == "dense")
    divided = dense / sum(row.parameters for row in rows) if scheme == HYBRID else 0
    share = 1 - divided * (1 - 1 / devices)
    return 2 * found.activations / devices, found.gradients, share


@dataclasses.dataclass(frozen=True)
class Machine:
    """One kind of device with its links, and what the programs compiled for it move.

    Attributes:
      kind: a key of `targets.DEVICES`.
      links: what connects devices.
      pair: steps of a device with one tower.
      alone: steps of a device with both.
      share: the share of its ceiling that a device reaches.
      width: bytes of a gradient when it is sent.
    """

    kind: str
    links: Links
    pair: Counted
    alone: Counted
    share: float = 1.0
    width: int = 4

    def compute(self, of: Counted, images: float, parameters: float = 1, more: float = 0) -> float:
        """Seconds, with a share of the parameters and `more` bytes of memory traffic.

        Traffic without images, which is weights, gradients and their update, is in proportion.
        """
        device = DEVICES[self.kind]
        traffic = of.traffic(images) - (1 - parameters) * of.traffic(0) + more
        operations = of.operations * images
        return max(traffic / device.bandwidth, operations / device.peak["bfloat16"]) / self.share

    def ring(self, devices: int, rings: int = 1) -> float:
        """Bytes per second that a device receives in one of `rings` rings over all devices."""
        links, link = self.links, DEVICES[self.kind].link
        if devices > links.host:
            return min(link, links.network * links.host / rings)
        return link * max(1, min(links.rings, devices // rings - 1))

    def step(self, scheme: str, devices: int, batch: int) -> Step:
        """A step of `batch` images over all devices."""
        activations, gradients, parameters = received(scheme, devices)
        sent, gradients = activations * batch, gradients * self.width
        if scheme == TOWERS:
            compute = self.compute(self.pair, batch / (devices // 2))
            link = DEVICES[self.kind].link
            return Step(compute, sent / link, gradients / self.ring(devices, rings=2))
        # What is gathered is written into memory and read again.
        compute = self.compute(self.alone, batch / devices, parameters, 2 * sent)
        ring = self.ring(devices)
        return Step(compute, sent / ring, gradients / ring)

    def efficiency(self, scheme: str, devices: int, batch: int, overlap: bool = False) -> float:
        """The time of one device with both towers, over that of `devices`, times their number."""
        seconds = self.step(scheme, devices, batch).seconds(overlap)
        return self.compute(self.alone, batch) / (devices * seconds)

    def limits(self, scheme: str, batch: int, overlap: bool) -> tuple[int, int]:
        """Up to how many devices it is efficient (1 if never), and worth doubling them.

        The second is the number of which twice as many do not save `WORTH` of a step.
        """
        numbers = [n for n in NUMBERS if n <= batch * (2 if scheme == TOWERS else 1)]
        efficient = [self.efficiency(scheme, n, batch, overlap) >= ENOUGH for n in numbers]
        seconds = [self.step(scheme, n, batch).seconds(overlap) for n in numbers]
        saves = [1 - twice / once >= WORTH for once, twice in itertools.pairwise(seconds)]
        first = [*efficient, False].index(False)
        return ([1, *numbers][first]), numbers[[*saves, False].index(False)]

    def smallest_batch(self, scheme: str, devices: int) -> int | None:
        """The smallest efficient batch, of 64 to 1,024 images per two devices; None without any."""
        batches = (images * devices // 2 for images in (64, 128, 256, 512, 1024))
        return next((b for b in batches if self.efficiency(scheme, devices, b) >= ENOUGH), None)


def machines(programs: list[dict[str, Any]], share: float, width: int) -> list[Machine]:
    """The machines all of whose programs are counted."""
    found = []
    for kind, links in MACHINES.items():
        own = [one for one in programs if one["target"].startswith(f"{kind}:")]
        if len(own) == len(PLACEMENTS) * len(IMAGES):
            pair, alone = (counted(one for one in own if one["placement"] == p) for p in PLACEMENTS)
            found.append(Machine(kind, links, pair, alone, share, width))
    return found


def counted(programs: Iterable[dict[str, Any]]) -> Counted:
    """The programs of one device and placement."""
    rows = sorted(programs, key=lambda one: one["images"])
    points = tuple((one["images"], one["traffic"]) for one in rows)
    return Counted(points, rows[0]["operations"] / rows[0]["images"])


def count() -> None:
    """Compiles what the file does not have yet, and writes it after each program.

    Raises:
      UsageError: an extra is missing.
    """
    from alexnet_jax.analysis import compile as ahead

    made = {"command": "python -m benchmarks.scaling --count", "jax": jax.__version__}
    found = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    programs = found["programs"] if found.get("jax") == made["jax"] else []
    done = [(one["target"], one["placement"], one["images"]) for one in programs]
    todo = [(name, how, n) for name in TARGETS for how in PLACEMENTS for n in IMAGES]
    for name, placement, images in todo:
        if (name, placement, images) in done:
            continue
        devices = ahead.devices_of(target(name))
        config = configuration(row_split=placement == "mesh")
        config.placement = placement
        config.batch_size = images * (len(devices) // 2 if placement == "mesh" else 1)
        step = ahead.training(config, arrange(config, devices), target(name))
        # What is sent has a time of its own in the model.
        traffic = round(step.bytes - step.traffic.get("exchange", 0))
        one = {"target": name, "placement": placement, "images": images, "traffic": traffic}
        programs.append(one | {"operations": round(step.operations)})
        print(programs[-1], flush=True)
        COUNTS.write_text(json.dumps(made | {"programs": programs}, indent=1) + "\n")


def rows(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def summary(machines: Iterable[Machine]) -> str:
    """Where each machine and scheme stops scaling."""
    head = [f"{batch:,}{how}" for how in ("", ", overlapped") for batch in BATCHES]
    lines = []
    for one in machines:
        for scheme in SCHEMES:
            cells = [one.limits(scheme, b, overlap) for overlap in (False, True) for b in BATCHES]
            lines.append([one.kind, scheme, *(f"{good} ({fastest})" for good, fastest in cells)])
    return rows(["machine", "scheme", *head], lines)


def section(one: Machine, batch: int) -> str:
    """What one machine moves, and its table."""
    links, lines = one.links, []
    for n in NUMBERS:
        cells = [f"{n}", f"{n * batch / one.compute(one.alone, batch):,.0f}"]
        for scheme in SCHEMES:
            parts = " + ".join(f"{1e3 * part:.2f}" for part in one.step(scheme, n, batch))
            cells.append(f"{parts}: {one.efficiency(scheme, n, batch):.0%}")
        smallest = [one.smallest_batch(scheme, n) for scheme in SCHEMES]
        lines.append(cells + [f"{b:,}" if b else "-" for b in smallest])
    head = ["devices", "ideal, images/s", *SCHEMES, *(f"{scheme}, batch" for scheme in SCHEMES)]
    first, second = (
        ", ".join(f"{size / 1e9:.2f}" for _, size in of.points) + f" ({of.bend():+.0%})"
        for of in (one.pair, one.alone)
    )
    device = DEVICES[one.kind]
    beyond = f", {links.network / 1e9:g} GB/s beyond" if links.network else ""
    return "\n".join([
        f"### {device.title}", "",
        f"GB moved with one tower: {first}; with both: {second}. Links: {device.link / 1e9:g} GB/s "
        f"among {links.host:,} devices{beyond}; {links.source}.", "",
        rows(head, lines),
    ])  # fmt: skip


def beside_measured(alone: int = 2987, images: int = 512, link: float = 20e9) -> str:
    """Data parallelism, measured and with the exchange of the model; `alone` is measured."""
    lines = []
    for n, measured in ((2, 5658), (4, 10509), (8, 17822)):
        sent = 4 * received(DATA, n)[1] / link
        model = images / alone / (images / alone + sent)
        lines.append([f"{n}", f"{measured:,}", f"{measured / n / alone:.0%}", f"{model:.0%}"])
    return rows(["GPUs", "measured, images/s", "of ideal", "model, of ideal"], lines)


PAGE = """\
# Scaling

A model, not a measurement: none of these machines was used. `python -m benchmarks.scaling` computed
it from programs that jax {jax} compiled for them ([scaling.json](scaling.json), by
`{command}`): the training step of `source` in bfloat16.

- **Compute**: memory traffic / bandwidth, or operations / peak if that takes longer. It is a
  ceiling, of which a device reaches {share:.0%} here. Traffic is interpolated between programs with
  {few}, {between} and {many} images for each tower; in brackets, how far a straight line through
  the first and the last misses the other.
- **Exchange**: bytes that a device receives (by the arithmetic of `inspect --exchange`) / speed of
  its links. Activations are waited for. Gradients have {width} bytes; they are summed after the
  backward pass or, if overlapped, during it. A ring over several hosts leaves each of them through
  all its adapters, and the rings of the two towers share these; on a TPU a ring uses both
  directions of one axis, and the other axes are not used.
- **towers x data**: one tower per device, fc6 split by rows, the batch split over pairs. **data
  parallelism**: both towers on each device. **One weird trick** (Krizhevsky 2014): the same, but
  each of n devices has 1/n of each dense layer.
- **Ideal**: n times the rate of one device with both towers and the whole batch. Efficiency is the
  share of it. It can exceed 100 %: with one tower a device moves less than half as much.

Not in the model: the host, waiting for the slowest device, input, whether a batch fits into memory
(`config.accumulate_steps` divides it), and for the last two schemes the memory traffic of summing.
One weird trick divides all traffic that is there without images, as extrapolated; if that is more
than weights and update, as it seems to be on a v5e, the scheme looks better than it is.

Machines not counted yet: {missing}.

## Where each scheme stops scaling

By the images of the global batch: the number of devices (2 to 256, doubling) up to which efficiency
is at least {enough:.0%}, or 1 if it never is; in brackets, the number of which twice as many save
less than {worth:.0%} of the time of a step.

{summary}

### If a step computes {slower} times as long as that

A forward pass of `source` took {slower} times its ceiling on the only device that has run this
network ([device-h200.md](device-h200.md)). The slower a step computes, the less its exchange
matters:

{slow}

## Each machine

A step of {batch:,} images: compute + activations + gradients in ms, not overlapped, and its
efficiency. Then the smallest global batch with an efficiency of at least {enough:.0%}, of 64 to
1,024 images per two devices.

{sections}

## What is sent, beside a measurement

TensorFlow trained AlexNet with plain data parallelism on a DGX-1, with 512 images per P100
(tensorflow/docs, site/en/r1/guide/performance/benchmarks.md, May 2017; without LRN, synthetic
images), and on one P100 at 2,987 images/s. The model has that rate, and adds what is sent at
20 GB/s, one NVLink of the first generation.

{measured}
"""


def page(counts: dict[str, Any], share: float = 1.0, width: int = 4) -> str:
    """The page in Markdown."""
    found = machines(counts["programs"], share, width)
    slow = [dataclasses.replace(one, share=share / SLOWER) for one in found]
    missing = ", ".join(kind for kind in MACHINES if kind not in [one.kind for one in found])
    few, between, many = IMAGES
    batch = BATCHES[1]
    return PAGE.format(
        jax=counts["jax"], command=counts["command"], share=share, width=width, few=few, many=many,
        between=between, enough=ENOUGH, worth=WORTH, slower=SLOWER, batch=batch, slow=summary(slow),
        summary=summary(found), measured=beside_measured(), missing=missing or "none",
        sections="\n\n".join(section(one, batch) for one in found),
    )  # fmt: skip


def main() -> None:
    """Counts, or computes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", action="store_true", help="compile what is not counted yet")
    parser.add_argument("--share", type=float, default=1.0, help="of its ceiling, for each device")
    parser.add_argument("--gradient_bytes", type=int, default=4, help="2 if sent in bfloat16")
    args = parser.parse_args()
    if args.count:
        return count()
    text = page(json.loads(COUNTS.read_text()), args.share, args.gradient_bytes)
    if (args.share, args.gradient_bytes) == (1, 4):
        (RESULTS / "scaling.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
