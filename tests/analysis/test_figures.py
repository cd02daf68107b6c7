"""What figures show, read back from their axes."""

import dataclasses
import io

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from alexnet_jax.analysis import figures, study
from alexnet_jax.analysis.comparison import Difference, Row
from alexnet_jax.config import default
from alexnet_jax.training import drawing
from alexnet_jax.training.drawing import COLOURS
from alexnet_jax.training.events import Warned
from tests.analysis.logs import evaluation, training_mean, write_log


def lines_of(axis):
    """By label, the points of each line that has one."""
    return {
        line.get_label(): list(zip(*(np.asarray(x).tolist() for x in line.get_data()), strict=True))
        for line in axis.lines
        if not str(line.get_label()).startswith("_")
    }


LOG = [
    training_mean(0.5, 6.0, 0.875),
    Warned(1, "slow"),
    training_mean(1.0, 4.0, 0.75),
    evaluation("train", 1.0, 3.0, 0.5),
    evaluation("validation", 1.0, 3.5, 0.625),
    training_mean(2.0, 2.0, 0.25),
    evaluation("validation", 2.0, 2.5, 0.375),
]


@pytest.mark.parametrize("name,factor,label", [("loss", 1, "loss"), ("top1_error", 100, "top-1")])
def test_the_curves_of_a_run_are_its_log(name, factor, label):
    (axis,) = figures.run_curve(LOG, name).axes
    index = ["loss", "top1_error"].index(name)
    values = {
        figures.TRAINING: [(0.5, 6.0, 0.875), (1.0, 4.0, 0.75), (2.0, 2.0, 0.25)],
        "validation images": [(1.0, 3.5, 0.625), (2.0, 2.5, 0.375)],
        "train images": [(1.0, 3.0, 0.5)],
    }
    assert lines_of(axis) == {
        line: [(epoch, factor * pair[index]) for epoch, *pair in points]
        for line, points in values.items()
    }
    assert axis.get_ylabel().startswith(label) and axis.get_ylim()[0] == 0


@pytest.mark.parametrize("name,factor", [("loss", 1), ("top1_error", 100)])
def test_the_curves_of_a_study_are_mean_and_range_of_its_seeds(name, factor):
    def log(shift, epochs):
        return [training_mean(e, 8 - e + shift, 0.5 + shift / 8) for e in epochs] + [
            evaluation("validation", epochs[-1], 9.0 + shift, 0.75 + shift / 8)
        ]

    # The third seed was cut short: what is drawn of an epoch is of the seeds that have it.
    logs = {
        "base": [log(0.0, (1.0, 2.0)), log(2.0, (1.0, 2.0)), log(1.0, (1.0,))],
        "other": [log(1.0, (1.0, 3.0))],
    }
    axes = figures.study_curves(logs, name).axes
    assert [axis.get_title() for axis in axes] == list(logs)
    index = ["loss", "top1_error"].index(name)

    def scaled(*points):
        return [(epoch, *(factor * pair[index] for pair in pairs)) for epoch, *pairs in points]

    found = lines_of(axes[0])
    assert found[figures.TRAINING] == scaled((1.0, (8, 0.625)), (2.0, (7, 0.625)))
    assert found["validation images"] == scaled((1.0, (10, 0.875)), (2.0, (10, 0.875)))
    assert lines_of(axes[1])[figures.TRAINING] == scaled((1.0, (8, 0.625)), (3.0, (6, 0.625)))
    band = {tuple(point) for point in axes[0].collections[0].get_paths()[0].vertices.tolist()}
    ends = scaled((1.0, (7, 0.5), (9, 0.75)), (2.0, (6, 0.5), (8, 0.75)))
    assert band == {(epoch, value) for epoch, *values in ends for value in values}


def test_a_confusion_matrix_shows_shares_of_its_rows_and_counts():
    matrix = np.array([[6, 2, 0], [0, 0, 0], [1, 0, 3]])
    axis = figures.confusion(matrix, ("a", "b", "c")).axes[0]
    shares = [[75, 25, 0], [0, 0, 0], [25, 0, 75]]
    np.testing.assert_allclose(axis.images[0].get_array(), shares)
    counts = {text.get_position(): text.get_text() for text in axis.texts}
    assert counts == {(0, 0): "6", (1, 0): "2", (0, 2): "1", (2, 2): "3"}
    dark = {text.get_text() for text in axis.texts if text.get_color() == "white"}
    assert dark == {"6", "3"}  # on squares of more than a half
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("true class", "predicted class")
    names = tuple(map(str, range(21)))
    assert not figures.confusion(np.ones((21, 21), int), names).axes[0].texts  # no room


