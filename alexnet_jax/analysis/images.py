"""What the page of a run shows of its network: answers, mistakes, neighbours and kernels."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax.analysis import figures, pages
from alexnet_jax.data import classes
from alexnet_jax.errors import UsageError
from alexnet_jax.model.kernels import colour_share
from alexnet_jax.model.tower import draw_parameters
from alexnet_jax.training import drawing
from alexnet_jax.training import workdir as workdirs

ANSWERS = 8
NEIGHBOURS = 6
QUERIES = 5
MISTAKES = 12
"""The largest number of mistakes, and of right answers, that are shown."""
_MOST_FEATURES = 10_000
"""Number of training images, from the first on, among which neighbours are searched."""
_MOST_CLASSES = 40
"""Largest number of classes of which the confusion matrix is drawn; the pairs are always listed."""
_LARGE, _SMALL = 224, 112
"""Sides of the pictures of photographs, in pixels."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A test image and what the network says of it, in words; the picture is a data URI."""

    picture: str
    index: int
    truth: str
    answer: str
    percent: float


@dataclasses.dataclass(frozen=True)
class ClassErrors:
    """How many test images of a class are not recognized.

    Attributes:
      name: of the class.
      images: test images of it.
      wrong: those whose most probable class is another.
      percent: the share of these.
      instead: the class that they are taken for most often; empty if there are none.
    """

    name: str
    images: int
    wrong: int
    percent: float
    instead: str


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The kernels of the first layer; pictures are data URIs.

    Attributes:
      trained: those of the checkpoint, tower below tower in rows of 16 (Figure 3 of the paper).
      start: those that the run started from, drawn alike; empty if they are not known.
      shape: how many of which size there are, in words.
      towers: number of towers.
      columns: kernels in a row.
      correlation: of the weights that are drawn with those at the start (Pearson); None where
        that is not defined.
      grey: whether all images are grey, so that only the sum over R, G and B acts and is drawn.
      colour: the mean share of colour in the kernels of each tower, in percent.
    """

    trained: str
    start: str
    shape: str
    towers: int
    columns: int
    correlation: float | None
    grey: bool
    colour: list[float]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a page shows that needs the checkpoint and the images; pictures are data URIs.

    Attributes:
      kernels: of the first layer.
      classes: the errors of each class, the largest first.
      mistakes: test images of which the network is wrong, and most certain of it.
      right: for each class the test image that is recognized with most certainty.
      answers: Figure 4 of the paper: (picture, class, [(class, percent, whether it is right)]).
      neighbours: (picture, class, [(picture, class)]), nearest first.
      confusion: a picture of the confusion matrix, or None with many classes.
      pairs: (true class, predicted class, count, images of the true class), most frequent first.
      examples: the number of test images.
      pngs: Figures 3 and 4 of the paper as files by their names.
    """

    kernels: Kernels
    classes: list[ClassErrors]
    mistakes: list[Answer]
    right: list[Answer]
    answers: list[tuple[str, str, list[tuple[str, float, bool]]]]
    neighbours: list[tuple[str, str, list[tuple[str, str]]]]
    confusion: str | None
    pairs: list[tuple[str, str, int, int]]
    examples: int
    pngs: dict[str, bytes]


