"""Faults made on the disk: what is restored is what was saved, or the checkpoint before it."""

import gc
import hashlib
import json
import shutil
import subprocess
import sys
from typing import Any

import flax.struct
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from alexnet_jax.errors import UsageError
from alexnet_jax.training import checkpoint
from alexnet_jax.training.checkpoint import Checkpoints, items, manifest, parameters_sha256
from alexnet_jax.training.state import init_state

# Orbax does not wait for its other reads and writes when one has failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def a_state(seed, classes=7, tx=None, batch_stats=True):
    rng = np.random.default_rng(seed)
    params = {
        "fc7": {"kernel": rng.normal(size=(2, 40, 30)).astype(np.float32)},
        "fc8": {"bias": rng.normal(size=(2, classes)).astype(np.float32)},
    }
    statistics = {"fc7": {"norm.mean": rng.normal(size=(2, 30)).astype(np.float32)}}
    state = init_state(params, tx or optax.sgd(0.1, momentum=0.9))
    return state.replace(
        step=np.full(2, seed, np.int32),
        opt_state=jax.tree.map(lambda x: x + np.asarray(seed, x.dtype), state.opt_state),
        batch_stats=statistics if batch_stats else {},
    )


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def save(checkpoints, step, state, extra):
    checkpoints.save(step, state, manifest(items(jax.device_get(state))), extra)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(workdir, keep=2) as checkpoints:
        for step in (1, 2):
            state = a_state(step)
            save(checkpoints, step, state, {"best": 0.5, "drops": step})
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def latest(workdir, like=None):
    with Checkpoints(workdir, keep=2) as checkpoints:
        return checkpoints.restore_latest(like or a_state(0))


def test_any_checkpoint_comes_back_by_its_step(workdir):
    with Checkpoints(workdir) as checkpoints:
        state, extra = checkpoints.restore(1, a_state(0))
        assert extra["drops"] == 1
        assert same(state, a_state(1))
        with pytest.raises(UsageError, match="holds no checkpoint 7; there is 1, 2"):
            checkpoints.restore(7, a_state(0))


def test_a_damaged_one_that_was_asked_for_is_named_and_left(workdir):
    largest = max(files(workdir, 1), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"")
    with Checkpoints(workdir) as checkpoints:
        with pytest.raises(UsageError, match=r"checkpoints/1 is damaged"):
            checkpoints.restore(1, a_state(0))
        assert checkpoints.steps() == [1, 2]


def files(workdir, step):
    return sorted(p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file())


def test_the_newest_comes_back_as_it_was(workdir):
    step, state, extra = latest(workdir)
    assert step == 2 and same(state, a_state(2)) and extra == {"best": 0.5, "drops": 2}


@pytest.mark.parametrize("resumed_after", [6, 8])
def test_the_latest_and_the_best_stay_and_no_others(tmp_path, resumed_after):
    """Which is the best is known after it was saved, and said again by a run that resumes."""
    best_after, best = {3: 3, 6: 6, 11: 11}, None
    for steps in (range(1, resumed_after + 1), range(resumed_after + 1, 15)):
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            checkpoints.best = best
            for step in steps:
                state = a_state(step)
                save(checkpoints, step, state, {})
                checkpoints.wait()
                assert set(checkpoints.steps()) == {best or step, max(step - 1, 1), step}
                best = checkpoints.best = best_after.get(step, best)


def test_what_changes_after_the_call_is_saved_as_it_was(tmp_path, monkeypatch):
    """Numbers that a part goes on adding to, while Orbax writes them in a thread."""
    extra, state = {"sums": {"loss": 1.5}}, a_state(1)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        write = checkpoints._manager.save

        def later(*args, **kwargs):
            extra["sums"]["loss"] += 1
            return write(*args, **kwargs)

        monkeypatch.setattr(checkpoints._manager, "save", later)
        save(checkpoints, 1, state, extra)
    assert extra == {"sums": {"loss": 2.5}}
    assert latest(tmp_path)[2] == {"sums": {"loss": 1.5}}


