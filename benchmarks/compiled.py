"""Every preset and logged run, compiled for GPUs and TPUs that are not here.

    make .venv-compile/done
    .venv-compile/bin/python -m benchmarks.compiled
    .venv-compile/bin/python -m benchmarks.compiled --targets=h100:2,v5e:2x2

Each is compiled in bfloat16 and float32 with 128 images for each pair of towers: its training step
and its evaluation with ten views. Nothing runs; the tables hold counts, and ceilings that follow
from them. A GPU program takes seconds and a TPU program minutes, so counts are written after each,
and what compiled.json holds for this version of JAX is not compiled again. Programs that are equal
before XLA has changed them are compiled once. Writes compiled.json and compiled.md into --out;
`--targets=` only writes the page anew, and needs neither JAX's plugins nor libtpu.
"""

import argparse
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from alexnet_jax import paths
from alexnet_jax.analysis import compile as ahead
from alexnet_jax.analysis.targets import target
from alexnet_jax.config import presets
from alexnet_jax.parallel.placement import arrange

HERE = Path(__file__).parent
TARGETS = ("h100:1", "h100:2", "h100:8", "v5e:2x2", "v5e:4x4")
DTYPES = ("bfloat16", "float32")
KINDS = ("training", "evaluation")
IMAGES, VIEWS = 128, 10

Row = dict[str, Any]
"""What `analysis.compile.as_data` returns, with what was compiled and where."""


def key(row: Row) -> tuple[str, str, str, str]:
    """What a row is about: target, type, network, program."""
    return row["target"], row["compute_dtype"], row["network"], row["kind"]


def networks() -> list[str]:
    """The presets and the logged runs."""
    return list(presets.PRESETS | presets.ROWS)


