"""Whether a run reproduces its log: its first steps are run again and compared bit for bit."""

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import jsonfiles, parallel
from alexnet_jax.config import leaves
from alexnet_jax.data.sources import open_sources
from alexnet_jax.errors import UsageError
from alexnet_jax.training import log
from alexnet_jax.training import workdir as workdirs
from alexnet_jax.training.events import Evaluation, Event, Saved, TrainingMean, Warned, to_json
from alexnet_jax.training.loop import train_and_evaluate

_TIMES = ("images_per_second", "data_wait_fraction")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of `verify`.

    Attributes:
      until: the last step that was run again.
      lines: the number of lines of the log up to there, which were compared.
      checksums: the number of these that hold a checksum of the parameters.
      differences: one line per difference, in the order of the log.
      environment: one line per difference in versions, devices and the like.
      placements: where the run was and where the steps were run again, if that is not the same.
    """

    until: int
    lines: int
    checksums: int
    differences: tuple[str, ...]
    environment: tuple[str, ...]
    placements: tuple[str, str] | None = None

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def text(self) -> str:
        """The result as text for the terminal."""
        what = (
            f"steps 1 to {self.until}: {self.lines} lines of metrics.jsonl, "
            f"{self.checksums} with a checksum of all parameters"
        )
        elsewhere = ""
        if self.placements:
            there, here = self.placements
            elsewhere = f"\nthe run was on {there}; here it is {here}: equal up to rounding only"
        if self.same:
            return f"the same to the bit, {what}{elsewhere}"
        rows = [f"not the same, {what}{elsewhere}"]
        rows += [f"  {line}" for line in self.differences[:10]]
        if len(self.differences) > 10:
            rows.append(f"  and {len(self.differences) - 10} more")
        rows += ["what else is different here:"] if self.environment else []
        return "\n".join([*rows, *(f"  {line}" for line in self.environment)])


def verify(config: ConfigDict, workdir: Path, until: int = 0) -> Verdict:
    """Trains the first steps of `workdir` again, in a temporary folder, and compares the logs.

    Args:
      config: the configuration of `workdir`.
      workdir: the folder of the run, which is only read.
      until: the last step to run again; 0: that of the first checkpoint in the log.

    Raises:
      UsageError: the workdir has no log, its log ends before that step, or the data set has other
        classes.
    """
    logged = repeatable(log.read(workdir))
    saved = sorted(step for step, kind in logged if kind == Saved.kind)
    if not saved:
        raise UsageError(f"--workdir={workdir}: its metrics.jsonl has no checkpoint: train first")
    until = until or saved[0]
    if until > saved[-1]:
        raise UsageError(f"--until={until}: the log of {workdir} is whole up to step {saved[-1]}")
    there = _placement(workdir)
    placement = parallel.place_near(config, there and there[1:], trains=True)
    here = workdirs.environment(placement)
    sources = open_sources(config, *workdirs.class_names(config, workdir))
    unseen = config.copy_and_resolve_references()
    unseen.update(tensorboard=False, wandb_project="")  # They show the run itself, and once.
    with tempfile.TemporaryDirectory(prefix="alexnet_jax-verify-") as folder:
        train_and_evaluate(unseen, folder, until=until, sources=sources, placement=placement)
        again = repeatable(log.read(Path(folder)))
    lines = {key: line for key, line in logged.items() if key[0] <= until}
    moved = (there[0], here["placement"]) if there and there[0] != here["placement"] else None
    return Verdict(
        until=until,
        lines=len(lines),
        checksums=sum(kind == Saved.kind for _, kind in lines),
        differences=tuple(_differences(lines, again)),
        environment=tuple(_environment(workdir, here)),
        placements=moved,
    )


def _placement(workdir: Path) -> tuple[str, str, int] | None:
    """Where a run was: in words, by its name and its number of devices; None if it is not known."""
    try:
        about = jsonfiles.read(workdir / "env.json")
        return about["placement"], re.split(r"\W", about["placement"])[0], len(about["devices"])
    except (OSError, UsageError, LookupError, TypeError):
        return None


Key = tuple[int, str]
"""The step of an event and its kind, with the split of an evaluation."""


def repeatable(events: list[Event]) -> dict[Key, dict[str, Any]]:
    """The events that a second run must reproduce, without what depends on time."""
    found = {}
    for event in events:
        if isinstance(event, (TrainingMean, Evaluation, Saved)):
            kind = f"{event.kind} of {event.split}" if isinstance(event, Evaluation) else event.kind
            fields = {k: v for k, v in to_json(event).items() if k not in _TIMES}
            found[event.step, kind] = fields
    return found


def _differences(logged: dict, again: dict) -> list[str]:
    found = []
    for (step, split), line in logged.items():
        # The second run may have more events: it always saves after its last step.
        repeated = again.get((step, split))
        if repeated is None:
            found.append(f"step {step}, {split}: logged, not repeated")
            continue
        for name in sorted(line.keys() | repeated.keys()):
            old, new = line.get(name), repeated.get(name)
            if old != new:
                found.append(
                    f"step {step}, {split} {name}: {_short(old)} logged, {_short(new)} now"
                )
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _environment(workdir: Path, here: dict[str, Any]) -> list[str]:
    try:
        there = jsonfiles.read(workdir / "env.json")
        there.keys()
    except (OSError, UsageError, AttributeError):
        return ["env.json cannot be read"]
    skip = ("command",)
    flat = [dict(leaves({k: v for k, v in env.items() if k not in skip})) for env in (there, here)]
    warned = [event.warning for event in log.read(workdir) if isinstance(event, Warned)]
    changed = [text for text in warned if re.match(r"from step \d+ on ", text)]
    return changed + [
        f"{name}: {flat[0].get(name)} there, {flat[1].get(name)} here"
        for name in sorted(flat[0].keys() | flat[1].keys())
        if flat[0].get(name) != flat[1].get(name)
    ]
