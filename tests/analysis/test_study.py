"""Studies: which runs they are made of; runs cut, shared out and put together again."""

import contextlib
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from alexnet_jax.analysis import outcomes, study
from alexnet_jax.cli.main import main
from alexnet_jax.config import leaves
from alexnet_jax.errors import Stopped, UsageError
from alexnet_jax.training import loop as train
from alexnet_jax.training.run import Series
from tests.analysis.logs import training_mean, write_log
from tests.training.test_train import short_config

ROOT = Path(__file__).parents[2]
VARIANTS = {
    "base": {},
    "lrn-off": {"model.lrn.enabled": False},
}


def small(**changes):
    base = short_config()
    base.placement, base.evaluate.every_epochs = "vmap", 1.0
    return study.study(
        base, VARIANTS, (0, 1), title="small", **{"paper": {"lrn-off": 1.4}} | changes
    )


@contextlib.contextmanager
def _learned():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcomes, "at_chance", lambda loss, classes: False)
        yield


@pytest.fixture
def learned():
    """Runs of eight steps, which cannot have learned anything, count as trained."""
    with _learned():
        yield


def outputs(folder):
    return {name: (folder / name).read_bytes() for name in ("table.md", "table.csv", "figure.png")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert study.run(small(), folder) == []
    with _learned():
        study.write(small(), folder)
    return folder


def test_a_study_ends_with_table_and_figure(whole):
    text = (whole / "table.md").read_text()
    assert "| base |" in text and "+1.4" in text
    with (whole / "table.csv").open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(VARIANTS)

    def error(name, seed):
        result = json.loads((whole / name / f"seed-{seed}" / "result.json").read_text())
        return 100 * result["test"]["top1_error"]

    results = {name: [error(name, seed) for seed in (0, 1)] for name in VARIANTS}
    for name, values in results.items():
        assert [float(rows[name][f"seed_{s}"]) for s in (0, 1)] == pytest.approx(values, rel=1e-5)
        assert float(rows[name]["mean"]) == pytest.approx(np.mean(values), rel=1e-5)
        assert float(rows[name]["deviation"]) == pytest.approx(np.std(values, ddof=1), rel=1e-5)
    assert (whole / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_runs_differ_by_seed_and_by_variant(whole):
    def first_loss(name, seed):
        workdir = whole / name / f"seed-{seed}"
        assert json.loads((workdir / "config.json").read_text())["seed"] == seed
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return next(line["loss"] for line in lines if line["event"] == "training")

    losses = {first_loss(name, seed) for name in VARIANTS for seed in (0, 1)}
    assert len(losses) == 4


def test_in_parts_and_any_order_it_is_the_same(learned, whole, tmp_path):
    for part in ((2, 3), (3, 3), (1, 3)):
        study.run(small(), tmp_path, part)
    study.write(small(), tmp_path)
    assert outputs(tmp_path) == outputs(whole)


@pytest.fixture
def trained(monkeypatch):
    """Every run that a study asks for, as (folder, configuration); none of them trains."""
    asked = []

    def train_and_evaluate(config, workdir, series=None):
        asked.append((workdir, config))
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(config.to_json())
        (workdir / "result.json").write_text(json.dumps({"test": {"top1_error": 0.5}}))

    monkeypatch.setattr(train, "train_and_evaluate", train_and_evaluate)
    return asked


def test_every_run_has_its_own_seed_and_the_changes_of_its_variant(trained, tmp_path):
    changes = {
        "base": {},
        "lrn-off": {"model.lrn.enabled": False},
        "wide": {"model.width": 0.5, "optimizer.drop_epochs": (1.0, 2.0)},
    }
    seeds = (7, 0, 3)
    config = study.study(short_config(), changes, seeds, title="three")
    assert study.run(config, tmp_path) == []
    base = dict(leaves(short_config()))
    # All variants of a seed come before the next seed.
    expected = [
        (tmp_path / name / f"seed-{seed}", base | change | {"seed": seed})
        for seed in seeds
        for name, change in changes.items()
    ]
    assert [(workdir, dict(leaves(asked))) for workdir, asked in trained] == expected
    assert dict(leaves(config.base)) == base


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_share_out_every_run_once(trained, tmp_path, count):
    sizes = []
    for part in range(1, count + 1):
        before = len(trained)
        study.run(small(), tmp_path, (part, count))
        sizes.append(len(trained) - before)
    assert sum(sizes) == len({workdir for workdir, _ in trained}) == 4
    assert max(sizes) - min(sizes) <= 1


def test_only_what_is_not_finished_is_run_again(trained, tmp_path):
    study.run(small(), tmp_path)
    missing = tmp_path / "lrn-off" / "seed-1"
    (missing / "result.json").unlink()
    trained.clear()
    study.run(small(), tmp_path)
    assert [workdir for workdir, _ in trained] == [missing]
    assert trained[0][1].seed == 1 and not trained[0][1].model.lrn.enabled


def test_a_failure_is_noted_until_the_run_succeeds(trained, tmp_path, monkeypatch):
    succeed = train.train_and_evaluate

    def fail(config, workdir, series=None):
        if not config.model.lrn.enabled and config.seed == 0:
            raise ValueError("no luck\nand more about it")
        succeed(config, workdir, series)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_and_evaluate", fail)
        assert study.run(small(), tmp_path) == ["lrn-off, seed 0: no luck"]
    assert len(trained) == 3
    note = tmp_path / "lrn-off" / "seed-0" / "failed.json"
    found = json.loads(note.read_text())
    assert found["error"] == "no luck" and "ValueError: no luck" in found["traceback"]
    assert study.run(small(), tmp_path) == []
    assert len(trained) == 4 and not note.exists()


def test_a_signal_ends_the_study_and_is_no_failure(trained, tmp_path, monkeypatch):
    def stop(config, workdir, series=None):
        raise Stopped(signal.SIGTERM, 3)

    monkeypatch.setattr(train, "train_and_evaluate", stop)
    with pytest.raises(Stopped):
        study.run(small(), tmp_path)
    assert not list(tmp_path.glob("**/failed.json"))


def test_killed_and_started_again_it_ends_with_the_same_table(learned, whole, tmp_path):
    """In a process of its own, killed in its second run."""
    code = (
        "import sys; from pathlib import Path; import tests.conftest;"
        "from alexnet_jax.analysis import study; from tests.analysis.test_study import small;"
        "study.run(small(), Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("*/*/result.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    study.run(small(), tmp_path)
    study.write(small(), tmp_path)
    assert outputs(tmp_path) == outputs(whole)


def test_a_run_that_fails_is_reported_and_the_others_go_on(learned, whole, tmp_path):
    config = small()
    config.unlock()
    explodes = (("max_not_finite_steps", 1), ("optimizer.learning_rate", 1e12))
    config.variants = (config.variants[0], ("explodes", explodes), config.variants[1])
    for name in VARIANTS:  # finished already
        (tmp_path / name).symlink_to(whole / name)
    failed = study.run(config, tmp_path)
    assert len(failed) == 2 and all(line.startswith("explodes, seed") for line in failed)
    why = json.loads((tmp_path / "explodes" / "seed-0" / "failed.json").read_text())
    assert "not finite" in why["error"] and "Traceback" in why["traceback"]
    assert "| explodes |  |  | 0 (2 failed) |" in study.write(config, tmp_path)


def test_another_study_in_the_same_folder_is_refused(trained, tmp_path):
    study.run(small(), tmp_path)
    trained.clear()
    other = small()
    other.unlock()
    other.base.optimizer.momentum = 0.5
    with pytest.raises(
        UsageError, match=r"config\.optimizer\.momentum = 0\.9, and the study says 0\.5"
    ):
        study.run(other, tmp_path)
    # Where a run runs and how often it speaks may differ.
    other.base.optimizer.momentum = 0.9
    other.base.update(placement="mesh", log_every_steps=7, warn_stuck_after_steps=9)
    other.base.distributed.lost_after_seconds = 50
    assert study.run(other, tmp_path) == [] and not trained


def test_seeds_share_their_programs(tmp_path):
    """The second seed compiles nothing: every program is in the cache."""
    events = []
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        for part in (1, 3):
            assert study.runs(small())[part - 1] == ("base", part // 2)
            events.clear()
            jax.clear_caches()
            study.run(small(), tmp_path, (part, 4))
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
        jax.monitoring.clear_event_listeners()
    assert events.count("/jax/compilation_cache/cache_hits") >= 2  # the step, the evaluation
    assert events.count("/jax/compilation_cache/cache_misses") == 0


@pytest.mark.parametrize(
    "change,says",
    [
        ({"measures": ("test_error", "loss")}, "config.measures: 'loss'"),
        ({"seeds": ()}, "config.seeds is empty"),
        ({"measures": ()}, "config.measures is empty"),
        ({"seeds": (0, 1, 0)}, "'base': seed 0 is there twice"),
        ({"more_seeds": (("lrn-off", (1,)),)}, "'lrn-off': seed 1 is there twice"),
        ({"seeds": (0, -1)}, "'base': config.seed = -1"),
        (
            {"variants": (("base", ()), ("x", (("seed", 1),)), ("x", ()))},
            "'x' is the name of a folder",
        ),
        ({"variants": (("x", (("seed", 1),)),)}, "exactly one of them must change nothing"),
        ({"variants": (("base", ()), ("Base 2", ()))}, "'Base 2' is the name of a folder"),
        ({"variants": (("base", ()), ("again", ()))}, "exactly one of them must change nothing"),
        (
            {"variants": (("base", ()), ("x", (("model.lrm.enabled", 1),)))},
            "config.model.lrm.enabled",
        ),
        ({"variants": (("base", ()), ("x", (("batch_size", -1),)))}, "'x': config.batch_size = -1"),
        ({"paper": (("lrn", 1.0),)}, "'lrn' is not a variant"),
    ],
)
def test_a_study_that_is_none_is_named(change, says):
    config = small(paper={})
    config.unlock()
    config.update(change)
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        study.check(config)


COMMITTED = sorted(path.parent for path in (ROOT / "results").glob("**/study.json"))


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_tables_are_what_their_logs_say(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = study.from_json(json.loads((folder / "study.json").read_text()))
    for name in ("table.md", "table.csv"):
        (copy / name).unlink()
    study.write(config, copy)
    for name in ("table.md", "table.csv"):
        assert (copy / name).read_bytes() == (folder / name).read_bytes(), name
    # What an earlier version wrote is read as the study that this version writes.
    again = study.from_json(json.loads((copy / "study.json").read_text()))
    assert again.to_dict() == config.to_dict()
    assert (copy / "figure.png").stat().st_size > 10_000


STUDIES = sorted((ROOT / "experiments" / "studies").glob("*.py"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_is_one_that_would_start(path, tmp_path, capsys):
    """Without its runs: an empty table, and no error."""
    assert main(["study", f"--config={path}", f"--workdir={tmp_path}", "--table_only"]) == 0
    out = capsys.readouterr().out
    assert "not started" in out and f"{tmp_path / 'table.md'}" in out


def test_a_table_is_not_made_for_other_runs_than_there_are(trained, tmp_path, capsys):
    """The logs say what was run; a study that says something else changes nothing."""
    study.run(small(), tmp_path)
    study.write(small(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for field, value in (("model.activation", "tanh"), ("data.shrink", "bilinear")):
        other = small()
        other.unlock()
        variants = dict(other.variants)
        variants["lrn-off"] = (*variants["lrn-off"], (field, value))
        other.variants = tuple(variants.items())
        for act in (study.write, study.run):
            with pytest.raises(UsageError, match=rf"config\.{field} = .* and the study says"):
                act(other, tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_table_needs_no_images(trained, tmp_path):
    """Logs come from another machine: neither the data nor the number of its classes is here."""
    config = small()
    config.unlock()
    config.base.data.source = "folder:gone"
    for name, seed in study.runs(config):
        run = study.run_config(config, name, seed)
        run.unlock()
        run.model.num_classes = run.model.layers.fc8.features = 3  # as the images said
        train.train_and_evaluate(run, tmp_path / name / f"seed-{seed}")
    assert "| lrn-off | 50.00" in study.write(config, tmp_path)


def test_a_finished_study_changes_nothing(trained, tmp_path):
    study.run(small(), tmp_path)
    study.write(small(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    study.run(small(), tmp_path)
    study.write(small(), tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_run_is_told_what_the_finished_ones_took(trained, tmp_path, capsys, monkeypatch):
    """Without their first steps, and without a run that failed or was begun before."""
    places, real = [], train.train_and_evaluate
    clock = iter([0.0, 600.0, 600.0, 1800.0, 2000.0, 2000.0, 2900.0])  # the second one fails

    def run(config, workdir, series):
        places.append(series)
        real(config, workdir, series)
        write_log(workdir / "log", [training_mean(0.1, 1.0, 0.5)])
        (workdir / "log" / "metrics.jsonl").rename(workdir / "metrics.jsonl")
        if len(places) == 2:
            raise ValueError("no luck")

    (tmp_path / "base" / "seed-1").mkdir(parents=True)
    monkeypatch.setattr(train, "train_and_evaluate", run)
    monkeypatch.setattr(study.time, "monotonic", lambda: next(clock))
    study.run(small(), tmp_path)
    first = small().base.batch_size / 100  # by the speed in the log
    assert places == [
        Series("base seed 0", 1, 4),
        Series("lrn-off seed 0", 2, 4, (600 - first,)),
        Series("base seed 1", 3, 4, (600 - first,)),
        Series("lrn-off seed 1", 4, 4, (600 - first,)),
    ]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run")]
    assert said[3] == "run 4 of 4: lrn-off, seed 1"


def test_a_folder_describes_its_study(trained, tmp_path, capsys):
    study.run(small(), tmp_path)
    study.write(small(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["study", f"--workdir={tmp_path}", "--table_only"]) == 0
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["study", f"--workdir={tmp_path}", "--compare=lrn-off,base"]) == 0
    assert "lrn-off less base" in capsys.readouterr().out
    assert main(["study", f"--workdir={tmp_path}", "--compare=lrn-off"]) == 2
    assert main(["study", f"--workdir={tmp_path / 'base'}"]) == 2
    assert [line.partition(":")[2] for line in capsys.readouterr().err.splitlines()] == [
        " --compare=lrn-off: give two variants, such as lrn-off,base",
        f" --config is missing, and {tmp_path / 'base'} holds no study: give --config=FILE.py of "
        "the study",
    ]


def test_a_run_is_no_study(tmp_path, capsys):
    config = ROOT / "experiments" / "quickstart.py"
    assert main(["study", f"--config={config}", f"--workdir={tmp_path}"]) == 2
    assert "this is not a study" in capsys.readouterr().err
