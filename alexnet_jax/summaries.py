"""What else a run tells while it goes: TensorBoard's event files, Weights & Biases.

`metrics.jsonl` stays the one log: what is sent here is its lines, and pictures of what the network
has learnt so far.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import evaluate, parallel
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import Source
from alexnet_jax.data.tensorflow_cpu import import_tensorflow
from alexnet_jax.errors import UsageError
from alexnet_jax.predict import five_best
from alexnet_jax.trained import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 8
FOLDER = "tensorboard"


class Sink(Protocol):
    """Somewhere to look at a run."""

    def line(self, fields: dict[str, Any]) -> None:
        """A line of the log: numbers, and the text of a warning."""
        ...

    def picture(self, step: int, name: str, figure: "Figure") -> None:
        """What a figure shows at a step."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


def open_sinks(config: ConfigDict, workdir: Path) -> list[Sink]:
    """Those that `config` asks for; the first process speaks for all.

    Raises:
      UsageError: Weights & Biases is asked for and not installed.
    """
    if jax.process_index() > 0:
        return []
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoard(workdir / FOLDER))
    if config.wandb_project:
        sinks.append(WeightsAndBiases(config, workdir))
    return sinks


def scalars(fields: dict[str, Any]) -> dict[str, float]:
    """`{"split": "test", "loss": 1.5}` as `{"test/loss": 1.5}`; what is no number is left out."""
    return {
        f"{fields['split']}/{name}": float(value)
        for name, value in fields.items()
        if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def png(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


class TensorBoard:
    """Event files: `tensorboard --logdir=WORKDIR`.

    A run that was interrupted repeats some steps, and with them their points: of the same values,
    so that curves are as if it had not been.
    """

    def __init__(self, folder: Path):
        """Opens a new event file in `folder`."""
        self._tf = import_tensorflow()
        self._writer = self._tf.summary.create_file_writer(str(folder))

    def line(self, fields: dict[str, Any]) -> None:
        """See `Sink`."""
        for name, value in scalars(fields).items():
            self._write("scalars", fields["step"], name, np.float32(value))
        if "warning" in fields:
            self._write("text", fields["step"], "warning", np.array([fields["warning"]], object))

    def picture(self, step: int, name: str, figure: "Figure") -> None:
        """See `Sink`."""
        width, height = (str(int(100 * side)) for side in figure.get_size_inches())
        self._write("images", step, name, np.array([width, height, png(figure)], object))

    def _write(self, plugin: str, step: int, name: str, value: np.ndarray) -> None:
        # TensorFlow's own tf.summary.scalar and .image need the package tensorboard to be there.
        tf = self._tf
        metadata = tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = plugin
        with self._writer.as_default():
            tf.summary.write(name, tf.constant(value), step=step, metadata=metadata)

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()


class WeightsAndBiases:
    """A run there, which a resumed run here goes on with: its id is in `workdir/wandb.json`."""

    def __init__(self, config: ConfigDict, workdir: Path):
        """Starts the run, or takes it up again."""
        try:
            import wandb
        except ImportError as error:
            raise UsageError(
                "config.wandb_project needs Weights & Biases: pip install wandb"
            ) from error
        self._wandb, kept = wandb, workdir / "wandb.json"
        try:
            known = json.loads(kept.read_text())["id"]
        except (OSError, ValueError, KeyError):
            known = None
        self._run = wandb.init(
            project=config.wandb_project, name=workdir.resolve().name, dir=str(workdir), id=known,
            resume="allow", config=json.loads(config.to_json()),
        )  # fmt: skip
        kept.write_text(json.dumps({"id": self._run.id}) + "\n")

    def line(self, fields: dict[str, Any]) -> None:
        """See `Sink`."""
        if values := scalars(fields):
            self._run.log(values, step=fields["step"])
        if "warning" in fields:
            self._run.alert(title="warning", text=fields["warning"])

    def picture(self, step: int, name: str, figure: "Figure") -> None:
        """See `Sink`."""
        buffer = io.BytesIO(png(figure))
        from PIL import Image

        self._run.log({name: self._wandb.Image(Image.open(buffer))}, step=step)

    def close(self) -> None:
        """See `Sink`."""
        self._run.finish()


class Pictures:
    """Draws conv1's kernels and what the network says of some test images, at each evaluation.

    Of several processes no one sees all that this needs: they draw nothing. Nor does a run that may
    leave unreadable images out (`data.max_unreadable`), where one of those chosen is.
    """

    def __init__(
        self, network: Network, source: Source, placement: parallel.Placement, sinks: Sequence[Sink]
    ):
        """Chooses the images; the network's parameters are those given with each step."""
        self._sinks = sinks if jax.process_count() == 1 else ()
        if not self._sinks:
            return
        self._network, self._placement = network, placement
        count = min(SAMPLES, source.num_examples)
        indices = np.sort(np.random.default_rng(0).permutation(source.num_examples)[:count])
        try:
            self._images = pipeline.squares(source, network.config.data, indices)
        except UsageError:
            if not network.config.data.max_unreadable:
                raise
            self._sinks = ()
            return
        self._labels = source.read(indices)[1]
        # As many as fill whole shares: the first ones are there again.
        share = placement.data_parallel
        filled = np.resize(np.arange(count), -(-count // share) * share)
        self._batch = {
            "image": self._images[filled],
            "label": self._labels[filled],
            "index": indices[filled].astype(np.int32),
            "mask": np.ones(len(filled), np.float32),
        }
        self._predict = evaluate.make_predict_step(network.tower, network.inputs, placement, 1)

    def draw(self, step: int, params: dict) -> None:
        """Of the parameters on the devices after a step."""
        if not self._sinks:
            return
        # Takes half a second to import, which most runs do not need.
        from alexnet_jax import figures

        names = self._network.class_names
        kernels = parallel.to_host(params[self._network.tower.layers[0].name]["kernel"])
        batch = self._placement.put_batch(self._batch)
        probabilities, _ = parallel.to_host(self._predict(params, batch))
        predictions = [
            (image, names[label], five_best(p, names, int(label)))
            for image, label, p in zip(self._images, self._labels, probabilities, strict=False)
        ]
        for sink in self._sinks:
            sink.picture(step, "conv1 kernels", figures.kernels(kernels))
            sink.picture(step, "predictions", figures.predictions(predictions))
