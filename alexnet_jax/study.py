"""Studies: variants x seeds of one base, and whether a difference is real.

A study is a configuration with `base` (a run), `variants` (what each changes), `seeds` and what is
measured; the files of `experiments/studies/` are examples. Every run gets a workdir of its own,
`FOLDER/VARIANT/seed-N`, so that a study is finished by starting it again, in parts if need be, and
its tables are made from these logs alone.
"""

import csv
import dataclasses
import io
import json
import math
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from alexnet_jax.config import completed, tuples, validate
from alexnet_jax.data.sources import fit_classes
from alexnet_jax.errors import Stopped, UsageError
from alexnet_jax.metrics import LOG
from alexnet_jax.workdir import flat, write_json

NOTE = (
    "Differences are of equal seeds; in brackets the interval that holds the mean difference with "
    "95 % confidence (Student's t). It is called real where the interval leaves out zero; one in "
    "twenty would without a cause."
)
MEASURES = ("test_error", "train_error", "epochs_to_error")
CONFIDENCE = 0.95


def study(
    base: ConfigDict,
    variants: dict[str, dict[str, Any]],
    seeds: Sequence[int],
    *,
    title: str,
    measure: str = "test_error",
    target: float = 0.0,
    paper: dict[str, float] | None = None,
) -> ConfigDict:
    """The configuration of a study.

    Args:
      base: of a run; a variant of no changes is what the others are compared with.
      variants: by name, in the order of the table, the fields that each changes:
        `{"lrn-off": {"model.lrn.enabled": False}}`.
      seeds: each variant runs with each; the same seeds are compared with each other.
      title: of table and figure.
      measure: `test_error` or `train_error`, top-1 at the end in percent, on all images of the
        split; or `epochs_to_error`: when the error on the whole training set, measured now and
        then, first falls to `target`.
      target: a fraction, for `epochs_to_error`.
      paper: by variant, what the paper says of its difference from the base in points of percent
        (errors), or of its ratio to it (`epochs_to_error`).
    """
    config = ConfigDict()
    config.title, config.measure, config.target = title, measure, target
    config.base = base
    config.seeds = tuple(seeds)
    # Pairs, since a ConfigDict takes no names with dots.
    config.variants = tuple((name, tuple(changes.items())) for name, changes in variants.items())
    config.paper = tuple((paper or {}).items())
    return config.lock()


def from_json(content: dict[str, Any]) -> ConfigDict:
    """The study that `write` left in `study.json`."""
    config = ConfigDict(tuples(content))
    completed(config.base)
    config.lock()
    check(config)
    return config


def check(config: ConfigDict) -> None:
    """Checks the study and every run of it, before the first starts.

    Raises:
      UsageError: names what is wrong, and with which variant.
    """
    for name in ("base", "variants", "seeds", "measure", "target", "paper", "title"):
        if name not in config:
            raise UsageError(
                f"config.{name} is missing: this is no study; see experiments/studies/"
            )
    if config.measure not in MEASURES:
        raise UsageError(f"config.measure = {config.measure!r}: use one of {', '.join(MEASURES)}")
    if not config.seeds or not config.variants:
        raise UsageError("config.seeds and config.variants: a study needs one of each at least")
    names = [name for name, _ in config.variants]
    for name in names:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or names.count(name) > 1:
            raise UsageError(
                f"config.variants: {name!r} names a folder: lower case, digits, - . _, and once"
            )
    if sum(not changes for _, changes in config.variants) != 1:
        raise UsageError("config.variants: one of them, and only one, changes nothing: the base")
    for name, _ in config.paper:
        if name not in names:
            raise UsageError(f"config.paper: {name!r} is no variant")
    for name in names:
        try:
            validate(run_config(config, name, config.seeds[0]))
        except UsageError as error:
            raise UsageError(f"variant {name!r}: {error}") from error


def run_config(config: ConfigDict, variant: str, seed: int) -> ConfigDict:
    """The configuration of one run.

    Raises:
      UsageError: the variant changes a field that does not exist.
    """
    run = config.base.copy_and_resolve_references()
    changes = dict(dict(config.variants)[variant])
    known = flat(json.loads(run.to_json()))
    for field in changes:
        if field not in known:
            raise UsageError(f"variant {variant!r}: config.{field}: no such field")
    run.unlock()
    run.update_from_flattened_dict(changes)
    run.seed = seed
    return run.lock()


def runs(config: ConfigDict) -> list[tuple[str, int]]:
    """Every (variant, seed), all variants of a seed together: a study cut short compares most."""
    return [(name, seed) for seed in config.seeds for name, _ in config.variants]


