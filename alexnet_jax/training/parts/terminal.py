"""What a run shows on the terminal."""

import contextlib
import os
import shutil
import sys

import jax
import tqdm

from alexnet_jax.training.events import Evaluation, Event, NotFinite, TrainingMean, Warned
from alexnet_jax.training.run import Part, Run

_BAR = "{percentage:3.0f} % |{bar}| step {n_fmt}/{total_fmt}{postfix}"
_CELLS = 12
"""Fewest columns of the bar; what does not fit beside it is left out as a whole."""


class Terminal(Part):
    """Shows a progress bar, or lines of the same content if there is no terminal.

    Of several processes, the first shows everything. The time left is that of the latest steps; of
    the first step, which waits for the compiler, none is derived.
    """

    def start(self, run: Run) -> None:
        """Says what is run and draws the bar."""
        self._speaks = jax.process_index() == 0
        self._plain = not sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=run.num_steps,
            initial=run.step,
            bar_format=_BAR,
            dynamic_ncols=True,
            disable=self._plain or not self._speaks,
        )
        self._first = run.step + 1
        source = run.sources["train"]
        self.say(
            f"{run.placement.describe()}; {source.name}: {source.num_examples} training "
            f"images, {run.num_steps} steps, from step {run.step}"
        )

    def before_step(self, run: Run) -> None:
        """Advances the bar."""
        self._bar.update(run.step - self._bar.n)

    def on_event(self, run: Run, event: Event) -> None:
        """Shows an event."""
        match event:
            case TrainingMean():
                self._bar.update(run.step - self._bar.n)
                self._show(run, event)
            case Evaluation():
                self.say(
                    f"step {event.step}  {event.split}: loss {event.loss:.4f}, top-1 error "
                    f"{event.top1_error_views or event.top1_error:.4f}"
                    + (f" ({event.views} views)" if event.views > 1 else "")
                    + "".join(f", {name} {value:.4f}" for name, value in event.metrics.items())
                )
            case Warned():
                self.say(f"warning: {event.warning}")
            case NotFinite():
                first, more = event.not_finite[0], len(event.not_finite) - 1
                which = f"{first} and {more} more" if more else first
                self.say(f"warning: step {event.step}: {which} not finite; the step is not applied")
            case _:
                pass

    def _show(self, run: Run, event: TrainingMean) -> None:
        if not self._speaks:
            return
        epoch, loss = f"epoch {event.epoch:.2f}", f"loss {event.loss:.4f}"
        error, speed = (
            f"top-1 error {event.top1_error:.3f}",
            f"{event.images_per_second:.1f} images/s",
        )
        seconds = (run.num_steps - event.step) * run.config.batch_size / event.images_per_second
        left = [] if event.step == self._first else [f"{duration(seconds)} left"]
        if self._plain:
            parts = [f"step {event.step}/{run.num_steps}", epoch, loss, error, speed, *left]
            print("  ".join(parts), file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix_str(self._fitting([*left, loss, error, speed, epoch]), False)

    def _fitting(self, parts: list[str]) -> str:
        """As many of these, the most important first, as leave room for the bar."""
        columns = shutil.get_terminal_size().columns
        with contextlib.suppress(OSError, ValueError):  # a terminal other than standard output
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
        total = self._bar.total
        room = columns - len(f"100 % || step {total}/{total}") - _CELLS
        text = ""
        for part in parts:
            longer = f"{text}, {part}" if text else part
            if len(longer) + len(", ") > room:
                break
            text = longer
        return text

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._speaks:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends the bar."""
        if hasattr(self, "_bar"):
            self._bar.close()


def duration(seconds: float) -> str:
    """A time as minutes and seconds, with hours if there are any: `3:12`, `1:03:12`."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
