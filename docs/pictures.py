"""Draws `docs/pictures/`: what the full network makes of one photograph, layer by layer.

    python -m alexnet_jax train --config=imagenette:full --workdir=runs/imagenette-full
    python docs/pictures.py runs/imagenette-full

The photograph is a part of `china.jpg`, which scikit-learn ships: by danielbuechele, CC BY 2.0.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.datasets import load_sample_image

import alexnet_jax
from alexnet_jax.analysis import explain
from alexnet_jax.training import drawing
from alexnet_jax.training.explanation import VIEWS, Explanation, LayerWalk

FOLDER = Path(__file__).parent / "pictures"
MAPS = 4
"""Number of feature maps per tower: those whose output has the largest values."""
COLUMNS = 128
"""Number of units in a row of a picture of a dense layer."""


def photograph() -> np.ndarray:
    """The pavilion of `china.jpg`, uint8 `[256, 256, 3]`."""
    part = Image.fromarray(load_sample_image("china.jpg")[:, 53 : 53 + 427])
    return np.asarray(part.resize((256, 256), Image.Resampling.LANCZOS))


def draw(network: Any, image: Any, folder: Path) -> None:
    """Writes every picture into a folder.

    Args:
      network: an `alexnet_jax.Network`.
      image: a file or pixels, as `network.explain` takes them.
      folder: which exists.
    """
    found = network.explain(image)
    kernels = network.kernels(network.layers[0])
    towers = network.tower.towers
    with matplotlib.rc_context(drawing.STYLE):
        figures = {
            "kernels": drawing.kernels(np.stack(np.split(kernels, towers, axis=-1))),
            "input": inputs(found),
            "views": views(found),
            **{walk.name: layer(walk, network) for walk in found.layers[:-1]},
            found.layers[-1].name: answer(found),
        }
        for name, figure in figures.items():
            figure.savefig(
                folder / f"{name}.webp", dpi=100, pil_kwargs={"quality": 70, "method": 6}
            )


def layer(walk: LayerWalk, network: Any) -> Figure:
    """The strongest maps of each tower, or all of its units, a row per operation."""
    stages, flat = walk.changes, walk.output.ndim == 1
    height = len(stages) * (0.6 if flat else 1.02)
    figure = Figure(figsize=(9, height + 0.25), layout=ConstrainedLayoutEngine(wspace=0.03))
    axes = figure.subplots(len(stages), walk.towers, squeeze=False)
    channels = walk.strongest(MAPS)
    for row, stage in zip(axes, stages, strict=True):
        for tower, axis in enumerate(row):
            if flat:
                units = np.split(stage.values, walk.towers)[tower]
                filled = np.pad(units, (0, -len(units) % COLUMNS), constant_values=units.min())
                maps = [filled.reshape(-1, COLUMNS)]
            else:
                maps = [stage.values[..., channel] for channel in channels[tower]]
            _pixels(axis, _side_by_side(maps), cmap="gray", interpolation="nearest")
        name = explain.stage_name(stage.name, network.config.model)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for tower, axis in enumerate(axes[0]):
        axis.set_title(f"tower {tower + 1}", fontsize=10)
    return figure


def inputs(found: Explanation) -> Figure:
    """The image with its crop outlined, the occlusion map and the gradient map of the answer."""
    best = found.classes[0]
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    image, covered, slope = figure.subplots(1, 3)
    _pixels(image, found.square)
    top, left = found.corner
    side = len(found.crop)
    image.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, color="white"))
    _pixels(covered, explain.occlusion_map(found, best))
    gradient = found.gradients[best]
    _pixels(slope, gradient, cmap="gray", vmax=np.percentile(gradient, 99.5))
    for axis, title in zip(
        (image, covered, slope), ("image", "occlusion", "gradient"), strict=True
    ):
        axis.set_title(title, fontsize=10)
    return figure


def views(found: Explanation) -> Figure:
    """The ten views, each with its answer."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    crops = zip(found.view_crops(), VIEWS, found.views, strict=True)
    for axis, (crop, name, row) in zip(figure.subplots(2, 5).flat, crops, strict=True):
        _pixels(axis, crop)
        label = int(row.argmax())
        title = f"{name}\n{found.name(label)}, {100 * row[label]:.0f} %"
        axis.set_title(title, fontsize=9)
    return figure


def answer(found: Explanation) -> Figure:
    """The probabilities of the five best classes."""
    figure = Figure(figsize=(9, 1.9), layout="constrained")
    axis = figure.subplots()
    for place, (label, _, probability) in enumerate(found.best):
        axis.barh(place, 100 * probability, color=drawing.COLOURS[5])
        text = f"{found.name(label)}, {100 * probability:.1f} %"
        axis.text(1, place, text, va="center", fontsize=9)
    axis.set(xlim=(0, 100), ylim=(len(found.best) - 0.4, -0.6), xlabel="probability, %", yticks=[])
    return figure


def _side_by_side(tiles: list[np.ndarray]) -> np.ndarray:
    """Maps `[h, w]`, each scaled from 0 to 1, with white between them."""
    gap = max(tiles[0].shape[1] // 13, 1)
    scaled = [(tile - tile.min()) / (np.ptp(tile) or 1) for tile in tiles]
    padded = [np.pad(tile, ((0, 0), (0, gap)), constant_values=1) for tile in scaled]
    return np.concatenate(padded, axis=1)[:, :-gap]


def _pixels(axis: Axes, pixels: np.ndarray, **given: Any) -> None:
    axis.imshow(pixels, **given)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    draw(alexnet_jax.load(sys.argv[1]), photograph(), FOLDER)