def run(config: ConfigDict, folder: Path, part: tuple[int, int] = (1, 1)) -> list[str]:
    """Runs what is not finished, one after another.

    Programs of the same shapes are compiled once: a seed is no part of a program.

    Args:
      config: the study.
      folder: of its runs.
      part: the k-th of n parts, counted from 1; every n-th run.

    Returns:
      A line for each run that failed; the others are finished.

    Raises:
      UsageError: the study is not one.
      Stopped: a signal asked for it.
    """
    from alexnet_jax.train import train_and_evaluate

    check(config)
    failed = []
    mine = runs(config)[part[0] - 1 :: part[1]]
    for number, (variant, seed) in enumerate(mine, 1):
        workdir = folder / variant / f"seed-{seed}"
        wanted = fit_classes(run_config(config, variant, seed))
        if finished(workdir):
            _check_same(workdir, wanted)
            continue
        print(f"run {number} of {len(mine)}: {variant}, seed {seed}", file=sys.stderr, flush=True)
        try:
            train_and_evaluate(wanted, workdir)
            (workdir / "failed.json").unlink(missing_ok=True)
        except Stopped:
            raise
        except Exception as error:
            # The others are still worth their time.
            line = str(error).strip().partition("\n")[0] or type(error).__name__
            failed.append(f"{variant}, seed {seed}: {line}")
            print(f"failed: {failed[-1]}", file=sys.stderr, flush=True)
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(
                workdir / "failed.json", {"error": line, "traceback": traceback.format_exc()}
            )
    return failed


def finished(workdir: Path) -> bool:
    """Whether the run in this folder has its result."""
    return (workdir / "result.json").is_file()


