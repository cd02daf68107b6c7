"""Studies: their arithmetic against SciPy; runs cut, shared out and put together again."""

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from alexnet_jax import comparison, study
from alexnet_jax.__main__ import main
from alexnet_jax.errors import UsageError
from tests.test_train import short_config

ROOT = Path(__file__).parents[1]
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


def outputs(folder):
    return {name: (folder / name).read_bytes() for name in ("table.md", "table.csv", "figure.png")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert study.run(small(), folder) == []
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


def test_in_parts_and_any_order_it_is_the_same(whole, tmp_path):
    for part in ((2, 3), (3, 3), (1, 3)):
        study.run(small(), tmp_path, part)
    study.write(small(), tmp_path)
    assert outputs(tmp_path) == outputs(whole)


def test_parts_share_out_every_run_once():
    every = study.runs(small())
    for count in (1, 2, 3, 5):
        shared = [every[k::count] for k in range(count)]
        assert sorted(run for part in shared for run in part) == sorted(every)


def test_killed_and_started_again_it_ends_with_the_same_table(whole, tmp_path):
    """In a process of its own, killed in its second run."""
    code = (
        "import sys; from pathlib import Path; import tests.conftest;"
        "from alexnet_jax import study; from tests.test_study import small;"
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


def test_a_run_that_fails_is_reported_and_the_others_go_on(whole, tmp_path):
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
    assert "| explodes |  |  | 0 (2 missing) |" in study.write(config, tmp_path)


def test_another_study_in_the_same_folder_is_refused(whole):
    other = small()
    other.unlock()
    other.base.optimizer.momentum = 0.5
    with pytest.raises(
        UsageError, match=r"config\.optimizer\.momentum = 0\.9, and the study says 0\.5"
    ):
        study.run(other, whole)


def test_the_paired_interval_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for count in (2, 3, 10):
        ours, base = rng.normal(30, 2, count), rng.normal(29, 2, count)
        got = comparison.paired_difference(dict(enumerate(ours)), dict(enumerate(base)))
        test = stats.ttest_rel(ours, base)
        low, high = test.confidence_interval(0.95)
        assert got == pytest.approx((np.mean(ours - base), low, high), rel=1e-9)
        # Of a ratio: the same of logarithms.
        got = comparison.paired_difference(dict(enumerate(ours)), dict(enumerate(base)), ratio=True)
        low, high = stats.ttest_rel(np.log(ours), np.log(base)).confidence_interval(0.95)
        assert got == pytest.approx((np.mean(np.log(ours / base)), low, high), rel=1e-9)
    # Only seeds that both have are compared.
    got = comparison.paired_difference({0: 3.0, 1: 5.0, 2: 9.0}, {1: 1.0, 2: 2.0, 3: 100.0})
    assert got[0] == 5.5
    assert comparison.paired_difference({0: 1.0}, {0: 2.0}) == (-1.0, None, None)
    assert comparison.paired_difference({0: 1.0}, {1: 2.0}) is None


def test_epochs_to_an_error_lie_on_the_line_between_two_points():
    curve = [(1.0, 0.6), (2.0, 0.4), (3.0, 0.2), (4.0, 0.3)]
    assert comparison.epochs_to_error(curve, 0.25) == pytest.approx(2.75)
    assert comparison.epochs_to_error(curve, 0.4) == pytest.approx(2.0)
    assert comparison.epochs_to_error(curve, 0.7) == 1.0
    assert (
        comparison.epochs_to_error(curve, 0.1) is None
        and comparison.epochs_to_error([], 0.1) is None
    )


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
        ({"measure": "loss"}, "config.measure = 'loss'"),
        ({"seeds": ()}, "config.seeds"),
        ({"variants": (("base", ()), ("Base 2", ()))}, "'Base 2' names a folder"),
        ({"variants": (("base", ()), ("again", ()))}, "only one, changes nothing"),
        (
            {"variants": (("base", ()), ("x", (("model.lrm.enabled", 1),)))},
            "config.model.lrm.enabled",
        ),
        ({"variants": (("base", ()), ("x", (("batch_size", -1),)))}, "'x': config.batch_size = -1"),
        ({"paper": (("lrn", 1.0),)}, "'lrn' is no variant"),
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
    for name in ("table.md", "table.csv", "study.json"):
        assert (copy / name).read_bytes() == (folder / name).read_bytes(), name
    assert (copy / "figure.png").stat().st_size > 10_000


STUDIES = sorted((ROOT / "experiments" / "studies").glob("*.py"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_is_one_that_would_start(path, tmp_path, capsys):
    """Without its runs: an empty table, and no error."""
    assert main(["study", f"--config={path}", f"--workdir={tmp_path}", "--table_only"]) == 0
    assert "missing" in capsys.readouterr().out


def test_a_run_is_no_study(tmp_path, capsys):
    config = ROOT / "experiments" / "quickstart.py"
    assert main(["study", f"--config={config}", f"--workdir={tmp_path}"]) == 2
    assert "this is no study" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_a_part_that_is_none_is_named(part, capsys, tmp_path):
    flags = [f"--config={STUDIES[0]}", f"--workdir={tmp_path}", f"--part={part}"]
    assert main(["study", *flags]) == 2
    assert f"--part={part}" in capsys.readouterr().err


def test_the_verdict_needs_an_interval_without_zero():
    def row(*difference):
        return comparison.Row("x", {0: 1.0}, (), difference, None)

    assert row(1.0, 0.5, 1.5).real and row(-1.0, -1.5, -0.5).real
    assert not row(1.0, -0.5, 2.5).real and not row(1.0, None, None).real
    assert math.isclose(row(1.0, 0.5, 1.5).mean, 1.0)
