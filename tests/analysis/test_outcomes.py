"""What is measured of a run, from made-up folders."""

import json

import numpy as np
import pytest

from alexnet_jax.analysis import outcomes
from alexnet_jax.errors import UsageError
from tests.analysis.logs import evaluation, training_mean, write_log

RESULT = {
    "test": {"top1_error": 0.25, "top1_error_10_views": 0.2, "loss": 0.75, "metrics": {"x": 3.5}},
    "validation": {"top1_error": 0.125},
    "train": {"top1_error": 0.0625},
    "colour_share": [0.75, 0.125],
}


@pytest.fixture
def finished(tmp_path):
    """The folder of a run of ten classes that learned something."""
    write_log(tmp_path / "run", [training_mean(1.0, 1.5, 0.5)])
    (tmp_path / "run" / "result.json").write_text(json.dumps(RESULT))
    config = {"batch_size": 128, "model": {"num_classes": 10}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name,value",
    [
        ("test_error", 25.0),
        ("validation_error", 12.5),
        ("train_error", 6.25),
        ("test_error_10_views", 20.0),
        ("test_error_9_views", None),
        ("test.loss", 0.75),
        ("test.metrics.x", 3.5),
        ("test.metrics", None),
        ("test.metrics.x.y", None),
        ("most_colour", 75.0),
        ("least_colour", 12.5),
    ],
)
def test_outcomes_are_read_from_the_result(finished, name, value):
    assert outcomes.outcome(name).value(finished) == value


@pytest.mark.parametrize(
    "name,says",
    [("test_eror", "did you mean 'test_error'"), ("loss", "use one of"), ("", "use one of")],
)
def test_an_outcome_that_does_not_exist_is_named(name, says):
    with pytest.raises(UsageError, match=f"config.measures: {name!r}: {says}"):
        outcomes.outcome(name)


def test_the_seconds_of_a_run_are_its_images_by_their_speed(tmp_path):
    # 100 images a second throughout; an evaluation does not count.
    steps = (1, 20, 60)
    events = [training_mean(1.0, 1.0, 0.0, step=step) for step in steps]
    write_log(tmp_path / "run", [*events, evaluation("test", 1.0, 1.0, 0.0)])
    (tmp_path / "run" / "config.json").write_text(json.dumps({"batch_size": 50}))
    assert outcomes.seconds(tmp_path / "run") == pytest.approx(60 * 50 / 100)
    assert outcomes.first_step(tmp_path / "run") == pytest.approx(50 / 100)
    assert outcomes.seconds(tmp_path / "none") is None
    assert outcomes.first_step(tmp_path / "none") == 0


@pytest.mark.parametrize(
    "loss,classes,trained",
    [
        (2.3026, 10, False),
        (2.32, 10, False),
        (float("nan"), 10, False),
        (1e9, 10, False),
        (2.25, 10, True),
        (0.01, 10, True),
        (2.3026, 1000, True),
        (6.9078, 1000, False),
    ],
)
def test_a_run_that_ends_with_the_loss_of_guessing_has_not_been_trained(
    finished, loss, classes, trained
):
    config = {"model": {"num_classes": classes}}
    (finished / "config.json").write_text(json.dumps(config))
    # What counts is how it ends.
    events = [training_mean(1.0, 2.3026, 0.9), training_mean(2.0, loss, 0.5, step=2)]
    (finished / "metrics.jsonl").unlink()
    text = "".join(json.dumps({"event": "training", **vars(event)}) + "\n" for event in events)
    (finished / "metrics.jsonl").write_text(text)
    assert (outcomes.missing(finished) == "") is trained
    if not trained:
        assert outcomes.missing(finished).startswith("did not train: its training loss ends at ")


def test_a_run_without_a_result_has_a_reason(finished):
    assert outcomes.missing(finished) == ""
    (finished / "result.json").unlink()
    assert outcomes.missing(finished) == "not finished"
    (finished / "failed.json").write_text(json.dumps({"error": "no luck"}))
    assert outcomes.missing(finished) == "failed: no luck"
    assert outcomes.missing(finished / "elsewhere") == "not started"


def test_epochs_to_an_error_lie_on_the_line_between_two_points():
    epochs, errors = np.array([1.0, 4.0, 4.5, 8.0]), np.array([0.6, 0.4, 0.2, 0.1])
    curve = list(zip(epochs, errors, strict=True))
    for target in (0.6, 0.55, 0.4, 0.3, 0.2, 0.11, 0.1):
        expected = np.interp(-target, -errors, epochs)
        assert outcomes.epochs_to_error(curve, target) == pytest.approx(expected), target
    assert outcomes.epochs_to_error(curve, 0.7) == 1.0  # that of the first point
    assert outcomes.epochs_to_error(curve, 0.09) is None
    assert outcomes.epochs_to_error([], 0.1) is None
    # The first time counts, on whichever way the curve comes back.
    assert outcomes.epochs_to_error([(1.0, 0.5), (2.0, 0.1), (3.0, 0.3), (4.0, 0.1)], 0.2) == 1.75
