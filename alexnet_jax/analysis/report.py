"""One self-contained page for a run or a study: `report.html`, readable without a network."""

import dataclasses
import io
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax import jsonfiles, paths
from alexnet_jax.analysis import comparison, figures, pages, study
from alexnet_jax.config import default, leaves
from alexnet_jax.data.classes import five_best
from alexnet_jax.errors import UsageError
from alexnet_jax.model.kernels import colour_share
from alexnet_jax.training import drawing, log
from alexnet_jax.training import workdir as workdirs
from alexnet_jax.training.events import Evaluation, Event, TrainingMean, Warned, to_json

PREDICTIONS = 8
NEIGHBOURS = 6
QUERIES = 5
_MOST_FEATURES = 10_000
"""Number of training images, from the first on, among which neighbours are searched."""
_MOST_CLASSES = 40
"""Largest number of classes of which the confusion matrix is drawn; the pairs are always listed."""


def write(folder: Path) -> Path:
    """Writes `report.html` into a workdir or the folder of a study.

    Raises:
      UsageError: it is neither, or cannot be written to.
    """
    if (folder / "study.json").is_file():
        page = study_page(folder)
    elif (folder / "config.json").is_file():
        page = run_page(folder)
    else:
        raise UsageError(f"--workdir={folder}: neither a run nor a study; `train` writes one")
    path = folder / "report.html"
    paths.write_output(path, page)
    return path


def run_page(workdir: Path) -> str:
    """The page of a run: curves, kernels, predictions, neighbours, confusion, config."""
    from alexnet_jax.training.origin import config_of

    config = config_of(workdir)
    events = log.read(workdir)
    env, result = _json(workdir / "env.json"), _json(workdir / "result.json")
    about: dict[str, Any] = {"images": None, "why_not": ""}
    try:
        about["images"] = seen_images(config, workdir)
    except UsageError as error:
        about["why_not"] = str(error)
    return pages.render(
        "run.html",
        title=workdir.resolve().name,
        summary=summary(config, env, events),
        results=results(result, events),
        metrics=other_metrics(result, events),
        warnings=[event.warning for event in events if isinstance(event, Warned)],
        curves=[
            (label, picture(figures.run_curve(events, name)))
            for name, label in (
                ("loss", "Loss"),
                ("top1_error", "Top-1 error"),
                *((name, name) for name in logged_metrics(events)),
            )
        ],
        changed=changed_fields(config),
        config=config.to_json(indent=2),
        env=json.dumps(env, indent=2),
        command=command(env),
        **about,
    )


def study_page(folder: Path) -> str:
    """The page of a study: its table, its figure, the curves of every variant.

    Raises:
      UsageError: the folder holds none.
    """
    config = study.read(folder)
    table = comparison.table(config, folder)
    header, rows = table.cells()
    logs = {
        name: [
            events
            for seed in comparison.seeds_of(config, name)
            if (events := log.read(folder / name / f"seed-{seed}", missing=True))
        ]
        for name, _ in config.variants
    }
    environments = [
        _json(folder / name / f"seed-{seed}" / "env.json") for name, seed in study.runs(config)
    ]
    env = next((env for env in environments if env), {})
    base = comparison.base_of(config)
    return pages.render(
        "study.html",
        title=config.title,
        header=header,
        rows=rows,
        best=table.best(),
        absent=table.without_result(),
        note=table.note(),
        seeds=comparison.seeds(config),
        runs=_links(folder, table),
        outcome=header[1],
        figure=picture(figures.study_figure(config, folder, table.main)),
        overlays=[picture(figures.study_overlay(logs, x, base)) for x in ("top1_error", "loss")],
        curves=[picture(figures.study_curves(logs, name)) for name in ("top1_error", "loss")],
        variants=[(name, changes) for name, changes in config.variants],
        changed=changed_fields(config.base),
        config=config.base.to_json(indent=2),
        env=json.dumps(env, indent=2),
        command=command(env),
    )


