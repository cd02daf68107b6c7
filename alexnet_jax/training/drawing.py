"""Figures of kernels and of predictions, in the style that all figures share."""

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

# The palette of Okabe and Ito, which is made for every kind of colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
INK, FAINT = "#222222", "#888888"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "font.size": 10,
    "text.parse_math": False,  # "$" in the name of a class is a dollar.
}


COLUMNS = 16
"""Kernels in a row."""


def kernels(kernels_TxHxWx3xN: np.ndarray) -> Figure:
    """Figure 3 of the paper: rows of 16 kernels, those of the first tower on top.

    Each kernel has its own scale, on which grey is 0.
    """
    towers, height, width, _, count = kernels_TxHxWx3xN.shape
    columns = min(count, COLUMNS)
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
    # Each weight is a square of whole pixels at 100 dots per inch, and at multiples of it.
    scale = max(900 // grid.shape[1], 1)
    figure = Figure(figsize=(scale * grid.shape[1] / 100, scale * grid.shape[0] / 100))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(grid, interpolation="nearest")
    axis.set_axis_off()
    for tower in range(1, towers):
        axis.axhline(tower * (rows * (height + gap) + gap) - 0.5, color=INK, linewidth=1)
    return figure


def predictions(
    rows: list[tuple[np.ndarray, str, list[tuple[str, float, bool]]]],
) -> Figure:
    """Figure 4 of the paper: images with their class, and the five best classes of each as bars.

    The bar of the right class has another colour, and its name a tick.

    Args:
      rows: (uint8 `[S, S, 3]`, class, [(class, percent, whether it is the right one)]).
    """
    columns = min(len(rows), 4)
    lines = -(-len(rows) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.08 * columns, 3.3 * lines), layout="constrained")
        axes = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=[2, 1] * lines)
        for axis in axes.flat:
            axis.set_axis_off()
        for number, (image, name, best) in enumerate(rows):
            line, column = divmod(number, columns)
            above, below = axes[2 * line, column], axes[2 * line + 1, column]
            above.imshow(image)
            above.set_title(short(name), fontsize=10, fontweight="bold")
            for place, (answer, percent, right) in enumerate(best):
                below.barh(place, percent, color=COLOURS[4] if right else COLOURS[5])
                text = f"\N{CHECK MARK} {answer}" if right else answer
                below.text(2, place, short(text), va="center", fontsize=8.5, color=INK)
                below.text(
                    99, place, f"{percent:.0f}", va="center", ha="right", fontsize=8.5, color=INK
                )
            below.set(xlim=(0, 100), ylim=(len(best) - 0.4, -0.6))
        return figure


def short(name: str) -> str:
    """A name of at most 26 characters."""
    return name if len(name) <= 26 else name[:25] + "…"
