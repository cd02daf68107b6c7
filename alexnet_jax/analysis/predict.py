"""Predictions of a trained network for image files."""

import glob
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax import parallel
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources.folder import EXTENSIONS, Folder
from alexnet_jax.errors import UsageError
from alexnet_jax.training import evaluate
from alexnet_jax.training.network import Network


def image_paths(arguments: Iterable[str]) -> list[Path]:
    """The images that arguments name: files, folders with all below them, or patterns.

    Raises:
      UsageError: an argument names no image; the message names the argument.
    """
    paths: list[Path] = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS)
        elif path.exists():
            found = [path]
        else:
            found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        if not found:
            what = "holds no images" if path.is_dir() else "no such file, folder or pattern"
            raise UsageError(f"{argument}: {what} ({', '.join(EXTENSIONS)})")
        paths += found
    if not paths:
        raise UsageError("no images: name files, folders or patterns such as 'photos/*.jpg'")
    return paths


def predict(
    network: Network, paths: list[Path], views: int = 1
) -> Iterator[tuple[Path, np.ndarray]]:
    """Yields each path with its probabilities, float32 `[classes]`, in the given order.

    Args:
      network: the trained network.
      paths: the files of the images.
      views: 1: the centre crop; 9 or 10: the mean of the views' probabilities (section 4.1).

    Raises:
      UsageError: an image cannot be read; the message names it.
    """
    source = Folder(
        name="images",
        split="predict",
        class_names=network.class_names,
        paths=tuple(paths),
        labels=np.zeros(len(paths), np.int32),
    )
    placement = parallel.place(network.config)
    step = evaluate.make_predict_step(network.tower, network.inputs, placement, views)
    params = placement.put_towers(network.params)
    share = placement.data_parallel
    most = evaluate.batch_size(network.config, views, placement)
    size = min(most, -(-len(paths) // share) * share)
    for batch in pipeline.eval_batches(source, network.config.data, batch_size=size):
        probabilities, _ = parallel.to_host(step(params, placement.put_batch(batch)))
        for i, index in enumerate(batch["index"]):
            if batch["mask"][i] > 0:
                yield paths[index], probabilities[i]


def as_json(path: Path, found: list[tuple[int, str, float]]) -> str:
    """One line of JSON for programs; `found` is what `data.classes.best` returns."""
    rows: list[dict[str, Any]] = [{"class": name, "probability": p} for _, name, p in found]
    return json.dumps({"image": str(path), "best": rows})


def as_text(path: Path, found: list[tuple[int, str, float]]) -> str:
    """A few lines for the terminal; `found` is what `data.classes.best` returns."""
    return "\n".join([str(path), *(f"  {100 * p:5.1f} %  {name}" for _, name, p in found)])
