"""Studies: variants x seeds of one base, and whether a difference is real.

A study is a configuration with `base` (a run), `variants` (what each changes), `seeds` and what is
measured; the files of `experiments/studies/` are examples. Every run gets a workdir of its own,
`FOLDER/VARIANT/seed-N`, so that a study is finished by starting it again, in parts if need be, and
its tables are made from these logs alone.
"""

import json
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import comparison, figures
from alexnet_jax.config import completed, tuples, validate
from alexnet_jax.data.sources import fit_classes
from alexnet_jax.errors import Stopped, UsageError
from alexnet_jax.workdir import flat, write_json

MEASURES = ("test_error", "train_error", "epochs_to_error")


def study(
    base: ConfigDict,
    variants: dict[str, dict[str, Any]],
    seeds: Sequence[int],
    *,
    title: str,
    measure: str = "test_error",
    target: float = 0.0,
    paper: dict[str, float] | None = None,
) -> ConfigDict:
    """The configuration of a study.

    Args:
      base: of a run; a variant of no changes is what the others are compared with.
      variants: by name, in the order of the table, the fields that each changes:
        `{"lrn-off": {"model.lrn.enabled": False}}`.
      seeds: each variant runs with each; the same seeds are compared with each other.
      title: of table and figure.
      measure: `test_error` or `train_error`, top-1 at the end in percent, on all images of the
        split; or `epochs_to_error`: when the error on the whole training set, measured now and
        then, first falls to `target`.
      target: a fraction, for `epochs_to_error`.
      paper: by variant, what the paper says of its difference from the base in points of percent
        (errors), or of its ratio to it (`epochs_to_error`).
    """
    config = ConfigDict()
    config.title, config.measure, config.target = title, measure, target
    config.base = base
    config.seeds = tuple(seeds)
    # Pairs, since a ConfigDict takes no names with dots.
    config.variants = tuple((name, tuple(changes.items())) for name, changes in variants.items())
    config.paper = tuple((paper or {}).items())
    return config.lock()


def from_json(content: dict[str, Any]) -> ConfigDict:
    """The study that `write` left in `study.json`."""
    config = ConfigDict(tuples(content))
    completed(config.base)
    config.lock()
    check(config)
    return config


def check(config: ConfigDict) -> None:
    """Checks the study and every run of it, before the first starts.

    Raises:
      UsageError: names what is wrong, and with which variant.
    """
    for name in ("base", "variants", "seeds", "measure", "target", "paper", "title"):
        if name not in config:
            raise UsageError(
                f"config.{name} is missing: this is no study; see experiments/studies/"
            )
    if config.measure not in MEASURES:
        raise UsageError(f"config.measure = {config.measure!r}: use one of {', '.join(MEASURES)}")
    if not config.seeds or not config.variants:
        raise UsageError("config.seeds and config.variants: a study needs one of each at least")
    names = [name for name, _ in config.variants]
    for name in names:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or names.count(name) > 1:
            raise UsageError(
                f"config.variants: {name!r} names a folder: lower case, digits, - . _, and once"
            )
    if sum(not changes for _, changes in config.variants) != 1:
        raise UsageError("config.variants: one of them, and only one, changes nothing: the base")
    for name, _ in config.paper:
        if name not in names:
            raise UsageError(f"config.paper: {name!r} is no variant")
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
    known = flat(json.loads(run.to_json()))
    for field in changes:
        if field not in known:
            raise UsageError(f"variant {variant!r}: config.{field}: no such field")
    run.unlock()
    run.update_from_flattened_dict(changes)
    run.seed = seed
    return run.lock()


def runs(config: ConfigDict) -> list[tuple[str, int]]:
    """Every (variant, seed), all variants of a seed together: a study cut short compares most."""
    return [(name, seed) for seed in config.seeds for name, _ in config.variants]


def run(config: ConfigDict, folder: Path, part: tuple[int, int] = (1, 1)) -> list[str]:
    """Runs what is not finished, one after another.

    Programs of the same shapes are compiled once: a seed is no part of a program.

    Args:
      config: the study.
      folder: of its runs.
      part: the k-th of n parts, counted from 1; every n-th run.

    Returns:
      A line for each run that failed; the others are finished.

    Raises:
      UsageError: the study is not one.
      Stopped: a signal asked for it.
    """
    from alexnet_jax.train import train_and_evaluate

    check(config)
    failed = []
    mine = runs(config)[part[0] - 1 :: part[1]]
    for number, (variant, seed) in enumerate(mine, 1):
        workdir = folder / variant / f"seed-{seed}"
        wanted = fit_classes(run_config(config, variant, seed))
        if finished(workdir):
            _check_same(workdir, wanted)
            continue
        print(f"run {number} of {len(mine)}: {variant}, seed {seed}", file=sys.stderr, flush=True)
        try:
            train_and_evaluate(wanted, workdir)
            (workdir / "failed.json").unlink(missing_ok=True)
        except Stopped:
            raise
        except Exception as error:
            # The others are still worth their time.
            line = str(error).strip().partition("\n")[0] or type(error).__name__
            failed.append(f"{variant}, seed {seed}: {line}")
            print(f"failed: {failed[-1]}", file=sys.stderr, flush=True)
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(
                workdir / "failed.json", {"error": line, "traceback": traceback.format_exc()}
            )
    return failed


def finished(workdir: Path) -> bool:
    """Whether the run in this folder has its result."""
    return (workdir / "result.json").is_file()


def _check_same(workdir: Path, wanted: ConfigDict) -> None:
    """A finished run must be the one that the study describes."""
    try:
        found = completed(ConfigDict(json.loads((workdir / "config.json").read_text())))
        before = flat(json.loads(found.to_json()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{workdir / 'config.json'}: {error}; remove {workdir}") from error
    now = flat(json.loads(wanted.to_json()))
    for name in sorted(before.keys() | now.keys()):
        same = before.get(name) == now.get(name)
        # What says which processes and devices run it, and how often it speaks.
        if not same and not name.startswith(("distributed.", "placement", "log_every", "warn_")):
            raise UsageError(
                f"{workdir} is finished with config.{name} = {before.get(name)!r}, and the study "
                f"says {now.get(name)!r}: remove it, or name another --workdir"
            )


def write(config: ConfigDict, folder: Path) -> str:
    """Writes `table.md`, `table.csv`, `figure.png` and `study.json` (itself) from the logs.

    Returns:
      The text of `table.md`.
    """
    check(config)
    table = comparison.rows(config, folder)
    text = comparison.markdown(config, table)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", json.loads(config.to_json()))
    (folder / "table.md").write_text(text)
    (folder / "table.csv").write_text(comparison.comma_separated(config, table))
    figures.study_figure(config, folder, table).savefig(folder / "figure.png", dpi=120)
    return text