def compile_missing(rows: list[Row], target_name: str, dtype: str) -> Iterator[Row]:
    """Compiles every program for a target in one type, but for those in `rows`."""
    aim, known = target(target_name), {key(row) for row in rows}
    compiled = {row["text_sha256"]: row for row in rows if row["target"] == target_name}
    devices = ahead.devices_of(aim)
    for network in networks():
        todo = [x for x in KINDS if (target_name, dtype, network, x) not in known]
        config = presets.get(network)
        with config.unlocked():
            config.batch_size = IMAGES * max(len(devices) // config.model.towers, 1)
            config.model.compute_dtype = dtype
        placement = arrange(config, devices)
        for kind in todo:
            if kind == "training":
                program = ahead.lower_training(config, placement)
            else:
                program = ahead.lower_evaluation(config, placement, VIEWS)
            digest = hashlib.sha256(program.lowered.as_text().encode()).hexdigest()[:16]
            counts = compiled.get(digest)
            if counts is None:
                found = ahead.measure(program, config, placement, aim)
                counts = ahead.as_data(found, config, aim.device)
            about = {
                "target": target_name,
                "compute_dtype": dtype,
                "network": network,
                "kind": kind,
                "placement": placement.name,
                "jax": jax.__version__,
                "text_sha256": digest,
            }
            compiled[digest] = row = counts | about
            yield row


def write(path: Path, rows: list[Row]) -> None:
    """Writes rows, one per line, in the order of the tables."""
    order = {name: place for place, name in enumerate((*TARGETS, *DTYPES, *networks(), *KINDS))}
    rows = sorted(rows, key=lambda row: [order.get(part, -1) for part in key(row)])
    paths.write(path, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def page(rows: list[Row]) -> str:
    """The tables in Markdown."""
    versions = ", ".join(sorted({row["jax"] for row in rows}))
    lines = [
        "# Compiled for GPUs and TPUs",
        "",
        f"`python -m benchmarks.compiled`, jax {versions}. XLA compiled these programs "
        "without a device, none of them has run, and the figures are counts of what it made. "
        f"{IMAGES} images for each pair of towers; evaluation with {VIEWS} views. GB and MB are of "
        "one device and one step: its memory at the fullest moment, what it moves through that "
        "memory, and what it receives from other devices, beside the arithmetic of the table of "
        "layers (the sums of the metrics, 12 bytes a group, are left out there). The ceiling is "
        "what all devices together could do if the slowest of memory, arithmetic and links worked "
        "at its peak all the time; no program reaches it.",
        "",
        *_summary(rows),
    ]
    for name in TARGETS:
        for dtype in DTYPES:
            some = {key(row)[2:]: row for row in rows if key(row)[:2] == (name, dtype)}
            if some:
                lines += _table(name, dtype, some)
    return "\n".join(lines) + "\n"


def _summary(rows: list[Row]) -> list[str]:
    total = len(TARGETS) * len(DTYPES) * len(networks()) * len(KINDS)
    training = [row for row in rows if row["kind"] == "training"]
    unequal = [row for row in training if _differs(row)]
    warned: dict[str, list[str]] = {}
    for row in rows:
        # Without sizes and the names that XLA gives.
        texts = {re.sub(r"^\d+ MB of|, [\w.-]+(: .*)?$", "", text) for text in row["warnings"]}
        for text in sorted(texts):
            warned.setdefault(text.strip(), []).append(" ".join(key(row)))
    most = max(row["peak"] for row in rows)
    return [
        f"- Programs: {len(rows)} of {total} compile"
        + ("." if len(rows) == total else "; the others have not been tried yet."),
        f"- Memory: {most / 1e9:.2f} GB at most.",
        "- Training steps that exchange what the arithmetic says, at every point: "
        f"{len(training) - len(unequal)} of {len(training)}.",
        *(f"  - not: {' '.join(key(row)[:3])} ({_differs(row)})" for row in unequal),
        "- Warnings (a wait for the host, a copy over 10 MB outside the convolutions, a callback, "
        f"maps in float32 in a bfloat16 network): {sum(map(len, warned.values()))}.",
        *(f"  - {text}: {', '.join(names)}" for text, names in warned.items()),
        "",
    ]


def _differs(row: Row) -> str:
    """The points at which a step exchanges other amounts than by arithmetic, in words."""
    # The gradients are summed with three metrics: 24 bytes in a large ring.
    return ", ".join(
        f"{point}: {row['exchanged'].get(point, 0) / 1e6:.2f} MB instead of {size / 1e6:.2f}"
        for point, size in row["expected"].items()
        if abs(row["exchanged"].get(point, 0) - size) > 24
    )


def _table(name: str, dtype: str, rows: dict[tuple[str, str], Row]) -> list[str]:
    first = next(iter(rows.values()))
    lines = [
        f"## {name}, {dtype}",
        "",
        f"{target(name).device.title}, `{first['placement']}`.",
        "",
        "| network | step: memory, GB | moved, GB | received, MB | by arithmetic | kernels "
        "| ceiling, images/s | by | evaluation: memory, GB | moved, GB | ceiling, images/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for network in networks():
        step, evaluation = (rows.get((network, kind)) for kind in KINDS)
        cells = [network] + ["" for _ in range(10)]
        if step is not None:
            cells[1:8] = [
                f"{step['peak'] / 1e9:.2f}",
                f"{step['bytes'] / 1e9:.2f}",
                f"{sum(step['exchanged'].values()) / 1e6:.2f}",
                f"{sum(step['expected'].values()) / 1e6:.2f}",
                f"{step['kernels']:,}",
                f"{step['ceiling_images_per_second']:,.0f}",
                step["limited_by"],
            ]
        if evaluation is not None:
            cells[8:] = [
                f"{evaluation['peak'] / 1e9:.2f}",
                f"{evaluation['bytes'] / 1e9:.2f}",
                f"{evaluation['ceiling_images_per_second']:,.0f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def main() -> None:
    """Compiles what is missing, and writes the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--targets", default=",".join(TARGETS), help="separated by commas")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="separated by commas")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    path = args.out / "compiled.json"
    rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    if args.targets:
        rows = [row for row in rows if row["jax"] == jax.__version__]
    args.out.mkdir(parents=True, exist_ok=True)
    for name in filter(None, args.targets.split(",")):
        for dtype in args.dtypes.split(","):
            began = time.perf_counter()
            for row in compile_missing(rows, name, dtype):
                rows = [*rows, row]
                write(path, rows)
                seconds, began = time.perf_counter() - began, time.perf_counter()
                print(
                    f"{' '.join(key(row))}: {row['bytes'] / 1e9:.2f} GB, {seconds:.0f} s",
                    flush=True,
                )
    paths.write(args.out / "compiled.md", page(rows))


if __name__ == "__main__":
    main()
