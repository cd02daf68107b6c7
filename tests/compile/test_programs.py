"""Programs for GPUs and TPUs, compiled here: what they move, exchange and wait for.

Figures are those of jax 0.10.1, which compiles for these devices as it is pinned; another version
may move more or less.
"""

import jax
import pytest

from alexnet_jax.analysis import compile as ahead
from alexnet_jax.analysis.targets import target
from alexnet_jax.config import presets
from alexnet_jax.parallel import hlo
from alexnet_jax.parallel.placement import arrange

pytestmark = [
    pytest.mark.compile,
    # JAX 0.12, which still has it.
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning"),
]

# GB that a device moves through its memory in a training step of 128 images for each pair: at most.
MOST = [
    ("h100:2", "source", "bfloat16", 2.75),
    ("h100:2", "article", "bfloat16", 2.15),
    ("h100:2", "source", "float32", 4.8),
    ("h100:1", "source", "bfloat16", 6.8),
    ("v5e:2x2", "source", "bfloat16", 2.4),
]


def run(preset, dtype, batch):
    config = presets.get(preset)
    config.batch_size, config.model.compute_dtype = batch, dtype
    return config


def compiled(name, preset, dtype, batch=None, **changes):
    aim = target(name)
    devices = ahead.devices_of(aim)
    config = run(preset, dtype, batch or 128 * max(len(devices) // 2, 1))
    config.update_from_flattened_dict(changes)
    placement = arrange(config, devices)
    return ahead.training(config, placement, aim), placement


@pytest.mark.skipif(jax.__version__ != "0.10.1", reason="figures of jax 0.10.1")
@pytest.mark.parametrize("name,preset,dtype,most", MOST)
def test_a_step_moves_no_more_than_this(name, preset, dtype, most):
    step, _ = compiled(name, preset, dtype)
    assert step.bytes < most * 1e9
    assert step.peak < target(name).device.memory / 4


@pytest.mark.parametrize(
    "name,preset,dtype",
    [
        ("h100:2", "caffe", "bfloat16"),
        ("h100:8", "article", "float32"),
        ("a100:4", "paper", "bfloat16"),
        ("v5e:2x2", "caffe", "bfloat16"),
    ],
)
def test_a_step_exchanges_what_the_arithmetic_says(name, preset, dtype):
    step, placement = compiled(name, preset, dtype)
    metrics = 3 * 4 * 2 * (placement.data_parallel - 1) / placement.data_parallel
    assert step.exchanged.keys() == step.expected.keys()
    for point, bytes_ in step.expected.items():
        more = metrics if point == "gradients" else 0
        assert step.exchanged[point] == pytest.approx(bytes_ + more, abs=4), point


# XLA sums the gradients of fc7 meanwhile in float32, and those of fc6 in bfloat16; the sum of the
# other one follows the last convolution.
@pytest.mark.parametrize("dtype,weights", [("float32", 4096 * 2048), ("bfloat16", 9216 * 2048)])
def test_gpus_sum_large_gradients_while_convolutions_are_differentiated(dtype, weights):
    aim = target("h100:8")
    config = run("source", "bfloat16", 512)
    config.gradient_sum_dtype = dtype
    placement = arrange(config, ahead.devices_of(aim))
    text = ahead.optimize(ahead.lower_training(config, placement), placement, aim).as_text()
    program = hlo.parse(text)
    order = program.computations[program.entry]
    begin = next(
        i for i, one in enumerate(order)
        if one.opcode == "all-reduce-start" and one.results[0].elements == weights
    )  # fmt: skip
    assert order[begin].results[0].width == {"float32": 4, "bfloat16": 2}[dtype]
    end = next(i for i, one in enumerate(order) if one.operands == (order[begin].name,))
    meanwhile = [one.scope for one in order[begin:end] if one.opcode == "custom-call"]
    assert sum("transpose" in scope and "/conv" in scope for scope in meanwhile) >= 3


@pytest.mark.parametrize("name,preset", [("h100:2", "source"), ("rtx4090:1", "paper")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_step_waits_for_its_host_or_copies_much(name, preset, dtype):
    step, _ = compiled(name, preset, dtype)
    assert not step.warnings


def test_an_evaluation_compiles_and_fits():
    aim = target("h100:2")
    config = run("source", "bfloat16", 128)
    found = ahead.evaluation(config, arrange(config, ahead.devices_of(aim)), aim, 10)
    assert 0 < found.peak < 2e9 and found.bytes > 0 and not found.warnings
