"""TensorFlow as a reader of images: imported late, quiet, and kept off the accelerators."""

import functools
import os
from typing import Any


@functools.cache
def import_tensorflow() -> Any:
    """The `tensorflow` module, imported on the first call.

    Late because the import takes seconds that `--help` and the network itself do not need.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Of no use to decoding and resizing, and announced by a log line that no level silences.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # Keras is a third of the import and of no use here. The variable means "load it on first use",
    # and goes again, so that what is loaded then is the Keras that the caller expects.
    lazy_keras = "TF_USE_LEGACY_KERAS" not in os.environ
    if lazy_keras:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    try:
        import tensorflow as tf
    finally:
        if lazy_keras:
            del os.environ["TF_USE_LEGACY_KERAS"]

    try:  # noqa: SIM105
        # It would otherwise reserve the GPU memory that JAX is about to ask for.
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        pass  # The caller used TensorFlow before us: what it sees is the caller's choice by now.
    return tf
