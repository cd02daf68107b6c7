"""Studies: several variants of one configuration, each run with several seeds and compared.

A study is a configuration with `base` (a run), `variants` (the fields that each changes), `seeds`
and what is measured; the files in `experiments/studies/` are examples. Every run has its own
workdir, `FOLDER/VARIANT/seed-N`: the same command continues an interrupted study, several machines
can share one, and the tables are made from the logs alone.
"""

import itertools
import json
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import jsonfiles
from alexnet_jax.analysis import comparison, figures
from alexnet_jax.analysis.outcomes import first_step, outcome
from alexnet_jax.config import completed, leaves, tuples, validate
from alexnet_jax.config import from_json as from_json_file
from alexnet_jax.config.fields import field_of
from alexnet_jax.data.sources import fit_classes
from alexnet_jax.errors import Stopped, UsageError
from alexnet_jax.training.run import Series
from alexnet_jax.training.workdir import write_json

OUTPUTS = ("table.md", "table.csv", "figure.png")


def study(
    base: ConfigDict,
    variants: dict[str, dict[str, Any]],
    seeds: Sequence[int],
    *,
    title: str,
    measures: Sequence[str] = ("test_error",),
    target: float = 0.0,
    paper: dict[str, float] | None = None,
    more_seeds: dict[str, Sequence[int]] | None = None,
    grid: dict[str, Sequence[Any]] | None = None,
) -> ConfigDict:
    """The configuration of a study.

    Args:
      base: the configuration of a run. The others are compared with the variant that changes
        nothing.
      variants: the fields that each variant changes, by its name and in the order of the table:
        `{"lrn-off": {"model.lrn.enabled": False}}`.
      seeds: every variant is run with every seed; runs of the same seed are compared.
      title: the title of the table and the figure.
      measures: what is measured of each run, by the names of `outcomes`: `test_error` and the
        errors of other splits, final top-1 errors in percent; `epochs_to_error`, the epoch at which
        the error on the whole training set first falls to `target`; `seconds`; or any number in
        `result.json`, such as `test.loss`. The figure and the verdicts are about the first.
      target: a fraction, for `epochs_to_error`.
      paper: what the paper reports of the first outcome, by variant: the difference from the base,
        or the ratio to it if it is compared by ratios.
      more_seeds: further seeds of some variants, by their names.
      grid: values of fields, with each combination of which every variant is run, under the name
        `VARIANT_VALUE`. The values of the base are among them.
    """
    config = ConfigDict()
    config.title, config.measures, config.target = title, tuple(measures), target
    config.base = base
    config.seeds = tuple(seeds)
    # Pairs, because the names of a ConfigDict must not contain dots.
    made = _over_grid(base, variants, grid) if grid else variants
    config.variants = tuple((name, tuple(changes.items())) for name, changes in made.items())
    config.grid = tuple((field, tuple(values)) for field, values in (grid or {}).items())
    config.paper = tuple((paper or {}).items())
    config.more_seeds = tuple((name, tuple(more)) for name, more in (more_seeds or {}).items())
    return config.lock()


def _over_grid(
    base: ConfigDict, variants: dict[str, dict[str, Any]], grid: dict[str, Sequence[Any]]
) -> dict[str, dict[str, Any]]:
    """Every variant with every combination of the values of a grid."""
    there, made = dict(leaves(base)), {}
    for name, changes in variants.items():
        for values in itertools.product(*grid.values()):
            every = changes | dict(zip(grid, values, strict=True))
            # What a variant sets to the value of the base is no change.
            kept = {field: x for field, x in every.items() if there.get(field, _ABSENT) != x}
            made[comparison.grid_name(name, values)] = kept
    return made


_ABSENT = object()


