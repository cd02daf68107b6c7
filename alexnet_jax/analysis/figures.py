"""Figures drawn with matplotlib; the same logs always give the same bytes."""

import dataclasses
import io
import math
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax.analysis import pages
from alexnet_jax.analysis.comparison import Row, base_of, seeds_of
from alexnet_jax.analysis.outcomes import outcome, training_curve
from alexnet_jax.training.drawing import COLOURS, FAINT, INK, STYLE
from alexnet_jax.training.events import Evaluation, Event, TrainingMean


def svg(figure: Figure) -> bytes:
    """A figure as SVG, without a date or random names, so that equal figures are equal bytes.

    It is scaled down to the width of what surrounds it, such as a notebook on a phone.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "alexnet_jax"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().replace(b"<svg ", b'<svg style="max-width: 100%; height: auto" ', 1)


def picture(figure: Figure) -> str:
    """A figure as a data URI, which needs no other file."""
    return pages.uri("svg+xml", svg(figure))


def png(figure: Figure, dots: int, few_colours: bool = False) -> bytes:
    """A figure as PNG, for pages, READMEs and slides.

    Args:
      figure: the figure.
      dots: per inch.
      few_colours: whether it has 256 colours, with which photographs take a third of the bytes.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots, metadata={"Software": None})
    image = Image.open(buffer).convert("RGB")
    if few_colours:
        image = image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one panel, sizes in inches; not by pyplot, which would keep it in memory."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def study_figure(config: ConfigDict, folder: Path, table: Iterable[Row]) -> Figure:
    """Differences from the base with their intervals, or curves down to the target."""
    with matplotlib.rc_context(STYLE):
        if config.measures[0] == "epochs_to_error":
            return _curves(config, folder)
        return _differences(config, list(table))


def run_curve(events: list[Event], name: str) -> Figure:
    """`loss`, `top1_error` or another metric of one run against epochs.

    One curve is the mean of the training steps, the others are evaluations of whole splits.
    Vertical lines are drops of the learning rate.
    """
    factor, label = (100, "top-1 error, %") if name == "top1_error" else (1, name)
    with matplotlib.rc_context(STYLE):
        figure, axis = _panel(5, 3.4)
        for number, (text, curve) in enumerate(series(events, name).items()):
            if not curve:
                continue
            epochs, values = list(curve), [factor * value for value in curve.values()]
            style = "-" if text == TRAINING else "o-"
            axis.plot(
                epochs, values, style, color=COLOURS[number], markersize=4, linewidth=1, label=text
            )
        for epoch, rate in drops(events):
            axis.axvline(epoch, color=INK, linewidth=0.8, linestyle=":")
            axis.text(
                epoch, 0.98, f"rate {rate:.3g} ", transform=axis.get_xaxis_transform(),
                rotation=90, ha="right", va="top", fontsize=7.5, color=INK,
            )  # fmt: skip
        axis.set(xlabel="epoch", ylabel=label, ylim=(0, None))
        axis.legend(fontsize=8, frameon=False)
        return figure


def drops(events: list[Event]) -> list[tuple[float, float]]:
    """(epoch, new learning rate) of each fall of the learning rate from one level to another.

    The log holds the rate of the last of some steps, so that the epoch is that of the last line
    with the old rate. A rate that changes all the time has no drops.
    """
    logged = [
        (x.epoch, x.learning_rate)
        for x in events
        if isinstance(x, TrainingMean) and x.learning_rate is not None
    ]
    windows = zip(logged, logged[1:], logged[2:], strict=False)
    return [
        (epoch, rate) for (_, before), (epoch, last), (_, rate) in windows if rate < last == before
    ]


TRAINING = "mean of training steps"
_CURVE = 5
"""The fewest evaluations that are drawn as a curve of their own where variants are overlaid."""


