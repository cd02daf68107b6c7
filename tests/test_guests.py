"""What a guest adds in a file of their own, which is this one, through all that a run goes through.

Each part of a run is found by its name alone: `imports` says where the names come from.
"""

import dataclasses
import inspect
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import optax
import pytest

import alexnet_jax
from alexnet_jax.cli.main import main
from alexnet_jax.data.sources import open_sources
from alexnet_jax.model.operation import Operation
from alexnet_jax.registry import METRICS, OPERATIONS, OPTIMIZERS, SCHEDULES, SOURCES
from alexnet_jax.training.events import TrainingMean
from alexnet_jax.training.optimizers.groups import by_group, scale_by_rate
from tests.support import three_layers

HERE = "tests.test_guests"
ROOT = Path(__file__).parents[1]


class Stripes:
    """A data set with nothing but a length, items and names: grey stripes, bright or dark."""

    class_names = ("dark", "bright", "mixed")

    def __init__(self, seed, count):
        self.seed, self.count = seed, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        label = int(rng.integers(0, 3))
        low, high = ((0, 90), (160, 255), (0, 255))[label]
        image = np.tile(rng.integers(low, high, (1, 40)), (36, 1))
        return image.astype(np.uint8), label


def open_stripes(rest, split, data):
    """`stripes:COUNT`, of which the test split has a third."""
    return Stripes(len(split), int(rest) // (3 if split == "test" else 1))


@dataclasses.dataclass(frozen=True)
class PReLU(Operation):
    """A ReLU whose negative side has a trained slope in each channel (He et al. 2015)."""

    def parameters(self):
        return {"slope": 0.25}

    def __call__(self, x, at):
        return jnp.where(x > 0, x, at.parameters["slope"] * x)

    def onnx(self, graph, x, at):
        slope = at.parameters["slope"]
        if len(at.shape) == 3:  # [C] -> [C, 1, 1]
            slope = graph.add("Unsqueeze", slope, graph.constant(np.array([1, 2])))
        return graph.add("PRelu", x, slope)


def lion(config, steps_per_epoch, num_steps):
    """Lion (Chen et al. 2023) with rates and decay by group of parameters."""

    def rule(group):
        return optax.chain(
            optax.scale_by_lion(b1=config.optimizer.momentum),
            optax.add_decayed_weights(group.decay),
            scale_by_rate(group.rate),
        )

    return by_group(config, steps_per_epoch, num_steps, rule)


def cosine(rate, span):
    """From the first rate to zero, along half a cosine."""
    return optax.cosine_decay_schedule(rate, span.num_steps)


def certainty(scores_BxC, label_B):
    """The probability of the right class."""
    probability_BxC = jax.nn.softmax(scores_BxC)
    return jnp.take_along_axis(probability_BxC, label_B[:, None], axis=1)[:, 0]


MINE = (
    (SOURCES, "stripes", open_stripes),
    (OPERATIONS, "prelu", PReLU),
    (OPTIMIZERS, "lion", lion),
    (OPTIMIZERS, "unscheduled", lambda *_: optax.scale(-0.01)),
    (SCHEDULES, "cosine", cosine),
    (METRICS, "certainty", certainty),
)


def register():
    for mapping, name, value in MINE:
        mapping[name] = value


register()


def config_of(**fields):
    """Three layers that compile in a second, on the guest's images."""
    config = three_layers()
    with config.unlocked():
        config.imports = (HERE,)
        config.data.source = "stripes:90"
        config.num_epochs = 2.0
        config.batch_size = 16
        config.update_from_flattened_dict(fields)
    return config


@pytest.fixture
def forgotten():
    """What a new process knows of this file: nothing, until `imports` is read."""

    def forget():
        for mapping, name, _ in MINE:
            mapping.pop(name, None)
        sys.modules.pop(HERE, None)

    yield forget
    register()


def verb(capsys, *typed):
    """What a verb prints."""
    code = main(list(typed))
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_a_source_is_trained_on_by_its_name(tmp_path, capsys, forgotten):
    forgotten()
    result = alexnet_jax.train(config_of(), tmp_path / "a")
    assert result.net.class_names == Stripes.class_names
    assert {n: m["num_examples"] for n, m in result.metrics.items()} == {
        "validation": 9,
        "test": 30,
    }
    forgotten()
    found = json.loads(verb(capsys, "evaluate", f"--workdir={tmp_path}/a"))
    for name in ("loss", "top1_error"):
        assert found[name] == pytest.approx(result.metrics["test"][name], rel=1e-6)
    forgotten()
    verb(capsys, "report", f"--workdir={tmp_path}/a")
    page = (tmp_path / "a" / "report.html").read_text()
    assert all(name in page for name in Stripes.class_names)


def test_a_sequence_is_trained_on_as_it_is(tmp_path):
    """As by its name: the same images, held out in the same way, give the same numbers."""
    by_name = alexnet_jax.train(config_of(), tmp_path / "name")
    config = config_of(**{"model.num_classes": 3, "imports": ()})
    given = alexnet_jax.train(config, tmp_path / "given", data=Stripes(5, 90), test=Stripes(4, 30))
    for split in ("validation", "test"):
        assert given.metrics[split]["loss"] == by_name.metrics[split]["loss"]
    assert json.loads((tmp_path / "given" / "config.json").read_text())["data"]["source"] == "given"


def test_a_name_that_nobody_registered_says_what_there_is(tmp_path, forgotten):
    forgotten()
    with pytest.raises(alexnet_jax.UsageError, match="no source is called 'stripes:90'; give one"):
        alexnet_jax.train(config_of(imports=()), tmp_path)


def with_prelu(**fields):
    config = config_of(**fields)
    config.model.layers.conv1.then = ("prelu", "max_pool")
    config.model.layers.fc2.then = ("prelu", "dropout")
    return config


def test_an_operation_is_made_trained_evaluated_exported_and_read_again(
    tmp_path, capsys, forgotten
):
    net = alexnet_jax.create(config=with_prelu())
    first = net.variables["params"]["conv1"]["prelu.slope"]
    np.testing.assert_array_equal(first, np.full((2, 4), 0.25))
    forgotten()
    result = alexnet_jax.train(with_prelu(), tmp_path / "a")
    slopes = result.net.variables["params"]["conv1"]["prelu.slope"]
    assert np.ptp(slopes) > 1e-5  # it is trained
    forgotten()
    found = json.loads(verb(capsys, "evaluate", f"--workdir={tmp_path}/a"))
    assert found["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-6)
    verb(capsys, "report", f"--workdir={tmp_path}/a")
    file = tmp_path / "net.onnx"
    verb(capsys, "export", f"--workdir={tmp_path}/a", f"--out={file}")
    forgotten()
    again = alexnet_jax.load(file)
    np.testing.assert_array_equal(again.variables["params"]["conv1"]["prelu.slope"], slopes)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    logits = np.asarray(result.net(images))
    np.testing.assert_allclose(again(images), logits, atol=1e-6)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    image = images.astype(np.float32).transpose(0, 3, 1, 2)
    (probabilities,) = session.run(["probabilities"], {"image": image})
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def with_lion(**fields):
    return config_of(**{
        "optimizer.rule": "lion", "optimizer.schedule": "cosine", "optimizer.learning_rate": 1e-3,
        "optimizer.warmup_epochs": 0.5, "evaluate.metrics": ("certainty",), "log_every_steps": 1,
        **fields,
    })  # fmt: skip


def test_an_optimizer_a_schedule_and_a_metric_go_through_a_run(tmp_path, capsys, forgotten):
    """From a file of a configuration, which only names them."""
    file = tmp_path / "lion.py"
    file.write_text(f"from {HERE} import with_lion as get_config\n")
    forgotten()
    verb(capsys, "train", f"--config={file}", f"--workdir={tmp_path}/a")
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    net = alexnet_jax.load(tmp_path / "a")

    # The metric is the mean over the test images, to which the network is applied by hand.
    source = open_sources(net.config)["test"]
    images, labels = source.squares(net.config.data)(np.arange(30))
    p = np.asarray(jax.nn.softmax(net(images)))
    certain = p[np.arange(30), labels].mean()
    assert result["test"]["metrics"] == {"certainty": pytest.approx(certain, rel=1e-4)}

    # Lion moves each weight by the rate, up or down, and by a little decay.
    lines = map(json.loads, (tmp_path / "a" / "metrics.jsonl").read_text().splitlines())
    rates = [line["learning_rate"] for line in lines if line["event"] == TrainingMean.kind]
    steps = np.arange(len(rates))
    expected = 1e-3 * np.minimum((steps + 1) / 2.5, 1) * (1 + np.cos(np.pi * steps / 10)) / 2
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    start = alexnet_jax.create(config=with_lion()).kernels("fc2")
    moved = np.abs(net.kernels("fc2") - start).max()
    assert sum(rates) / 2 < moved < 1.01 * sum(rates)

    forgotten()
    found = json.loads(verb(capsys, "evaluate", f"--workdir={tmp_path}/a", "--views=10"))
    assert found["metrics"].keys() == {"certainty", "certainty_views"}
    assert found["metrics"]["certainty"] == pytest.approx(certain, rel=1e-4)
    forgotten()
    verb(capsys, "report", f"--workdir={tmp_path}/a")
    page = (tmp_path / "a" / "report.html").read_text()
    assert f'<td>certainty</td><td class="number">{certain:.4f}</td>' in page
    assert 'alt="certainty against epochs: ' in page
    forgotten()
    assert "the same to the bit" in verb(capsys, "verify", f"--workdir={tmp_path}/a")


@pytest.mark.parametrize("example", [lion, cosine, certainty], ids=lambda f: f.__name__)
def test_the_page_shows_what_is_tested_here(example):
    assert inspect.getsource(example) in (ROOT / "docs" / "adding.md").read_text()


def test_a_rule_with_rates_of_its_own_logs_none_and_has_no_plateau(tmp_path):
    result = alexnet_jax.train(config_of(**{"optimizer.rule": "unscheduled"}), tmp_path / "a")
    rates = {event.learning_rate for event in result.log if isinstance(event, TrainingMean)}
    assert rates == {None}
    fields = {"optimizer.rule": "unscheduled", "optimizer.schedule": "plateau"}
    with pytest.raises(alexnet_jax.UsageError, match=r"rates of its own .*'unscheduled'"):
        alexnet_jax.train(config_of(**fields), tmp_path / "b")
