"""One self-contained page for a run, several runs or a study, readable without a network."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import jsonfiles, paths
from alexnet_jax.analysis import comparison, figures, images, outcomes, pages, published, study
from alexnet_jax.analysis.headline import evaluated, percent, sentence
from alexnet_jax.config import default, leaves
from alexnet_jax.data.classes import BEST
from alexnet_jax.errors import UsageError
from alexnet_jax.training import log
from alexnet_jax.training import workdir as workdirs
from alexnet_jax.training.events import Evaluation, Event, TrainingMean, Warned

PAGE = "report.html"
_CLASSES = 20
"""The largest number of classes whose errors are listed."""


def write(folder: Path) -> Path:
    """Writes `report.html` into a workdir or the folder of a study.

    Beside the page of a run it writes `kernels.png` and `answers.png`, Figures 3 and 4 of the
    paper, if the checkpoint and the images are there.

    Raises:
      UsageError: it is neither, or cannot be written to.
    """
    files: dict[str, bytes] = {}
    if (folder / "study.json").is_file():
        page = study_page(folder)
    elif (folder / "config.json").is_file():
        page, files = run_page(folder)
    else:
        raise UsageError(f"--workdir={folder}: neither a run nor a study; `train` writes one")
    for name, content in files.items():
        paths.write_output(folder / name, content)
    paths.write_output(folder / PAGE, page)
    return folder / PAGE


def write_runs(folders: Sequence[Path], out: Path) -> Path:
    """Writes one page about several runs.

    Raises:
      UsageError: one of the folders is no run, or the page cannot be written.
    """
    paths.write_output(out, runs_page(folders, out.parent))
    return out


# --------------------------------------------------------------------------- pages


def run_page(workdir: Path) -> tuple[str, dict[str, bytes]]:
    """The page of a run, result first, and pictures of it as files by their names."""
    from alexnet_jax.training.origin import config_of

    config = config_of(workdir)
    events = log.read(workdir)
    env, result = _json(workdir / "env.json"), _json(workdir / "result.json")
    names, seen, why_not = (), None, ""
    try:
        names, _ = workdirs.class_names(config, workdir)
        seen = images.look(config, workdir)
    except UsageError as error:
        why_not = str(error)
    page = pages.render(
        "run.html",
        title=workdir.resolve().name,
        about=about(config, events),
        headline=sentence(result, events),
        beside=[guessing(config.model.num_classes), *in_2012(config, names)],
        top5=config.model.num_classes > BEST,
        results=results(result, events),
        metrics=other_metrics(result, events),
        warnings=[event.warning for event in events if isinstance(event, Warned)],
        curves=[
            (figures.picture(figures.run_curve(events, name)), curve_text(events, name, label))
            for name, label in (
                ("loss", "Loss"),
                ("top1_error", "Top-1 error"),
                *((name, name) for name in logged_metrics(events)),
            )
        ],
        speed=speed(workdir, events),
        seen=seen,
        listed=_CLASSES,
        best=min(BEST, config.model.num_classes),
        count=pages.count,
        moved=seen and moved(seen.kernels, config.init_from),
        why_not=why_not,
        summary=summary(config, env, events),
        changed=changed_fields(config),
        config=config.to_json(indent=2),
        env=json.dumps(env, indent=2),
        command=command(env),
    )
    return page, seen.pngs if seen else {}


def runs_page(folders: Sequence[Path], where: Path) -> str:
    """The page of several runs: their results in a table, curves overlaid, what differs.

    Args:
      folders: of the runs.
      where: the folder that the page is for, from which links to their own pages lead.
    """
    from alexnet_jax.training.origin import config_of

    for folder in folders:
        if not (folder / "config.json").is_file():
            raise UsageError(f"--workdir: {folder} is not a run, of which one page is to hold many")
    configs = [config_of(folder) for folder in folders]
    logs = [log.read(folder, missing=True) for folder in folders]
    names = distinct(folders)
    rows = [
        run_row(folder, config, events)
        for folder, config, events in zip(folders, configs, logs, strict=True)
    ]
    header = list(dict.fromkeys(name for row in rows for name in row))
    by_name = {name: [events] for name, events in zip(names, logs, strict=True) if events}
    return pages.render(
        "runs.html",
        title=pages.count(len(folders), "run"),
        header=header,
        rows=[
            (name, _link(folder, where), [row.get(column, "") for column in header])
            for name, folder, row in zip(names, folders, rows, strict=True)
        ],
        overlays=[
            (figures.picture(figures.overlay(by_name, measure)), overlay_text(by_name, label))
            for measure, label in (("top1_error", "Top-1 error"), ("loss", "Loss"))
        ],
        names=names,
        fields=differing(configs),
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
        figure=figures.picture(figures.study_figure(config, folder, table.main)),
        overlays=[figures.picture(figures.overlay(logs, x, base)) for x in ("top1_error", "loss")],
        curves=[
            figures.picture(figures.study_curves(logs, name)) for name in ("top1_error", "loss")
        ],
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


def guessing(classes: int) -> str:
    """What chance alone gives."""
    right = 100 / classes
    text = f"Guessing among {pages.count(classes, 'class', 'classes')}"
    return f"{text}: {percent(right)} % right, {percent(100 - right)} % top-1 error."


def in_2012(config: ConfigDict, class_names: tuple[str, ...]) -> list[str]:
    """What was reported in 2012 of the same data, in a sentence or none."""
    row = published.beside(config, class_names)
    if row is None:
        return []
    top5 = "" if row.top5_error is None else f", {row.top5_error:g} % top-5 error"
    views = pages.count(row.views, "view")
    return [f"In 2012: {row.top1_error:g} % top-1 error{top5} with {views} ({row.source})."]


def about(config: ConfigDict, events: list[Event]) -> str:
    """What was trained on what and for how long, in a line."""
    facts = dict(summary(config, {}, events))
    return f"{facts['data']}. {facts['network'].capitalize()}. {facts['trained'].capitalize()}."


def curve_text(events: list[Event], name: str, label: str) -> str:
    """What a figure of curves shows, in words."""
    factor, unit = (100, " %") if name == "top1_error" else (1, "")
    ends = [
        (text, *(f"{factor * values[i]:.3g}{unit}" for i in (0, -1)))
        for text, curve in figures.series(events, name).items()
        if (values := list(curve.values()))
    ]
    curves = "; ".join(f"{text} from {first} to {last}" for text, first, last in ends)
    return f"{label} against epochs: {curves or 'nothing yet'}.{drops_text(events)}"


def drops_text(events: list[Event]) -> str:
    """Where the learning rate falls, in a sentence that begins with a space; or nothing."""
    found = [f"to {rate:.3g} at epoch {epoch:.3g}" for epoch, rate in figures.drops(events)]
    return f" The learning rate falls {', '.join(found)}." if found else ""


def overlay_text(logs: dict[str, list[list[Event]]], label: str) -> str:
    """What a figure of many curves shows, in words."""
    return f"{label} against epochs, one line for each of {', '.join(logs)}"


def speed(workdir: Path, events: list[Event]) -> str:
    """Time and images per second, in a sentence; empty without a log of steps."""
    means = [x for x in events if isinstance(x, TrainingMean)]
    took = outcomes.seconds(workdir)
    if took is None:
        return ""
    # The first mean has the time of compiling in it.
    rates = [x.images_per_second for x in means[1:] or means]
    waited = np.mean([x.data_wait_fraction for x in means[1:] or means])
    return (
        f"The training steps took {duration(took)}, at {np.median(rates):,.0f} images/s (median); "
        f"{100 * waited:.0f} % of the time was spent waiting for images."
    )


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    named = [(days, "day"), (hours, "hour"), (minutes, "minute"), (whole % 60, "second")]
    first = next((i for i, (number, _) in enumerate(named) if number), 3)
    shown = named[first : first + 2]
    return " ".join(pages.count(number, unit) for number, unit in shown if number) or "0 seconds"


def moved(kernels: images.Kernels, init_from: str) -> str:
    """How far the kernels are from those at the start, in a sentence or two."""
    if kernels.correlation is None:
        return ""
    r = kernels.correlation
    before = f"what they were in {Path(init_from).name}" if init_from else "their initial noise"
    if r >= 0.5**0.5:  # More than half of their variance is that of the start.
        verdict = f"they are still mostly {before}"
    elif r >= 0.3:
        verdict = f"they are partly {before}"
    else:
        verdict = f"little is left of {before}"
    return f"The correlation of their weights with those at the start is {r:.2f}: {verdict}."


def summary(config: ConfigDict, env: dict, events: list[Event]) -> list[tuple[str, str]]:
    """The facts of a run, as (name, text)."""
    steps = max((event.step for event in events), default=0)
    measured = [x for x in events if isinstance(x, (TrainingMean, Evaluation))]
    epochs = max((event.epoch for event in measured), default=0)
    packages = env.get("packages", {})
    return [
        ("data", f"{config.data.source}, "
                 f"{pages.count(config.model.num_classes, 'class', 'classes')}"),
        ("network", f"{pages.count(config.model.towers, 'tower')}, "
                    f"width {config.model.width:g}, {config.data.crop_size} pixel crops"),
        ("trained", f"{pages.count(steps, 'step')}, {epochs:.4g} epoch{'s' * (epochs != 1)} "
                    f"of batches of {config.batch_size}"),
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
    for split, fields in evaluated(result, events):
        for views in (1, 9, 10):
            name = "" if views == 1 else f"_{views}_views"
            if f"top1_error{name}" in fields:
                errors = [f"{100 * fields[f'top{k}_error{name}']:.2f}" for k in (1, 5)]
                rows.append((_images_of(split, fields), str(views), *errors))
    return rows


def other_metrics(result: dict, events: list[Event]) -> list[tuple[str, str, str]]:
    """(split, metric, value) of the same evaluations, for the metrics of `evaluate.metrics`."""
    return [
        (_images_of(split, fields), name, f"{value:.4f}")
        for split, fields in evaluated(result, events)
        for name, value in fields.get("metrics", {}).items()
    ]


def logged_metrics(events: list[Event]) -> list[str]:
    """The metrics of `evaluate.metrics` that some evaluation of centre crops has."""
    found = (x.metrics for x in events if isinstance(x, Evaluation) and x.views == 1)
    return list(dict.fromkeys(name for metrics in found for name in metrics))


def _images_of(split: str, fields: dict[str, Any]) -> str:
    return f"{split}, {pages.count(fields['num_examples'], 'image')}"


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


# --------------------------------------------------------------------------- several runs


def distinct(folders: Sequence[Path]) -> list[str]:
    """Names of folders: their paths from the last folder that they share."""
    full = [folder.resolve() for folder in folders]
    shared = os.path.commonpath([folder.parent for folder in full])
    return [folder.relative_to(shared).as_posix() for folder in full]


def run_row(folder: Path, config: ConfigDict, events: list[Event]) -> dict[str, str]:
    """What the table of several runs says of one, by column."""
    result = _json(folder / "result.json")
    row = {"state": why} if (why := outcomes.missing(folder)) else {}
    for images_of, views, top1, top5 in results(result, events):
        split = images_of.partition(",")[0]
        name = f"{split} error" if views == "1" else f"{split} error, {views} views"
        row |= {name: top1, **({f"{name}, top 5": top5} if config.model.num_classes > BEST else {})}
    measured = [x for x in events if isinstance(x, (TrainingMean, Evaluation))]
    row["epochs"] = f"{max((event.epoch for event in measured), default=0):.4g}"
    if (took := outcomes.seconds(folder)) is not None:
        row["time of the steps"] = duration(took)
        means = [x.images_per_second for x in events if isinstance(x, TrainingMean)]
        row["images/s"] = f"{np.median(means[1:] or means):,.0f}"
    return row


def _link(folder: Path, where: Path) -> str:
    """The way to the page of a run; empty if it has none."""
    page = folder / PAGE
    return Path(os.path.relpath(page, where)).as_posix() if page.is_file() else ""


def differing(configs: Sequence[ConfigDict]) -> list[tuple[str, list[str]]]:
    """(field, its value in each configuration) of the fields that are not equal in all."""
    every = [dict(leaves(config)) for config in configs]
    names = dict.fromkeys(name for one in every for name in one)
    rows = [
        (name, [json.dumps(one[name]) if name in one else "" for one in every]) for name in names
    ]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = jsonfiles.read(path, finite=False)
    except (OSError, UsageError):
        return {}
    return found if isinstance(found, dict) else {}
