"""Whether a run is what its log says: its first steps once more, compared bit for bit."""

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax import workdir as workdirs
from alexnet_jax.errors import UsageError
from alexnet_jax.metrics import LOG
from alexnet_jax.train import train_and_evaluate

_TIMES = ("images_per_second", "data_wait_fraction")
_SPLITS = ("train", "test", "checkpoint")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    Attributes:
      until: the last step that was run again.
      lines: of the log up to there, compared.
      checksums: of the parameters, among these lines.
      differences: a line each, in the order of the log.
      environment: what is another here than where the run was made, a line each.
    """

    until: int
    lines: int
    checksums: int
    differences: tuple[str, ...]
    environment: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def text(self) -> str:
        """For people."""
        what = (
            f"steps 1 to {self.until}: {self.lines} lines of metrics.jsonl, "
            f"{self.checksums} with a checksum of all parameters"
        )
        if self.same:
            return f"the same to the bit, {what}"
        rows = [f"not the same, {what}", *(f"  {line}" for line in self.differences[:10])]
        if len(self.differences) > 10:
            rows.append(f"  and {len(self.differences) - 10} more")
        rows += ["what else is different here:"] if self.environment else []
        return "\n".join([*rows, *(f"  {line}" for line in self.environment)])


def verify(config: ConfigDict, workdir: Path, until: int = 0) -> Verdict:
    """Trains the first steps of `workdir` again, in a folder of its own that is removed after.

    Args:
      config: the one in `workdir`.
      workdir: is only read.
      until: the last step; 0 is that of the first checkpoint in the log.

    Raises:
      UsageError: the workdir has no log, or none of these steps in it.
    """
    logged = read_log(workdir)
    saved = sorted(step for step, split in logged if split == "checkpoint")
    if not saved:
        raise UsageError(f"--workdir={workdir}: its metrics.jsonl has no checkpoint: train first")
    until = until or saved[0]
    if until > saved[-1]:
        raise UsageError(f"--until={until}: the log of {workdir} is whole up to step {saved[-1]}")
    here = workdirs.environment(parallel.place(config))
    with tempfile.TemporaryDirectory(prefix="alexnet_jax-verify-") as folder:
        train_and_evaluate(config, Path(folder), until=until)
        again = read_log(Path(folder))
    lines = {key: line for key, line in logged.items() if key[0] <= until}
    return Verdict(
        until=until,
        lines=len(lines),
        checksums=sum(split == "checkpoint" for _, split in lines),
        differences=tuple(_differences(lines, again)),
        environment=tuple(_environment(workdir, here)),
    )


def read_log(workdir: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """The lines of `metrics.jsonl` that a repetition must reproduce, by step and split.

    Raises:
      UsageError: it is not there.
    """
    path = workdir / LOG
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return {
            (row["step"], _kind(row)): {k: v for k, v in row.items() if k not in _TIMES}
            for row in rows
            if row["split"] in _SPLITS
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not the log of a run ({error})") from error


def _kind(row: dict[str, Any]) -> str:
    """Of a line: a test on the training images is none of the steps of training."""
    return f"{row['split']} images" if "num_examples" in row else row["split"]


def _differences(logged: dict, again: dict) -> list[str]:
    found = []
    for (step, split), line in logged.items():
        # The last step saves whatever the log says, so that only the log's own are asked for.
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
        there = json.loads((workdir / "env.json").read_text())
    except (OSError, ValueError):
        return ["env.json cannot be read"]
    skip = ("command",)
    flat = [workdirs.flat({k: v for k, v in env.items() if k not in skip}) for env in (there, here)]
    changed = re.findall(r'"warning": "(from step \d+ on .*?)"\}', (workdir / LOG).read_text())
    return changed + [
        f"{name}: {flat[0].get(name)} there, {flat[1].get(name)} here"
        for name in sorted(flat[0].keys() | flat[1].keys())
        if flat[0].get(name) != flat[1].get(name)
    ]
