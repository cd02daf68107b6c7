"""What a run shows on the terminal."""

import sys

import jax
import tqdm

from alexnet_jax.training.events import Evaluation, Event, NotFinite, TrainingMean, Warned
from alexnet_jax.training.run import Part, Run


class Terminal(Part):
    """Shows a progress bar, or plain lines if there is no terminal.

    Of several processes, the first shows everything.
    """

    def start(self, run: Run) -> None:
        """Says what is run and draws the bar."""
        self._speaks = jax.process_index() == 0
        self._plain = not sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=run.num_steps,
            initial=run.step,
            unit="step",
            dynamic_ncols=True,
            disable=self._plain or not self._speaks,
            smoothing=0.1,
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
        text = (
            f"epoch {event.epoch:.2f}  loss {event.loss:.4f}  "
            f"top-1 error {event.top1_error:.3f}  {event.images_per_second:.1f} images/s"
        )
        if self._plain:
            seconds_left = (
                (run.num_steps - event.step) * run.config.batch_size / event.images_per_second
            )
            left = f"{int(seconds_left // 60)}:{int(seconds_left % 60):02d}"
            print(
                f"step {event.step}/{run.num_steps}  {text}  {left} left",
                file=sys.stderr,
                flush=True,
            )
        else:
            self._bar.set_postfix_str(text, refresh=False)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._speaks:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends the bar."""
        if hasattr(self, "_bar"):
            self._bar.close()
