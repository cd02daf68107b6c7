"""Runs whose optimizer and images are given in Python, wherever they are called from."""

import asyncio
import json
import signal
import threading

import numpy as np
import optax
import pytest

from alexnet_jax.analysis import report, verify
from alexnet_jax.data.sources import given_sources
from alexnet_jax.errors import UsageError
from alexnet_jax.training import log
from alexnet_jax.training.events import Evaluation, TrainingMean
from alexnet_jax.training.loop import train_and_evaluate
from alexnet_jax.training.origin import config_of, load
from alexnet_jax.training.stop import Stop
from tests.support import three_layers

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 32, 32, 3), np.uint8)
LABELS = RNG.integers(0, 10, 40)


def config_with(**changes):
    config = three_layers()
    with config.unlocked():
        config.placement, config.batch_size, config.num_epochs = "vmap", 8, 2.0
        config.data.random_crop = config.data.random_flip = False
        config.log_every_steps = config.checkpoint_every_steps = 3
        config.update_from_flattened_dict(changes)
    return config


def train(workdir, until=None, splits=("train", "validation"), optimizer=None, **changes):
    config = config_with(**changes)
    sources = given_sources(config, (IMAGES, LABELS), test=(IMAGES[:16], LABELS[:16]))
    sources = {name: source for name, source in sources.items() if name in splits}
    return train_and_evaluate(config, workdir, until=until, sources=sources, optimizer=optimizer)


@pytest.fixture(scope="module")
def adam(tmp_path_factory):
    """The folder of a run with `optax.adam`, and its result."""
    folder = tmp_path_factory.mktemp("adam")
    return folder, train(folder, optimizer=optax.adam(1e-3))


def test_plain_descent_is_the_rule_of_2012_without_momentum_and_decay(tmp_path):
    """Stochastic gradient descent by Optax; the same formula, and other operations."""
    given = train(tmp_path / "given", optimizer=optax.sgd(0.125))
    rule = train(
        tmp_path / "rule",
        **{"optimizer.learning_rate": 0.125, "optimizer.momentum": 0.0,
           "optimizer.weight_decay": 0.0},
    )  # fmt: skip
    assert given["validation"]["loss"] == pytest.approx(rule["validation"]["loss"], rel=1e-5)
    weights = [load(tmp_path / name).params["fc2"]["kernel"] for name in ("given", "rule")]
    np.testing.assert_allclose(*weights, rtol=1e-4, atol=1e-6)
    rates = {
        name: [e.learning_rate for e in log.read(tmp_path / name) if isinstance(e, TrainingMean)]
        for name in ("given", "rule")
    }
    # Rates that are not ours are not logged.
    assert set(rates["given"]) == {None} and set(rates["rule"]) == {0.125}
    assert "learning_rate" not in (tmp_path / "given" / "metrics.jsonl").read_text()


def test_it_resumes_to_the_bit(adam, tmp_path):
    assert train(tmp_path, until=3, optimizer=optax.adam(1e-3)) == {"step": 3}
    assert train(tmp_path, optimizer=optax.adam(1e-3)) == adam[1]


def test_the_state_of_an_optimizer_may_begin_with_other_values_than_zero(tmp_path):
    """The rate is part of the state: a run that began with zeros would not move."""
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.125)
    train(tmp_path, optimizer=optimizer)
    first, last = (load(tmp_path, step=step).params["fc2"]["kernel"] for step in (6, 8))
    assert not np.array_equal(first, last)


