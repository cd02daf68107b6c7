"""Programs that show a run while it trains: TensorBoard, Weights & Biases.

They get the events of `metrics.jsonl`, which remains the log, and pictures. Means of training steps
are called `training/...`, evaluations `evaluation/SPLIT/...`.
"""

import io
import json
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import jsonfiles
from alexnet_jax.data.tensorflow_cpu import import_tensorflow
from alexnet_jax.errors import UsageError
from alexnet_jax.training.events import Evaluation, Event, Warned, to_json
from alexnet_jax.training.run import Part, Run
from alexnet_jax.training.workdir import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "tensorboard"


class Viewer(Part):
    """A part that sends events and pictures to another program."""

    def picture(self, step: int, name: str, figure: "Figure") -> None:
        """Shows the figure `name` of a step."""
        raise NotImplementedError


def open_viewers(config: ConfigDict) -> list[Viewer]:
    """The viewers that `config` asks for; of several processes, the first shows everything."""
    if jax.process_index() > 0:
        return []
    found: list[Viewer] = []
    if config.tensorboard:
        found.append(TensorBoard())
    if config.wandb_project:
        found.append(WeightsAndBiases())
    return found


def scalars(event: Event) -> dict[str, float]:
    """Returns the numbers of an event by their names, such as `evaluation/test/loss`."""
    group, values = event.kind, to_json(event)
    if isinstance(event, Evaluation):
        group, values = f"{event.kind}/{event.split}", values | event.metrics
    return {
        f"{group}/{name}": float(value)
        for name, value in values.items()
        if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def png(figure: "Figure") -> bytes:
    """Returns a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


class TensorBoard(Viewer):
    """Event files: `tensorboard --logdir=WORKDIR`.

    A run that resumes repeats some steps and writes their points once more, with the same values,
    so that the curves look as if it had not been interrupted.
    """

    def start(self, run: Run) -> None:
        """Opens a new event file."""
        self._tf = import_tensorflow()
        self._writer = self._tf.summary.create_file_writer(str(run.workdir / FOLDER))

    def on_event(self, run: Run, event: Event) -> None:
        """Writes the numbers of an event, or the text of a warning."""
        del run
        for name, value in scalars(event).items():
            self._write("scalars", event.step, name, np.array(value, np.float32))
        if isinstance(event, Warned):
            self._write("text", event.step, "warning", np.array([event.warning], object))

    def picture(self, step: int, name: str, figure: "Figure") -> None:
        """See `Viewer`."""
        width, height = (str(int(100 * side)) for side in figure.get_size_inches())
        self._write("images", step, name, np.array([width, height, png(figure)], object))

    def _write(self, plugin: str, step: int, name: str, value: np.ndarray) -> None:
        # TensorFlow's own tf.summary.scalar and .image need the package tensorboard.
        tf = self._tf
        metadata = tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = plugin
        with self._writer.as_default():
            tf.summary.write(name, tf.constant(value), step=step, metadata=metadata)

    def close(self) -> None:
        """Writes whatever is left."""
        if hasattr(self, "_writer"):
            self._writer.close()


class WeightsAndBiases(Viewer):
    """A run of Weights & Biases; `workdir/wandb.json` keeps its id, with which it is resumed."""

    def __init__(self) -> None:
        """Imports the package.

        Raises:
          UsageError: it is not installed.
        """
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UsageError(
                "config.wandb_project needs Weights & Biases: pip install wandb"
            ) from error
        self._wandb: Any = wandb

    def start(self, run: Run) -> None:
        """Starts or resumes the run there."""
        kept = run.workdir / "wandb.json"
        try:
            known = jsonfiles.read(kept)["id"]
        except (OSError, UsageError, LookupError, TypeError):
            known = None
        self._run = self._wandb.init(
            project=run.config.wandb_project, name=run.workdir.resolve().name,
            dir=str(run.workdir), id=known, resume="allow",
            config=json.loads(run.config.to_json()),
        )  # fmt: skip
        write_json(kept, {"id": self._run.id})

    def on_event(self, run: Run, event: Event) -> None:
        """Sends the numbers of an event, or a warning as an alert."""
        del run
        if values := scalars(event):
            self._run.log(values, step=event.step)
        if isinstance(event, Warned):
            self._run.alert(title="warning", text=event.warning)

    def picture(self, step: int, name: str, figure: "Figure") -> None:
        """See `Viewer`."""
        from PIL import Image

        image = self._wandb.Image(Image.open(io.BytesIO(png(figure))))
        self._run.log({name: image}, step=step)

    def close(self) -> None:
        """Ends the run there."""
        if hasattr(self, "_run"):
            self._run.finish()