def _links(folder: Path, table: comparison.Table) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each variant, the first outcome of each seed as text and the page of that run.

    The page is empty where none was written, and both are where the variant lacks the seed.
    """
    found = []
    for row in table.main:
        cells = []
        for seed in comparison.seeds(table.config):
            page = Path(row.name) / f"seed-{seed}" / "report.html"
            value = row.values.get(seed)
            text = row.missing.get(seed, "").partition(":")[0] if value is None else f"{value:.2f}"
            cells.append((text, page.as_posix() if (folder / page).is_file() else ""))
        found.append((row.name, cells))
    return found


# --------------------------------------------------------------------------- text


def summary(config: ConfigDict, env: dict, events: list[Event]) -> list[tuple[str, str]]:
    """The facts of a run, as (name, text)."""
    steps = max((event.step for event in events), default=0)
    measured = [x for x in events if isinstance(x, (TrainingMean, Evaluation))]
    epochs = max((event.epoch for event in measured), default=0)
    packages = env.get("packages", {})
    return [
        ("data", f"{config.data.source}, {config.model.num_classes} classes"),
        ("network", f"{config.model.towers} tower{'s' if config.model.towers > 1 else ''}, "
                    f"width {config.model.width:g}, {config.data.crop_size} pixel crops"),
        ("trained", f"{steps} steps, {epochs:g} epochs of batches of {config.batch_size}"),
        ("seed", str(config.seed)),
        ("placement", env.get("placement", "unknown")),
        ("versions", ", ".join(f"{name} {packages[name]}" for name in ("jax", "flax", "optax")
                               if name in packages) or "unknown"),
        ("revision", env.get("git_revision", "")[:12] + (" with changes" if env.get("git_dirty")
                                                         else "") or "unknown"),
    ]  # fmt: skip


def results(result: dict, events: list[Event]) -> list[tuple[str, str, str, str]]:
    """(split, views, top-1 error, top-5 error), the errors in percent.

    They are those of `result.json`, or of the last evaluation in the log for other splits.
    """
    rows = []
    for split, fields in _evaluated(result, events):
        for views in (1, 9, 10):
            name = "" if views == 1 else f"_{views}_views"
            if f"top1_error{name}" in fields:
                errors = [f"{100 * fields[f'top{k}_error{name}']:.2f}" for k in (1, 5)]
                rows.append((f"{split}, {fields['num_examples']} images", str(views), *errors))
    return rows


def other_metrics(result: dict, events: list[Event]) -> list[tuple[str, str, str]]:
    """(split, metric, value) of the same evaluations, for the metrics of `evaluate.metrics`."""
    return [
        (f"{split}, {fields['num_examples']} images", name, f"{value:.4f}")
        for split, fields in _evaluated(result, events)
        for name, value in fields.get("metrics", {}).items()
    ]


def logged_metrics(events: list[Event]) -> list[str]:
    """The metrics of `evaluate.metrics` that some evaluation of centre crops has."""
    found = (x.metrics for x in events if isinstance(x, Evaluation) and x.views == 1)
    return list(dict.fromkeys(name for metrics in found for name in metrics))


def _evaluated(result: dict, events: list[Event]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each split with the fields of its last evaluation."""
    for split in ("test", "validation", "train"):
        logged = (to_json(x) for x in events if isinstance(x, Evaluation) and x.split == split)
        if fields := result.get(split) or next(iter(list(logged)[::-1]), None):
            yield split, fields


def changed_fields(config: ConfigDict) -> list[tuple[str, str, str]]:
    """(field, value, default) of the fields that differ from the default.

    The default is empty for layers that the default network does not have.
    """
    now, before = dict(leaves(config)), dict(leaves(default()))
    return [
        (name, json.dumps(now[name]), json.dumps(before[name]) if name in before else "")
        for name in now
        if now[name] != before.get(name, ...)
    ]


def command(env: dict) -> str:
    """The command of a run, to be typed again."""
    words = env.get("command", [])
    if not words:
        return "unknown"
    first = "python -m alexnet_jax" if words[0] == "__main__.py" else words[0]
    # One flag per line, which fits the screen of a phone.
    verb = " ".join([first, *words[1:2]])
    return " \\\n    ".join([verb, *map(shlex.quote, words[2:])])