def test_what_was_given_must_be_given_again(adam):
    folder, _ = adam
    config = config_of(folder)
    assert (config.optimizer.rule, config.data.source) == ("given", "given")
    with pytest.raises(UsageError, match=r"8 holds the state of another optimizer: .optimizer\["):
        train(folder, optimizer=optax.sgd(1e-3), num_epochs=9.0)
    with pytest.raises(UsageError, match=r"config\.optimizer\.rule = 'given', not 'sgd_2012'"):
        train(folder)
    with pytest.raises(UsageError, match="rule = 'given': the optimizer of this run was given in"):
        train(folder, **{"optimizer.rule": "given", "num_epochs": 9.0})
    config.num_epochs = 9.0
    with pytest.raises(UsageError, match="the images of this run were given in Python"):
        train_and_evaluate(config, folder, optimizer=optax.adam(1e-3))
    with pytest.raises(UsageError, match="the images of this run were given in Python"):
        verify.verify(config, folder)
    page = report.write(folder).read_text()
    assert "the images of this run were given in Python" in page and "validation, 4 images" in page
    assert load(folder).step == 8


def test_a_plateau_cannot_lower_the_rates_of_a_given_optimizer(tmp_path):
    with pytest.raises(UsageError, match="'plateau': its drops do not reach an optimizer with"):
        train(tmp_path / "run", optimizer=optax.sgd(1e-3), **{"optimizer.schedule": "plateau"})
    assert not (tmp_path / "run").exists()


def test_without_a_test_split_the_end_is_that_of_validation_or_of_training(adam, tmp_path):
    folder, result = adam
    assert result["validation"]["num_examples"] == 4 and "test" not in result
    evaluations = [event for event in log.read(folder) if isinstance(event, Evaluation)]
    assert [(event.step, event.split) for event in evaluations] == [
        (4, "validation"), (8, "validation"),  # not twice after the last step
    ]  # fmt: skip
    tested = train(tmp_path / "test", splits=("train", "test"))
    assert tested["test"]["num_examples"] == 16 and "validation" not in tested
    for _ in range(2):  # and once more from the end
        alone = train(tmp_path / "alone", splits=("train",))
        last = log.read(tmp_path / "alone")[-2]
        assert isinstance(last, TrainingMean) and alone["training"] == {
            name: getattr(last, name) for name in ("loss", "top1_error", "top5_error")
        }
    config = json.loads((tmp_path / "alone" / "config.json").read_text())
    assert config["evaluate"]["splits"] == [] and config["data"]["validation_fraction"] == 0


def test_sources_must_fit_the_network(tmp_path):
    with pytest.raises(UsageError, match="sources holds validation: it needs 'train'"):
        train(tmp_path, splits=("validation",))
    config = config_with(**{"model.num_classes": 11})
    sources = given_sources(config_with(), (IMAGES, LABELS))
    with pytest.raises(UsageError, match="num_classes = 11, but the images of train have 10"):
        train_and_evaluate(config, tmp_path, sources=sources)


def test_a_thread_may_train(adam, tmp_path):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(train(tmp_path, optimizer=optax.adam(1e-3)))
    )
    thread.start()
    thread.join()
    assert found == [adam[1]]


def test_an_event_loop_gets_its_signals_during_a_run_and_after_it(adam, tmp_path):
    got = []

    async def program():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGUSR1, signal.SIGTERM):
            loop.add_signal_handler(number, got.append, number)
        try:
            with Stop():
                signal.raise_signal(signal.SIGUSR1)
                for _ in range(100):  # The loop is told by another thread.
                    await asyncio.sleep(0.01)
                    if got:
                        break
            result = train(tmp_path, optimizer=optax.adam(1e-3))
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
        finally:
            for number in (signal.SIGUSR1, signal.SIGTERM):
                loop.remove_signal_handler(number)
        return result

    assert asyncio.run(program()) == adam[1]
    assert got == [signal.SIGUSR1, signal.SIGTERM]


def test_a_handler_that_python_did_not_install_becomes_the_default_one(monkeypatch):
    monkeypatch.setattr(signal, "signal", (real := signal.signal))
    before = real(signal.SIGTERM, signal.SIG_DFL)
    try:
        monkeypatch.setattr(signal, "signal", lambda *a: real(*a) and None)
        stop = Stop()
        with stop:
            monkeypatch.setattr(signal, "signal", real)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        real(signal.SIGTERM, before)
        real(signal.SIGINT, signal.default_int_handler)
