"""The log of a run, `metrics.jsonl`: one JSON object per event, with one writer and one reader."""

import json
import os
from pathlib import Path

import jax

from alexnet_jax import jsonfiles, paths
from alexnet_jax.errors import UsageError
from alexnet_jax.training.events import Event, Saved, from_json, to_json
from alexnet_jax.training.run import Part, Run

LOG = "metrics.jsonl"


class Log(Part):
    """Appends every event to the log at once; of several processes, the first writes.

    A run that resumes from a checkpoint continues after that checkpoint's line. Whatever the
    interrupted run wrote after it is dropped, so that the log reads as if nothing had happened.
    """

    def start(self, run: Run) -> None:
        """Opens the log."""
        path = run.workdir / LOG
        if jax.process_index() > 0:  # pyright: ignore[reportUnknownMemberType]
            path = Path(os.devnull)
        elif os.path.lexists(path):
            # Replaced as a whole: a log of days must not be lost if the process is killed here.
            lines = path.read_text().splitlines() if path.exists() else []
            paths.write(path, "".join(_kept(lines, run.step)))
        self._file = path.open("a")

    def on_event(self, run: Run, event: Event) -> None:
        """Writes a line."""
        del run
        self._file.write(json.dumps(to_json(event)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if hasattr(self, "_file"):
            self._file.close()


def _kept(lines: list[str], step: int) -> list[str]:
    """Returns the lines up to the checkpoint of `step`, without any that a crash cut short."""
    kept: list[str] = []
    for line in lines:
        event = _event(line)
        if event is None or event.step > step:
            continue
        kept.append(line + "\n")
        if isinstance(event, Saved) and event.step == step:
            break
    return kept


def _event(line: str) -> Event | None:
    try:
        return from_json(jsonfiles.loads(line, finite=False))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read(workdir: Path, missing: bool = False) -> list[Event]:
    """Returns the events of a run in order, without any line that a crash cut short.

    Args:
      workdir: the folder of the run.
      missing: whether a missing log is read as one without events.

    Raises:
      UsageError: there is no log.
    """
    path = workdir / LOG
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        if missing:
            return []
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: {reason}: run train first") from error
    return [event for line in lines if (event := _event(line)) is not None]