def series(events: list[Event], name: str) -> dict[str, dict[float, float]]:
    """A metric by epoch, for the training steps (`TRAINING`) and the evaluations of each split."""
    found: dict[str, dict[float, float]] = {TRAINING: {}}
    for event in events:
        if isinstance(event, (TrainingMean, Evaluation)):
            text = TRAINING if isinstance(event, TrainingMean) else f"{event.split} images"
            values = dataclasses.asdict(event)
            values |= values.get("metrics", {})
            if name in values:
                found.setdefault(text, {})[event.epoch] = values[name]
    return found


def study_curves(logs: dict[str, list[list[Event]]], measure: str) -> Figure:
    """`loss` or `top1_error`, one panel per variant: the mean of its seeds and their range."""
    factor, text = (1, "loss") if measure == "loss" else (100, "top-1 error, %")
    with matplotlib.rc_context(STYLE):
        columns = min(len(logs), 4)
        height = -(-len(logs) // columns)
        figure = Figure(figsize=(2.4 * columns, 2.0 * height), layout="constrained")
        axes = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
        for axis, (name, runs) in zip(axes.flat, logs.items(), strict=False):
            seeds = [series(events, measure) for events in runs]
            for number, label in enumerate(dict.fromkeys(key for one in seeds for key in one)):
                curves = [one[label] for one in seeds if label in one]
                epochs = sorted({epoch for curve in curves for epoch in curve})
                there = [[factor * c[e] for c in curves if e in c] for e in epochs]
                if not epochs:
                    continue
                axis.fill_between(
                    epochs, [min(v) for v in there], [max(v) for v in there],
                    color=COLOURS[number], alpha=0.25, linewidth=0,
                )  # fmt: skip
                axis.plot(
                    epochs, [np.mean(v) for v in there], color=COLOURS[number], linewidth=1.2,
                    marker="" if label == TRAINING else "o", markersize=3, label=label,
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


def overlay(logs: dict[str, list[list[Event]]], measure: str, base: str = "") -> Figure:
    """`loss` or `top1_error` of variants or runs in one panel: the mean over the seeds of each.

    It is that of the last split of which all have enough evaluations for a curve, and otherwise of
    the training steps. The base is the thick line.
    """
    factor, text = (1, "loss") if measure == "loss" else (100, "top-1 error, %")
    found = {
        name: [series(events, measure) for events in runs] for name, runs in logs.items() if runs
    }
    every = [
        {key for one in runs for key, curve in one.items() if len(curve) >= _CURVE}
        for runs in found.values()
    ]
    keys = [key for runs in found.values() for one in runs for key in one]
    shown = [TRAINING, *(key for key in keys if all(key in long for long in every))][-1]
    with matplotlib.rc_context(STYLE):
        figure, axis = _panel(8, 4.4)
        for number, (name, runs) in enumerate(found.items()):
            curves = [one[shown] for one in runs if one.get(shown)]
            if not curves:
                continue
            epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
            values = [factor * np.mean([curve[epoch] for curve in curves]) for epoch in epochs]
            axis.plot(
                epochs, values, label=name, color=INK if name == base else COLOURS[number % 6],
                linewidth=2.4 if name == base else 1.2,
                linestyle=("-", "--", ":", "-.")[number // 6 % 4],
            )  # fmt: skip
        axis.set(xlabel="epoch", ylabel=f"{text}; {shown}", ylim=(0, None))
        if axis.lines:
            figure.legend(fontsize=8, frameon=False, loc="outside right upper")
        return figure


def confusion(matrix: np.ndarray, names: tuple[str, ...]) -> Figure:
    """Rows are true classes, columns predicted ones; colours are shares of a row.

    Up to 20 classes, counts are written into the cells.
    """
    with matplotlib.rc_context(STYLE):
        side = 2.2 + 0.4 * len(names)
        figure, axis = _panel(side + 1, side)
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        shown = axis.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="predicted class", ylabel="true class")
        axis.spines[:].set_visible(False)
        for (row, column), times in np.ndenumerate(matrix):
            if times and len(names) <= 20:
                axis.text(
                    column, row, times, ha="center", va="center", fontsize=8,
                    color="white" if shares[row, column] > 0.5 else INK,
                )  # fmt: skip
        figure.colorbar(shown, ax=axis, label="% of the class", shrink=0.7)
        return figure


def _differences(config: ConfigDict, table: list[Row]) -> Figure:
    shown = [(row, row.difference) for row in table if row.difference is not None]
    figure, axis = _panel(7, 1.4 + 0.36 * max(len(shown), 1))
    base = next(row for row in table if row.name == base_of(config))
    wanted = outcome(config.measures[0], config.target)

    def scaled(value: float) -> float:
        return math.log(value) if wanted.ratio else value

    # A variant that does not learn at all would compress the scale: it is an arrow at the edge.
    sizes = sorted(abs(difference.mean) for _, difference in shown)
    most = 3 * sizes[-2] if len(sizes) > 2 else math.inf
    ends = [end for _, x in shown if abs(x.mean) <= most for end in (x.mean, x.low, x.high)]
    reach = 1.1 * max((abs(x) for x in ends if x is not None), default=1.0)
    for place, (row, found) in enumerate(reversed(shown)):
        mean, low, high = found.mean, found.low, found.high
        colour = COLOURS[0] if row.real else FAINT
        if abs(mean) > most:
            edge = math.copysign(reach, mean)
            axis.annotate(
                f"{mean:+.1f}", (edge, place), (0.8 * edge, place), color=colour, fontsize=9,
                ha="center", va="center", arrowprops={"arrowstyle": "->", "color": colour},
            )  # fmt: skip
            continue
        if low is not None and high is not None:
            axis.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axis.plot(mean, place, "o", color=colour, markersize=6)
        for seed, value in row.values.items():
            if seed in base.values:
                difference = scaled(value) - scaled(base.values[seed])
                axis.plot(difference, place, "|", color=colour, markersize=8)
        if row.paper is not None:
            axis.plot(
                scaled(row.paper), place, "D",
                markerfacecolor="white", color=COLOURS[1], markersize=6,
            )  # fmt: skip
    axis.axvline(0, color=INK, linewidth=0.8)
    if any(size > most for size in sizes):
        axis.set_xlim(-reach, reach)
    axis.set_yticks(range(len(shown)), [row.name for row, _ in reversed(shown)])
    axis.set_ylim(-0.6, len(shown) - 0.4)
    name, percent, _ = wanted.title.partition(", %")
    mean = "" if base.mean is None else f" ({base.mean:.1f}{' %' if percent else ''})"
    unit = ", points" if percent else ", natural logarithms" if wanted.ratio else ""
    axis.set_xlabel(f"difference in {name} from {base.name}{mean}{unit}")
    axis.set_title(config.title, fontsize=10, loc="left")
    handles = [
        Line2D([], [], color=FAINT, marker="o", linewidth=2, label="within noise, or one seed"),
        Line2D([], [], color=INK, marker="|", linestyle="", label="each seed"),
    ]
    if any(row.real for row, _ in shown):
        handles.insert(
            0,
            Line2D([], [], color=COLOURS[0], marker="o", linewidth=2, label="real: 95 % interval"),
        )
    if any(row.paper is not None for row, _ in shown):
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
        for seed in seeds_of(config, name):
            curve = training_curve(folder / name / f"seed-{seed}")
            if curve:
                epochs, errors = np.array(curve).T
                axis.plot(epochs, 100 * errors, color=colour, linewidth=1.5, alpha=0.8, label=label)
                label = None
    axis.axhline(100 * config.target, color=INK, linewidth=0.8, linestyle=":")
    axis.set(xlabel="epoch", ylabel="training error, %", ylim=(0, None), xlim=(0, None))
    axis.set_title(config.title, fontsize=10, loc="left")
    if axis.lines[1:]:
        axis.legend(fontsize=8, frameon=False)
    return figure
