"""The printed tables against the numbers of the network, counted by hand."""

import re

import pytest

from alexnet_jax.analysis.inspect import align, convention_table, conventions, layer_table
from alexnet_jax.config import default, presets

# Of the full network: side of the map, outputs, kernel, channels that one kernel sees, elements
# that a tower receives from the other one.
NETWORK = {
    "conv1": (55, 96, 11, 3, 0),
    "conv2": (27, 256, 5, 48, 0),
    "conv3": (13, 384, 3, 256, 13 * 13 * 128),
    "conv4": (13, 384, 3, 192, 0),
    "conv5": (13, 256, 3, 192, 0),
    "fc6": (1, 4096, 1, 6 * 6 * 256, 6 * 6 * 128),
    "fc7": (1, 4096, 1, 4096, 2048),
    "fc8": (1, 1000, 1, 4096, 1000),
}
AFTER = {"conv1": "27 x 27 x 96", "conv2": "13 x 13 x 256", "conv5": "6 x 6 x 256"}


def table_of(config):
    """Cells by layer, and the lines below the table."""
    header, rule, *lines = layer_table(config).splitlines()
    names = re.split(r"  +", header)
    assert set(rule) == {"-"}
    end = lines.index("")
    rows = [re.split(r"  +", line) for line in lines[:end] if set(line) != {"-"}]
    return {row[0]: dict(zip(names[1:], row[1:], strict=False)) for row in rows}, lines[end + 1 :]


@pytest.mark.parametrize("preset", ["article", "caffe"])
def test_the_layer_table_is_the_network_by_hand(preset):
    config = presets.get(preset)
    rows, notes = table_of(config)
    assert list(rows) == [*NETWORK, "total"]
    totals = [0, 0, 0]
    for name, (side, outputs, kernel, seen, exchange) in NETWORK.items():
        row = rows[name]
        if preset == "caffe" and name in ("conv1", "conv2"):
            exchange = 2 * side * side  # normalization across the seam: two maps of the neighbour
        weights = kernel * kernel * seen * outputs
        parameters, macs = weights + outputs, weights * side * side
        shape = f"{side} x {side} x {outputs}" if name.startswith("conv") else f"{outputs}"
        if name.startswith("conv"):
            stride = " /4" if name == "conv1" else ""
            assert row["kernels"] == f"{outputs} x {kernel}x{kernel}x{seen}{stride}"
        else:
            assert row["kernels"] == f"{outputs}"
        assert (row["output"], row["after"]) == (shape, AFTER.get(name, shape))
        assert (row["parameters"], row["multiply-adds"]) == (f"{parameters:,}", f"{macs:,}")
        assert row["exchange"] == (f"{exchange:,}" if exchange else "-")
        totals = [a + b for a, b in zip(totals, (parameters, macs, exchange), strict=True)]
    assert list(rows["total"].values()) == [f"{total:,}" for total in totals]
    assert notes[0].startswith(f"2 towers, input {config.data.crop_size} x")


def test_one_tower_exchanges_nothing():
    rows, notes = table_of(presets.get("145-half"))
    assert {row["exchange"] for name, row in rows.items() if name != "total"} == {"-"}
    assert notes[0].startswith("1 tower, ")


@pytest.mark.parametrize(
    "change,name,text",
    [
        ({}, "weights' deviation", "0.01"),
        ({"model.layers.conv3.init_std": 0.5, "model.layers.fc6.init_std": 0.5},
         "weights' deviation", "0.01; c3 f6: 0.5"),
        ({}, "initial biases", "0"),
        ({"model.lrn.enabled": False}, "after conv1", "act, pool"),
        ({"model.lrn.beta": 0.5}, "LRN n, k, beta", "5, 2, 0.5"),
        ({"model.lrn.alpha_divided_by_size": True}, "LRN alpha", "0.0001 / n"),
        ({"model.lrn.across_towers": True}, "LRN window", "across towers"),
        ({"model.pool.window": 2}, "pool", "2 x 2 / 2"),
        ({}, "dropout", "fc6 fc7"),
        ({"model.dropout.rescaled_in_training": False, "model.dropout.rate": 0.25},
         "dropout, training", "plain, x 0.75 in test"),
        ({}, "dropout, training", "rescaled"),
        ({}, "crop, zeros", "224, 0 + 3"),
        ({}, "crop places", "33 x 33 x 2 (flips)"),
        ({"data.pad": 2, "data.random_flip": False}, "crop places", "37 x 37"),
        ({"data.resize": "stretch", "data.shrink": "bilinear"}, "resize", "stretch, bilinear"),
        ({"data.mean": "image"}, "mean", "per pixel"),
        ({"data.colour.rule": "paper", "data.colour.until_epoch": 7.0}, "colour noise",
         "paper, until epoch 7"),
        ({"optimizer.rate_scaling": "sqrt", "optimizer.rate_scaling_batch": 64}, "rate",
         "0.01 x batch / 64, root"),
        ({"optimizer.rate_scaling": "linear"}, "rate", "0.01 x batch / 128"),
        ({"optimizer.warmup_epochs": 5.0}, "warm-up", "5 epochs"),
        ({"optimizer.trust_coefficient": 0.01}, "trust ratio", "x 0.01"),
        ({"optimizer.bias_rate_multiplier": 2.0, "optimizer.biases_follow_schedule": False},
         "rate of biases", "x 2, never dropped"),
        ({}, "rate of biases", "x 1"),
        ({"optimizer.decay_biases": True}, "decay of biases", "yes"),
        ({"optimizer.drop_factor": 0.5}, "schedule", "x 0.5 at 30 60 80"),
        ({"optimizer.schedule": "exponential_steps"}, "schedule", "4 rates, in all / 250"),
        ({"optimizer.schedule": "plateau"}, "schedule", "x 0.1 on a plateau, 3 times"),
        ({"optimizer.schedule": "polynomial"}, "schedule", "x (what is left) ^ 2"),
        ({"optimizer.conv1_drop_epochs": (3.0, 4.0), "optimizer.conv1_freeze_epoch": 9.0},
         "schedule of conv1", "3 4, frozen at 9"),
        ({"optimizer.schedule": "constant", "optimizer.conv1_freeze_epoch": 9.0},
         "schedule of conv1", "with the rest"),
        ({"num_epochs": 2.5}, "epochs", "2.5"),
    ],
)  # fmt: skip
def test_a_convention_is_said_of_the_configuration(change, name, text):
    config = default()
    config.update_from_flattened_dict(change)
    assert conventions(config)[name] == text


def test_a_convention_of_another_run_is_marked_where_it_is_the_same():
    """Of each line: what is of the run, and what it says of the paper and of its source."""
    config = presets.get("source")
    rows = [re.split(r"  +", line) for line in convention_table(config).splitlines()]
    assert rows[0] == ["convention", "this run", "paper", "source"]
    cells = {name: row for name, *row in rows[2:]}
    assert cells["epochs"] == ["91", "90", "="]
    assert cells["batch"] == ["128", "=", "="]
    assert {row[2] for row in cells.values()} == {"="}


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [("a", "bbb", "c"), ("aaaa", "b", "")]
    assert align(rows) == ["a     bbb  c", "aaaa  b"]
    assert align(rows, right=(0, 1)) == ["   a  bbb  c", "aaaa    b"]
