"""One image on its way through a network, as data; `Network.explain` makes it.

What each layer and each of its operations makes of the image, where the answer comes from, what
excites one unit, and what the network answers with a component switched off.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.config import table
from alexnet_jax.config.table import LayerCount
from alexnet_jax.data import augment, classes, image_files, pipeline
from alexnet_jax.data import inputs as input_rules
from alexnet_jax.data.protocol import Source
from alexnet_jax.data.sources import Subset
from alexnet_jax.errors import UsageError
from alexnet_jax.model.tower import build_tower, parameter_shapes
from alexnet_jax.paths import shown

SEARCHED = 1000
"""Number of images of a source, spread evenly, among which those are sought that excite a unit."""

_CORNERS = ("top left", "top right", "bottom left", "bottom right", "centre")
VIEWS = (*_CORNERS, *(f"{name}, mirrored" for name in _CORNERS))
"""What the ten views of section 4.1 are called, in their order."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Stage:
    """What a layer itself, or an operation that follows it, makes of the image.

    Attributes:
      name: the kind of the layer (`conv`, `local`, `dense`), or the name of the operation.
      shape: that of `values`, by the table.
      arithmetic: how the side of the maps follows from the side before; empty if it stays.
      values: float32 `[h, w, C]` or `[units]`, all towers side by side; of the last layer, the
        logits.
    """

    name: str
    shape: tuple[int, ...]
    arithmetic: str
    values: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerWalk:
    """A layer and the operations that follow it.

    Attributes:
      count: its row of the table: shapes, parameters, multiply-adds and exchange.
      towers: number of towers that hold its channels; 1 for the last layer.
      stages: the layer itself, then each operation.
    """

    count: LayerCount
    towers: int
    stages: tuple[Stage, ...]

    @property
    def name(self) -> str:
        """The name of the layer."""
        return self.count.layer.name

    @property
    def output(self) -> np.ndarray:
        """The values after all operations, as `Network.features` returns them."""
        return self.stages[-1].values

    @property
    def changes(self) -> tuple[Stage, ...]:
        """The layer itself and the operations that change a value; dropout often changes none."""
        before = (None, *(stage.values for stage in self.stages))
        return tuple(
            stage
            for earlier, stage in zip(before, self.stages, strict=False)
            if earlier is None or not np.array_equal(earlier, stage.values)
        )

    def strongest(self, number: int) -> np.ndarray:
        """The channels of each tower whose largest output is the largest.

        Args:
          number: how many channels; fewer where a tower has fewer.

        Returns:
          Integers `[towers, number]`, counted over all towers, the strongest first.
        """
        peaks = self.output.reshape(-1, self.output.shape[-1]).max(0).reshape(self.towers, -1)
        order = np.argsort(-peaks, axis=1, kind="stable")[:, :number]
        return order + peaks.shape[1] * np.arange(self.towers)[:, None]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Excited:
    """An image that excites a unit, and where.

    Attributes:
      index: of the image in its source.
      label: its class.
      strength: the largest output of the unit.
      crop: what the network sees of the image, uint8 `[crop, crop, 3]`.
      box: top, left, bottom and right of the unit's receptive field in the crop, where its output
        is the largest; ends not included.
    """

    index: int
    label: int
    strength: float
    crop: np.ndarray
    box: tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Unit:
    """One unit (a feature map of a convolution) and what excites it.

    Attributes:
      layer: the name of its layer.
      channel: its number, counted over all towers.
      strength: its largest output for the image.
      box: see `Excited`; in the crop of the image.
      field: side of its receptive field in pixels.
      images: the images that excite it most, the strongest first; empty if none were searched.
      searched: number of images that were searched.
    """

    layer: str
    channel: int
    strength: float
    box: tuple[int, int, int, int]
    field: int
    images: tuple[Excited, ...] = ()
    searched: int = 0


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Occlusion:
    """Probabilities while a square covers a place (Zeiler and Fergus, 2013, section 4.2).

    The square has the mean colour, which is zero to the network.

    Attributes:
      size: side of the square in pixels.
      places: first rows, and first columns, of the squares, `[n]`.
      probabilities: float32 `[n, n, classes]`, by row and column.
    """

    size: int
    places: np.ndarray
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Variant:
    """The same network and weights with a component switched off.

    Attributes:
      title: what was changed.
      probabilities: `[classes]`, or None where the weights do not allow it.
      why_not: the reason, or an empty text.
    """

    title: str
    probabilities: np.ndarray | None
    why_not: str = ""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """One image on its way through a network.

    Attributes:
      image: the name of the image.
      square: the image as the network gets it, uint8 `[H, W, 3]`.
      corner: top row and left column of the crop in the square.
      crop: what the network sees, uint8 `[crop, crop, 3]`.
      probabilities: of the crop, float32 `[classes]`.
      class_names: as of the network.
      layers: each layer in order.
      classes: the labels for which the evidence was sought, the most probable class first.
      gradients: for each of them the largest absolute derivative of its logit with respect to the
        three colours of a pixel (Simonyan et al., 2013), float32 `[crop, crop]`.
      occlusion: how probabilities change while a square covers a place.
      views: the probabilities of the ten views (section 4.1), float32 `[10, classes]`; `VIEWS`
        names them.
      variants: the answers with a component switched off.
      unit: one unit, and what excites it.
    """

    image: str
    square: np.ndarray
    corner: tuple[int, int]
    crop: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    layers: tuple[LayerWalk, ...]
    classes: tuple[int, ...]
    gradients: dict[int, np.ndarray]
    occlusion: Occlusion
    views: np.ndarray
    variants: tuple[Variant, ...]
    unit: Unit

    @property
    def best(self) -> list[tuple[int, str, float]]:
        """Label, name and probability of the five most probable classes."""
        return classes.best(self.probabilities, self.class_names)

    def name(self, label: int) -> str:
        """The name of a class for readers, without a WordNet number (`classes.words`)."""
        return classes.words(self.class_names)[label] if self.class_names else str(label)

    def drop(self, label: int) -> np.ndarray:
        """How far the probability of a class falls where a square covers the crop, `[n, n]`."""
        return self.probabilities[label] - self.occlusion.probabilities[:, :, label]

    def view_crops(self) -> list[np.ndarray]:
        """What the network sees in each of the ten views, uint8 `[crop, crop, 3]`."""
        return _views(self.square, len(self.crop))

    def __repr__(self) -> str:
        """Returns the image, its answer and the layers."""
        label, _, probability = self.best[0]
        layers = ", ".join(layer.name for layer in self.layers)
        return f"Explanation({self.image}: {100 * probability:.1f} % {self.name(label)}; {layers})"