def kept_with(change):
    """The JSON of a checkpoint's plain numbers or manifest, changed as a whole."""

    def write(workdir, item):
        path = workdir / "checkpoints" / "2" / item / "metadata"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return write


def of_the_first(workdir, item):
    place = workdir / "checkpoints"
    shutil.rmtree(place / "2" / item)
    shutil.copytree(place / "1" / item, place / "2" / item)


def change_array(content, **row):
    content["arrays"][".params['fc8']['bias']"].update(row)


TAMPERED = {
    "drops": ("extra", kept_with(lambda numbers: numbers.update(drops=1))),
    "best": ("extra", kept_with(lambda numbers: numbers.update(best=0.25))),
    "best missing": ("extra", kept_with(lambda numbers: numbers.pop("best"))),
    "checksum": ("manifest", kept_with(lambda about: change_array(about, sha256="0" * 64))),
    "finite": ("manifest", kept_with(lambda about: change_array(about, finite=False))),
    "numbers of another": ("extra", of_the_first),
    "manifest of another": ("manifest", of_the_first),
    "parameters of another": ("params", of_the_first),
    "statistics of another": ("batch_stats", of_the_first),
    "optimizer of another": ("optimizer", of_the_first),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_no_longer_belongs_together_is_not_restored(workdir, capsys, name):
    """Well-formed all of it: only the seal and the checksums tell."""
    item, change = TAMPERED[name]
    change(workdir, item)
    step, state, extra = latest(workdir)
    assert step == 1 and same(state, a_state(1)) and extra == {"best": 0.5, "drops": 1}
    assert "checkpoint 2 in " in capsys.readouterr().err


def test_the_checksum_is_of_parameters_and_statistics_alone():
    state = a_state(1)
    checksum = lambda state: parameters_sha256(manifest(items(state)))  # noqa: E731
    before = checksum(state)
    assert before == checksum(a_state(1, tx=optax.adam(0.1)).replace(step=state.step + 1))
    assert before == parameters_sha256(manifest(state.variables))
    w = state.params["fc8"]["bias"]
    for other in ({"bias": w + 1e-3}, {"scale": w}, {"bias": w.T}):
        assert before != checksum(state.replace(params=state.params | {"fc8": other}))
    other = jax.tree.map(lambda x: x + 1, state.batch_stats)
    assert before != checksum(state.replace(batch_stats=other))


def test_variables_are_read_without_an_optimizer(workdir, capsys):
    """Whatever it was, and damaged or not; what is damaged of the rest is passed over."""
    like = a_state(0).variables
    for path in files(workdir, 2):
        if "optimizer" in path.parts:
            path.write_bytes(b"")
    with Checkpoints(workdir) as checkpoints:
        step, variables = checkpoints.restore_variables(None, like)
        assert step == 2 and same(variables, a_state(2).variables)
        assert same(checkpoints.restore_variables(1, like)[1], a_state(1).variables)
        with pytest.raises(UsageError, match=r"another configuration: .batch_stats\['fc7'\]"):
            checkpoints.restore_variables(1, {"params": like["params"]})
    assert not capsys.readouterr().err
    for path in files(workdir, 2):
        if "batch_stats" in path.parts:
            path.write_bytes(b"")
    with Checkpoints(workdir) as checkpoints:
        step, variables = checkpoints.restore_variables(None, like)
    assert step == 1 and same(variables, a_state(1).variables)
    assert "checkpoint 2 in" in capsys.readouterr().err


def test_a_network_without_statistics_has_none_in_its_checkpoints(tmp_path):
    state = a_state(3, batch_stats=False)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 3, state, {})
        checkpoints.wait()
        assert same(checkpoints.restore_latest(state)[1], state)
        assert checkpoints.restore_variables(None, state.variables)[1].keys() == {"params"}
    assert not (tmp_path / "checkpoints" / "3" / "batch_stats").exists()


def test_the_state_of_another_optimizer_is_named_as_such(workdir):
    with pytest.raises(UsageError) as raised:
        latest(workdir, a_state(0, tx=optax.adam(0.1)))
    assert "2 holds the state of another optimizer: .optimizer['opt_state']" in str(raised.value)
    assert latest(workdir)[0] == 2


