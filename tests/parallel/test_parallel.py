"""What a placement gives each device, and the same training under every placement."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import parallel
from alexnet_jax.cli.main import main
from alexnet_jax.config import default
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import open_source
from alexnet_jax.data.sources.prepared import Prepared
from alexnet_jax.errors import UsageError
from alexnet_jax.model.tower import build_tower, draw_parameters, parameter_shapes
from alexnet_jax.training import evaluate, optimizers
from alexnet_jax.training import workdir as workdirs
from alexnet_jax.training.checkpoint import Checkpoints, items, manifest
from alexnet_jax.training.loop import train_and_evaluate
from alexnet_jax.training.state import init_state
from tests.support import PLACEMENTS, Step, placement_of, tiny_config


@pytest.mark.parametrize("name", PLACEMENTS)
def test_each_device_gets_its_tower_and_its_part_of_the_batch(name):
    """And results come back whole: a tower's own stacked, what is the same once."""
    placement = placement_of(*PLACEMENTS[name])
    weights, batch = np.array([[2.0], [3.0]], np.float32), np.arange(16, dtype=np.float32)

    def fn(weight, part):
        tower = jax.lax.axis_index("tower")
        own = weight[0] * placement.sum_over_data(part.sum()) + 1000 * tower
        share = jax.lax.psum(jnp.float32(part.size), "tower")
        summed = placement.sum_over_data({"x": jax.lax.psum(own, "tower")})
        return {"own": own}, summed, share, placement.join_over_data(part)

    run = placement.spread(fn, ("tower", "batch"), ("tower", "same", "same", "same"))
    placed = placement.put_towers(weights), placement.put_batch(batch)
    stacked, same, share, joined = parallel.to_host(run(*placed))
    np.testing.assert_array_equal(joined, batch)
    parts = placement.data_parallel
    np.testing.assert_array_equal(stacked["own"], [240, 360 + 1000])
    assert same["x"] == 1600 * parts and share == 2 * 16 / parts
    alone = placement.spread(lambda w: w * 2, ("tower",), "tower")
    np.testing.assert_array_equal(alone(placed[0]), 2 * weights)
    for t, which in ((0, weights), (1, batch)):
        for shard in placed[t].addressable_shards:
            row, column = np.argwhere(placement.mesh.devices == shard.device)[0]
            if name == "vmap":
                expected = which
            elif t == 0:
                expected = weights[column : column + 1]
            else:
                expected = batch.reshape(parts, -1)[row]
            np.testing.assert_array_equal(shard.data, expected)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_sum_over_the_parts_of_a_batch_may_be_sent_in_a_narrower_type(name):
    placement = placement_of(*PLACEMENTS[name])
    parts = placement.data_parallel
    rows = np.random.default_rng(5).normal(size=(parts, 999)).astype(np.float32)

    def fn(tower, rows):
        del tower
        return placement.sum_over_data(rows[0], jnp.bfloat16), placement.sum_over_data(rows[0])

    run = placement.spread(fn, ("tower", "batch"), ("same", "same"))
    placed = placement.put_towers(np.zeros(2)), placement.put_batch(rows)
    narrow, exact = parallel.to_host(run(*placed))
    assert narrow.dtype == exact.dtype == np.float32
    np.testing.assert_allclose(exact, rows.sum(0), rtol=1e-5, atol=1e-6)
    if parts == 1 and placement.name != "mesh":
        np.testing.assert_array_equal(narrow, exact)  # nothing is sent
        return
    assert not np.array_equal(narrow, exact)
    np.testing.assert_array_equal(narrow, narrow.astype(jnp.bfloat16))
    # A rounding of each part, and of each addition: 8 bits.
    assert np.all(np.abs(narrow - exact) <= 2.0**-8 * parts * np.abs(rows).sum(0))


def noisy_config():
    """Digits with crops, flips, PCA noise and dropout: every source of chance is on."""
    config = tiny_config()
    config.update_from_flattened_dict(
        {"data.colour.rule": "source", "data.random_flip": True, "batch_size": 64}
    )
    for name in config.model.layer_order:
        config.model.layers[name].init_std = 0.1  # so that it learns from the first step on
    assert config.model.dropout.rate == 0.5 and config.data.random_crop
    return config


def train_steps(config, placement, steps):
    """Losses of `steps` steps over the digits as `train` would feed them."""
    step = Step(config, placement, steps_per_epoch=22, num_steps=22)
    state = step.start(draw_parameters(step.net, config.seed, config.data.crop_size))
    batches = pipeline.train_batches(
        open_source("digits", "train"), config.data, seed=config.seed, batch_size=config.batch_size
    )
    losses = []
    for _ in range(steps):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["loss"]))
    return losses


