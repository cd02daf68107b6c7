"""A network with its weights, as an object: logits, predictions, features, kernels, gradients."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.config import table
from alexnet_jax.data import image_files
from alexnet_jax.data.inputs import Inputs
from alexnet_jax.data.protocol import Source
from alexnet_jax.errors import UsageError
from alexnet_jax.model.collectives import TOWER
from alexnet_jax.model.columns import merge_towers
from alexnet_jax.model.derivatives import plain_derivatives
from alexnet_jax.model.tower import STAGES, Tower
from alexnet_jax.paths import local
from alexnet_jax.training import evaluate, explanation
from alexnet_jax.training.explanation import Explanation
from alexnet_jax.training.predictions import Predictions
from alexnet_jax.weights import files
from alexnet_jax.weights.column import Column, from_towers

VIEWS = (1, 9, 10)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Network:
    """A network with everything that is needed to apply it to images.

    Images are `[N, H, W, 3]`, R, G, B, or `[N, H, W]` if they are grey, with grey levels from 0 to
    255: uint8, or floating-point numbers on the same scale. They may have any size from the crop
    up; the network sees the square of `config.data.crop_size` pixels in their centre. Files are
    resized first, as in training.

    Attributes:
      config: the configuration of the run, the file or the call of `create`.
      tower: the network, a Flax module.
      variables: `{"params": {layer: {"kernel", "bias", ...}}}`, and "batch_stats" if the network
        has running statistics; NumPy, each leaf with a leading axis of towers.
      inputs: how images become the network's input.
      class_names: one name per class; empty where it came without names.
      step: the step of the checkpoint; 0 where there is none.
      placement: where `predict` and `features` run: `vmap`, one device; `pmap`, `mesh` or `auto`
        as `config.placement`, over as many of the devices as fit.
    """

    config: ConfigDict
    tower: Tower
    variables: dict[str, Any]
    inputs: Inputs
    class_names: tuple[str, ...]
    step: int = 0
    placement: str = "vmap"

    # ------------------------------------------------------------------ one device, differentiable

    def apply(
        self,
        variables: dict[str, Any],
        images: ArrayLike,
        layer: str | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """The network as a pure function, for `jax.jit`, `grad`, `jvp`, `vmap` and so on.

        Derivatives of every kind are those of a function from all towers' variables and the images
        to the result. (The bias of the last layer is the mean of the towers' copies, so that each
        copy has its share of the gradient.)

        Args:
          variables: in the form of `self.variables`.
          images: see the class.
          layer: the layer whose output is returned; the last one if None.
          dropout_key: applies dropout as in training; None: as at test time.

        Returns:
          float32 `[N, classes]`, or as `features`.

        Raises:
          UsageError: the images have another shape, there is no such layer, or the network has
            running statistics, which `self.tower` updates in training, and this function cannot.
        """
        given = _checked(images)
        if dropout_key is not None and self.tower.has_statistics:
            raise UsageError("the network has running statistics: train it with net.tower")

        crops, index = self.inputs.centre(_coloured(given)), jnp.arange(len(given))

        def one(variables: dict[str, Any]) -> Any:
            outputs = ["intermediates"]
            return self.tower.apply(variables, crops, dropout_key, index, mutable=outputs)

        with plain_derivatives():
            logits, state = jax.vmap(one, axis_name=TOWER)(variables)
        if layer is None or self._row(layer).last:
            return logits.mean(0)
        return jnp.concatenate(list(state["intermediates"][f"{layer}_out"][0]), -1)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Returns the logits of the images: float32 `[N, classes]`.

        It may itself be jitted or differentiated by the images. All images are computed at once;
        `predict` and `features` divide them into batches.

        Raises:
          UsageError: the images have another shape.
        """
        return self._logits(self._on_one_device, _checked(images))

    def gradient(self, images: ArrayLike, classes: ArrayLike) -> jax.Array:
        """The derivative of each image's logit of a class with respect to its pixels.

        Args:
          images: see the class.
          classes: the number of a class for each image, `[N]`, or one for all.

        Returns:
          Per grey level, in the shape of the images; zero outside the centre crop.

        Raises:
          UsageError: the images have another shape, or there is no such class.
        """
        given, classes = _checked(images), np.asarray(classes)
        if classes.dtype.kind not in "iu" or classes.shape not in ((), given.shape[:1]):
            raise UsageError(
                f"classes are {classes.dtype} {classes.shape}: give one whole number, or one for "
                f"each of the {len(given)} images"
            )
        count = self.config.model.num_classes
        if np.any((classes < 0) | (classes >= count)):
            raise UsageError(f"classes go from {classes.min()} to {classes.max()}: give 0 to "
                             f"{count - 1}")  # fmt: skip
        chosen = np.broadcast_to(classes.astype(np.int32), given.shape[:1])
        return self._gradient(self._on_one_device, _floating(given), chosen)

    @functools.cached_property
    def _logits(self) -> Callable[..., jax.Array]:
        return jax.jit(self.apply)

    @functools.cached_property
    def _gradient(self) -> Callable[..., jax.Array]:
        def total(variables: dict[str, Any], images: jax.Array, classes: jax.Array) -> jax.Array:
            logits = self.apply(variables, images)
            return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

        return jax.jit(jax.grad(total, argnums=1))

    @functools.cached_property
    def _on_one_device(self) -> dict[str, Any]:
        return jax.device_put(self.variables)

    # ------------------------------------------------------------------ in batches, on all devices

    def predict(
        self, images: ArrayLike | str | Path | Sequence[str | Path], views: int = 1
    ) -> Predictions:
        """Returns the probabilities of the classes.

        Args:
          images: an array; or a file, a folder with all images below it or a pattern, or several.
          views: 1: the centre crop; 9 or 10: the mean of the views' probabilities (section 4.1).

        Raises:
          UsageError: the images have another shape, or a file cannot be read.
        """
        if (named := _named(images)) is not None:
            found = list(self.predictions(image_files.image_paths(named), views))
            names, rows = [str(path) for path, _ in found], [row for _, row in found]
        else:
            step = self._predict_step(views)
            names = [f"image {i}" for i in range(len(_checked(images)))]
            rows = [
                probabilities
                for batch, count in self._batches(images, views)
                for probabilities in parallel.to_host(step(self._on_devices, batch)[0])[:count]
            ]
        return Predictions(tuple(names), np.stack(rows), self.class_names)

    def predictions(
        self,
        paths: Sequence[Path],
        views: int = 1,
        unreadable: dict[int, str] | None = None,
    ) -> Iterator[tuple[Path, np.ndarray]]:
        """Yields each file with its probabilities, float32 `[classes]`, in the given order.

        Args:
          paths: the files of the images.
          views: as in `predict`.
          unreadable: is filled with the places and reasons of the images that cannot be read, and
            these are left out; None: the first is an error.

        Raises:
          UsageError: an image cannot be read; the message names it.
        """
        step, size = self._predict_step(views), self._batch_size(len(paths), views)
        found = image_files.squares(paths, self.config.data, unreadable)
        while read := list(itertools.islice(found, size)):
            batch = self._put(np.stack([square for _, square in read]), size)
            probabilities = parallel.to_host(step(self._on_devices, batch)[0])
            yield from zip([path for path, _ in read], probabilities, strict=False)

    def features(self, images: ArrayLike, layer: str) -> np.ndarray:
        """Returns the output of a layer after its operations (activation, pool, norm).

        Args:
          images: see the class.
          layer: the name of a layer, such as `fc7`; `layers` lists them.

        Returns:
          `[N, h, w, C]` of a convolution, `[N, units]` of a dense layer, float32: all towers side
          by side, in the order of the single-column network. Of the last layer, the logits.

        Raises:
          UsageError: the images have another shape, or there is no such layer.
        """
        step, last = self._features_step(layer), self._row(layer).last
        rows: list[np.ndarray] = []
        for batch, count in self._batches(images, 1):
            towers = parallel.to_host(step(self._on_devices, batch))
            joined = towers[0] if last else np.concatenate(list(towers), -1)
            rows.append(joined[:count])
        return np.concatenate(rows)

    def _batches(self, images: Any, views: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Equal batches on the devices, and how many images of each count."""
        images = np.asarray(_checked(images))
        images = images if images.dtype == np.uint8 else np.asarray(_floating(images))
        size = self._batch_size(len(images), views)
        for first in range(0, len(images), size):
            batch = images[first : first + size]
            yield self._put(batch, size), len(batch)

    def _batch_size(self, images: int, views: int) -> int:
        """Images in a batch, of this many: no more than are there, in equal shares."""
        share = self._placement.data_parallel
        most = evaluate.batch_size(self.config, views, self._placement)
        return min(most, -(-images // share) * share)

    def _put(self, images: np.ndarray, size: int) -> dict[str, Any]:
        """Images on the devices, as a batch of `size` of which they are the first."""
        filled = np.zeros((size, *images.shape[1:]), images.dtype)
        filled[: len(images)] = images
        return self._placement.put_batch({"image": _coloured(filled)})

    @functools.cached_property
    def _placement(self) -> parallel.Placement:
        config = self.config.copy_and_resolve_references()
        config.placement = self.placement
        return parallel.place_near(config)

    @functools.cached_property
    def _on_devices(self) -> dict[str, Any]:
        return self._placement.put_towers(self.variables)

    @functools.cached_property
    def _steps(self) -> dict[Any, Callable[..., Any]]:
        """Compiled functions by what they were made for."""
        return {}

    def _predict_step(self, views: int) -> Callable[..., Any]:
        if views not in VIEWS:
            raise UsageError(f"views = {views}: give one of {', '.join(map(str, VIEWS))}")
        if views not in self._steps:
            self._steps[views] = evaluate.make_predict_step(
                self.tower, self.inputs, self._placement, views
            )
        return self._steps[views]

    def _features_step(self, layer: str) -> Callable[..., Any]:
        self._row(layer)
        placement = self._placement

        def step(variables: dict[str, Any], batch: dict[str, Any]) -> jax.Array:
            (crops,) = self.inputs.views(batch["image"], 1)
            _, outputs = evaluate.apply_with_outputs(self.tower, variables, self.inputs, crops)
            return placement.join_over_data(outputs[layer])

        if layer not in self._steps:
            self._steps[layer] = placement.spread(step, ("tower", "batch"), "tower")
        return self._steps[layer]

    # ------------------------------------------------------------------ one image, in depth

    def explain(
        self,
        image: ArrayLike | str | Path,
        classes: Sequence[int | str] = (),
        unit: str = "",
        among: Source | None = None,
    ) -> Explanation:
        """Follows one image through the network, layer by layer.

        Args:
          image: an array `[H, W, 3]` or `[H, W]` as in the class, or a file.
          classes: names or numbers of classes whose evidence is sought besides that of the most
            probable class; by default, the second.
          unit: whose strongest images are sought, such as `conv3:17`, a layer and a number over all
            towers; by default, the strongest for this image in the middle layer of maps.
          among: the images that are searched for those that excite the unit most, such as
            `alexnet_jax.data.sources.open_sources(net.config)["train"]`; None: none are.

        Raises:
          UsageError: the image cannot be read or is smaller than the crop, or there is no such
            class or unit.
        """
        return explanation.explain(self, image, classes, unit, among)

    def stages(self, images: ArrayLike) -> dict[str, list[np.ndarray]]:
        """Returns the output of each layer itself, then that of each operation that follows it.

        All images are computed at once.

        Args:
          images: see the class.

        Returns:
          By layer, one array more than it has operations, each in the form of `features`.

        Raises:
          UsageError: the images have another shape.
        """
        found = parallel.to_host(self._stages(self._on_one_device, _checked(images)))
        return {
            layer.name: [
                x[0] if layer.last else np.concatenate(list(x), -1)
                for x in found[layer.name]["values"]
            ]
            for layer in self.tower.layers
        }

    @functools.cached_property
    def variants(self) -> dict[str, "Network | str"]:
        """The network with one component switched off, or a text that says why it cannot be."""
        return explanation.variants(self)

    @functools.cached_property
    def _stages(self) -> Callable[..., Any]:
        def stages(variables: dict[str, Any], images: jax.Array) -> Any:
            crops = self.inputs.centre(_coloured(images))
            one = functools.partial(self.tower.apply, mutable=[STAGES])
            return jax.vmap(lambda v: one(v, crops)[1][STAGES], axis_name=TOWER)(variables)

        return jax.jit(stages)

    # ------------------------------------------------------------------ weights

    @property
    def params(self) -> dict[str, dict[str, np.ndarray]]:
        """`variables["params"]`."""
        return self.variables["params"]

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, first to last."""
        return tuple(layer.name for layer in self.tower.layers)

    def kernels(self, layer: str) -> np.ndarray:
        """Returns the weights of a layer, of all towers side by side.

        Args:
          layer: the name of a layer, such as `conv1`.

        Returns:
          float32 `[h, w, C / groups, K]` of a convolution, where the groups are the towers if it
          has no exchange; `[inputs, outputs]` of a dense layer (`merge_towers`).

        Raises:
          UsageError: there is no such layer.
        """
        self._row(layer)
        return merge_towers(self.params, self.tower.layers)[layer]["kernel"]

    def replace(self, variables: dict[str, Any]) -> Self:
        """Returns the same network with other weights, in the form of `variables`."""
        return dataclasses.replace(self, variables=jax.tree.map(np.asarray, variables))

    def column(self) -> Column:
        """Returns the network as one column, the form in which files hold it."""
        return from_towers(self.config, self.variables, self.inputs.mean, self.class_names)

    def save(self, path: str | Path, pixels: bool = False, dtype: str = "float32") -> Path:
        """Writes a file of weights that `load` reads, .safetensors or .onnx, or a PyTorch module.

        Args:
          path: by its suffix; NAME.py is written with its weights beside it, NAME.safetensors.
          pixels: whether the ONNX graph resizes images itself: its input is uint8 `[N, H, W, 3]`.
          dtype: `float16` for a .safetensors file of half the size.

        Returns:
          The path.

        Raises:
          UsageError: as `weights.files.write`.
        """
        path = local(str(path), "path")
        files.write(self.column(), path, pixels, dtype)
        return path

    def __repr__(self) -> str:
        """Returns towers, parameters, crop and classes."""
        model, towers = self.config.model, self.config.model.towers
        count = sum(row.parameters for row in table.count(model, self.inputs.crop_size))
        return (
            f"Network({towers} tower{'s' if towers > 1 else ''}, {count:,} parameters, "
            f"{self.inputs.crop_size} pixel crops, {model.num_classes} classes)"
        )

    def _row(self, layer: str) -> Any:
        for row in self.tower.layers:
            if row.name == layer:
                return row
        raise UsageError(f"layer {layer!r}: the layers are {', '.join(self.layers)}")


def _checked(images: Any) -> Any:
    """The images as an array, which may be traced.

    Raises:
      UsageError: they are not what `Network` takes.
    """
    images = images if isinstance(images, (np.ndarray, jax.Array)) else np.asarray(images)
    numbers = jnp.issubdtype(images.dtype, jnp.floating) or images.dtype.kind in "ui"
    colours = images.shape[3:] if images.ndim == 4 else None
    if images.ndim == 3 and images.shape[2] != 3:  # That would be one image.
        colours = (1,)
    if not numbers or colours not in ((1,), (3,)) or not len(images):
        raise UsageError(
            f"images are {images.dtype} {list(images.shape)}: give [N, H, W, 3], grey levels from "
            "0 to 255 of R, G and B, or [N, H, W]"
        )
    return images


def _coloured(images: Any) -> Any:
    """As `[N, H, W, 3]`, without a copy where they are grey NumPy arrays."""
    of = np if isinstance(images, np.ndarray) else jnp
    images = images[..., None] if images.ndim == 3 else images
    return of.broadcast_to(images, (*images.shape[:3], 3))


def _floating(images: Any) -> jax.Array:
    """As float32, or wider where they are and JAX may be."""
    return jnp.asarray(images, jnp.promote_types(images.dtype, jnp.float32))


def _named(images: Any) -> list[str] | None:
    """The names, if it is names of files that were given and not an array."""
    given: Any = [images] if isinstance(images, (str, Path)) else images
    if isinstance(given, (list, tuple)) and all(isinstance(x, (str, Path)) for x in given):
        return [str(name) for name in given]
    return None
