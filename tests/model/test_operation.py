"""What every operation has, and what a guest's does where it says nothing."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest
from ml_collections import ConfigDict

from alexnet_jax.config import default, table
from alexnet_jax.config.fields import Field
from alexnet_jax.errors import UsageError
from alexnet_jax.model.operation import GraphSite, Operation, of_maps
from alexnet_jax.model.tower import (
    build_tower,
    draw_parameters,
    initial_statistics,
    parameter_shapes,
)
from alexnet_jax.registry import ACTIVATIONS, OPERATIONS
from alexnet_jax.weights.column import from_towers
from alexnet_jax.weights.files import write
from alexnet_jax.weights.onnx_graph import to_graph
from tests.support import three_layers


@dataclasses.dataclass(frozen=True)
class Affine(Operation):
    """`gain * x + shift`, and the number of steps so far in each channel."""

    group = "affine"
    fields = {"gain": Field(3.0, "Initial gain.")}  # noqa: RUF012 - as a guest writes it
    gain: float

    def parameters(self):
        return {"gain": self.gain, "shift": -1.0}

    def statistics(self):
        return {"steps": 5.0}

    def __call__(self, x, at):
        at.statistics["steps"] = at.statistics["steps"] + 1
        return at.parameters["gain"] * x + at.parameters["shift"]


@pytest.fixture
def affine():
    """The digits network of three layers with the operation after the first two."""
    OPERATIONS["affine"] = Affine
    config = three_layers()
    config.model.layers.conv1.then = ("affine", "activation", "max_pool")
    config.model.layers.fc2.then = ("activation", "affine")
    config.model.affine.gain = 2.0
    yield config
    del OPERATIONS["affine"]


def test_its_constants_are_those_of_its_group():
    model = ConfigDict({"affine": {"gain": 7.0, "other": 1.0}})
    assert Affine.of(model) == Affine(7.0)


def test_fields_without_a_group_are_a_mistake_in_the_class():
    with pytest.raises(TypeError, match="Nameless has fields: set its group"):

        class Nameless(Operation):
            fields = {"gain": Field(3.0, "Initial gain.")}  # noqa: RUF012


def test_what_says_nothing_changes_no_shape_and_cannot_be_exported():
    plain = Operation()
    assert plain.shape((4, 4, 6)) == (4, 4, 6) and plain.received((4, 4, 6), 2) == 0
    assert plain.parameters() == plain.statistics() == {}
    with pytest.raises(UsageError, match=r"^cannot be exported to ONNX: Affine has no"):
        Affine(1.0).onnx(None, "x", GraphSite((4, 4, 6), 2, {}, {}))


@pytest.mark.parametrize("op", ["max_pool", "avg_pool", "lrn", "within_map_norm"])
def test_an_operation_on_maps_cannot_follow_a_dense_layer(op):
    config = default()
    config.model.layers.fc6.then = ("activation", op)
    with pytest.raises(UsageError, match=rf"layers\.fc6\.then = .*: {op}: no map left"):
        table.count(config.model, 224)
    assert of_maps((5, 5, 2)) == (5, 5, 2)


def test_its_values_lie_beside_those_of_the_layer(affine):
    tower = build_tower(affine.model)
    params, statistics = draw_parameters(tower, 0, 32), initial_statistics(tower, 32)
    assert list(params["conv1"]) == ["kernel", "bias", "affine.gain", "affine.shift"]
    np.testing.assert_array_equal(params["conv1"]["affine.gain"], np.full((2, 4), 2, np.float32))
    np.testing.assert_array_equal(params["fc2"]["affine.shift"], np.full((2, 12), -1, np.float32))
    assert statistics.keys() == {"conv1", "fc2"} and tower.has_statistics
    np.testing.assert_array_equal(statistics["fc2"]["affine.steps"], np.full((2, 12), 5))
    shapes = jax.tree.map(lambda x: x.shape, parameter_shapes(tower, 32))
    assert shapes == jax.tree.map(np.shape, params)
    plain = build_tower(three_layers().model)
    assert not plain.has_statistics and initial_statistics(plain, 32) == {}


def test_the_tower_applies_it_and_keeps_its_statistics_in_training_only(affine):
    tower = build_tower(affine.model)
    variables = {"params": draw_parameters(tower, 0, 32)}
    variables["batch_stats"] = initial_statistics(tower, 32)
    images, index = np.ones((2, 32, 32, 3), np.float32), np.arange(2)

    def run(key, **more):
        return jax.vmap(
            lambda v: tower.apply(
                v, images, key, index, mutable=["batch_stats", "intermediates"], **more
            ),
            axis_name="tower",
        )(variables)[1]

    state = run(None)
    first = state["intermediates"]["fc2_out"][0]
    # The last of fc2's operations: 2 max(x, 0) - 1.
    assert first.min() == -1 and first.max() > -1
    np.testing.assert_array_equal(state["batch_stats"]["conv1"]["affine.steps"], np.full((2, 4), 5))
    for frozen, steps in (((), 6), (("conv1",), 5)):
        after = run(jax.random.key(0), frozen=frozen)["batch_stats"]
        np.testing.assert_array_equal(after["conv1"]["affine.steps"], np.full((2, 4), steps))
        np.testing.assert_array_equal(after["fc2"]["affine.steps"], np.full((2, 12), 6))


def test_the_number_of_channels_stays(affine, monkeypatch):
    monkeypatch.setattr(Affine, "shape", lambda self, shape: (*shape[:-1], shape[-1] // 2))
    with pytest.raises(UsageError, match=r"conv1\.then = .*: affine: makes 4 channels of 8"):
        table.count(affine.model, 32)


def test_arrays_of_one_name_cannot_be_there_twice(affine):
    affine.model.layers.fc2.then = ("affine", "activation", "affine")
    with pytest.raises(UsageError, match="affine has values of its own, so it can follow a layer"):
        table.read_layers(affine.model)


@pytest.fixture
def page():
    """What the page on adding says, done."""
    text = (Path(__file__).parents[2] / "docs" / "adding.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    space = {}
    for block in blocks:
        if "Activation(" in block or "silu_nodes" in block:
            exec(block, space)
    yield
    for name in ("cube", "elu", "silu"):
        del ACTIVATIONS[name]


@pytest.mark.parametrize("name", ["elu", "silu"])
def test_the_activations_of_the_page_are_exported(page, name, tmp_path):
    x = np.linspace(-3, 3, 7)
    by_hand = {"elu": np.where(x > 0, x, np.exp(x) - 1), "silu": x / (1 + np.exp(-x))}
    np.testing.assert_allclose(ACTIVATIONS[name].function(x), by_hand[name], rtol=1e-5)
    config = three_layers()
    config.model.activation = name
    tower = build_tower(config.model)
    params = draw_parameters(tower, 0, 32)
    mean = np.float32(config.data.channel_mean)
    write(from_towers(config, {"params": params}, mean, ()), tmp_path / "net.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    scaled = (images - mean) * config.data.scale
    logits = jax.vmap(lambda p: tower.apply({"params": p}, scaled), axis_name="tower")(params)[0]
    session = onnxruntime.InferenceSession(
        tmp_path / "net.onnx", providers=["CPUExecutionProvider"]
    )
    image = images.astype(np.float32).transpose(0, 3, 1, 2)
    (found,) = session.run(["probabilities"], {"image": image})
    np.testing.assert_allclose(found, jax.nn.softmax(logits), atol=1e-5)


def test_an_activation_without_a_counterpart_is_not_exported(page):
    config = three_layers()
    config.model.activation = "cube"
    column = from_towers(
        config, {"params": draw_parameters(build_tower(config.model), 0, 32)}, np.zeros(3), ()
    )
    with pytest.raises(UsageError, match="activation after conv1 cannot be exported to ONNX: give"):
        to_graph(column)
