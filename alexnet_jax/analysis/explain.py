"""One self-contained page that walks photographs through a network, layer by layer."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.analysis import pages
from alexnet_jax.analysis.inspect import shape_text
from alexnet_jax.config.table import LayerCount
from alexnet_jax.data import classes
from alexnet_jax.data.protocol import Source
from alexnet_jax.data.sources import open_sources
from alexnet_jax.errors import UsageError
from alexnet_jax.training import workdir as workdirs
from alexnet_jax.training.explanation import (
    VIEWS,
    Excited,
    Explanation,
    LayerWalk,
    exciting,
)

MOST = 20
"""Largest number of photographs on a page."""
MAPS = 4
"""Number of feature maps that are drawn per tower and layer."""

_DIM = 0.4
"""How bright the image is drawn below an occlusion map."""


def page(
    network: Any, explanations: Sequence[Explanation], origin: str, among: Source | str
) -> str:
    """The page of some photographs.

    Args:
      network: the `Network`.
      explanations: what `network.explain` returned for each photograph.
      origin: the name of the run or the file, for the heading.
      among: the images that are searched for those that excite a unit, or why there are none.

    Raises:
      UsageError: a searched image cannot be read.
    """
    layer = explanations[0].unit.layer
    channels = [each.unit.channel for each in explanations]
    found: list[tuple[Excited, ...]] = [()] * len(channels)
    searched = str(among)
    if not isinstance(among, str):
        found, count = exciting(network, among, layer, channels)
        searched = f"{count:,} images of {among.name}, {among.split}"
    return pages.render(
        "explain.html",
        title=f"{len(explanations)} images" if len(explanations) > 1 else _name(explanations[0]),
        origin=origin,
        network=repr(network).removeprefix("Network(").removesuffix(")"),
        photographs=[
            {
                "name": _name(each),
                "picture": pages.photo(each.square),
                "box": _square(*each.corner, len(each.crop), each.square),
                "best": _bars(each.probabilities, network),
                "size": shape_text(each.square.shape),
                "crop": shape_text(each.crop.shape),
                "layers": [
                    _layer(walk, before, network, each)
                    for walk, before in zip(each.layers, ("", *network.layers), strict=False)
                ],
                "unit": _unit(each, images, network),
                "evidence": [_evidence(each, label) for label in each.classes],
                "covers": f"{each.occlusion.size} x {each.occlusion.size}",
                "variants": [
                    (v.title, v.why_not, v.probabilities is not None and
                     _bars(v.probabilities, network))
                    for v in each.variants
                ],
                "views": _views(each),
                "mean": _bars(each.views.mean(0), network),
            }
            for each, images in zip(explanations, found, strict=True)
        ],
        searched=searched,
        mirrored=bool(network.config.data.random_flip),
    )  # fmt: skip


def images_of(config: ConfigDict, workdir: Path | None) -> Source | str:
    """The training images of a run, or why there are none to search."""
    if workdir is None:
        return "a file of weights has none"
    try:
        return open_sources(config, *workdirs.class_names(config, workdir))["train"]
    except UsageError as error:
        return str(error)


def _name(each: Explanation) -> str:
    return Path(each.image).name


def _bars(probabilities: np.ndarray, network: Any) -> list[tuple[str, float]]:
    """(name, percent) of the five most probable classes."""
    names = classes.words(network.class_names)
    return [(name, 100 * p) for _, name, p in classes.best(probabilities, names)]


def _box(box: tuple[int, ...], pixels: np.ndarray) -> str:
    """The style of an element that outlines a part of a picture."""
    top, left, bottom, right = box
    height, width = pixels.shape[:2]
    return (
        f"top: {100 * top / height:.2f}%; left: {100 * left / width:.2f}%; "
        f"height: {100 * (bottom - top) / height:.2f}%; width: {100 * (right - left) / width:.2f}%"
    )


def _square(top: int, left: int, size: int, pixels: np.ndarray) -> str:
    return _box((top, left, top + size, left + size), pixels)


# --------------------------------------------------------------------------- layers


def _layer(walk: LayerWalk, before: str, network: Any, each: Explanation) -> dict[str, Any]:
    """What the page shows of a layer."""
    row, layer, model = walk.count, walk.count.layer, network.config.model
    steps = [
        {"name": stage_name(stage.name, model), "shape": shape_text(stage.shape),
         "arithmetic": stage.arithmetic, "about": about(stage.name, row, model)}
        for stage in walk.stages
    ]  # fmt: skip
    return {
        "name": walk.name,
        "steps": steps,
        "parameters": f"{row.parameters:,}",
        "macs": f"{row.macs:,}",
        "crosses": crosses(row, before, model.towers),
        "towers": [] if layer.last else _towers(walk, model),
        "logits": [
            (each.name(i), float(walk.output[i]), float(each.probabilities[i]))
            for i in np.argsort(-walk.output, kind="stable")[: classes.BEST].tolist()
        ]
        if layer.last
        else [],
    }


def _towers(walk: LayerWalk, model: ConfigDict) -> list[dict[str, Any]]:
    """For each tower its strongest channels and their pictures, stage by stage.

    A stage that changes nothing, as dropout at test time, has no pictures.
    """
    stages = [(stage_name(stage.name, model), stage.values) for stage in walk.changes]
    found = []
    for tower, chosen in enumerate(walk.strongest(MAPS).tolist()):
        if walk.output.ndim == 3:
            columns = [f"map {channel}" for channel in chosen]
            rows = [(label, [_map(x[..., c], c, label) for c in chosen]) for label, x in stages]
        else:
            peaks = ", ".join(f"unit {c} ({walk.output[c]:.3g})" for c in chosen)
            columns = [f"strongest: {peaks}"]
            rows = [
                (label, [_units(np.split(x, walk.towers)[tower], label)]) for label, x in stages
            ]
        found.append({"name": f"tower {tower + 1}", "columns": columns, "rows": rows})
    return found


def _map(values: np.ndarray, channel: int, label: str) -> tuple[str, str]:
    """A feature map `[h, w]` and what it shows, in words."""
    row, column = np.unravel_index(values.argmax(), values.shape)
    text = (
        f"map {channel} after {label}: {values.min():.3g} (black) to {values.max():.3g} (white), "
        f"largest at row {row}, column {column}"
    )
    return pages.grey(values), text


def _units(values: np.ndarray, label: str) -> tuple[str, str]:
    """The units of one tower, `[units]`, as a picture, row by row, and in words."""
    width = 2 ** math.ceil(math.log2(2 * len(values)) / 2)
    filled = np.full(-(-len(values) // width) * width, values.min(), values.dtype)
    filled[: len(values)] = values
    text = (
        f"{len(values)} units after {label}, row by row: {values.min():.3g} (black) to "
        f"{values.max():.3g} (white), {np.mean(values > 0):.0%} are positive"
    )
    return pages.grey(filled.reshape(-1, width)), text


def crosses(row: LayerCount, before: str, towers: int) -> str:
    """What the towers send each other for a layer, in words and numbers of the table.

    Args:
      row: of the table.
      before: the name of the layer before it; empty if it is the first.
      towers: number of towers.
    """
    if towers == 1:
        return ""
    exchanged = f"{row.exchanged:,}"
    if not before:
        text = "Every tower sees the whole image: nothing crosses (section 3.2)."
    elif row.layer.exchange == "none":
        text = "Each tower sees its own maps only: nothing crosses (section 3.2)."
    elif row.layer.exchange == "inputs":
        text = (
            f"The towers meet: each receives the outputs of {before} of the other"
            f"{'s' if towers > 2 else ''}, {exchanged} values per image (section 3.2)."
        )
    elif row.layer.last:
        text = (
            "The towers meet: each multiplies its own units by their weights, and the products are "
            f"added. {exchanged} values per image reach each tower (section 3.2)."
        )
    else:
        text = (
            "The towers meet: each multiplies its own inputs and sends the sums that belong to "
            f"other towers. {exchanged} values per image reach each tower (section 3.2)."
        )
    for name, received in row.halos:
        text += (
            f" Windows of {_NAMES.get(name, name)} reach across the seam: {received:,} values per "
            "image reach each tower."
        )
    return text


_NAMES = {
    "conv": "convolution", "local": "local layer", "dense": "dense layer",
    "max_pool": "max pooling", "avg_pool": "mean pooling", "lrn": "LRN",
    "within_map_norm": "within-map norm", "batch_norm": "batch norm",
}  # fmt: skip


def stage_name(name: str, model: ConfigDict) -> str:
    """What a kind of layer or an operation is called."""
    if name == "activation":
        return "ReLU" if model.activation == "relu" else str(model.activation)
    return _NAMES.get(name, name)


def about(name: str, row: LayerCount, model: ConfigDict) -> str:
    """What a layer or an operation does, in a sentence with the section of the paper.

    Args:
      name: of the operation, or the kind of the layer.
      row: the layer's row of the table (`table.LayerCount`).
      model: `config.model`.
    """
    layer, pool, lrn = row.layer, model.pool, model.lrn
    kernel = f"{layer.kernel} x {layer.kernel} x {row.in_channels}"
    count = f"{row.out_shape[-1]:,}"
    overlap = "overlap" if pool.window > pool.stride else "do not overlap"
    window = f"each {pool.window} x {pool.window} window, {pool.stride} pixels apart"
    if layer.last and name == layer.kind:
        return (
            f"One number for each of the {count} classes, its logit; softmax makes probabilities "
            "of them (section 3.5)."
        )
    if name == "activation" and model.activation == "relu":
        return "ReLU keeps positive values and makes all others zero (section 3.1)."
    if name == "lrn" and not lrn.enabled:
        return "Switched off in this network: values pass unchanged."
    if name == "dropout":
        if model.dropout.rescaled_in_training or not model.dropout.rate:
            return "Acts in training only: values pass unchanged (section 4.2)."
        return (
            "In training it sets units to zero at random. Here every unit is active and its output "
            f"is multiplied by {1 - model.dropout.rate:g} (section 4.2)."
        )
    texts = {
        "conv": f"Each of {count} kernels of {kernel} weights moves over its input in steps of "
        f"{layer.stride} and makes one map (section 3.5).",
        "local": f"As a convolution with {count} kernels of {kernel} weights, but with kernels of "
        "its own at every place.",
        "dense": f"Each of {count} units is a weighted sum of {row.in_channels:,} inputs "
        "(section 3.5).",
        "activation": f"The function {model.activation} of each value (section 3.1).",
        "max_pool": f"The largest value of {window}; the windows {overlap} (section 3.4).",
        "avg_pool": f"The mean of {window}; the windows {overlap} (section 3.4).",
        "lrn": "Local response normalization divides each value by a power of the sum of squares "
        f"over {lrn.size} neighbouring maps at the same place (section 3.3).",
        "within_map_norm": "Divides each value by a power of the sum of squares around it in the "
        "same map (in the source code of 2012, not in the paper).",
        "batch_norm": "Subtracts the mean and divides by the deviation of each map, as measured in "
        "training (not in the paper, which is older).",
    }
    return texts.get(name, f"The operation {name}.")


# --------------------------------------------------------------------------- the rest


def _unit(each: Explanation, images: tuple[Excited, ...], network: Any) -> dict[str, Any]:
    unit, field = each.unit, each.unit.field
    output = next(walk.output for walk in each.layers if walk.name == unit.layer)
    kind = "map" if output.ndim == 3 else "unit"
    cards = [("this image", each.crop, unit.strength, unit.box)]
    for image in images:
        cards.append((f"{each.name(image.label)}, image {image.index}", image.crop, image.strength,
                      image.box))  # fmt: skip
    crop = len(each.crop)
    return {
        "name": f"{kind} {unit.channel} of {unit.layer}",
        "field": f"{min(field, crop)} x {min(field, crop)}",
        "whole": field >= crop,
        "none": not images,
        "cards": [
            {"name": name, "picture": pages.photo(pixels), "box": _box(box, pixels),
             "patch": pages.photo(pixels[box[0] : box[2], box[1] : box[3]]),
             "strength": f"{strength:.3g}"}
            for name, pixels, strength, box in cards
        ],
    }  # fmt: skip


def _evidence(each: Explanation, label: int) -> dict[str, Any]:
    """The two maps of a class: what it matters to cover, and where a change counts."""
    drop, occlusion = each.drop(label), each.occlusion
    row, column = np.unravel_index(drop.argmax(), drop.shape)
    top, left = (int(occlusion.places[i]) for i in (row, column))
    slope = each.gradients[label]
    reach = np.percentile(slope, 99.5) or 1.0
    before = 100 * float(each.probabilities[label])
    after = 100 * float(occlusion.probabilities[row, column, label])
    return {
        "name": each.name(label),
        "before": f"{before:.3g}",
        "after": f"{after:.3g}",
        "falls": after < before,
        "box": _square(top, left, occlusion.size, each.crop),
        "covered": pages.photo(occlusion_map(each, label)),
        "gradient": pages.grey(np.minimum(slope, reach)),
    }


def occlusion_map(each: Explanation, label: int) -> np.ndarray:
    """The crop, uint8 `[crop, crop, 3]`, bright where covering it lowers a class's probability."""
    return _lit(each.crop, _per_pixel(each.drop(label), each))


