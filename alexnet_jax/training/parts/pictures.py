"""Pictures of what a network has learned so far: its first kernels and its predictions."""

from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.data import pipeline
from alexnet_jax.data.classes import five_best, words
from alexnet_jax.errors import UsageError
from alexnet_jax.training import evaluate
from alexnet_jax.training.parts.viewers import Viewer
from alexnet_jax.training.run import Due, Part, Run

SAMPLES = 8


class Pictures(Part):
    """Draws the kernels of conv1 and the predictions for some images at each evaluation.

    The images are of the split that steers. Nothing is drawn without such a split, if one of the
    images cannot be read and `data.max_unreadable` allows that, or with several processes, because
    none of them has all the weights.
    """

    def __init__(self, config: ConfigDict, viewers: Sequence[Viewer]):
        """Prepares a run of `config`, whose pictures `viewers` show."""
        self._config = config
        self._viewers = viewers if jax.process_count() == 1 else ()

    def start(self, run: Run) -> None:
        """Chooses and reads the images."""
        if not self._config.evaluate.splits:
            self._viewers = ()
        if not self._viewers:
            return
        source = run.sources[self._config.evaluate.splits[-1]]
        self._names = words(source.class_names)
        count = min(SAMPLES, source.num_examples)
        indices = np.sort(np.random.default_rng(0).permutation(source.num_examples)[:count])
        try:
            read = pipeline.checked(source, source.squares(self._config.data))
            self._images, self._labels = read(indices)
        except UsageError:
            if not self._config.data.max_unreadable:
                raise
            self._viewers = ()
            return
        # Repeated, so that the batch divides over the groups of devices.
        share = run.placement.data_parallel
        filled = np.resize(np.arange(count), -(-count // share) * share)
        self._batch = {
            "image": self._images[filled],
            "label": self._labels[filled],
            "index": indices[filled].astype(np.int32),
            "mask": np.ones(len(filled), np.float32),
        }
        self._predict = evaluate.make_predict_step(run.tower, run.inputs, run.placement, 1)

    def after_step(self, run: Run, due: Due) -> None:
        """Draws the current weights if an evaluation is due."""
        if not self._viewers or not due.evaluate:
            return
        # Takes half a second to import, which most runs do not need.
        from alexnet_jax.training import drawing

        kernels = parallel.to_host(run.state.params[run.tower.layers[0].name]["kernel"])
        batch = run.placement.put_batch(self._batch)
        probabilities, _ = parallel.to_host(self._predict(run.state.variables, batch))
        answers = [
            (image, self._names[label], five_best(p, self._names, int(label)))
            for image, label, p in zip(self._images, self._labels, probabilities, strict=False)
        ]
        for viewer in self._viewers:
            viewer.picture(run.step, "conv1 kernels", drawing.kernels(kernels))
            viewer.picture(run.step, "predictions", drawing.predictions(answers))
