"""What importing TensorFlow sets, by calling it anew: it is imported once in a process."""

import os

import pytest
import tensorflow as tf

from alexnet_jax.data.tensorflow_cpu import import_tensorflow


@pytest.fixture
def hidden(monkeypatch):
    """The calls of `set_visible_devices`."""
    calls = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *a: calls.append(a))
    return calls


@pytest.mark.parametrize("chosen", [None, "0", "1"])
def test_the_callers_choice_of_keras_is_as_it_was(monkeypatch, hidden, chosen):
    if chosen is None:
        monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    else:
        monkeypatch.setenv("TF_USE_LEGACY_KERAS", chosen)
    import_tensorflow.__wrapped__()
    assert os.environ.get("TF_USE_LEGACY_KERAS") == chosen


def test_the_gpu_is_hidden_from_tensorflow_and_nothing_else(hidden):
    assert import_tensorflow.__wrapped__() is tf
    assert hidden == [([], "GPU")]


def test_a_program_that_used_tensorflow_before_keeps_its_devices(monkeypatch):
    def refuse(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", refuse)
    assert import_tensorflow.__wrapped__() is tf


@pytest.mark.parametrize("variable", ["TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"])
def test_what_the_caller_set_stays(monkeypatch, hidden, variable):
    monkeypatch.setenv(variable, "1")
    import_tensorflow.__wrapped__()
    assert os.environ[variable] == "1"