def study_of(names, **options):
    variants = {name: {} if name == "base" else {"seed": 1} for name in names}
    return study.study(default(), variants, (0, 1), title="A study", **options)


def test_differences_are_drawn_with_interval_seeds_and_the_papers():
    table = [
        Row("base", {0: 30.0, 1: 32.0}, {}, None, None),
        Row("worse", {0: 35.0, 1: 38.0}, {}, Difference(5.5, 4.0, 7.0), 1.5, 0.01),
        Row("similar", {0: 31.0, 1: 32.0}, {}, Difference(0.5, -2.0, 3.0), None, 0.4),
        Row("once", {1: 34.0}, {0: "failed"}, Difference(2.0), None),
        Row("blind", {0: 90.0, 1: 90.0}, {}, Difference(59.0, 50.0, 68.0), None, 0.01),
    ]
    (axis,) = figures.study_figure(study_of([row.name for row in table]), None, table).axes
    places = {
        text.get_text(): place
        for place, text in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
    }
    assert sorted(places, key=places.get) == ["blind", "once", "similar", "worse"]  # upwards

    def drawn(name, marker):
        return sorted(
            x
            for line in axis.lines
            if line.get_marker() == marker and set(line.get_ydata()) == {places[name]}
            for x in np.ravel(line.get_xdata()).tolist()
        )

    assert [drawn("worse", marker) for marker in ("None", "o", "|", "D")] == [
        [4, 7], [5.5], [5, 6], [1.5],
    ]  # fmt: skip
    assert [drawn("similar", marker) for marker in ("None", "o", "|", "D")] == [
        [-2, 3], [0.5], [0, 1], [],
    ]  # fmt: skip
    assert [drawn("once", marker) for marker in ("None", "o", "|")] == [[], [2], [2]]
    # What is far away is an arrow at the edge, so that the others can be read.
    (arrow,) = axis.texts
    assert arrow.get_text() == "+59.0" and drawn("blind", "o") == []
    edge = 1.1 * 7
    assert arrow.xy == pytest.approx((edge, places["blind"]))
    assert axis.get_xlim() == pytest.approx((-edge, edge))
    colours = {
        name: {line.get_color() for line in axis.lines
               if line.get_marker() == "o" and set(line.get_ydata()) == {places[name]}}
        for name in ("worse", "similar", "once")
    }  # fmt: skip
    assert colours["worse"] == {COLOURS[0]}
    assert colours["similar"] == colours["once"] != colours["worse"]
    assert axis.get_xlabel() == "difference in test error from base (31.0 %), points"


def test_curves_down_to_a_target_are_the_training_errors(tmp_path):
    config = study_of(("base", "tanh"), measures=("epochs_to_error",), target=0.25)
    for number, (name, seed) in enumerate(study.runs(config)[:3]):  # the last has not begun
        workdir = tmp_path / name / f"seed-{seed}"
        log = [
            training_mean(1.0, 1.0, 0.0),
            evaluation("train", 1.0, 1.0, 0.5 + number / 8),
            evaluation("validation", 1.0, 1.0, 0.0),
            evaluation("train", 2.0, 1.0, 0.25),
        ]
        write_log(workdir, log)
    (axis,) = figures.study_figure(config, tmp_path, []).axes
    *curves, target = [np.transpose(line.get_data()).tolist() for line in axis.lines]
    assert curves == [[[1, first], [2, 25]] for first in (50, 75, 62.5)]  # base, base, tanh
    assert [y for _, y in target] == [25, 25]
    assert lines_of(axis).keys() == {"base", "tanh"}  # a variant is named once


def test_the_same_figure_is_the_same_bytes():
    first, second = (figures.svg(figures.run_curve(LOG, "loss")) for _ in range(2))
    assert first == second and b"<svg style=" in first
    assert first != figures.svg(figures.run_curve(LOG, "top1_error"))


