"""The result of a study: each variant's mean and deviation, and whether its difference is real.

It is computed from the logs alone, so that anyone can reproduce it.
"""

import csv
import dataclasses
import difflib
import functools
import io
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import integrate, optimize, stats

from alexnet_jax.analysis.outcomes import NOT_STARTED, missing, outcome
from alexnet_jax.errors import UsageError

CONFIDENCE, SIGNIFICANT, POWER = 0.95, 0.05, 0.8
NOTE = (
    "Differences are between runs of equal seeds; in brackets is the 95 % confidence interval of "
    "the mean difference (Student's t). p is that of the paired t-test after Holm's correction for "
    "the number of comparisons in the column; a difference is called real if it is below 0.05. "
    "Detectable is the smallest true difference that these seeds, with their scatter, would have "
    "shown in four of five studies (t-test at 0.05, without the correction)."
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two variants over the seeds that both have, in pairs.

    Of outcomes that are compared by ratios, all of it is about natural logarithms.

    Attributes:
      mean: the mean difference.
      low: the lower end of its confidence interval (Student's t); None with fewer than two seeds.
      high: the upper end.
      p: of the paired t-test: how often equal variants would differ by as much.
      detectable: the smallest true difference that a test at `SIGNIFICANT` would find with the
        probability `POWER`, for this number of seeds and their scatter.
      seeds: the number of pairs.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    detectable: float | None = None
    seeds: int = 1


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
      name: the name of the variant.
      values: the measured values, by seed; seeds without one are left out.
      missing: the seeds without a value, and why, in a few words.
      difference: from the base; None for the base itself and where there are no pairs.
      paper: the difference, or the ratio, that the paper reports.
      holm: p of the difference after Holm's correction over all variants; None without an interval.
    """

    name: str
    values: dict[int, float]
    missing: dict[int, str]
    difference: Difference | None
    paper: float | None
    holm: float | None = None

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
        """Whether the difference is more than chance explains, among so many comparisons."""
        return self.holm is not None and self.holm < SIGNIFICANT


def rows(config: ConfigDict, folder: Path, measure: str | None = None) -> list[Row]:
    """One row per variant, from the logs under `folder`.

    Args:
      config: the study.
      folder: the folder of its runs.
      measure: one of `config.measures`; None for the first.
    """
    measure = str(measure or config.measures[0])
    values, absent = _measured(config, folder, measure)
    base, paper = base_of(config), dict(config.paper) if measure == config.measures[0] else {}
    ratio = outcome(measure, config.target).ratio
    differences = {
        name: None if name == base else paired_difference(own, values[base], ratio=ratio)
        for name, own in values.items()
    }
    tested = {name: x.p for name, x in differences.items() if x is not None and x.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [
        Row(name, own, absent[name], differences[name], paper.get(name), adjusted.get(name))
        for name, own in values.items()
    ]


def _measured(
    config: ConfigDict, folder: Path, measure: str
) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, str]]]:
    """The values of each variant by seed, and for the seeds without one, why."""
    wanted = outcome(measure, config.target)
    values: dict[str, dict[int, float]] = {}
    absent: dict[str, dict[int, str]] = {}
    for name, _ in config.variants:
        values[name], absent[name] = {}, {}
        for seed in seeds_of(config, name):
            workdir = folder / name / f"seed-{seed}"
            why = missing(workdir)
            value = None if why else wanted.value(workdir)
            if value is None:
                absent[name][seed] = why or wanted.absent
            else:
                values[name][seed] = value
    return values, absent


def base_of(config: ConfigDict) -> str:
    """The name of the variant that changes nothing."""
    return next(name for name, changes in config.variants if not changes)


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
) -> Difference | None:
    """The difference over equal seeds (for a ratio, of logarithms); None without such pairs."""
    seeds = [seed for seed in ours if seed in base]
    if not seeds:
        return None
    pairs = np.array([(ours[seed], base[seed]) for seed in seeds])
    if ratio:
        pairs = np.log(pairs)
    differences = pairs[:, 0] - pairs[:, 1]
    mean, count = float(differences.mean()), len(seeds)
    if count < 2:
        return Difference(mean)
    error = float(stats.sem(differences))
    # Not by `ttest_1samp`, which warns of lost precision where all differences are equal.
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, count - 1)) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p, error * _detectable(count), count)


@functools.cache
def _detectable(count: int) -> float:
    """The true mean of `count` differences, in standard errors of their mean, that a test finds.

    The test is Student's at `SIGNIFICANT`, two-sided, and finds it with the probability `POWER`:
    under this mean, t has the noncentral distribution (Cohen, Statistical Power Analysis for the
    Behavioral Sciences, 1988, chapter 2).
    """
    free = count - 1
    critical = float(stats.t.ppf((1 + CONFIDENCE) / 2, free))

    def power(shift: float) -> float:
        # Over the quantiles of the variance. SciPy's `nct` is NaN for some arguments.
        def given(quantile: float) -> float:
            bound = critical * math.sqrt(stats.chi2.ppf(quantile, free) / free)
            return float(stats.norm.sf(bound - shift) + stats.norm.cdf(-bound - shift))

        return integrate.quad(given, 0, 1)[0]

    found: Any = optimize.brentq(lambda shift: power(shift) - POWER, 0, 10 * critical)
    return float(found)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusts p values for their number, so that the chance of any false one stays what it says.

    S. Holm, A simple sequentially rejective multiple test procedure, 1979: the k-th smallest of n
    is multiplied by n - k + 1, and none becomes smaller than one before it.
    """
    order = np.argsort(p, kind="stable")
    raised = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(raised), 1)
    return adjusted.tolist()


def between(config: ConfigDict, folder: Path, one: str, other: str) -> str:
    """A table of the difference of two variants, in every outcome of a study.

    Raises:
      UsageError: there is no such variant.
    """
    names = [name for name, _ in config.variants]
    for name in (one, other):
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"use two of {', '.join(names)}"
            raise UsageError(f"--compare: {name!r} is not a variant: {hint}")
    lines = []
    for measure in config.measures:
        wanted = outcome(measure, config.target)
        values, _ = _measured(config, folder, measure)
        found = paired_difference(values[one], values[other], ratio=wanted.ratio)
        means = (_mean(Row(name, values[name], {}, None, None)) for name in (one, other))
        p = "" if found is None or found.p is None else f"{found.p:.3f}"
        lines.append((wanted.title, *means, _interval(found, wanted.ratio), p,
                      _size(found, wanted.ratio)))  # fmt: skip
    head = ("", one, other, f"{one} less {other} [95 %]", "p", "detectable")
    return _markdown(*_without_empty(head, lines))


def table(config: ConfigDict, folder: Path) -> "Table":
    """The whole table of a study, from its logs."""
    return Table(config, {measure: rows(config, folder, measure) for measure in config.measures})


@dataclasses.dataclass(frozen=True)
class Table:
    """Every variant and every outcome of a study.

    Attributes:
      config: the study.
      by_measure: the rows of each of `config.measures`, in its order.
    """

    config: ConfigDict
    by_measure: dict[str, list[Row]]

    @property
    def main(self) -> list[Row]:
        """The rows of the first outcome."""
        return self.by_measure[self.config.measures[0]]

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The titles of the columns and the rows as text, without columns that are empty."""
        first, *others = (outcome(name, self.config.target) for name in self.by_measure)
        than = "ratio to the base [95 %]" if first.ratio else "difference from the base [95 %]"
        head = ["variant", first.title, "deviation", "seeds", than, "p (Holm)", "real?",
                "detectable", "paper"]  # fmt: skip
        for other in others:
            head += [other.title, "ratio [95 %]" if other.ratio else "difference [95 %]"]
        lines = []
        for number, row in enumerate(self.main):
            line = [*_cells(row, first.ratio)]
            for other, found in zip(others, list(self.by_measure.values())[1:], strict=True):
                line += [_mean(found[number]), _interval(found[number].difference, other.ratio)]
            lines.append(tuple(line))
        return _without_empty(tuple(head), lines)

    def without_result(self) -> list[str]:
        """One line per run that has no value of some outcome, with the reason.

        Runs that have not been started are left out: the column of seeds counts them.
        """
        found = (
            f"{row.name}, seed {seed}: {why}"
            for table in self.by_measure.values()
            for row in table
            for seed, why in row.missing.items()
            if why != NOT_STARTED
        )
        return list(dict.fromkeys(found))

    def best(self) -> str:
        """The best values of the grid, as a sentence; empty without a grid or results."""
        chosen = best_of_grid(self.config, self.main) if self.config.grid else {}
        fields = ", ".join(field for field, _ in self.config.grid)
        found = (f"{name} {', '.join(map(str, values))}" for name, values in chosen.items())
        return f"Lowest for each variant ({fields}): {'; '.join(found)}." if chosen else ""

    def note(self) -> str:
        """How the numbers were made, in a few sentences."""
        made = f"Seeds {', '.join(map(str, seeds(self.config)))}."
        compared = any(x.difference and x.difference.p is not None for x in self.main)
        return f"{made} {NOTE}" if compared else made

    def markdown(self) -> str:
        """The text of `table.md`."""
        parts = [f"# {self.config.title}", _markdown(*self.cells())]
        if best := self.best():
            parts.append(best)
        if absent := self.without_result():
            parts.append("\n".join(["Without a result:", "", *(f"- {line}" for line in absent)]))
        return "\n\n".join([*parts, self.note()]) + "\n"

    def comma_separated(self) -> str:
        """The text of `table.csv`: every value by seed, and the statistics to six digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        every_seed = seeds(self.config)
        names = (f"seed_{seed}" for seed in every_seed)
        writer.writerow(["outcome", "variant", *names, "mean", "deviation", "difference", "low",
                         "high", "p", "p_holm", "detectable", "paper"])  # fmt: skip
        for measure, table in self.by_measure.items():
            ratio = outcome(measure, self.config.target).ratio
            for row in table:
                values = [row.values.get(seed) for seed in every_seed]
                found = row.difference or Difference(math.nan)
                numbers = [*values, row.mean, row.deviation, found.mean, found.low, found.high,
                           found.p, row.holm, found.detectable, row.paper]  # fmt: skip
                name = f"log_{measure}" if ratio else measure
                absent = (x is None or math.isnan(x) for x in numbers)
                shown = ("" if a else f"{x:.6g}" for a, x in zip(absent, numbers, strict=True))
                writer.writerow([name, row.name, *shown])
        return text.getvalue()


def _cells(row: Row, ratio: bool) -> tuple[str, ...]:
    found, paper = row.difference, row.paper
    tested = row.holm is not None and found is not None
    verdict = ""
    if tested and found is not None and found.p is not None:
        alone = found.p < SIGNIFICANT
        verdict = "yes" if row.real else "only without Holm" if alone else "within noise"
    reasons = Counter(why.partition(":")[0] for why in row.missing.values())
    without = ", ".join(f"{count} {why}" for why, count in reasons.items())
    return (
        row.name,
        "" if row.mean is None else f"{row.mean:.2f}",
        "" if row.deviation is None else f"{row.deviation:.2f}",
        str(len(row.values)) + (f" ({without})" if without else ""),
        _interval(found, ratio),
        "" if row.holm is None else f"{row.holm:.3f}",
        verdict,
        _size(found, ratio),
        "" if paper is None else (f"× {paper:g}" if ratio else f"{paper:+.1f}"),
    )


def _interval(found: Difference | None, ratio: bool) -> str:
    """A difference, or a ratio, with its interval."""
    if found is None:
        return ""

    def show(x: float) -> str:
        return f"{math.exp(x):.2f}" if ratio else f"{x:+.2f}"

    text = f"× {show(found.mean)}" if ratio else show(found.mean)
    if found.low is None or found.high is None:
        return text
    return f"{text} [{show(found.low)}, {show(found.high)}]"


def _size(found: Difference | None, ratio: bool) -> str:
    """The smallest difference that could have been found."""
    if found is None or found.detectable is None:
        return ""
    return f"× {math.exp(found.detectable):.2f}" if ratio else f"{found.detectable:.2f}"


def _mean(row: Row) -> str:
    if row.mean is None:
        return ""
    return f"{row.mean:.2f}" + ("" if row.deviation is None else f" ± {row.deviation:.2f}")


def _without_empty(
    head: tuple[str, ...], lines: list[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table without the columns in which no row has anything."""
    kept = [i for i in range(len(head)) if i == 0 or any(line[i] for line in lines)]
    return tuple(head[i] for i in kept), [tuple(line[i] for i in kept) for line in lines]


def _markdown(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    ruler = "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, *lines]).replace(
        "\n", f"\n{ruler}\n", 1
    )
