"""The committed table of compiled programs says what its counts say, and they what was promised."""

import json
import re
from pathlib import Path

import pytest

from alexnet_jax import parallel
from alexnet_jax.config import presets
from alexnet_jax.parallel import exchange
from benchmarks import compiled

RESULTS = Path(compiled.__file__).parent / "results"
ROWS = {compiled.key(row): row for row in json.loads((RESULTS / "compiled.json").read_text())}
TRAINING = {key[:3]: row for key, row in ROWS.items() if key[3] == "training"}
# Of this network, XLA sums all of conv4's gradients over the towers on a TPU, with some padding,
# and then takes a part: twice the exchange of a reduce-scatter, whose scope it does not keep.
ALL_REDUCED = "132"


def test_the_page_is_that_of_the_counts():
    assert (RESULTS / "compiled.md").read_text() == compiled.page(list(ROWS.values()))


def test_the_tables_of_readme_and_documentation_are_those_of_the_counts():
    root = Path(compiled.__file__).parents[1]
    page = (root / "docs" / "placements.md").read_text()
    lines = re.findall(r"^\| `(\w+)` \| (bfloat16|float32) \| (.*) \|$", page, re.MULTILINE)
    readme = (root / "README.md").read_text()
    found = re.search(r"^\| moved through memory, GB a device \| (.*) \|$", readme, re.MULTILINE)
    assert len(lines) >= 6 and found
    for network, dtype, text in [*lines, ("source", "bfloat16", found[1])]:
        cells = [cell.strip() for cell in text.split("|")]
        for name, cell in zip(("h100:1", "h100:2", "h100:8", "v5e:2x2"), cells, strict=True):
            row = ROWS.get((name, dtype, network, "training"))
            assert cell == (f"{row['bytes'] / 1e9:.2f}" if row else "")


def test_every_network_is_there_for_every_device():
    expected = {
        (name, dtype, network, kind)
        for name in compiled.TARGETS
        for dtype in compiled.DTYPES
        for network in compiled.networks()
        for kind in compiled.KINDS
    }
    assert ROWS.keys() == expected and len(expected) == 320


@pytest.mark.parametrize(
    "name,dtype,network,most",
    [
        ("h100:2", "bfloat16", "source", 2.75),
        ("h100:2", "bfloat16", "article", 2.15),
        ("h100:1", "bfloat16", "source", 6.8),
        ("v5e:2x2", "bfloat16", "source", 2.4),
    ],
)
def test_a_step_moves_no_more_than_this(name, dtype, network, most):
    assert ROWS[name, dtype, network, "training"]["bytes"] < most * 1e9


def test_no_training_step_waits_for_its_host_or_copies_much():
    for key, row in TRAINING.items():
        assert all(re.match(r"\d+ MB of maps in float32", x) for x in row["warnings"]), key


@pytest.mark.parametrize("key", TRAINING, ids=" ".join)
def test_what_is_exchanged_is_what_the_table_of_layers_says(key):
    target, dtype, network = key
    all_reduced = target.startswith("v5e") and network == ALL_REDUCED
    row, config = TRAINING[key], presets.get(network)
    config.model.compute_dtype, config.batch_size = dtype, row["batch"]
    groups = row["batch"] // compiled.IMAGES
    points = exchange.points(config, groups) if row["placement"] != "vmap" else []
    expected = {
        point.name: point.bytes * (compiled.IMAGES if point.axis == parallel.TOWER else 1)
        for point in points
    }
    assert row["exchanged"].keys() == expected.keys()
    if all_reduced:
        expected["conv4"] /= 2
        expected["gradients"] += 2 * expected["conv4"]
    for point, size in expected.items():
        # The three sums of the metrics travel with the gradients.
        more = 12 * 2 * (groups - 1) / groups if point == "gradients" else 0
        # Whole bytes of shares of several sums, or the padding.
        padding = 60_000 if all_reduced and point == "gradients" else 8
        assert row["exchanged"][point] == pytest.approx(size + more, abs=padding), point
