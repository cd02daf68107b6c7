"""What a trained network sees in images: the five best classes of each."""

import functools
import glob
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax import evaluate, parallel, weights
from alexnet_jax.data import pipeline
from alexnet_jax.data.folder_source import EXTENSIONS, Folder
from alexnet_jax.errors import UsageError
from alexnet_jax.trained import Network

BEST = 5


def image_paths(arguments: Iterable[str]) -> list[Path]:
    """Files as they are, the images of folders and of what is below them, and patterns.

    Raises:
      UsageError: one of them is or holds no image; names it.
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
    """Each path with its probabilities, float32 `[classes]`, in the order given.

    Args:
      network: that looks.
      paths: of images.
      views: 1, the centre crop; 9 or 10: the mean of their probabilities (section 4.1).

    Raises:
      UsageError: an image cannot be read; names it.
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


def best(probabilities: np.ndarray, names: tuple[str, ...]) -> list[tuple[int, str, float]]:
    """(number, name, probability) of the five best classes, best first.

    Args:
      probabilities: `[classes]`.
      names: one a class; without any a class is called by its number.
    """
    order = np.argsort(-probabilities, kind="stable")[:BEST]
    return [
        (int(i), shown_name(names[i]) if names else str(i), float(probabilities[i])) for i in order
    ]


def five_best(
    probabilities: np.ndarray, names: tuple[str, ...], label: int
) -> list[tuple[str, float, bool]]:
    """(name, percent, whether it is `label`) of the five best classes, as figures show them."""
    found = best(probabilities, names)
    return [(name, 100 * probability, number == label) for number, name, probability in found]


def shown_name(name: str) -> str:
    """`n01440764` as `n01440764 tench`; other names as they are."""
    return _wnids().get(name, name)


@functools.cache
def _wnids() -> dict[str, str]:
    return {line.partition(" ")[0]: line for line in weights.imagenet_classes()}


def as_json(path: Path, found: list[tuple[int, str, float]]) -> str:
    """One line for programs; `found` as `best` returns it."""
    rows: list[dict[str, Any]] = [{"class": name, "probability": p} for _, name, p in found]
    return json.dumps({"image": str(path), "best": rows})


def as_text(path: Path, found: list[tuple[int, str, float]]) -> str:
    """A few lines for people; `found` as `best` returns it."""
    return "\n".join([str(path), *(f"  {100 * p:5.1f} %  {name}" for _, name, p in found)])