def _check_same(workdir: Path, wanted: ConfigDict) -> None:
    """A finished run must be the one that the study describes."""
    try:
        found = completed(ConfigDict(json.loads((workdir / "config.json").read_text())))
        before = flat(json.loads(found.to_json()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{workdir / 'config.json'}: {error}; remove {workdir}") from error
    now = flat(json.loads(wanted.to_json()))
    for name in sorted(before.keys() | now.keys()):
        same = before.get(name) == now.get(name)
        # What says which processes and devices run it, and how often it speaks.
        if not same and not name.startswith(("distributed.", "placement", "log_every", "warn_")):
            raise UsageError(
                f"{workdir} is finished with config.{name} = {before.get(name)!r}, and the study "
                f"says {now.get(name)!r}: remove it, or name another --workdir"
            )


# --------------------------------------------------------------------------- from the logs


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
      name: of the variant.
      values: measured, by seed; without those that have none.
      missing: seeds that failed, are not finished, or never reached the target.
      difference: from the base, over the seeds that both have: mean, and the ends of its paired
        confidence interval (Student's t), or None with fewer than two. Of `epochs_to_error` it is
        the ratio to the base, by the mean of the logarithms.
      paper: the paper's own.
    """

    name: str
    values: dict[int, float]
    missing: tuple[int, ...]
    difference: tuple[float, float | None, float | None] | None
    paper: float | None

    @property
    def mean(self) -> float | None:
        """Over the seeds."""
        return float(np.mean(list(self.values.values()))) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Of the sample, with n - 1."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None

    @property
    def real(self) -> bool:
        """Whether the interval leaves out what would be no difference."""
        if self.difference is None or self.difference[1] is None:
            return False
        low, high = self.difference[1:]
        return not low <= 0 <= high


def rows(config: ConfigDict, folder: Path) -> list[Row]:
    """The table, from the logs under `folder`."""
    values = {
        name: {
            seed: value
            for seed in config.seeds
            if (value := measured(config, folder / name / f"seed-{seed}")) is not None
        }
        for name, _ in config.variants
    }
    base = next(name for name, changes in config.variants if not changes)
    paper = dict(config.paper)
    return [
        Row(
            name=name,
            values=own,
            missing=tuple(seed for seed in config.seeds if seed not in own),
            difference=None
            if name == base
            else paired_difference(own, values[base], ratio=config.measure == "epochs_to_error"),
            paper=paper.get(name),
        )
        for name, own in values.items()
    ]


def paired_difference(
    ours: dict[int, float], base: dict[int, float], ratio: bool = False
) -> tuple[float, float | None, float | None] | None:
    """Mean of the differences of equal seeds (for a ratio, of logarithms), with its interval."""
    seeds = [seed for seed in ours if seed in base]
    if not seeds:
        return None
    pairs = np.array([(ours[seed], base[seed]) for seed in seeds])
    if ratio:
        pairs = np.log(pairs)
    differences = pairs[:, 0] - pairs[:, 1]
    mean = float(differences.mean())
    low = high = None
    if len(seeds) > 1:
        error = differences.std(ddof=1) / math.sqrt(len(seeds))
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1) * error)
        low, high = mean - reach, mean + reach
    return mean, low, high


def measured(config: ConfigDict, workdir: Path) -> float | None:
    """What a run's logs say, or None."""
    if config.measure == "epochs_to_error":
        return epochs_to_error(training_curve(workdir), config.target)
    split = config.measure.partition("_")[0]
    try:
        return 100 * json.loads((workdir / "result.json").read_text())[split]["top1_error"]
    except (OSError, ValueError, KeyError):
        return None


def training_curve(workdir: Path) -> list[tuple[float, float]]:
    """(epoch, error on the whole training set) of every evaluation, from the log."""
    try:
        lines = [json.loads(line) for line in (workdir / LOG).read_text().splitlines()]
    except (OSError, ValueError):
        return []
    return [
        (line["epoch"], line["top1_error"])
        for line in lines
        if line["split"] == "train" and "num_examples" in line
    ]


def epochs_to_error(curve: list[tuple[float, float]], target: float) -> float | None:
    """When a curve first falls to `target`, by straight lines between its points, or None.

    What was before the first point no line of the log says: a curve that begins below the target
    gives the epoch of that point.
    """
    before = None
    for epoch, error in curve:
        if error <= target:
            if before is None:
                return epoch
            return before[0] + (epoch - before[0]) * (before[1] - target) / (before[1] - error)
        before = epoch, error
    return None


# --------------------------------------------------------------------------- as text


def cells(config: ConfigDict, table: list[Row]) -> list[tuple[str, ...]]:
    """The table, rounded for reading."""
    return [_cells(config, row) for row in table]


def _cells(config: ConfigDict, row: Row) -> tuple[str, ...]:
    ratio = config.measure == "epochs_to_error"

    def difference() -> str:
        if row.difference is None:
            return ""
        mean, low, high = row.difference
        if ratio:
            text = f"× {math.exp(mean):.2f}"
            return text if low is None else f"{text} [{math.exp(low):.2f}, {math.exp(high):.2f}]"
        text = f"{mean:+.2f}"
        return text if low is None else f"{text} [{low:+.2f}, {high:+.2f}]"

    def verdict() -> str:
        if row.difference is None or row.difference[1] is None:
            return ""
        return "yes" if row.real else "within noise"

    paper = "" if row.paper is None else (f"× {row.paper:g}" if ratio else f"{row.paper:+.1f}")
    return (
        row.name,
        "" if row.mean is None else f"{row.mean:.2f}",
        "" if row.deviation is None else f"{row.deviation:.2f}",
        str(len(row.values)) + (f" ({len(row.missing)} missing)" if row.missing else ""),
        difference(),
        verdict(),
        paper,
    )


def header(config: ConfigDict) -> tuple[str, ...]:
    """The names of the columns."""
    if config.measure == "epochs_to_error":
        return ("variant", f"epochs to {100 * config.target:g} %", "deviation", "seeds",
                "ratio to the base [95 %]", "real?", "paper")  # fmt: skip
    return ("variant", error_of(config), "deviation", "seeds",
            "difference from the base [95 %]", "real?", "paper")  # fmt: skip


def error_of(config: ConfigDict) -> str:
    """What an error is of, with its unit."""
    return {"test": "test error, %", "train": "training error, %"}[config.measure.partition("_")[0]]


def markdown(config: ConfigDict, table: list[Row]) -> str:
    """`table.md`."""
    lines = [f"# {config.title}", "", "| " + " | ".join(header(config)) + " |"]
    lines.append("|" + "|".join(["---"] + ["---:"] * (len(header(config)) - 1)) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in cells(config, table)]
    lines += [
        "",
        f"Seeds {', '.join(map(str, config.seeds))}. {NOTE}",
    ]
    return "\n".join(lines) + "\n"


def comma_separated(config: ConfigDict, table: list[Row]) -> str:
    """`table.csv`: every value by seed, and the same statistics unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    seeds = [f"seed_{seed}" for seed in config.seeds]
    kind = "log_ratio" if config.measure == "epochs_to_error" else "difference"
    writer.writerow(["variant", *seeds, "mean", "deviation", kind, "low", "high", "paper"])
    for row in table:
        values = [row.values.get(seed) for seed in config.seeds]
        numbers = [*values, row.mean, row.deviation, *(row.difference or (None,) * 3), row.paper]
        writer.writerow([row.name, *("" if x is None else f"{x:.6g}" for x in numbers)])
    return text.getvalue()


def write(config: ConfigDict, folder: Path) -> str:
    """Writes `table.md`, `table.csv`, `figure.png` and `study.json` (itself) from the logs.

    Returns:
      The text of `table.md`.
    """
    from alexnet_jax.figures import study_figure

    check(config)
    table = rows(config, folder)
    text = markdown(config, table)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", json.loads(config.to_json()))
    (folder / "table.md").write_text(text)
    (folder / "table.csv").write_text(comma_separated(config, table))
    study_figure(config, folder, table).savefig(folder / "figure.png", dpi=120)
    return text