@pytest.mark.parametrize(
    "name", ["$", "a$b$c", "$\\frac{$", "$$", "\\alpha", "{", "^_", "<&>", "-->"]
)
def test_names_of_classes_are_drawn_as_they_are(name):
    """And not as mathematics between two "$"."""
    names = (name, "other")
    matrix = figures.confusion(np.eye(2, dtype=int), names)
    shown = drawing.predictions([(np.zeros((8, 8, 3), np.uint8), name, [(name, 9.0, True)])])
    curves = figures.study_curves({name: [LOG]}, "loss")
    for figure in (matrix, shown, curves):
        assert figures.svg(figure).count(b"</svg>") == 1
        texts = [text for text in figure.findobj(Text) if text.get_text() == name]
        assert texts and not any(text.get_parse_math() for text in texts)


def test_variants_are_overlaid_by_the_mean_of_their_seeds():
    """The base is the thick line; a split of which one has few evaluations gives way to steps."""

    def run(start, evaluations):
        steps = [training_mean(float(e), start / (e + 1), 0.5, step=e) for e in range(6)]
        return [*steps, *(evaluation("train", float(e), start, 0.25) for e in range(evaluations))]

    logs = {"base": [run(2.0, 1), run(4.0, 1)], "tanh": [run(6.0, 6)], "none": []}
    (axis,) = figures.overlay(logs, "loss", "base").axes
    base, tanh = axis.lines
    for line, start in ((base, 3), (tanh, 6)):
        points = np.array([(e, start / (e + 1)) for e in range(6)])
        assert np.transpose(line.get_data()) == pytest.approx(points)
    assert base.get_linewidth() > tanh.get_linewidth()
    assert [line.get_label() for line in axis.lines] == ["base", "tanh"]
    assert axis.get_ylabel() == f"loss; {figures.TRAINING}"

    (axis,) = figures.overlay({"tanh": [run(6.0, 6)], "b": [run(7.0, 5)]}, "loss").axes
    assert axis.get_ylabel() == "loss; train images"
    assert [line.get_ydata().tolist() for line in axis.lines] == [[6.0] * 6, [7.0] * 5]


def with_rates(rates):
    return [
        dataclasses.replace(training_mean(float(e), 1.0, 0.5), learning_rate=rate)
        for e, rate in enumerate(rates)
    ]


@pytest.mark.parametrize(
    "rates,drops",
    [
        ([0.1, 0.1, 0.1, 0.01, 0.01, 0.001], [(2.0, 0.01), (4.0, 0.001)]),
        ([0.01, 0.01, 0.05, 0.1, 0.1, 0.1], []),  # rises
        ([0.1, 0.08, 0.05, 0.01], []),  # falls all the time
        ([None, None, None], []),
        ([], []),
    ],
)
def test_drops_of_the_learning_rate_are_where_a_level_ends(rates, drops):
    log = with_rates(rates)
    log.insert(1, evaluation("train", 0.5, 1.0, 0.5))
    assert figures.drops(log) == drops
    (axis,) = figures.run_curve(log, "loss").axes
    vertical = [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"]
    assert vertical == [epoch for epoch, _ in drops]
    assert [text.get_text().strip() for text in axis.texts] == [f"rate {r:g}" for _, r in drops]


def test_a_figure_as_png_has_the_dots_that_were_asked_for():
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(2, 11, 11, 3, 48)).astype(np.float32)
    figure = drawing.kernels(kernels)
    image = Image.open(io.BytesIO(figures.png(figure, 200)))
    assert image.size == tuple(round(200 * x) for x in figure.get_size_inches())
    pixels = np.asarray(image)
    # Each weight is a square of equal pixels: here the second kernel's first one.
    side = image.size[0] // (16 * 12 + 1)
    weight = pixels[side : 2 * side, 13 * side : 14 * side].reshape(-1, 3)
    kernel = kernels[0, ..., 1]
    expected = 127.5 * (1 + kernel[0, 0] / np.abs(kernel).max())
    assert np.abs(weight - expected).max() < 1.5
    few = Image.open(io.BytesIO(figures.png(figure, 200, few_colours=True)))
    assert few.size == image.size and few.mode == "P"
    assert few.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
