"""The page that `benchmarks.device` writes: tables of what was measured, with a summary on top."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]

COLUMNS: dict[str, tuple[str, float, str]] = {
    "loss_difference": ("losses differ by", 1, ".1e"),
    "update_difference": ("updates differ by", 1, ".1e"),
    "rounding_difference": ("by rounding alone", 1, ".1e"),
    "agrees": ("within tolerance", 1, ""),
    "same_bits": ("same bits again", 1, ""),
    "resumed_bits": ("same bits resumed", 1, ""),
    "seconds": ("ms per step", 1e3, ".3f"),
    "least_seconds": ("least", 1e3, ".3f"),
    "most_seconds": ("most", 1e3, ".3f"),
    "host_seconds": ("host's ms", 1e3, ".3f"),
    "images_per_second": ("images/s", 1, ",.0f"),
    "ceiling_seconds": ("ceiling, ms", 1e3, ".3f"),
    "limited_by": ("ceiling by", 1, ""),
    "share": ("of the ceiling", 1, ".0%"),
    "of_step": ("of the step alone", 1, ".2f"),
    "of_copy": ("of a copy's speed", 1, ".0%"),
    "moved_bytes": ("moved in memory, GB", 1e-9, ".2f"),
    "peak_bytes": ("peak in use, GB", 1e-9, ".2f"),
    "compiled_peak_bytes": ("compiled peak, GB", 1e-9, ".2f"),
    "compile_seconds": ("compiled in s", 1, ".0f"),
    "rate": ("measured", 1, ",.4g"),
    "of_stated": ("of what is stated", 1, ".0%"),
    "forward_micros": ("forward, us", 1, ".1f"),
    "both_micros": ("both passes, us", 1, ".1f"),
    "value_error": ("value's error", 1, ".1e"),
    "gradient_error": ("gradient's error", 1, ".1e"),
}
"""How the page calls a column, in which unit and how it writes a number there."""

AGREEMENT = (
    "loss_difference", "update_difference", "rounding_difference", "agrees", "same_bits",
    "resumed_bits",
)  # fmt: skip
TIMES = (
    "seconds", "least_seconds", "most_seconds", "host_seconds", "images_per_second",
    "ceiling_seconds", "limited_by", "share",
)  # fmt: skip
MEMORY = ("peak_bytes", "compiled_peak_bytes", "moved_bytes", "compile_seconds")


def cell(column: str, value: Any) -> str:
    """A value as the page writes it."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "**no**"}[value]
    _, scale, form = COLUMNS[column]
    return value if isinstance(value, str) else format(scale * value, form)


def table(rows: list[Row], columns: Sequence[str]) -> list[str]:
    """Rows in Markdown, with those of the columns in which one of them has a value."""
    columns = [c for c in columns if any(row.get(c) is not None for row in rows)]
    return _lines(
        ["", *(COLUMNS[c][0] for c in columns)],
        [[row["name"], *(cell(c, row.get(c)) for c in columns)] for row in rows],
        "---:",
    )


def _lines(head: list[str], cells: list[list[str]], align: str = "---") -> list[str]:
    rule = ["---", *[align] * (len(head) - 1)]
    return ["| " + " | ".join(line) + " |" for line in (head, rule, *cells)]


def agreement(what: str, rows: list[Row]) -> Iterator[list[str]]:
    """Lines of the summary: whether losses and bits are what they should be, and where not."""
    exact = [r["loss_difference"] for r in rows if "float32" in r["name"] and "agrees" in r]
    within = f"in float32 to {max(exact):.1e} of a loss" if exact else ""
    for check, column, detail in (
        ("losses and updates are those of the CPU", "agrees", within),
        ("a second run ends in the same bits", "same_bits", ""),
        ("a resumed run ends in the same bits", "resumed_bits", ""),
    ):
        judged = [row for row in rows if row.get(column) is not None]
        missing = [row["name"] for row in judged if not row[column]]
        if missing:
            result = f"**no**, {len(missing)} of {len(judged)}"
            yield [f"{what}: {check}", result, "not: " + "; ".join(missing)]
        elif judged:
            yield [f"{what}: {check}", "yes", detail]


