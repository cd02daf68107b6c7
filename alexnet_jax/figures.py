"""Figures, by matplotlib, that are the same bytes whenever they are drawn from the same logs."""

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from ml_collections import ConfigDict

from alexnet_jax.comparison import Row, training_curve

# Of Okabe and Ito, which readers of any colour vision tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_INK, _FAINT = "#222222", "#888888"
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "font.size": 10,
}


def svg(figure: Figure) -> bytes:
    """The same bytes for the same figure: without a date, with names that are no chance.

    It shrinks with what it stands in, such as a notebook on a phone.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "alexnet_jax"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().replace(b"<svg ", b'<svg style="max-width: 100%; height: auto" ', 1)


def _panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one panel, in inches; without pyplot, which would keep it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def study_figure(config: ConfigDict, folder: Path, table: Iterable[Row]) -> Figure:
    """Differences from the base with their intervals, or curves down to the target."""
    with matplotlib.rc_context(_STYLE):
        if config.measure == "epochs_to_error":
            return _curves(config, folder)
        return _differences(config, list(table))


def run_curve(log: list[dict[str, Any]], name: str) -> Figure:
    """`loss` or `top1_error` of one run against epochs: training as it went, and every test."""
    factor, label = (1, "loss") if name == "loss" else (100, "top-1 error, %")
    with matplotlib.rc_context(_STYLE):
        figure, axis = _panel(5, 3.4)
        steps = [line for line in log if line["split"] == "train" and "learning_rate" in line]
        axis.plot(
            [line["epoch"] for line in steps], [factor * line[name] for line in steps],
            color=COLOURS[0], linewidth=1, label="training, as it went",
        )  # fmt: skip
        for number, split in enumerate(("test", "train"), 1):
            tests = [line for line in log if line["split"] == split and "num_examples" in line]
            if tests:
                axis.plot(
                    [line["epoch"] for line in tests], [factor * line[name] for line in tests],
                    "o-", color=COLOURS[number], markersize=4, linewidth=1,
                    label=f"{split} images",
                )  # fmt: skip
        axis.set(xlabel="epoch", ylabel=label, ylim=(0, None))
        axis.legend(fontsize=8, frameon=False)
        return figure


def study_curves(logs: dict[str, list[list[dict[str, Any]]]], measure: str) -> Figure:
    """`loss` or `top1_error` of each variant in a panel of its own: mean and band of its seeds."""
    factor, text = (1, "loss") if measure == "loss" else (100, "top-1 error, %")
    with matplotlib.rc_context(_STYLE):
        columns = min(len(logs), 4)
        height = -(-len(logs) // columns)
        figure = Figure(figsize=(2.4 * columns, 2.0 * height), layout="constrained")
        axes = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
        for axis, (name, runs) in zip(axes.flat, logs.items(), strict=False):
            for number, (split, key, label) in enumerate(
                (("train", "learning_rate", "training"), ("test", "num_examples", "test"))
            ):
                lines = [[x for x in log if x["split"] == split and key in x] for log in runs]
                curves = [{x["epoch"]: factor * x[measure] for x in rows} for rows in lines]
                epochs = sorted({epoch for curve in curves for epoch in curve})
                there = [[c[e] for c in curves if e in c] for e in epochs]
                if not epochs:
                    continue
                axis.fill_between(
                    epochs, [min(v) for v in there], [max(v) for v in there],
                    color=COLOURS[number], alpha=0.25, linewidth=0,
                )  # fmt: skip
                axis.plot(
                    epochs, [np.mean(v) for v in there], color=COLOURS[number], linewidth=1.2,
                    marker="o" if split == "test" else "", markersize=3, label=label,
                )  # fmt: skip
            axis.set_title(name, fontsize=9)
            axis.set_ylim(0, None)
        for axis in axes.flat[len(logs) :]:
            axis.set_axis_off()
        if axes[0, 0].lines:
            axes[0, 0].legend(fontsize=7, frameon=False)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel(text, fontsize=9)
        return figure


def kernels(kernels_TxHxWx3xN: np.ndarray) -> Figure:
    """Figure 3 of the paper: rows of 16 kernels, the first tower's above the second's.

    Each on its own scale, grey for 0.
    """
    towers, height, width, _, count = kernels_TxHxWx3xN.shape
    columns = min(count, 16)
    rows = -(-count // columns)
    gap = 1
    grid = np.ones((towers * (rows * (height + gap) + gap), columns * (width + gap) + gap, 3))
    for tower in range(towers):
        for number in range(count):
            kernel = kernels_TxHxWx3xN[tower, ..., number]
            row, column = divmod(number, columns)
            top = tower * (rows * (height + gap) + gap) + gap + row * (height + gap)
            left = gap + column * (width + gap)
            reach = max(np.abs(kernel).max(), np.finfo(np.float32).tiny)
            grid[top : top + height, left : left + width] = 0.5 + 0.5 * kernel / reach
    figure = Figure(figsize=(9, 9 * grid.shape[0] / grid.shape[1]))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(grid, interpolation="nearest")
    axis.set_axis_off()
    for tower in range(1, towers):
        axis.axhline(tower * (rows * (height + gap) + gap) - 0.5, color=_INK, linewidth=1)
    return figure


def predictions(
    rows: list[tuple[np.ndarray, str, list[tuple[str, float, bool]]]],
) -> Figure:
    """Figure 4 of the paper: images with their class, and below each its five best as bars.

    Args:
      rows: (uint8 `[S, S, 3]`, class, [(class, percent, whether it is the right one)]).
    """
    columns = min(len(rows), 4)
    lines = -(-len(rows) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(2.4 * columns, 3.6 * lines), layout="constrained")
        axes = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=[2, 1] * lines)
        for axis in axes.flat:
            axis.set_axis_off()
        for number, (image, name, best) in enumerate(rows):
            line, column = divmod(number, columns)
            above, below = axes[2 * line, column], axes[2 * line + 1, column]
            above.imshow(image)
            above.set_title(_short(name), fontsize=9)
            for place, (answer, percent, right) in enumerate(best):
                below.barh(place, percent, color=COLOURS[1] if right else COLOURS[5])
                below.text(2, place, _short(answer), va="center", fontsize=8, color=_INK)
            below.set(xlim=(0, 100), ylim=(len(best) - 0.4, -0.6))
        return figure


def _short(name: str) -> str:
    return name if len(name) <= 26 else name[:25] + "…"


def confusion(matrix: np.ndarray, names: tuple[str, ...]) -> Figure:
    """Rows are the classes, columns the answers; shares of a row, with counts where they fit."""
    with matplotlib.rc_context(_STYLE):
        side = 2.2 + 0.4 * len(names)
        figure, axis = _panel(side + 1, side)
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        shown = axis.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="answer", ylabel="class")
        axis.spines[:].set_visible(False)
        for (row, column), times in np.ndenumerate(matrix):
            if times and len(names) <= 20:
                axis.text(
                    column, row, times, ha="center", va="center", fontsize=8,
                    color="white" if shares[row, column] > 0.5 else _INK,
                )  # fmt: skip
        figure.colorbar(shown, ax=axis, label="% of the class", shrink=0.7)
        return figure


def _differences(config: ConfigDict, table: list[Row]) -> Figure:
    shown = [row for row in table if row.difference is not None]
    figure, axis = _panel(7, 1.4 + 0.36 * max(len(shown), 1))
    base = next(row for row in table if not dict(config.variants)[row.name])
    # A variant that does not learn at all must not hide the others: it is an arrow at the edge.
    sizes = sorted(abs(row.difference[0]) for row in shown)
    most = 3 * sizes[-2] if len(sizes) > 2 else math.inf
    ends = [x for row in shown if abs(row.difference[0]) <= most for x in row.difference]
    reach = 1.1 * max((abs(x) for x in ends if x is not None), default=1.0)
    for place, row in enumerate(reversed(shown)):
        mean, low, high = row.difference
        colour = COLOURS[0] if row.real else _FAINT
        if abs(mean) > most:
            edge = math.copysign(reach, mean)
            axis.annotate(
                f"{mean:+.1f}", (edge, place), (0.8 * edge, place), color=colour, fontsize=9,
                ha="center", va="center", arrowprops={"arrowstyle": "->", "color": colour},
            )  # fmt: skip
            continue
        if low is not None:
            axis.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axis.plot(mean, place, "o", color=colour, markersize=6)
        for seed, value in row.values.items():
            if seed in base.values:
                axis.plot(value - base.values[seed], place, "|", color=colour, markersize=8)
        if row.paper is not None:
            axis.plot(
                row.paper, place, "D", markerfacecolor="white", color=COLOURS[1], markersize=6
            )
    axis.axvline(0, color=_INK, linewidth=0.8)
    if any(size > most for size in sizes):
        axis.set_xlim(-reach, reach)
    axis.set_yticks(range(len(shown)), [row.name for row in reversed(shown)])
    axis.set_ylim(-0.6, len(shown) - 0.4)
    mean = "" if base.mean is None else f" ({base.mean:.1f} %)"
    kind = "training" if config.measure == "train_error" else "test"
    axis.set_xlabel(f"difference in {kind} error from {base.name}{mean}, points")
    axis.set_title(config.title, fontsize=10, loc="left")
    handles = [
        Line2D([], [], color=_FAINT, marker="o", linewidth=2, label="within noise, or one seed"),
        Line2D([], [], color=_INK, marker="|", linestyle="", label="each seed"),
    ]
    if any(row.real for row in shown):
        handles.insert(
            0, Line2D([], [], color=COLOURS[0], marker="o", linewidth=2, label="95 % interval")
        )
    if any(row.paper is not None for row in shown):
        handles.append(
            Line2D([], [], color=COLOURS[1], marker="D", linestyle="", markerfacecolor="white",
                   label="the paper, on ImageNet")
        )  # fmt: skip
    figure.legend(handles=handles, fontsize=8, frameon=False, ncols=4, loc="outside lower center")
    return figure


def _curves(config: ConfigDict, folder: Path) -> Figure:
    figure, axis = _panel(7, 3.8)
    for number, (name, _) in enumerate(config.variants):
        colour = COLOURS[number % len(COLOURS)]
        label: str | None = name
        for seed in config.seeds:
            curve = training_curve(folder / name / f"seed-{seed}")
            if curve:
                epochs, errors = np.array(curve).T
                axis.plot(epochs, 100 * errors, color=colour, linewidth=1.5, alpha=0.8, label=label)
                label = None
    axis.axhline(100 * config.target, color=_INK, linewidth=0.8, linestyle=":")
    axis.set(xlabel="epoch", ylabel="training error, %", ylim=(0, None), xlim=(0, None))
    axis.set_title(config.title, fontsize=10, loc="left")
    if axis.lines[1:]:
        axis.legend(fontsize=8, frameon=False)
    return figure
