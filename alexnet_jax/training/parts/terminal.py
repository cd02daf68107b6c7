"""What a run shows on the terminal."""

import contextlib
import os
import shutil
import sys
import time

import jax
import tqdm

from alexnet_jax.training.events import Evaluation, Event, NotFinite, TrainingMean, Warned
from alexnet_jax.training.run import Part, Run, Series

_BAR = "{desc}{percentage:3.0f} % |{bar}| step {n_fmt}/{total_fmt}{postfix}"
_CELLS = 10
"""Fewest columns of the bar; what does not fit beside it is left out as a whole."""
_TIMES = "1:00:00 left, study 10:00:00 left"
"""What there must be room for, if the name of a run of a study is to be shown."""


class Terminal(Part):
    """Shows a progress bar, or lines of the same content if there is no terminal.

    Of several processes, the first shows everything. The time left is that of the latest steps. No
    time is derived from the first mean, whose first step waits for the compiler. Of a study, the
    runs that follow take as long as the finished ones and the steps of this one did on average.
    """

    def __init__(self, series: Series | None = None):
        """Prepares a run, or one of a series."""
        self._series = series
        self._first: tuple[int, float] | None = None

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
            desc=self._label(run),
        )
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
        left = [f"{what}{duration(seconds)} left" for what, seconds in self._left(run, event)]
        epoch, loss = f"epoch {event.epoch:.2f}", f"loss {event.loss:.4f}"
        error, speed = (
            f"top-1 error {event.top1_error:.3f}",
            f"{event.images_per_second:.1f} images/s",
        )
        if self._plain:
            label = [self._labels()[0]] if self._series else []
            parts = [f"step {event.step}/{run.num_steps}", epoch, loss, error, speed, *left]
            print("  ".join([*label, *parts]), file=sys.stderr, flush=True)
        else:
            label = self._label(run)
            room = self._room(run) - len(label)
            self._bar.set_description_str(label, False)
            self._bar.set_postfix_str(_fitting([*left, loss, error, speed, epoch], room), False)

    def _left(self, run: Run, event: TrainingMean) -> list[tuple[str, float]]:
        """The seconds left of the run and, if it is one of several, of all of them."""
        now = time.monotonic()
        if self._first is None:
            self._first = event.step, now
            return []
        seconds = (run.num_steps - event.step) * run.config.batch_size / event.images_per_second
        if (series := self._series) is None:
            return [("", seconds)]
        first, since = self._first
        done = len(series.seconds) + (event.step - first) / run.num_steps
        spent = sum(series.seconds) + now - since
        following = series.count - series.number
        return [("", seconds), ("study ", seconds + following * spent / done)]

    def _labels(self) -> list[str]:
        """What the run is called among several: in full, and by its number alone."""
        if (series := self._series) is None:
            return []
        number = f"run {series.number}/{series.count}"
        return [f"{number} {series.name}", number]

    def _label(self, run: Run) -> str:
        """The longest that leaves room for the times."""
        room = self._room(run) - len(_TIMES)
        return next((f"{x} " for x in self._labels() if len(x) < room), "")

    def _room(self, run: Run) -> int:
        """The columns beside the shortest bar and the steps."""
        columns = shutil.get_terminal_size().columns
        with contextlib.suppress(OSError, ValueError):  # a terminal other than standard output
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
        return columns - len(f"100 % || step {run.num_steps}/{run.num_steps}, ") - _CELLS

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


def _fitting(parts: list[str], room: int) -> str:
    """As many of these, the most important first, as fit into the columns."""
    text = ""
    for part in parts:
        longer = f"{text}, {part}" if text else part
        if len(longer) > room:
            break
        text = longer
    return text