def _per_pixel(drop: np.ndarray, each: Explanation) -> np.ndarray:
    """The mean positive drop of the squares that cover a pixel, as a share of the largest mean."""
    size, places = each.occlusion.size, each.occlusion.places
    total, count = np.zeros(each.crop.shape[:2]), np.zeros(each.crop.shape[:2])
    for i, top in enumerate(places):
        for j, left in enumerate(places):
            inside = np.s_[top : top + size, left : left + size]
            total[inside] += max(drop[i, j], 0)
            count[inside] += 1
    mean = total / count
    return mean / (mean.max() or 1.0)


def _lit(crop: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The crop, dim, with white over it where a weight from 0 to 1, `[crop, crop]`, is large."""
    return np.rint(_DIM * crop + (1 - _DIM) * 255 * weight[..., None]).astype(np.uint8)


def _views(each: Explanation) -> list[dict[str, str]]:
    answer = each.best[0][0]
    side = len(each.crop)
    found = []
    for name, row, pixels in zip(VIEWS, each.views, each.view_crops(), strict=True):
        step = max(side // 112, 1)
        own = int(row.argmax())
        found.append(
            {"name": name, "picture": pages.photo(np.ascontiguousarray(pixels[::step, ::step])),
             "best": each.name(own), "percent": f"{100 * row[own]:.0f}",
             "same": own == answer, "answer": f"{100 * row[answer]:.0f}"}
        )  # fmt: skip
    return found