def test_a_checkpoint_of_version_0_1_is_read_for_its_parameters_alone(tmp_path):
    """It was one item, of which the optimizer was a part."""
    state = a_state(4, batch_stats=False)
    old = OldState(state.step, state.params, state.opt_state, state.rate_scale, state.seed)
    names = {name.replace(".optimizer['", ".", 1).replace("']", "", 1): row
             for name, row in manifest(items(state)).items()
             if name.startswith(".optimizer")}  # fmt: skip
    rows = names | manifest({"params": state.params})
    seal = hashlib.sha256(json.dumps([rows, {}], sort_keys=True).encode()).hexdigest()
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(4, args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(old), extra=ocp.args.JsonSave({}),
            manifest=ocp.args.JsonSave({"arrays": rows, "sha256": seal}),
        ))  # fmt: skip
    with Checkpoints(tmp_path) as checkpoints:
        for step in (None, 4):
            found = checkpoints.restore_variables(step, {"params": state.params})
            assert found[0] == 4 and same(found[1], {"params": state.params})
        with pytest.raises(UsageError, match=r"was written by version 0\.1, whose runs cannot be"):
            checkpoints.restore_latest(state)


@flax.struct.dataclass
class OldState:
    """The state as version 0.1 saved it."""

    step: Any
    params: Any
    opt_state: Any
    rate_scale: Any
    seed: Any


def test_one_flipped_bit_is_never_restored(saved, tmp_path, capsys):
    """In every file, at many places: the checkpoint as it was, or the one before it, named."""
    rng, passed_over = np.random.default_rng(0), 0
    for number, path in enumerate(files(saved, 2)):
        for place in rng.integers(0, max(path.stat().st_size, 1), 4):
            workdir = shutil.copytree(saved, tmp_path / f"{number}-{place}", dirs_exist_ok=True)
            broken = workdir / path.relative_to(saved)
            content = bytearray(broken.read_bytes())
            if not content:
                continue
            content[place] ^= 1 << int(rng.integers(8))
            broken.write_bytes(content)
            step, state, extra = latest(workdir)
            assert same(state, a_state(step)) and extra == {"best": 0.5, "drops": step}, path
            passed_over += step == 1
            said = capsys.readouterr().err
            assert ("checkpoint 2 in " in said and "is damaged" in said) == (step == 1)
            shutil.rmtree(workdir)
    assert passed_over >= 10


@pytest.mark.parametrize("fault", ["truncated", "emptied", "removed"])
def test_files_cut_or_gone_are_passed_over(saved, tmp_path, fault):
    for number, path in enumerate(files(saved, 2)):
        workdir = shutil.copytree(saved, tmp_path / str(number))
        broken = workdir / path.relative_to(saved)
        if fault == "removed":
            broken.unlink()
        else:
            size = path.stat().st_size // 2 if fault == "truncated" else 0
            broken.write_bytes(broken.read_bytes()[:size])
        step, state, _ = latest(workdir)
        assert same(state, a_state(step)), path
        # It is out of the way: the next run saves step 2 again.
        assert (workdir / "checkpoints" / "2").exists() == (step == 2)
        assert latest(workdir)[0] == step


def test_a_stray_folder_is_passed_over(workdir, capsys):
    (workdir / "checkpoints" / "9").mkdir()
    (workdir / "checkpoints" / "9" / "notes.txt").write_text("mine")
    assert latest(workdir)[0] == 2
    kept = list((workdir / "checkpoints").glob("9*/notes.txt"))
    assert len(kept) == 1 and kept[0].read_text() == "mine"


def test_where_none_is_whole_nothing_starts_from_the_beginning(workdir):
    for step in (1, 2):
        for path in files(workdir, step):
            path.write_bytes(b"")
    for _ in range(2):  # nor the second time
        with pytest.raises(UsageError, match="no intact checkpoint"):
            latest(workdir)


