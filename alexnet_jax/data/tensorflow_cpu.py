"""TensorFlow as a reader of images: imported late, without log output, on the CPU only."""

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@functools.cache
def import_tensorflow() -> Any:
    """The `tensorflow` module, imported on the first call.

    Late because the import takes seconds, and neither `--help` nor the network itself needs it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # It does not help decoding and resizing, and writes a log line at every log level.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # Keras takes a third of the import and is not needed here. The variable defers its import to
    # the first use, and is removed afterwards, so that the caller then gets the expected Keras.
    lazy_keras = "TF_USE_LEGACY_KERAS" not in os.environ
    if lazy_keras:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    try:
        with _home():
            import tensorflow as tf
    finally:
        if lazy_keras:
            del os.environ["TF_USE_LEGACY_KERAS"]

    try:  # noqa: SIM105
        # TensorFlow would otherwise reserve the GPU memory that JAX needs.
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        pass  # The caller has already used TensorFlow, and has chosen its devices.
    return tf


def compute_threads() -> list[int]:
    """The threads that TensorFlow has started for its operations, by their names in Linux."""
    found = []
    for name in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            if name.read_text().strip() == "tf_Compute":
                found.append(int(name.parent.name))
    return found


@contextlib.contextmanager
def _home() -> Iterator[None]:
    """A context with a home folder: without one, Keras makes a folder `~` in the current one."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()
        try:
            yield
        finally:
            del os.environ["HOME"]
    else:
        yield