def full_network(rows: list[Row]) -> Iterator[list[str]]:
    """Lines of the summary: agreement, and of each step its speed, its ceiling and its memory."""
    yield from agreement("Full network", rows)
    for row in rows:
        ceiling = "no ceiling is known for this device"
        if "share" in row:
            ceiling = f"{cell('share', row['share'])} of the ceiling by {row['limited_by']}"
        memory = f"{cell('compiled_peak_bytes', row['compiled_peak_bytes'])} GB as compiled"
        if row["peak_bytes"]:
            memory = f"{cell('peak_bytes', row['peak_bytes'])} GB in use at the peak, {memory}"
        speed = f"{cell('images_per_second', row['images_per_second'])} images/s"
        step = f"{cell('seconds', row['seconds'])} ms per step"
        yield [f"Training: {row['name']}", speed, f"{step}; {ceiling}; {memory}"]


def input_speed(rows: list[Row]) -> Iterator[list[str]]:
    """A line of the summary: whether reading or the step limits training."""
    for row in rows[:1]:
        limit = "the step" if row["of_step"] > 1 else "reading"
        detail = (
            f"{cell('of_step', row['of_step'])} of what the step takes: {limit} limits training"
        )
        speed = f"{cell('images_per_second', row['images_per_second'])} images/s"
        yield [f"Input: {row['name']}", speed, detail]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      title: of it.
      note: what a reader must know.
      tables: the columns of each of its tables.
      summary: what of it stands on top of the page, if anything does.
    """

    title: str
    note: str
    tables: tuple[tuple[str, ...], ...]
    summary: Callable[[list[Row]], Iterator[list[str]]] = lambda rows: iter(())


SMALL = Section(
    "The small network under each placement, beside the CPU",
    "A few steps of 32 images from the same state, with dropout; differences are relative, of the "
    "updates also when the first weights are rounded anew, on the CPU. A GPU "
    "promises the same bits with the deterministic option only.",
    (AGREEMENT,),
    functools.partial(agreement, "Small network"),
)
PEAKS = Section(
    "What one device does at most",
    "Beside what its maker states, where that is known.",
    (("rate", "of_stated"),),
)
FULL = Section(
    "The full network",
    "Milliseconds are medians; the host's are those until the device has its work. A ceiling is "
    "what the peaks that the maker states allow the compiled program; it is known for the devices "
    "in `alexnet_jax/analysis/targets.py`. The peak in use is empty where an earlier program, or "
    "trying variants while compiling, had used more, and where the platform does not count it. "
    "Compiling takes less where the program is in JAX's cache from an earlier run. "
    "Losses and updates are beside those of a CPU in float32, differences relative; by rounding "
    "alone: if there each first weight is the next float above or below.",
    (TIMES, MEMORY, AGREEMENT),
    full_network,
)
INPUT = Section(
    "Input from JPEG files",
    "Beside the first step of the full network, whose images are on the device already.",
    (("images_per_second", "of_step"),),
    input_speed,
)
MORE = Section(
    "More programs of the full network",
    "As above.",
    (TIMES, MEMORY, AGREEMENT),
    functools.partial(agreement, "More of the full network"),
)
NORMS = Section(
    "Normalizations of both towers at batch 128",
    "Forms of the same function: `wide` stores float32 between its passes, `narrow` the network's "
    "type, `kernel` is one kernel per pass. Errors are beside `wide` on a CPU.",
    (("forward_micros", "both_micros", "of_copy", "value_error", "gradient_error"),),
)


def page(result: dict[str, Any], sections: Sequence[Section]) -> str:
    """The page in Markdown.

    Args:
      result: as `benchmarks.device.carry_out` writes it.
      sections: of the page.
    """
    about, failures = result["about"], result["failures"]
    done = [(section, rows) for section in sections if (rows := result["parts"][section.title])]
    summary = [line for section, rows in done for line in section.summary(rows)]
    if failures:
        summary.append(["Not done", str(len(failures)), "named at the end of this page"])
    lines = [
        f"# First hour: {about['devices']}", "", about["text"],
        f"Took {result['seconds']:.0f} of {result['limit']:.0f} seconds.", "",
        *_lines(["check", "result", "detail"], summary),
    ]  # fmt: skip
    for section, rows in done:
        lines += ["", f"## {section.title}", "", section.note]
        for columns in section.tables:
            lines += ["", *table(rows, columns)]
    if failures:
        lines += ["", "## Not done", "", *(f"- {name}: {why}" for name, why in failures.items())]
    return "\n".join(lines) + "\n"