# --------------------------------------------------------------------------- images


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a page shows that needs the checkpoint and the images; pictures are data URIs.

    Attributes:
      kernels: a picture of the kernels of the first layer.
      colour: the mean share of colour in the kernels of each tower, as text.
      predictions: (picture, class, [(class, percent, whether it is the true one)]).
      neighbours: (picture, class, [(picture, class)]), nearest first.
      confusion: a picture of the confusion matrix, or None with many classes.
      pairs: (true class, predicted class, count, images of the true class), most frequent first.
      examples: the number of test images.
    """

    kernels: str
    colour: list[str]
    predictions: list[tuple[str, str, list[tuple[str, float, bool]]]]
    neighbours: list[tuple[str, str, list[tuple[str, str]]]]
    confusion: str | None
    pairs: list[tuple[str, str, int, int]]
    examples: int


def seen_images(config: ConfigDict, workdir: Path) -> Seen:
    """Runs the newest checkpoint over the test images and some of the training images.

    Raises:
      UsageError: no checkpoint is whole, or the data set is missing.
    """
    from alexnet_jax.data.sources import open_sources
    from alexnet_jax.training.origin import load

    sources = open_sources(config, *workdirs.class_names(config, workdir))
    run = load(workdir, placement=config.placement)
    names = run.class_names
    rng, total = np.random.default_rng(0), sources["test"].num_examples
    shown, asked = rng.permutation(total), rng.permutation(total)
    spare = config.data.max_unreadable  # in place of those that cannot be read
    wanted = np.union1d(shown[: PREDICTIONS + spare], asked[: QUERIES + spare])
    test: dict[int, Features] = {}
    matrix, count = np.zeros((len(names), len(names)), int), 0
    for part in features_of(run, sources["test"], None):
        matrix += confusion(part.label, part.probabilities.argmax(1), len(names))
        for place in wanted[(wanted >= count) & (wanted < count + len(part.label))]:
            test[int(place)] = part.row(place - count)
        count += len(part.label)
    shown = [test[i] for i in shown.tolist() if i in test][:PREDICTIONS]
    asked = [test[i] for i in asked.tolist() if i in test][:QUERIES]
    train = features_of(run, sources["train"], _MOST_FEATURES)
    near = nearest([row.features for row in asked], train, NEIGHBOURS)
    of_test = thumbnails(
        config, sources["test"], np.unique([int(row.index) for row in (*shown, *asked)])
    )
    of_train = thumbnails(
        config, sources["train"], np.unique([index for found in near for index, _ in found])
    )
    kernels = run.params[run.tower.layers[0].name]["kernel"]
    shares = colour_share(kernels)
    return Seen(
        kernels=picture(drawing.kernels(kernels)),
        colour=[f"of tower {i}: {100 * x.mean():.0f} %" for i, x in enumerate(shares, 1)],
        predictions=[
            (of_test[int(row.index)], names[row.label],
             five_best(row.probabilities, names, int(row.label)))
            for row in shown
        ],
        neighbours=[
            (of_test[int(row.index)], names[row.label],
             [(of_train[index], names[label]) for index, label in found])
            for row, found in zip(asked, near, strict=True)
        ],
        confusion=None if len(names) > _MOST_CLASSES else picture(figures.confusion(matrix, names)),
        pairs=confused_pairs(matrix, names),
        examples=count,
    )  # fmt: skip


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


def thumbnails(config: ConfigDict, source: Any, indices: np.ndarray) -> dict[int, str]:
    """The resized images, by index, as PNG of 64 to 128 pixels."""
    squares, _ = source.squares(config.data)(indices)
    found = {}
    for index, square in zip(indices, squares, strict=True):
        image = Image.fromarray(square)
        times = max(1, -(-64 // square.shape[0]))
        image = image.resize(
            (square.shape[1] * times, square.shape[0] * times), Image.Resampling.NEAREST
        )
        image.thumbnail((128, 128))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        found[int(index)] = pages.uri("png", buffer.getvalue())
    return found


# --------------------------------------------------------------------------- HTML


def picture(figure: Figure) -> str:
    """A figure as a data URI, which needs no other file."""
    return pages.uri("svg+xml", figures.svg(figure))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = jsonfiles.read(path, finite=False)
    except (OSError, UsageError):
        return {}
    return found if isinstance(found, dict) else {}