def look(config: ConfigDict, workdir: Path) -> Seen:
    """Runs the newest checkpoint over the test images and some of the training images.

    Raises:
      UsageError: no checkpoint is whole, or the data set is missing.
    """
    from alexnet_jax.data.sources import open_sources
    from alexnet_jax.training.origin import load

    sources = open_sources(config, *workdirs.class_names(config, workdir))
    run = load(workdir, placement=config.placement)
    names = classes.words(run.class_names)
    chosen = np.random.default_rng(0).permutation(sources["test"].num_examples)
    # More than are shown, in place of those that cannot be read.
    chosen = chosen[: ANSWERS + config.data.max_unreadable]
    kept: dict[int, Features] = {}
    parts: list[tuple[np.ndarray, ...]] = []
    count = 0
    for part in features_of(run, sources["test"], None):
        for place in chosen[(chosen >= count) & (chosen < count + len(part.label))].tolist():
            kept[place] = part.row(place - count)
        answer = part.probabilities.argmax(1)
        parts.append((part.index, part.label, answer, part.probabilities.max(1)))
        count += len(part.label)
    index, label, answer, certainty = map(np.concatenate, zip(*parts, strict=True))
    shown = [kept[place] for place in chosen.tolist() if place in kept][:ANSWERS]
    asked = shown[:QUERIES]
    near = nearest(
        [row.features for row in asked],
        features_of(run, sources["train"], _MOST_FEATURES),
        NEIGHBOURS,
    )
    wrong, right = mistakes(label, answer, certainty), successes(label, answer, certainty)
    shown_at = [int(i) for i in (*index[[*wrong, *right]], *(row.index for row in shown))]
    of_test = squares(config, sources["test"], shown_at)
    of_train = squares(config, sources["train"], [i for found in near for i, _ in found])

    def answers(places: list[int]) -> list[Answer]:
        return [
            Answer(
                thumbnail(of_test[int(index[i])], _LARGE), int(index[i]), names[label[i]],
                names[answer[i]], 100 * float(certainty[i]),
            )
            for i in places
        ]  # fmt: skip

    best = [
        (of_test[int(row.index)], names[row.label],
         classes.five_best(row.probabilities, names, int(row.label)))
        for row in shown
    ]  # fmt: skip
    matrix = confusion(label, answer, len(names))
    grey = all(is_grey(square) for square in (*of_test.values(), *of_train.values()))
    kernels, drawn = kernels_of(run, config, grey)
    return Seen(
        kernels=kernels,
        classes=class_errors(matrix, names),
        mistakes=answers(wrong),
        right=answers(right),
        answers=[(thumbnail(square, _LARGE), name, five) for square, name, five in best],
        neighbours=[
            (thumbnail(of_test[int(row.index)], _SMALL), names[row.label],
             [(thumbnail(of_train[i], _SMALL), names[of]) for i, of in found])
            for row, found in zip(asked, near, strict=True)
        ],
        confusion=None
        if len(names) > _MOST_CLASSES
        else figures.picture(figures.confusion(matrix, names)),
        pairs=confused_pairs(matrix, names),
        examples=count,
        pngs={"kernels.png": drawn,
              "answers.png": figures.png(drawing.predictions(best), 120, few_colours=True)},
    )  # fmt: skip


# --------------------------------------------------------------------------- answers


def mistakes(label: np.ndarray, answer: np.ndarray, certainty: np.ndarray) -> list[int]:
    """The places of `MISTAKES` wrong answers, the most certain first.

    Args:
      label: true classes `[N]`.
      answer: most probable classes `[N]`.
      certainty: their probabilities `[N]`.
    """
    order = np.argsort(-certainty, kind="stable")
    return order[answer[order] != label[order]][:MISTAKES].tolist()


def successes(label: np.ndarray, answer: np.ndarray, certainty: np.ndarray) -> list[int]:
    """The place of the most certain right answer of each class, `MISTAKES` of them at most."""
    order = np.argsort(-certainty, kind="stable")
    order = order[answer[order] == label[order]]
    _, first = np.unique(label[order], return_index=True)
    return order[np.sort(first)][:MISTAKES].tolist()


def class_errors(matrix: np.ndarray, names: tuple[str, ...]) -> list[ClassErrors]:
    """The errors of each class that has test images, the largest share first.

    Args:
      matrix: see `confusion`.
      names: of the classes.
    """
    wrong_CxC = matrix * ~np.eye(len(matrix), dtype=bool)
    found = [
        ClassErrors(
            name, int(row.sum()), int(wrong_C.sum()), 100 * float(wrong_C.sum() / row.sum()),
            names[int(wrong_C.argmax())] if wrong_C.any() else "",
        )
        for name, row, wrong_C in zip(names, matrix, wrong_CxC, strict=True)
        if row.any()
    ]  # fmt: skip
    return sorted(found, key=lambda row: -row.percent)


@dataclasses.dataclass(frozen=True)
class Features:
    """Images: label and index `[n]`, probabilities `[n, classes]`, features `[n, units]`."""

    label: np.ndarray
    index: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray

    def row(self, place: int) -> "Features":
        """One image, without the first axis; a copy, so that the others can be dropped."""
        return Features(
            *(np.array(getattr(self, field.name)[place]) for field in dataclasses.fields(self))
        )


def features_of(run: Any, source: Any, most: int | None) -> Iterator[Features]:
    """Yields predictions and features, batch by batch, for a source or its first `most` images."""
    from alexnet_jax import parallel
    from alexnet_jax.data import pipeline
    from alexnet_jax.training import evaluate

    placement = parallel.place_near(run.config)
    step = evaluate.make_predict_step(run.tower, run.inputs, placement, 1)
    variables = placement.put_towers(run.variables)
    size = evaluate.batch_size(run.config, 1, placement)
    left = source.num_examples if most is None else most
    for batch in pipeline.eval_batches(source, run.config.data, batch_size=size):
        probabilities, features = parallel.to_host(step(variables, placement.put_batch(batch)))
        real = np.flatnonzero(batch["mask"] > 0)[:left]
        features = np.concatenate(list(features), axis=-1)
        columns = (batch["label"], batch["index"], probabilities, features)
        yield Features(*(values[real] for values in columns))
        left -= len(real)
        if left <= 0:
            break


