"""The arithmetic and the tables of studies, from made-up logs, against NumPy and SciPy."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from alexnet_jax.analysis import comparison, study
from alexnet_jax.analysis.comparison import Difference
from alexnet_jax.config import default
from alexnet_jax.errors import UsageError
from alexnet_jax.training.events import Warned
from tests.analysis.logs import evaluation, training_mean, write_log

SEEDS = (0, 1, 2)
# Percent, by seed; of the base and of variants that differ clearly, hardly, once and never.
ERRORS = {
    "base": {0: 30.0, 1: 32.0, 2: 31.0},
    "worse": {0: 35.0, 1: 38.0, 2: 36.0},
    "similar": {0: 31.0, 2: 30.5},
    "once": {1: 40.0},
    "never": {},
}


def study_of(measure, target=0.0, paper=None, names=tuple(ERRORS)):
    variants = {name: {} if name == "base" else {"seed": 1} for name in names}
    return study.study(
        default(), variants, SEEDS, title="A study", measures=(measure,), target=target, paper=paper
    )


@pytest.fixture(params=["test", "train"])
def errors(request, tmp_path):
    """A study whose runs ended with `ERRORS` on one split, and with 99 % on the other."""
    other = {"test": "train", "train": "test"}[request.param]
    for name, values in ERRORS.items():
        for seed, value in values.items():
            workdir = tmp_path / name / f"seed-{seed}"
            workdir.mkdir(parents=True)
            result = {request.param: {"top1_error": value / 100}, other: {"top1_error": 0.99}}
            (workdir / "result.json").write_text(json.dumps(result))
    return study_of(f"{request.param}_error", paper={"worse": 1.4}), tmp_path


def read_csv(table):
    """The lines of each outcome, by variant."""
    found = {}
    for row in csv.DictReader(io.StringIO(table.comma_separated())):
        lines = found.setdefault(row.pop("outcome"), {})
        name = row.pop("variant")
        lines[name] = {key: float(value) if value else None for key, value in row.items()}
    return found


def test_statistics_of_errors_are_those_of_scipy(errors):
    config, folder = errors
    table = comparison.table(config, folder)
    assert [row.name for row in table.main] == list(ERRORS)
    found = read_csv(table)[config.measures[0]]
    for row in table.main:
        own, base, line = ERRORS[row.name], ERRORS["base"], found[row.name]
        assert row.values == pytest.approx(own)
        absent = [seed for seed in SEEDS if seed not in own]
        assert row.missing == dict.fromkeys(absent, "not started")
        assert [line[f"seed_{seed}"] for seed in SEEDS] == [own.get(seed) for seed in SEEDS]
        assert line["mean"] == (
            pytest.approx(np.mean(list(own.values())), rel=1e-5) if own else None
        )
        assert line["paper"] == {"worse": 1.4}.get(row.name)
        if len(own) < 2:
            assert {line[key] for key in ("deviation", "low", "high", "p", "detectable")} == {None}
        else:
            assert line["deviation"] == pytest.approx(stats.tstd(list(own.values())), rel=1e-5)
        if row.name in ("base", "never"):
            assert row.difference is None and line["difference"] is None
            continue
        differences = [own[seed] - base[seed] for seed in own]
        assert line["difference"] == pytest.approx(np.mean(differences), rel=1e-5)
        if len(own) > 1:
            test = stats.ttest_1samp(differences, 0)
            interval = tuple(test.confidence_interval(0.95))
            assert (line["low"], line["high"]) == pytest.approx(interval, rel=1e-5)
            assert line["p"] == pytest.approx(test.pvalue, rel=1e-5)
    # Two comparisons have a p: the smaller one counts twice.
    p = {name: found[name]["p"] for name in ("worse", "similar")}
    assert found["worse"]["p_holm"] == pytest.approx(2 * p["worse"], rel=1e-5)
    assert found["similar"]["p_holm"] == pytest.approx(p["similar"], rel=1e-5)


def test_the_table_says_differences_with_sign_and_verdict(errors):
    config, folder = errors
    table = comparison.table(config, folder)
    header, lines = table.cells()
    cells = {row[0]: row[1:] for row in lines}
    # Differences of "worse": 5, 6, 5; mean 16 / 3, and 4.303 deviations of 1 / 3 of that mean; p is
    # twice that of t = 16. Of "similar": 1, -0.5. 3.264 and 11.55 are in the test of `detectable`.
    similar = ("+0.25 [-9.28, +9.78]", "0.795", "within noise", f"{11.55 * 1.5 / 2**0.5:.2f}", "")
    detectable = f"{3.264 / 3**0.5:.2f}"
    assert cells == {
        "base": ("31.00", "1.00", "3", "", "", "", "", ""),
        "worse": ("36.33", "1.53", "3", "+5.33 [+3.90, +6.77]", "0.008", "yes", detectable, "+1.4"),
        "similar": ("30.75", "0.35", "2 (1 not started)", *similar),
        "once": ("40.00", "", "1 (2 not started)", "+8.00", "", "", "", ""),
        "never": ("", "", "0 (3 not started)", "", "", "", "", ""),
    }
    text = table.markdown().splitlines()
    split = {"test_error": "test", "train_error": "training"}[config.measures[0]]
    assert text[0] == "# A study"
    assert text[2].startswith(f"| variant | {split} error, % | deviation |")
    assert text[3] == "|---" + "|---:" * (len(header) - 1) + "|"
    assert text[5] == "| " + " | ".join(("worse", *cells["worse"])) + " |"
    assert "Without a result:" not in text  # What has not begun is only counted.
    assert "Seeds 0, 1, 2." in text[-1]


def test_a_column_that_is_empty_everywhere_is_left_out(tmp_path):
    for name, error in {"base": 0.3, "worse": 0.4}.items():
        write_result(tmp_path / name / "seed-0", {"test": {"top1_error": error}})
    table = comparison.table(study_of("test_error", names=("base", "worse")), tmp_path)
    header, lines = table.cells()
    assert header == ("variant", "test error, %", "seeds", "difference from the base [95 %]")
    assert [line[3] for line in lines] == ["", "+10.00"]
    assert "Holm" not in table.markdown()


def write_result(workdir, result):
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "result.json").write_text(json.dumps(result))


def test_several_outcomes_stand_in_one_table(tmp_path):
    """Each is compared by itself; a run may have some of them only."""
    errors = {"base": (30.0, 32.0, 31.0), "other": (31.0, 33.5, 31.5)}
    losses = {"base": (1.0, 1.5, 1.25), "other": (1.5, 1.75, None)}
    for name, values in errors.items():
        for seed, (error, loss) in enumerate(zip(values, losses[name], strict=True)):
            test = {"top1_error": error / 100} | ({} if loss is None else {"loss": loss})
            write_result(tmp_path / name / f"seed-{seed}", {"test": test})
    config = study_of("test_error", names=tuple(errors))
    config.unlock()
    config.measures = ("test_error", "test.loss")
    table = comparison.table(config, tmp_path)
    header, lines = table.cells()
    assert header[-2:] == ("test.loss", "difference [95 %]")
    low, high = stats.ttest_1samp([0.5, 0.25], 0).confidence_interval(0.95)
    assert lines[1][-2:] == ("1.62 ± 0.18", f"+0.38 [{low:+.2f}, {high:+.2f}]")
    assert table.without_result() == ["other, seed 2: without test.loss"]
    found = read_csv(table)
    assert found.keys() == {"test_error", "test.loss"}
    assert found["test.loss"]["other"]["mean"] == pytest.approx(1.625)
    assert found["test_error"]["other"]["mean"] == pytest.approx(32.0)


def test_any_two_variants_can_be_compared(errors):
    config, folder = errors
    text = comparison.between(config, folder, "worse", "similar").splitlines()
    differences = [35.0 - 31.0, 36.0 - 30.5]
    test = stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval(0.95)
    cells = [cell.strip() for cell in text[2].split("|")[1:-1]]
    assert cells[1:3] == ["36.33 ± 1.53", "30.75 ± 0.35"]
    assert cells[3] == f"+4.75 [{low:+.2f}, {high:+.2f}]" and cells[4] == f"{test.pvalue:.3f}"
    with pytest.raises(UsageError, match="'wors' is not a variant: did you mean 'worse'"):
        comparison.between(config, folder, "wors", "base")


# Sorted p values and what Holm's rule makes of them by hand: n, n - 1, ... times each, none below
# the one before it, none above 1.
@pytest.mark.parametrize(
    "p,adjusted",
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.3, 0.001, 0.02, 0.9], [0.6, 0.004, 0.06, 0.9]),
        ([0.5, 0.5, 0.5], [1.0, 1.0, 1.0]),
        ([0.02, 0.0201], [0.04, 0.04]),
    ],
)
def test_holm_is_what_it_is_by_hand(p, adjusted):
    assert comparison.holm(p) == pytest.approx(adjusted)


@pytest.mark.parametrize("count,effect", [(3, 3.2640), (5, 1.6822), (10, 0.9960)])
def test_the_detectable_difference_is_found_four_times_of_five(count, effect):
    """In simulated studies; the effects, in deviations, are those of G*Power (paired t-test)."""
    rng = np.random.default_rng(count)
    found = comparison.paired_difference(
        dict(enumerate(rng.normal(size=count))), dict.fromkeys(range(count), 0.0)
    )
    deviation = (found.high - found.mean) / stats.t.ppf(0.975, count - 1) * count**0.5
    assert found.detectable == pytest.approx(effect * deviation, rel=1e-3)
    samples = rng.normal(effect, 1, (40_000, count))
    assert np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05) == pytest.approx(
        0.8, abs=0.01
    )


def write_curve(workdir, curve):
    """Errors on the whole training set among events that must not count as such."""
    found = []
    for epoch, error in curve:
        found += [
            training_mean(epoch, 1.0, 0.0),
            evaluation("validation", epoch, 1.0, 0.0),
            Warned(1, "slow"),
            evaluation("train", epoch, 1.0, error),
        ]
    write_log(workdir, found)


def test_ratios_of_epochs_are_geometric_means(tmp_path):
    """Straight lines from 1 at epoch 0 that fall to the target, 0.25, at these epochs."""
    epochs = {
        "base": {0: 6.0, 1: 9.0, 2: 8.0},
        "slower": {0: 24.0, 1: 27.0, 2: 40.0},
        "stuck": {0: 12.0},
    }
    for name, values in epochs.items():
        for seed in SEEDS:
            end = values.get(seed, 1e9)
            curve = [(epoch, 1 - 0.75 * epoch / end) for epoch in (0.0, 5.0, 6.5, 50.0)]
            write_curve(tmp_path / name / f"seed-{seed}", curve)
            write_result(tmp_path / name / f"seed-{seed}", {})
    config = study_of("epochs_to_error", 0.25, {"slower": 6.0}, tuple(epochs))
    table = comparison.table(config, tmp_path)
    for row in table.main:
        assert row.values == pytest.approx(epochs[row.name])
    ratios = np.array([24 / 6, 27 / 9, 40 / 8])
    low, high = stats.ttest_1samp(np.log(ratios), 0).confidence_interval(0.95)
    line = read_csv(table)["log_epochs_to_error"]["slower"]
    found = [line[key] for key in ("difference", "low", "high")]
    assert found == pytest.approx([np.log(stats.gmean(ratios)), low, high], rel=1e-5)
    header, lines = table.cells()
    cells = {row[0]: row[1:] for row in lines}
    interval = f"× {stats.gmean(ratios):.2f} [{np.exp(low):.2f}, {np.exp(high):.2f}]"
    detectable = np.exp(stats.sem(np.log(ratios)) * 3.2640 * 3**0.5)
    p = stats.ttest_1samp(np.log(ratios), 0).pvalue
    assert cells["slower"] == (
        "30.33", "8.50", "3", interval, f"{p:.3f}", "yes", f"× {detectable:.2f}", "× 6",
    )  # fmt: skip
    absent = "1 (2 did not reach 25 %)"
    assert cells["stuck"] == ("12.00", "", absent, "× 2.00", "", "", "", "")
    assert header[1] == "epochs to 25 %"


def test_the_paired_interval_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for count in (2, 3, 10):
        ours, base = rng.normal(30, 2, count), rng.normal(29, 2, count)
        got = comparison.paired_difference(dict(enumerate(ours)), dict(enumerate(base)))
        low, high = stats.ttest_rel(ours, base).confidence_interval(0.95)
        assert (got.mean, got.low, got.high) == pytest.approx(
            (np.mean(ours - base), low, high), rel=1e-9
        )
        assert got.p == pytest.approx(stats.ttest_rel(ours, base).pvalue) and got.seeds == count
        # Of a ratio: the same of logarithms.
        got = comparison.paired_difference(dict(enumerate(ours)), dict(enumerate(base)), ratio=True)
        low, high = stats.ttest_rel(np.log(ours), np.log(base)).confidence_interval(0.95)
        assert (got.mean, got.low, got.high) == pytest.approx(
            (np.mean(np.log(ours / base)), low, high), rel=1e-9
        )
    # Only seeds that both have are compared.
    got = comparison.paired_difference({0: 3.0, 1: 5.0, 2: 9.0}, {1: 1.0, 2: 2.0, 3: 100.0})
    assert (got.mean, got.seeds) == (5.5, 2)
    assert comparison.paired_difference({0: 1.0}, {0: 2.0}) == Difference(-1.0)
    # Equal differences leave no room for chance.
    assert comparison.paired_difference({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0}) == Difference(
        0.5, 0.5, 0.5, p=0.0, detectable=0.0, seeds=2
    )
    assert comparison.paired_difference({0: 1.0}, {1: 2.0}) is None


@pytest.mark.parametrize("p,real", [(0.0499, True), (0.05, False), (0.2, False), (None, False)])
def test_the_verdict_needs_a_p_that_survives_the_correction(p, real):
    assert comparison.Row("x", {0: 1.0}, {}, Difference(1.0, 0.5, 1.5, 0.01), None, p).real is real