def test_twenty_steps_give_the_same_losses_everywhere():
    losses = {
        name: train_steps(noisy_config(), placement_of(kind, data), 20)
        for name, (kind, data) in PLACEMENTS.items()
    }
    assert np.ptp(losses["vmap"]) > 0.1  # it does move
    for name, values in losses.items():
        np.testing.assert_allclose(values[:3], losses["vmap"][:3], rtol=1e-6, err_msg=name)
        # Later a rounding may move the maximum of a pool to its neighbour, and that grows: on some
        # processors to 1e-3.
        np.testing.assert_allclose(values, losses["vmap"], rtol=3e-3, err_msg=name)


@pytest.mark.parametrize("name,parts", [("vmap", 4), ("mesh 4 x 2", 8)])
def test_a_batch_in_parts_gives_the_same_losses(name, parts):
    placement, config = placement_of(*PLACEMENTS[name]), noisy_config()
    whole = train_steps(config, placement, 10)
    config.accumulate_steps = parts
    np.testing.assert_allclose(train_steps(config, placement, 10), whole, rtol=1e-4)


def test_a_checkpoint_walks_over_placements(tmp_path):
    """vmap, pmap, 4 x 2, vmap, five steps or so on each, and one run that stays."""
    config = noisy_config()
    ends = {}
    for name, placements in {
        "walks": ("vmap", "pmap", "mesh", "vmap"),
        "stays": ("vmap",),
    }.items():
        for i, placement in enumerate(placements, 1):
            config.placement = placement
            config.num_epochs = i / len(placements)
            result = train_and_evaluate(config, tmp_path / name)
            assert result["placement"] == placement
        assert result["steps"] == 20
        net, tx = build_tower(config.model), optimizers.build(config, 20, 20)
        like = init_state(parameter_shapes(net, config.data.crop_size), tx)
        with Checkpoints(tmp_path / name) as checkpoints:
            step, state, _ = checkpoints.restore_latest(like)
        assert step == 20
        ends[name] = state.params
    for (path, walked), stayed in zip(
        jax.tree_util.tree_leaves_with_path(ends["walks"]), jax.tree.leaves(ends["stays"]),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(walked, stayed, atol=1e-5, err_msg=str(path))


class HostsOf:
    """A mesh over processes with a number of devices each, to be asked who owns what."""

    def __init__(self, processes, devices_each, towers):
        owners = np.repeat(np.arange(processes), devices_each)
        devices = [types.SimpleNamespace(process_index=int(owner)) for owner in owners]
        self.devices = np.array(devices).reshape(-1, towers)
        self.shape = {parallel.DATA: len(self.devices), "tower": towers}


@pytest.mark.parametrize("towers", [1, 2, 4])
def test_each_process_reads_the_examples_of_its_devices(towers, monkeypatch, tmp_path):
    """And all of them together each example once, for any number of hosts, devices, examples."""
    squares = tmp_path / "squares"
    squares.write_bytes(bytes(3 * 400))
    rng = np.random.default_rng(towers)
    for _ in range(30):
        processes, each = int(rng.integers(1, 9)), int(2 ** rng.integers(0, 4))
        if processes * each % towers or (each % towers and towers % each):
            continue
        mesh = HostsOf(processes, each, towers)
        placement = parallel.Placement("mesh", mesh)
        config = default()
        config.evaluate.batch_size = int(rng.integers(1, 200))
        config.data.image_size = 1
        views, count = int(rng.choice([1, 9, 10])), int(rng.integers(1, 400))
        size = evaluate.batch_size(config, views, placement)
        share = size // placement.data_parallel
        seen = {}
        for process in range(processes):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            which, parts = placement.batch_part
            own = range(which * size // parts, (which + 1) * size // parts)
            rows = [r for r, group in enumerate(mesh.devices) for d in group
                    if d.process_index == process]  # fmt: skip
            assert {i // share for i in own} == set(rows)
            labels = np.zeros(count, np.int32)
            source = Prepared("", "", ("a",), squares, 1, 0, labels, "short_side", "area")
            batches = pipeline.eval_batches(
                source, config.data, batch_size=size, part=(which, parts)
            )
            seen[which] = [
                i for batch in batches for i in batch["index"][batch["mask"] > 0]
            ]  # processes that share a group of devices read the same
        assert sorted(i for part in seen.values() for i in part) == list(range(count))


@pytest.mark.parametrize(
    "asked,found,described",
    [
        ("auto", 8, "mesh 4 x 2 (data x tower), 8 cpu devices"),
        ("auto", 2, "pmap, 2 cpu devices"),
        ("auto", 1, "vmap, 1 cpu device"),
        ("vmap", 8, "vmap, 1 cpu device"),
        ("pmap", 8, "pmap, 2 cpu devices"),
        ("mesh", 2, "mesh 1 x 2 (data x tower), 2 cpu devices"),
    ],
)
def test_the_placement_follows_from_the_devices(asked, found, described, monkeypatch):
    devices = jax.devices()[:found]
    monkeypatch.setattr(jax, "devices", lambda: devices[::-1])  # in any order
    config = default()
    config.placement = asked
    placement = parallel.place(config)
    assert placement.describe() == described
    assert placement.data_parallel == len(placement.mesh.devices)
    assert [*placement.mesh.devices.flat] == devices[: placement.mesh.devices.size]


@pytest.mark.parametrize(
    "changes,field",
    [
        ({"placement": "mesh", "batch_size": 130}, "batch_size"),
        ({"placement": "mesh", "model.towers": 3}, "placement"),
        ({"placement": "pmap", "model.towers": 16}, "placement"),
        ({"placement": "mesh", "evaluate.batch_size": 6}, "evaluate.batch_size"),
        ({"placement": "mesh", "accumulate_steps": 64}, "accumulate_steps"),  # of 32 images each
    ],
)
def test_devices_that_do_not_fit_are_named(changes, field):
    config = default()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UsageError, match=rf"^config\.{field} ="):
        parallel.place(config)


# ------------------------------------------------------------------ work on a run of elsewhere


@pytest.mark.parametrize("asked", ["auto", "vmap", "pmap", "mesh"])
@pytest.mark.parametrize("towers", [1, 2, 3])
@pytest.mark.parametrize("found", range(1, 9))
def test_a_run_of_elsewhere_is_read_on_any_devices(asked, towers, found, monkeypatch):
    """On as many of them as make whole groups of towers, whatever the training batch."""
    devices = jax.devices()[:found]
    monkeypatch.setattr(jax, "devices", lambda: devices[::-1])
    config = default()
    config.update_from_flattened_dict({"placement": asked, "model.towers": towers, "batch_size": 7})
    placement = parallel.place_near(config)
    used = placement.mesh.devices
    groups = found // towers
    most = {"vmap": 0, "pmap": min(groups, 1)}.get(asked, groups)
    if asked == "auto" and found == 1:
        most = 0
    assert used.shape == ((most, towers) if most else (1, 1))
    assert (placement.name == "vmap") == (most == 0)
    assert asked in ("auto", placement.name) or not groups
    assert [*used.flat] == devices[: used.size]


@pytest.mark.parametrize(
    "like,found,batch,described",
    [
        (("mesh", 8), 8, 32, "mesh 4 x 2 (data x tower), 8 cpu devices"),
        (("mesh", 4), 8, 32, "mesh 2 x 2 (data x tower), 4 cpu devices"),
        (("pmap", 2), 8, 32, "pmap, 2 cpu devices"),
        (("vmap", 1), 8, 32, "vmap, 1 cpu device"),
        (("mesh", 8), 6, 32, "mesh 2 x 2 (data x tower), 4 cpu devices"),
        (("mesh", 8), 6, 33, "mesh 3 x 2 (data x tower), 6 cpu devices"),
        (("mesh", 8), 3, 32, "mesh 1 x 2 (data x tower), 2 cpu devices"),
        (("mesh", 8), 1, 32, "vmap, 1 cpu device"),
        (("pmap", 2), 1, 32, "vmap, 1 cpu device"),
    ],
)
def test_steps_are_repeated_where_the_run_was_or_as_near_as_batches_allow(
    like, found, batch, described, monkeypatch
):
    devices = jax.devices()[:found]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    config = default()
    config.update_from_flattened_dict({"batch_size": batch, "evaluate.batch_size": batch})
    assert parallel.place_near(config, like, trains=True).describe() == described


def test_no_device_at_all_is_an_error_that_says_what_to_set(monkeypatch):
    def none():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for place in (parallel.place, parallel.place_near):
        with pytest.raises(UsageError, match=r"^JAX finds no device with JAX_PLATFORMS=cuda: set"):
            place(default())


real = jax.devices()


def test_a_run_is_evaluated_on_other_devices(tmp_path, monkeypatch, capsys):
    """Its weights are those that it started with; eight devices had them."""
    config = tiny_config()
    config.placement = "mesh"
    tower = build_tower(config.model)
    state = init_state(draw_parameters(tower, 0, 32), optimizers.build(config, 10, 10))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, manifest(items(state)), {})
    workdirs.write_config(config, tmp_path)
    monkeypatch.setattr(jax, "devices", lambda: real[:3])
    assert main(["evaluate", f"--workdir={tmp_path}"]) == 0
    now = json.loads(capsys.readouterr().out)
    assert now["num_examples"] == 360 and now["loss"] == pytest.approx(np.log(10), abs=0.1)


def test_a_run_is_verified_where_it_was_or_the_verdict_says_where(tmp_path, monkeypatch, capsys):
    config = tiny_config()
    config.update_from_flattened_dict({"placement": "mesh", "num_epochs": 0.1})
    train_and_evaluate(config, tmp_path)
    assert main(["verify", f"--workdir={tmp_path}"]) == 0
    assert "the same to the bit" in (out := capsys.readouterr().out) and "the run was" not in out
    monkeypatch.setattr(jax, "devices", lambda: real[:3])
    main(["verify", f"--workdir={tmp_path}"])
    assert (
        "the run was on mesh 4 x 2 (data x tower), 8 cpu devices; "
        "here it is mesh 1 x 2 (data x tower), 2 cpu devices: equal up to rounding only"
    ) in capsys.readouterr().out