def nearest(
    queries_QxF: Sequence[np.ndarray], parts: Iterable[Features], count: int
) -> list[list[tuple[int, int]]]:
    """The images at the smallest Euclidean distance of each query (section 6.1 of the paper).

    Args:
      queries_QxF: features.
      parts: the images to search, of which one part at a time is held.
      count: how many of them are wanted for each query.

    Returns:
      For each query (index, label) of the images, nearest first, the earlier of two equal ones.
    """
    found = [(np.zeros(0), np.zeros((2, 0), int)) for _ in queries_QxF]
    for part in parts:
        here = np.stack([part.index, part.label])
        for number, query_F in enumerate(queries_QxF):
            before, images = found[number]
            distance = np.concatenate([before, np.square(part.features - query_F).sum(1)])
            order = np.argsort(distance, kind="stable")[:count]
            found[number] = distance[order], np.concatenate([images, here], axis=1)[:, order]
    return [[(int(i), int(label)) for i, label in images.T] for _, images in found]


def confusion(label: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The number of images by true (row) and predicted class, int `[classes, classes]`."""
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (label, predicted), 1)
    return matrix


def confused_pairs(
    matrix: np.ndarray, names: tuple[str, ...], count: int = 10
) -> list[tuple[str, str, int, int]]:
    """The most frequent confusions; see `Seen.pairs`."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [np.unravel_index(i, wrong.shape) for i in order]
    totals = matrix.sum(1)
    return [(names[a], names[b], int(wrong[a, b]), int(totals[a])) for a, b in pairs if wrong[a, b]]


# --------------------------------------------------------------------------- pictures


def squares(config: ConfigDict, source: Any, indices: Iterable[int]) -> dict[int, np.ndarray]:
    """The resized images, uint8 `[S, S, 3]`, by index."""
    which = np.unique(np.asarray(list(indices), int))
    found, _ = source.squares(config.data)(which)
    return dict(zip(which.tolist(), found, strict=True))


def thumbnail(square: np.ndarray, side: int) -> str:
    """A square `[S, S, 3]` as a picture of at most this side."""
    image = Image.fromarray(square)
    image.thumbnail((side, side))
    return pages.photo(np.asarray(image))


def is_grey(square: np.ndarray) -> bool:
    """Whether R, G and B of `[S, S, 3]` are the same everywhere."""
    return bool((square == square[..., :1]).all())


def kernels_of(run: Any, config: ConfigDict, grey: bool) -> tuple[Kernels, bytes]:
    """The kernels of the first layer of a run's network, and their picture as a file."""
    trained = run.params[run.tower.layers[0].name]["kernel"]
    start = kernels_at_start(run.tower, config)
    colour = 100 * colour_share(trained).mean(1)
    if grey:
        trained, start = _summed(trained), None if start is None else _summed(start)
    towers, height, width, _, count = trained.shape
    drawn = figures.png(drawing.kernels(trained), 200)
    return Kernels(
        trained=pages.uri("png", drawn),
        start="" if start is None else pages.uri("png", figures.png(drawing.kernels(start), 200)),
        shape=f"{pages.count(towers * count, 'kernel')} of {height} x {width} pixels",
        towers=towers,
        columns=min(count, drawing.COLUMNS),
        correlation=None if start is None else correlation(trained, start),
        grey=grey,
        colour=colour.tolist(),
    ), drawn


def _summed(kernels_TxHxWx3xN: np.ndarray) -> np.ndarray:
    """Grey kernels with the same effect on grey images."""
    return np.repeat(kernels_TxHxWx3xN.sum(3, keepdims=True), 3, axis=3)


def kernels_at_start(tower: Any, config: ConfigDict) -> np.ndarray | None:
    """The kernels of the first layer that a run started from, `[towers, h, w, 3, kernels]`.

    None where it started from weights that are gone.
    """
    from alexnet_jax.training.origin import load

    first = tower.layers[0].name
    if not config.init_from:
        # Each layer has random numbers of its own: the others need not be drawn.
        alone = tower.clone(layers=tower.layers[:1])
        return draw_parameters(alone, config.seed, config.data.crop_size)[first]["kernel"]
    try:
        return load(config.init_from).params[first]["kernel"]
    except (UsageError, KeyError):
        return None


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's correlation of two arrays of one shape; None if all values of one are equal."""
    if not np.ptp(one) or not np.ptp(other):
        return None
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
