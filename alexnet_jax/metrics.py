"""What a run writes about itself: `metrics.jsonl` and a progress bar."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import tqdm

if TYPE_CHECKING:
    from alexnet_jax.summaries import Sink

LOG = "metrics.jsonl"


class MetricsLog:
    """Appends one JSON object a line to `workdir/metrics.jsonl`.

    One process writes for all. On resume at a step, lines that an earlier run wrote for later steps
    are dropped: the log holds each step once, as if the run had never stopped.
    """

    def __init__(self, workdir: Path, resume_step: int, also: Sequence["Sink"] = ()):
        """Opens the log, kept up to and including `resume_step`; `also` gets what is written."""
        self._also = also
        path = workdir / LOG
        if jax.process_index() > 0:
            path = Path(os.devnull)
        kept = []
        if path.exists() and resume_step > 0:
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= resume_step:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut by a crash
        if path.exists() and not path.is_char_device():
            # In one step: a log of days is not to be lost to a kill in this moment.
            partial = path.with_suffix(".partial")
            partial.write_text("".join(kept))
            partial.replace(path)
        self._file = path.open("a")

    def write(self, **fields: Any) -> None:
        """Writes one line, at once."""
        self._file.write(json.dumps(fields) + "\n")
        self._file.flush()
        for sink in self._also:
            sink.line(fields)

    def __enter__(self) -> Self:
        """The log itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Closes the file and all that gets its lines."""
        for sink in self._also:
            sink.close()
        self._file.close()


class Progress:
    """A bar on a terminal; elsewhere a plain line now and then. One process speaks for all."""

    def __init__(self, total: int, start: int):
        """A run of `total` steps that begins at `start`."""
        self._speaks = jax.process_index() == 0
        self._plain = not sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=total,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=self._plain or not self._speaks,
            smoothing=0.1,
        )

    def update(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(step - self._bar.n)

    def show(self, step: int, total: int, line: dict[str, Any], seconds_left: float) -> None:
        """Shows the latest metrics."""
        if not self._speaks:
            return
        text = (
            f"epoch {line['epoch']:.2f}  loss {line['loss']:.4f}  "
            f"top-1 error {line['top1_error']:.3f}  {line['images_per_second']:.1f} images/s"
        )
        if self._plain:
            left = f"{int(seconds_left // 60)}:{int(seconds_left % 60):02d}"
            print(f"step {step}/{total}  {text}  {left} left", file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix_str(text, refresh=False)

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._speaks:
            self._bar.write(text, file=sys.stderr)

    def __enter__(self) -> Self:
        """The bar itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Ends the bar."""
        self._bar.close()
