"""The arithmetic and the tables of studies, from made-up logs, against NumPy and SciPy."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from alexnet_jax.analysis import comparison, study
from alexnet_jax.config import default
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
        default(), variants, SEEDS, title="A study", measure=measure, target=target, paper=paper
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


def read_csv(config, table):
    text = comparison.comma_separated(config, table)
    rows = {row.pop("variant"): row for row in csv.DictReader(io.StringIO(text))}
    return {
        name: {key: float(value) if value else None for key, value in row.items()}
        for name, row in rows.items()
    }


def test_statistics_of_errors_are_those_of_scipy(errors):
    config, folder = errors
    table = comparison.rows(config, folder)
    assert [row.name for row in table] == list(ERRORS)
    found = read_csv(config, table)
    for row in table:
        own, base, line = ERRORS[row.name], ERRORS["base"], found[row.name]
        assert row.values == pytest.approx(own)
        assert row.missing == tuple(seed for seed in SEEDS if seed not in own)
        assert [line[f"seed_{seed}"] for seed in SEEDS] == [own.get(seed) for seed in SEEDS]
        assert line["mean"] == (
            pytest.approx(np.mean(list(own.values())), rel=1e-5) if own else None
        )
        assert line["paper"] == {"worse": 1.4}.get(row.name)
        if len(own) < 2:
            assert line["deviation"] is None and line["low"] is None and line["high"] is None
        else:
            assert line["deviation"] == pytest.approx(stats.tstd(list(own.values())), rel=1e-5)
        if row.name in ("base", "never"):
            assert row.difference is None and line["difference"] is None
            continue
        differences = [own[seed] - base[seed] for seed in own]
        assert line["difference"] == pytest.approx(np.mean(differences), rel=1e-5)
        if len(own) > 1:
            interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
            assert (line["low"], line["high"]) == pytest.approx(tuple(interval), rel=1e-5)


def test_the_table_says_differences_with_sign_and_verdict(errors):
    config, folder = errors
    table = comparison.rows(config, folder)
    cells = {row[0]: row[1:] for row in comparison.cells(config, table)}
    # Differences of "worse": 5, 6, 5; mean 16 / 3, and 4.303 deviations of 1 / 3 of that mean.
    assert cells == {
        "base": ("31.00", "1.00", "3", "", "", ""),
        "worse": ("36.33", "1.53", "3", "+5.33 [+3.90, +6.77]", "yes", "+1.4"),
        "similar": ("30.75", "0.35", "2 (1 missing)", "+0.25 [-9.28, +9.78]", "within noise", ""),
        "once": ("40.00", "", "1 (2 missing)", "+8.00", "", ""),
        "never": ("", "", "0 (3 missing)", "", "", ""),
    }
    lines = comparison.markdown(config, table).splitlines()
    split = {"test_error": "test", "train_error": "training"}[config.measure]
    assert lines[0] == "# A study"
    assert lines[2].startswith(f"| variant | {split} error, % | deviation |")
    assert lines[5] == "| " + " | ".join(("worse", *cells["worse"])) + " |"
    assert "Seeds 0, 1, 2." in lines[-1]


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
    config = study_of("epochs_to_error", 0.25, {"slower": 6.0}, tuple(epochs))
    table = comparison.rows(config, tmp_path)
    for row in table:
        assert row.values == pytest.approx(epochs[row.name])
    ratios = np.array([24 / 6, 27 / 9, 40 / 8])
    low, high = stats.ttest_1samp(np.log(ratios), 0).confidence_interval(0.95)
    line = read_csv(config, table)["slower"]
    found = [line[key] for key in ("log_ratio", "low", "high")]
    assert found == pytest.approx([np.log(stats.gmean(ratios)), low, high], rel=1e-5)
    cells = {row[0]: row[1:] for row in comparison.cells(config, table)}
    interval = f"× {stats.gmean(ratios):.2f} [{np.exp(low):.2f}, {np.exp(high):.2f}]"
    assert cells["slower"] == ("30.33", "8.50", "3", interval, "yes", "× 6")
    assert cells["stuck"] == ("12.00", "", "1 (2 missing)", "× 2.00", "", "")
    assert comparison.header(config)[1] == "epochs to 25 %"


def test_the_paired_interval_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for count in (2, 3, 10):
        ours, base = rng.normal(30, 2, count), rng.normal(29, 2, count)
        got = comparison.paired_difference(dict(enumerate(ours)), dict(enumerate(base)))
        low, high = stats.ttest_rel(ours, base).confidence_interval(0.95)
        assert got == pytest.approx((np.mean(ours - base), low, high), rel=1e-9)
        # Of a ratio: the same of logarithms.
        got = comparison.paired_difference(dict(enumerate(ours)), dict(enumerate(base)), ratio=True)
        low, high = stats.ttest_rel(np.log(ours), np.log(base)).confidence_interval(0.95)
        assert got == pytest.approx((np.mean(np.log(ours / base)), low, high), rel=1e-9)
    # Only seeds that both have are compared.
    got = comparison.paired_difference({0: 3.0, 1: 5.0, 2: 9.0}, {1: 1.0, 2: 2.0, 3: 100.0})
    assert got[0] == 5.5
    assert comparison.paired_difference({0: 1.0}, {0: 2.0}) == (-1.0, None, None)
    # Equal differences leave no room for chance.
    assert comparison.paired_difference({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0}) == (0.5, 0.5, 0.5)
    assert comparison.paired_difference({0: 1.0}, {1: 2.0}) is None


def test_epochs_to_an_error_lie_on_the_line_between_two_points():
    epochs, errors = np.array([1.0, 4.0, 4.5, 8.0]), np.array([0.6, 0.4, 0.2, 0.1])
    curve = list(zip(epochs, errors, strict=True))
    for target in (0.6, 0.55, 0.4, 0.3, 0.2, 0.11, 0.1):
        expected = np.interp(-target, -errors, epochs)
        assert comparison.epochs_to_error(curve, target) == pytest.approx(expected), target
    assert comparison.epochs_to_error(curve, 0.7) == 1.0  # that of the first point
    assert comparison.epochs_to_error(curve, 0.09) is None
    assert comparison.epochs_to_error([], 0.1) is None
    # The first time counts, on whichever way the curve comes back.
    assert comparison.epochs_to_error([(1.0, 0.5), (2.0, 0.1), (3.0, 0.3), (4.0, 0.1)], 0.2) == 1.75


@pytest.mark.parametrize(
    "difference,real",
    [
        ((1.0, 0.5, 1.5), True),
        ((-1.0, -1.5, -0.5), True),
        ((1.0, -0.5, 2.5), False),
        ((1.0, 0.0, 2.0), False),
        ((-1.0, -2.0, 0.0), False),
        ((1.0, None, None), False),
        (None, False),
    ],
)
def test_the_verdict_needs_an_interval_without_zero(difference, real):
    assert comparison.Row("x", {0: 1.0}, (), difference, None).real is real