def explain(
    network: Any,
    image: Any,
    classes: Sequence[int | str] = (),
    unit: str = "",
    among: Source | None = None,
) -> Explanation:
    """See `training.network.Network.explain`, whose `network` is the first argument."""
    labels = [_label(given, network) for given in classes]
    name, square = _square(image, network)
    crop_size, mean = network.inputs.crop_size, network.inputs.mean
    top, left = augment.center_offset(square.shape[:2], crop_size)
    network.inputs.centre(square[None])  # Raises if the image is smaller than the crop.
    crop = square[top : top + crop_size, left : left + crop_size]
    size, places = _places(crop_size)
    # One pass over all: each is a crop, whose centre crop is itself.
    crops = [crop, *_views(square, crop_size), *_covered(crop, mean, places, size)]
    found = network.predict(np.stack([x.astype(np.float32) for x in crops])).probabilities
    probabilities, views, covered = found[0], found[1:11], found[11:]
    layers = _walk(network, crop)
    order = np.argsort(-probabilities, kind="stable").tolist()
    labels = tuple(dict.fromkeys([order[0], *(labels or order[1:2])]))
    slopes = network.gradient(np.stack([crop] * len(labels)), np.array(labels))
    layer, channel = _unit(unit, layers)
    strength, box = _peak(layers[layer].output[..., channel], network, layers[layer].name)
    chosen = Unit(layers[layer].name, channel, strength, box, _field(network, layers[layer].name))
    if among is not None:
        (images,), searched = exciting(network, among, chosen.layer, [channel])
        chosen = dataclasses.replace(chosen, images=images, searched=searched)
    return Explanation(
        image=name,
        square=_bytes(square),
        corner=(top, left),
        crop=_bytes(crop),
        probabilities=probabilities,
        class_names=network.class_names,
        layers=layers,
        classes=labels,
        gradients={
            label: np.abs(np.asarray(slope)).max(-1)
            for label, slope in zip(labels, slopes, strict=True)
        },
        occlusion=Occlusion(size, places, covered.reshape(len(places), len(places), -1)),
        views=views,
        variants=tuple(
            Variant(title, None, other)
            if isinstance(other, str)
            else Variant(title, other.predict(crop.astype(np.float32)[None]).probabilities[0])
            for title, other in network.variants.items()
        ),
        unit=chosen,
    )


