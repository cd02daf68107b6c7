"""Figures, by matplotlib, that are the same bytes whenever they are drawn from the same logs."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

if TYPE_CHECKING:
    from alexnet_jax.study import Row

# Of Okabe and Ito, which readers of any colour vision tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_INK, _FAINT = "#222222", "#888888"
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "svg.hashsalt": "alexnet_jax",
    "font.size": 10,
}


def study_figure(config: ConfigDict, folder: Path, table: Iterable["Row"]) -> Figure:
    """Differences from the base with their intervals, or curves down to the target."""
    with plt.rc_context(_STYLE):
        if config.measure == "epochs_to_error":
            return _curves(config, folder)
        return _differences(config, list(table))


def _differences(config: ConfigDict, table: list["Row"]) -> Figure:
    shown = [row for row in table if row.difference is not None]
    figure, axis = plt.subplots(figsize=(7, 1.4 + 0.36 * max(len(shown), 1)), layout="constrained")
    base = next(row for row in table if row.name not in {row.name for row in shown})
    for place, row in enumerate(reversed(shown)):
        mean, low, high = row.difference
        colour = COLOURS[0] if row.real else _FAINT
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
    axis.set_yticks(range(len(shown)), [row.name for row in reversed(shown)])
    axis.set_ylim(-0.6, len(shown) - 0.4)
    mean = "" if base.mean is None else f" ({base.mean:.1f} %)"
    axis.set_xlabel(f"difference in test error from {base.name}{mean}, points")
    axis.set_title(config.title, fontsize=10, loc="left")
    handles = [
        plt.Line2D([], [], color=COLOURS[0], marker="o", linewidth=2, label="95 % interval"),
        plt.Line2D([], [], color=_FAINT, marker="o", linewidth=2, label="within noise"),
        plt.Line2D([], [], color=_INK, marker="|", linestyle="", label="each seed"),
        plt.Line2D([], [], color=COLOURS[1], marker="D", linestyle="", markerfacecolor="white",
                   label="the paper, on ImageNet"),
    ]  # fmt: skip
    figure.legend(handles=handles, fontsize=8, frameon=False, ncols=4, loc="outside lower center")
    return figure


def _curves(config: ConfigDict, folder: Path) -> Figure:
    from alexnet_jax.study import training_curve

    figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
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
