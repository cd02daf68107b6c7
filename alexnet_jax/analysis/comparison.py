"""The result of a study: each variant's mean and deviation, and whether its difference is real.

It is computed from the logs alone, so that anyone can reproduce it.
"""

import csv
import dataclasses
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from alexnet_jax import jsonfiles
from alexnet_jax.errors import UsageError
from alexnet_jax.training import log
from alexnet_jax.training.events import Evaluation

NOTE = (
    "Differences are between runs of equal seeds; in brackets is the 95 % confidence interval of "
    "the mean difference (Student's t). A difference is called real where the interval excludes "
    "zero (of a ratio: one). At this level, about one in twenty comparisons of equal variants is "
    "called real by chance."
)
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
      name: the name of the variant.
      values: the measured values, by seed; seeds without one are left out.
      missing: the seeds that failed, have not finished, or never reached the target.
      difference: the difference from the base over the seeds that both have: its mean and the two
        ends of its paired confidence interval (Student's t), which are None with fewer than two
        seeds. For `epochs_to_error` these are differences of natural logarithms.
      paper: the difference, or the ratio, that the paper reports.
    """

    name: str
    values: dict[int, float]
    missing: tuple[int, ...]
    difference: tuple[float, float | None, float | None] | None
    paper: float | None

    @property
    def mean(self) -> float | None:
        """The mean over the seeds."""
        return float(np.mean(list(self.values.values()))) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over the seeds, with n - 1."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None

    @property
    def real(self) -> bool:
        """Whether the interval excludes zero."""
        if self.difference is None:
            return False
        low, high = self.difference[1:]
        return low is not None and high is not None and not low <= 0 <= high


def rows(config: ConfigDict, folder: Path) -> list[Row]:
    """One row per variant, from the logs under `folder`."""
    values = {
        name: {
            seed: value
            for seed in seeds_of(config, name)
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
            missing=tuple(seed for seed in seeds_of(config, name) if seed not in own),
            difference=None
            if name == base
            else paired_difference(own, values[base], ratio=config.measure == "epochs_to_error"),
            paper=paper.get(name),
        )
        for name, own in values.items()
    ]


def seeds_of(config: ConfigDict, variant: str) -> tuple[int, ...]:
    """The seeds with which a variant is run."""
    return (*config.seeds, *dict(config.more_seeds).get(variant, ()))


def seeds(config: ConfigDict) -> tuple[int, ...]:
    """The seeds of any variant, in order."""
    found = (seed for name, _ in config.variants for seed in seeds_of(config, name))
    return tuple(dict.fromkeys((*config.seeds, *sorted(found))))


def grid_name(variant: str, values: Sequence[Any]) -> str:
    """The name of a variant with these values of a grid."""
    return "_".join([variant, *(f"{x:g}" if isinstance(x, float) else str(x) for x in values)])


def best_of_grid(config: ConfigDict, table: list[Row]) -> dict[str, tuple[Any, ...]]:
    """The values of the grid with the lowest mean, for each variant that has a result."""
    found: dict[str, tuple[float, tuple[Any, ...]]] = {}
    means = {row.name: row.mean for row in table}
    for values in itertools.product(*(values for _, values in config.grid)):
        suffix = grid_name("", values)
        for name, mean in means.items():
            if mean is None or not name.endswith(suffix):
                continue
            variant = name.removesuffix(suffix)
            if variant not in found or mean < found[variant][0]:
                found[variant] = mean, values
    return {variant: values for variant, (_, values) in found.items()}


def paired_difference(
    ours: dict[int, float], base: dict[int, float], ratio: bool = False
) -> tuple[float, float | None, float | None] | None:
    """Mean difference of equal seeds (for a ratio, of logarithms), with its interval."""
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
        # Not by `ttest_1samp`, which warns of lost precision where all differences are equal.
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1) * stats.sem(differences))
        low, high = mean - half, mean + half
    return mean, low, high


def measured(config: ConfigDict, workdir: Path) -> float | None:
    """The measured value of a run: an error in percent, or epochs; None where there is none."""
    if config.measure == "epochs_to_error":
        return epochs_to_error(training_curve(workdir), config.target)
    split = config.measure.partition("_")[0]
    try:
        error = jsonfiles.read(workdir / "result.json", finite=False)[split]["top1_error"]
        return 100 * float(error)
    except (OSError, UsageError, ValueError, LookupError, TypeError):
        return None


def training_curve(workdir: Path) -> list[tuple[float, float]]:
    """(epoch, error on the whole training set) of every such evaluation in the log."""
    return [
        (event.epoch, event.top1_error)
        for event in log.read(workdir, missing=True)
        if isinstance(event, Evaluation) and event.split == "train"
    ]


def epochs_to_error(curve: list[tuple[float, float]], target: float) -> float | None:
    """The epoch at which a curve first falls to `target`, interpolated linearly, or None.

    The log does not say what came before the first point: for a curve that begins at or below the
    target, the result is the epoch of that point.
    """
    before = None
    for epoch, error in curve:
        if error <= target:
            if before is None:
                return epoch
            return before[0] + (epoch - before[0]) * (before[1] - target) / (before[1] - error)
        before = epoch, error
    return None


def cells(config: ConfigDict, table: list[Row]) -> list[tuple[str, ...]]:
    """The cells of the table as text, rounded."""
    return [_cells(config, row) for row in table]


def _cells(config: ConfigDict, row: Row) -> tuple[str, ...]:
    ratio = config.measure == "epochs_to_error"

    def difference() -> str:
        if row.difference is None:
            return ""
        mean, low, high = row.difference
        if ratio:
            text = f"× {math.exp(mean):.2f}"
            if low is None or high is None:
                return text
            return f"{text} [{math.exp(low):.2f}, {math.exp(high):.2f}]"
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
    """The titles of the columns."""
    if config.measure == "epochs_to_error":
        return ("variant", f"epochs to {100 * config.target:g} %", "deviation", "seeds",
                "ratio to the base [95 %]", "real?", "paper")  # fmt: skip
    return ("variant", error_of(config), "deviation", "seeds",
            "difference from the base [95 %]", "real?", "paper")  # fmt: skip


def error_of(config: ConfigDict) -> str:
    """The name of the measured error, with its unit."""
    return {
        "test": "test error, %", "validation": "validation error, %", "train": "training error, %",
    }[config.measure.partition("_")[0]]  # fmt: skip


def markdown(config: ConfigDict, table: list[Row]) -> str:
    """The text of `table.md`."""
    lines = [f"# {config.title}", "", "| " + " | ".join(header(config)) + " |"]
    lines.append("|" + "|".join(["---"] + ["---:"] * (len(header(config)) - 1)) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in cells(config, table)]
    if best := best_of_grid(config, table) if config.grid else {}:
        chosen = (f"{name} {', '.join(map(str, values))}" for name, values in best.items())
        fields = ", ".join(field for field, _ in config.grid)
        lines += ["", f"Lowest for each variant ({fields}): {'; '.join(chosen)}."]
    lines += [
        "",
        f"Seeds {', '.join(map(str, seeds(config)))}. {NOTE}",
    ]
    return "\n".join(lines) + "\n"


def comma_separated(config: ConfigDict, table: list[Row]) -> str:
    """The text of `table.csv`: every value by seed, and the statistics to six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    every_seed = seeds(config)
    kind = "log_ratio" if config.measure == "epochs_to_error" else "difference"
    names = (f"seed_{seed}" for seed in every_seed)
    writer.writerow(["variant", *names, "mean", "deviation", kind, "low", "high", "paper"])
    for row in table:
        values = [row.values.get(seed) for seed in every_seed]
        numbers = [*values, row.mean, row.deviation, *(row.difference or (None,) * 3), row.paper]
        writer.writerow([row.name, *("" if x is None else f"{x:.6g}" for x in numbers)])
    return text.getvalue()