@pytest.mark.parametrize(
    "like,names",
    [
        (a_state(0, classes=8), ["'fc8'", "[2, 7]", "[2, 8]"]),
        (a_state(0).replace(batch_stats={"fc9": {"mean": np.zeros(2)}}), [".batch_stats['fc7']"]),
        (a_state(0, batch_stats=False), [".batch_stats['fc7']['norm.mean'] is missing"]),
        (a_state(0).replace(params={"fc7": {"kernel": np.zeros((2, 40, 30))}}), ["float64"]),
    ],
)
def test_another_networks_checkpoint_is_named_and_kept(workdir, like, names):
    with pytest.raises(UsageError, match="another configuration") as raised:
        latest(workdir, like)
    for name in names:
        assert name in str(raised.value)
    assert latest(workdir)[0] == 2


def test_another_networks_checkpoint_among_ours_is_passed_over(workdir, tmp_path, capsys):
    other = a_state(9, classes=8)
    with Checkpoints(tmp_path / "other", keep=2) as checkpoints:
        save(checkpoints, 9, other, {})
    shutil.copytree(tmp_path / "other" / "checkpoints" / "9", workdir / "checkpoints" / "9")
    assert latest(workdir)[0] == 2
    said = capsys.readouterr().err
    assert "checkpoint 9 in" in said and "another configuration" in said and "9.foreign" in said
    assert not (workdir / "checkpoints" / "9").exists() and latest(workdir)[0] == 2


def test_the_manifest_is_readable_by_eye(workdir):
    path = workdir / "checkpoints" / "2" / "manifest" / "metadata"
    rows = json.loads(path.read_text())["arrays"]
    assert rows[".params['fc8']['bias']"]["shape"] == [2, 7]
    assert all(len(row["sha256"]) == 64 for row in rows.values())


def test_a_library_user_is_not_told_what_orbax_thinks_of_it(tmp_path):
    # In a process of its own, without the command line, which is quieter still.
    code = """
import sys, pathlib, numpy as np
import optax
from alexnet_jax.training import checkpoint
from alexnet_jax.training.checkpoint import Checkpoints, items, manifest
from alexnet_jax.training.state import init_state
state = init_state({"w": np.ones((2, 3))}, optax.identity())
with Checkpoints(pathlib.Path(sys.argv[1]), 1) as checkpoints:
    checkpoints.save(1, state, manifest(items(state)), {})
with Checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
    step, state, _ = checkpoints.restore_latest(state)
print(step, state.params["w"][0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("1 [1. 1. 1.]\n", "")


def test_what_was_saved_does_not_stay_in_memory(tmp_path):
    """Without Python's own search for cycles, which comes when it comes."""

    def alive():
        return sum(array.nbytes for array in jax.live_arrays() if array.nbytes == 4_000_000)

    gc.collect()
    gc.disable()
    try:
        with Checkpoints(tmp_path, 2) as checkpoints:
            for step in range(6):
                params = {"w": jax.numpy.full((2, 500_000), step, np.float32)}
                state = init_state(params, optax.identity())
                save(checkpoints, step, state, {})
                checkpoints.wait()
                del state, params
            assert alive() <= 2 * 4_000_000
    finally:
        gc.enable()


# ------------------------------------------------------------------ several processes


VERDICTS = {
    "whole": ("", "is whole"), "damaged": (".damaged", "is damaged (other bytes)"),
    "foreign": (".foreign", "is of another configuration"), "missing": (".damaged", "is missing"),
}  # fmt: skip


@pytest.fixture
def others(monkeypatch):
    """A function that says how other processes read the checkpoints, by their steps."""

    def see(*views):
        def everyone(mine):
            if isinstance(mine, list):  # the steps that there are
                return [mine, *([s for s, kind in v.items() if kind != "missing"] for v in views)]
            if isinstance(mine, tuple):  # what one of them is; they come from the newest on
                step = steps.pop(0)
                return [mine, *(VERDICTS[view.get(step, "missing")] for view in views)]
            return [mine]

        steps = sorted({1, 2}.union(*views), reverse=True)
        monkeypatch.setattr(checkpoint, "everyone", everyone)

    return see