def read(folder: Path) -> ConfigDict:
    """The study whose table is in a folder.

    Raises:
      UsageError: there is none.
    """
    path = folder / "study.json"
    try:
        return from_json(jsonfiles.read(path))
    except OSError as error:
        raise UsageError(
            f"--config is missing, and {folder} holds no study: give --config=FILE.py of the study"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a study: {error}") from error


def from_json(content: dict[str, Any]) -> ConfigDict:
    """The study whose `study.json` has this content."""
    config = ConfigDict(tuples(content))
    for name in ("more_seeds", "grid"):  # Files of version 0.1 do not have them.
        if name not in config:
            config[name] = ()
    if "measures" not in config:  # Version 0.2 measured one thing.
        config.measures = (config.measure,)
        del config.measure  # pyright: ignore[reportAttributeAccessIssue]
    completed(config.base)
    config.lock()
    check(config)
    return config


def check(config: ConfigDict) -> None:
    """Checks a study and the configurations of all its runs, before the first run starts.

    Raises:
      UsageError: the message names the field, and the variant where one is at fault.
    """
    for name in (
        "base", "variants", "seeds", "more_seeds", "grid", "measures", "target", "paper", "title",
    ):  # fmt: skip
        if name not in config:
            raise UsageError(
                f"config.{name} is missing: this is not a study; see experiments/studies/"
            )
    for measure in config.measures:
        outcome(measure, config.target)
    for field in ("measures", "seeds", "variants"):
        if not config[field]:
            raise UsageError(f"config.{field} is empty: a study needs at least one")
    names = [name for name, _ in config.variants]
    for name in names:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or names.count(name) > 1:
            raise UsageError(
                f"config.variants: {name!r} is the name of a folder: use lower-case letters, "
                "digits, - . _, and each name once"
            )
    if sum(not changes for _, changes in config.variants) != 1:
        raise UsageError("config.variants: exactly one of them must change nothing: the base")
    for field in ("paper", "more_seeds"):
        for name, _ in config[field]:
            if name not in names:
                raise UsageError(f"config.{field}: {name!r} is not a variant")
    for name in names:
        seeds = comparison.seeds_of(config, name)
        if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise UsageError(f"variant {name!r}: seed {twice[0]} is there twice: it is one run")
    for name, seed in runs(config):
        try:
            validate(run_config(config, name, seed))
        except UsageError as error:
            raise UsageError(f"variant {name!r}: {error}") from error


def run_config(config: ConfigDict, variant: str, seed: int) -> ConfigDict:
    """The configuration of one run.

    Raises:
      UsageError: the variant changes a field that does not exist.
    """
    run = config.base.copy_and_resolve_references()
    changes = dict(dict(config.variants)[variant])
    known = dict(leaves(run))
    for field in changes:
        if field not in known:
            raise UsageError(f"variant {variant!r}: config.{field}: no such field")
    run.unlock()
    run.update_from_flattened_dict(changes)
    run.seed = seed
    return run.lock()


def runs(config: ConfigDict) -> list[tuple[str, int]]:
    """Every (variant, seed), seed by seed: an interrupted study can compare all variants."""
    names = [name for name, _ in config.variants]
    every = [(name, seed) for seed in comparison.seeds(config) for name in names]
    return [(name, seed) for name, seed in every if seed in comparison.seeds_of(config, name)]


def run(config: ConfigDict, folder: Path, part: tuple[int, int] = (1, 1)) -> list[str]:
    """Runs everything that is not finished, one run after another.

    A program is compiled once for all seeds, because the seed is one of its inputs.

    Args:
      config: the study.
      folder: the folder of its runs.
      part: (k, n): only every n-th run, from the k-th on, counted from 1.

    Returns:
      One line per run that failed; all others are finished.

    Raises:
      UsageError: as `check_finished`.
      Stopped: a signal asked the run to stop.
    """
    from alexnet_jax.training.loop import train_and_evaluate

    check_finished(config, folder)
    failed: list[str] = []
    todo = [x for x in runs(config)[part[0] - 1 :: part[1]] if not finished(_workdir(folder, *x))]
    seconds: list[float] = []
    for number, (variant, seed) in enumerate(todo, 1):
        print(f"run {number} of {len(todo)}: {variant}, seed {seed}", file=sys.stderr, flush=True)
        workdir, asked = _workdir(folder, variant, seed), run_config(config, variant, seed)
        wanted = fit_classes(asked)
        if wanted.batch_size != asked.batch_size:  # What variants differ in would be lost.
            raise UsageError(
                f"variant {variant!r}: config.batch_size = {asked.batch_size} is more than the "
                f"training images: use {wanted.batch_size}"
            )
        place = Series(f"{variant} seed {seed}", number, len(todo), tuple(seconds))
        begun, began = workdir.exists(), time.monotonic()
        try:
            train_and_evaluate(wanted, workdir, series=place)
            if not begun:
                seconds.append(time.monotonic() - began - first_step(workdir))
            (workdir / "failed.json").unlink(missing_ok=True)
        except Stopped:
            raise
        except Exception as error:
            # The other runs are still of use.
            line = str(error).strip().partition("\n")[0] or type(error).__name__
            failed.append(f"{variant}, seed {seed}: {line}")
            print(f"failed: {failed[-1]}", file=sys.stderr, flush=True)
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(
                workdir / "failed.json", {"error": line, "traceback": traceback.format_exc()}
            )
    return failed


def _workdir(folder: Path, variant: str, seed: int) -> Path:
    return folder / variant / f"seed-{seed}"


def finished(workdir: Path) -> bool:
    """Whether the run in this folder has written its result."""
    return (workdir / "result.json").is_file()


def check_finished(config: ConfigDict, folder: Path) -> None:
    """Checks a study, and that its finished runs are those that it describes.

    Raises:
      UsageError: the study is wrong, or a run has another configuration; names run and field.
    """
    check(config)
    for variant, seed in runs(config):
        workdir = _workdir(folder, variant, seed)
        if finished(workdir):
            _check_same(workdir, run_config(config, variant, seed))


def _check_same(workdir: Path, wanted: ConfigDict) -> None:
    """Checks that a finished run is the one that the study describes."""
    path = workdir / "config.json"
    try:
        before = dict(leaves(from_json_file(path.read_text(), str(path))))
    except (OSError, UsageError) as error:
        raise UsageError(f"{error}; remove {workdir}") from error
    now = dict(leaves(wanted))
    # These were fitted to the images (`fit_classes`), which need not be there to read a log.
    last = f"model.layers.{wanted.model.layer_order[-1]}.features"
    fitted = ("model.num_classes", last, "data.validation_split")
    for name in sorted(before.keys() | now.keys()):
        declared = field_of(name)
        # A free field decides where a run is computed and what it says, and not its result.
        free = name in fitted or (declared is not None and declared.resume == "free")
        if before.get(name) != now.get(name) and not free:
            raise UsageError(
                f"{workdir} was run with config.{name} = {before.get(name)!r}, and the study "
                f"says {now.get(name)!r}: remove it, or name another --workdir"
            )


def write(config: ConfigDict, folder: Path) -> str:
    """Writes `OUTPUTS` from the logs, and `study.json`.

    Returns:
      The text of `table.md`.

    Raises:
      UsageError: as `check_finished`; nothing is written then.
    """
    check_finished(config, folder)
    table = comparison.table(config, folder)
    text = table.markdown()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", json.loads(config.to_json()))
    (folder / "table.md").write_text(text, "utf-8")
    (folder / "table.csv").write_text(table.comma_separated(), "utf-8")
    figures.study_figure(config, folder, table.main).savefig(folder / "figure.png", dpi=120)
    return text