def _square(image: Any, network: Any) -> tuple[str, np.ndarray]:
    """Name and pixels `[H, W, 3]` of the image, of a file resized as in training."""
    if isinstance(image, (str, bytes)) or hasattr(image, "__fspath__"):
        paths = image_files.image_paths([str(image)])
        if len(paths) != 1:
            raise UsageError(f"{image}: {len(paths)} images: name one")
        ((path, square),) = image_files.squares(paths, network.config.data)
        return shown(path), square
    pixels = np.asarray(input_rules.as_batch(np.asarray(image)))
    if len(pixels) != 1:
        raise UsageError(f"{len(pixels)} images: explain takes one, [H, W, 3]")
    return "image", pixels[0]


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _views(square: np.ndarray, crop_size: int) -> list[np.ndarray]:
    """The ten views as images of the size of the crop."""
    corners = augment.ten_view_offsets(square.shape[:2], crop_size)
    views = [square[y : y + crop_size, x : x + crop_size] for y, x in corners]
    return [*views, *(view[:, ::-1] for view in views)]


def _places(crop_size: int) -> tuple[int, np.ndarray]:
    """Side of the squares, an eighth of the crop, and their first rows, half a square apart."""
    size = max(crop_size // 8, 1)
    last = crop_size - size
    return size, np.append(np.arange(0, last, -(-size // 2)), last)


def _covered(
    crop: np.ndarray, mean: np.ndarray, places: np.ndarray, size: int
) -> Iterator[np.ndarray]:
    """The crop with a square of the mean colour at each place, row by row."""
    grey = np.broadcast_to(mean, crop.shape)
    for top in places:
        for left in places:
            image, inside = crop.astype(np.float32), np.s_[top : top + size, left : left + size]
            image[inside] = grey[inside]
            yield image


def _walk(network: Any, crop: np.ndarray) -> tuple[LayerWalk, ...]:
    towers, size = network.tower.towers, network.inputs.crop_size
    stages = network.stages(crop[None])
    found, shape = [], (size, size, 3)
    for row in table.count(network.config.model, size):
        layer, names = row.layer, [row.layer.kind, *row.layer.then]
        texts = [table.conv_text(shape[0], layer) if layer.kind != "dense" else ""]
        shapes = [row.out_shape]
        for op in layer.operations:
            texts.append(op.shape_text(shapes[-1]))
            shapes.append(op.shape(shapes[-1]))
        shape = row.next_shape
        steps = map(Stage, names, shapes, texts, (x[0] for x in stages[layer.name]))
        found.append(LayerWalk(row, 1 if layer.last else towers, tuple(steps)))
    return tuple(found)


def _label(given: int | str, network: Any) -> int:
    """The label of a class, which is given by its number or its name.

    Raises:
      UsageError: there is no such class.
    """
    count, names = network.config.model.num_classes, list(network.class_names)
    if given in names:
        return names.index(given)
    shown = [classes.shown_name(name) for name in names]
    matches = [i for i, name in enumerate(shown) if given in (name, name.partition(" ")[2])]
    if len(matches) == 1:
        return matches[0]
    if str(given).isdecimal() and int(given) < count:
        return int(given)
    close = difflib.get_close_matches(str(given), shown, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"give a name, or a number to {count - 1}"
    raise UsageError(f"class {given!r}: no such class; {hint}")


def _unit(text: str, layers: Sequence[LayerWalk]) -> tuple[int, int]:
    """The layer and the channel that `conv3:17` names; by default, of the middle layer of maps.

    Raises:
      UsageError: there is no such unit.
    """
    maps = [i for i, layer in enumerate(layers) if layer.output.ndim == 3] or [0]
    name, _, number = text.partition(":")
    names = [layer.name for layer in layers]
    if name and name not in names:
        raise UsageError(f"unit {text!r}: the layers are {', '.join(names)}")
    place = names.index(name) if name else maps[len(maps) // 2]
    output = layers[place].output
    if not number:
        peaks = output.reshape(-1, output.shape[-1]).max(0)
        return place, int(peaks.argmax())
    if not number.isdecimal() or int(number) >= output.shape[-1]:
        last = output.shape[-1] - 1
        raise UsageError(f"unit {text!r}: give {name}:NUMBER, with a number from 0 to {last}")
    return place, int(number)


def _field(network: Any, layer: str) -> int:
    """Side of the receptive field: all of the crop for a dense layer."""
    fields, crop_size = table.receptive_fields(network.tower.layers), network.inputs.crop_size
    return fields[layer].size if layer in fields else crop_size


def _peak(values: np.ndarray, network: Any, layer: str) -> tuple[float, tuple[int, int, int, int]]:
    """The largest output of a unit, `[h, w]` or `[]`, and the box of what it sees there."""
    fields, crop_size = table.receptive_fields(network.tower.layers), network.inputs.crop_size
    if layer not in fields:
        return float(values), (0, 0, crop_size, crop_size)
    row, column = np.unravel_index(values.argmax(), values.shape)
    return float(values.max()), fields[layer].box(int(row), int(column), crop_size)


def exciting(
    network: Any, source: Source, layer: str, channels: Sequence[int], number: int = 8
) -> tuple[list[tuple[Excited, ...]], int]:
    """The images of a source that excite units of a layer most.

    Args:
      network: the `Network`.
      source: the images; of more than `SEARCHED`, so many are searched, spread evenly.
      layer: the name of the layer.
      channels: the units, counted over all towers.
      number: of images for each unit.

    Returns:
      For each unit its images, the strongest first, and the number of images that were searched.

    Raises:
      UsageError: an image cannot be read.
    """
    total = source.num_examples
    spread = np.unique(np.linspace(0, total - 1, min(total, SEARCHED)).astype(int))
    part = Subset(source, spread, source.split)
    size = min(network.config.evaluate.batch_size, len(spread))
    best: list[list[Excited]] = [[] for _ in channels]
    for batch in pipeline.eval_batches(part, network.config.data, batch_size=size):
        outputs = network.features(batch["image"], layer)
        top, left = augment.center_offset(batch["image"].shape[1:3], network.inputs.crop_size)
        end = top + network.inputs.crop_size, left + network.inputs.crop_size
        for place, channel in enumerate(channels):
            for i in np.flatnonzero(batch["mask"] > 0):
                strength, box = _peak(outputs[i, ..., channel], network, layer)
                if len(best[place]) == number and strength <= best[place][-1].strength:
                    continue
                crop = batch["image"][i, top : end[0], left : end[1]].copy()
                index, label = int(spread[batch["index"][i]]), int(batch["label"][i])
                best[place].append(Excited(index, label, strength, crop, box))
                best[place].sort(key=lambda image: -image.strength)
                del best[place][number:]
    return [tuple(images) for images in best], len(spread)


def variants(network: Any) -> dict[str, Any]:
    """The network with a component switched off, or the reason why its weights do not allow it."""
    model = network.config.model
    operations = {name for layer in network.tower.layers for name in layer.then}
    pool, found = model.pool, {}
    if "lrn" in operations and model.lrn.enabled:
        found["without LRN"] = _changed(network, lambda m: m.lrn.update(enabled=False))
    if operations & {"max_pool", "avg_pool"} and pool.window > pool.stride:
        found["without overlapping pooling"] = _changed(
            network, lambda m: m.pool.update(window=pool.stride)
        )
    return found


def _changed(network: Any, change: Callable[[ConfigDict], None]) -> Any:
    """The network with another configuration of the model and the same weights, or why not."""
    config = network.config.copy_and_resolve_references()
    with config.unlocked():
        change(config.model)
    crop_size = network.inputs.crop_size
    try:
        after = table.count(config.model, crop_size)
    except UsageError as error:
        return str(error)
    shapes = parameter_shapes(tower := build_tower(config.model), crop_size)
    for before, row in zip(table.count(network.config.model, crop_size), after, strict=True):
        name = row.layer.name
        if any(x.shape != shapes[name][key].shape for key, x in network.params[name].items()):
            return (
                f"{name} would see {row.in_channels:,} values, and its weights are for "
                f"{before.in_channels:,}"
            )
    return dataclasses.replace(network, config=config, tower=tower)