@pytest.mark.parametrize("here", ["whole", "damaged"])
@pytest.mark.parametrize("there", ["whole", "damaged", "foreign", "missing"])
def test_what_to_restore_is_what_all_read_alike(workdir, others, capsys, here, there):
    """A checkpoint that one of two reads otherwise stays, and the one before it is restored."""
    others({1: "whole", 2: there})
    if here == "damaged":
        max(files(workdir, 2), key=lambda path: path.stat().st_size).write_bytes(b"")
    step, state, _ = latest(workdir)
    assert step == (2 if here == there == "whole" else 1) and same(state, a_state(step))
    both_damaged = here == "damaged" and there in ("damaged", "missing")
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert names == ["1", "2.damaged" if both_damaged else "2"]
    err = capsys.readouterr().err
    assert err.count("\n") == (here != "whole" or there != "whole")
    if err and not both_damaged:
        assert f"for process 0 it is {here}" in err and "for process 1 it is" in err


def test_a_step_that_only_another_process_has_is_passed_over(workdir, others, capsys):
    others({1: "whole", 2: "whole", 3: "whole"}, {1: "whole", 2: "whole"})
    assert latest(workdir)[0] == 2
    assert "checkpoint 3 in" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(3))
def test_any_views_of_three_processes_lead_to_one_checkpoint(workdir, others, monkeypatch, seed):
    """The newest that is whole for all, whatever each sees; what all see alike is set aside."""
    rng = np.random.default_rng(seed)
    for _ in range(20):
        kinds = ["whole", "damaged", "foreign"]
        views = [{s: kinds[i] for s, i in zip((1, 2, 3), rng.integers(0, 3, 3), strict=True)}
                 for _ in range(3)]  # fmt: skip
        others(*views[1:])
        aside = []
        with Checkpoints(workdir, keep=2) as checkpoints:
            monkeypatch.setattr(checkpoints, "steps", lambda: [1, 2, 3])
            monkeypatch.setattr(checkpoints, "_judged",
                                lambda step, like: ({}, {}, VERDICTS[views[0][step]]))  # noqa: B023  # fmt: skip
            monkeypatch.setattr(checkpoints, "_set_aside",
                                lambda step, why, kind: aside.append((step, kind)))  # noqa: B023  # fmt: skip
            try:
                found = checkpoints._latest({})
            except UsageError:
                found = None
        whole = [s for s in (1, 2, 3) if all(view[s] == "whole" for view in views)]
        assert (found and found[0]) == max(whole, default=None)
        newer = [s for s in (1, 2, 3) if s > max(whole, default=0)]
        expected = {
            (s, VERDICTS[views[0][s]][0]) for s in newer if len({view[s] for view in views}) == 1
        }
        if not whole:  # Then checkpoints of another configuration stay.
            expected = {(s, kind) for s, kind in expected if kind == ".damaged"}
        assert set(aside) == expected


def test_reading_alone_asks_no_other_process(workdir, monkeypatch):
    def nobody(mine):
        raise AssertionError(mine)

    monkeypatch.setattr(checkpoint, "everyone", nobody)
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.restore_latest(a_state(0))[0] == 2
        assert checkpoints.restore_variables(None, a_state(0).variables)[0] == 2


def test_a_run_from_an_earlier_checkpoint_saves_although_a_later_one_stays(workdir, others):
    others({1: "whole", 2: "damaged"})
    with Checkpoints(workdir, keep=3) as checkpoints:
        step, _, extra = checkpoints.restore_latest(a_state(0))
        assert step == 1 and checkpoints.steps() == [1, 2]
        (workdir / "checkpoints" / "2").rename(workdir / "checkpoints" / "9")
        checkpoints._manager.reload()
        save(checkpoints, 2, a_state(2), extra)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 9]


def test_a_step_that_another_process_has_is_not_written(workdir, monkeypatch):
    monkeypatch.setattr(checkpoint, "everyone", lambda mine: [mine, True])
    with Checkpoints(workdir, keep=2) as checkpoints:
        save(checkpoints, 3, a_state(3), {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
