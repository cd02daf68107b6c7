"""The page: its arithmetic against scikit-learn, its content, and how a browser lays it out."""

import base64
import html.parser
import io
import json
import os
import re
import shlex
import shutil
import tracemalloc
import types

import numpy as np
import pytest
import sklearn.metrics
import sklearn.neighbors
from PIL import Image

from alexnet_jax.analysis import comparison, report, study
from alexnet_jax.config import default
from alexnet_jax.data import sources
from alexnet_jax.data.sources import open_sources
from alexnet_jax.errors import UsageError
from alexnet_jax.training import origin as trained
from alexnet_jax.training.events import Saved, Warned
from alexnet_jax.training.loop import train_and_evaluate
from tests.analysis.logs import evaluation, training_mean, write_log
from tests.analysis.test_study import small
from tests.support import png_folder
from tests.training.test_train import short_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on noise in folders, and its page."""
    root = tmp_path_factory.mktemp("run")
    config = short_config()
    config.data.source = f"folder:{png_folder(root / 'images', 64, test=40)}"
    config.evaluate.splits = ("train", "validation")
    config.evaluate.final_views = 10
    config.num_epochs = 4.0
    result = train_and_evaluate(config, root / "a run")
    return root, result, report.write(root / "a run").read_text()


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    """Logs of a study, made up: the page needs no more."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    config = small()
    for name, seed in study.runs(config):
        workdir = folder / name / f"seed-{seed}"
        error = 0.3 + 0.1 * (name != "base") + 0.01 * float(rng.random())
        events = [training_mean(s / 10, 2.0 / s, 0.9 - 0.005 * s, step=s) for s in range(1, 101)]
        write_log(workdir, [*events, evaluation("validation", 10.0, 1.0, error, step=100)])
        (workdir / "result.json").write_text(json.dumps({"test": {"top1_error": error}}))
        (workdir / "config.json").write_text(study.run_config(config, name, seed).to_json())
    (folder / "base" / "seed-1" / "report.html").write_text("<p>a run</p>")
    study.write(config, folder)
    return folder


class Page(html.parser.HTMLParser):
    """Tags that are closed in order, and everything that would be fetched."""

    VOID = ("meta", "img", "br", "wbr", "link", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_of_a_run_holds_itself_and_its_numbers(run):
    root, result, text = run
    page = Page(text)
    assert page.addresses and all(a.startswith("data:image/") for a in page.addresses)
    assert "@import" not in text and "url(" not in text
    words = " ".join(page.text)
    for split in ("test", "validation", "train"):
        for name in ("top1_error", "top5_error"):
            for views in ("", "_10_views") if split == "test" else ("",):
                assert f"{100 * result[split][name + views]:.2f}" in words
    assert f"{root / 'images'}" in words and "config.seed" not in words
    assert "jax" in words and "pmap, 2" in words
    # 2 curves, kernels, a confusion matrix; 8 predictions; 5 rows of 1 + 6 neighbours.
    assert len(page.addresses) == 4 + 8 + 5 * 7
    assert report.write(root / "a run").read_text() == text  # the same again


def test_every_file_of_a_run_and_of_its_page_has_the_permissions_of_the_umask(run):
    root, _, _ = run
    os.umask(umask := os.umask(0))
    files = [path for path in (root / "a run").rglob("*") if path.is_file()]
    odd = {p.name for p in files if p.stat().st_mode & 0o777 != 0o666 & ~umask}
    assert "report.html" in {path.name for path in files} and len(files) > 10 and not odd


def test_predictions_are_those_of_the_test(run):
    root, result, _ = run
    config = trained.config_of(root / "a run")
    loaded = trained.load(root / "a run", placement="auto")
    opened = open_sources(config)
    seen = joined(report.features_of(loaded, opened["test"], None))
    assert seen.probabilities.shape == (40, 10) and seen.features.shape[0] == 40
    np.testing.assert_allclose(seen.probabilities.sum(1), 1, rtol=1e-5)
    grey = loaded.params["conv1"]["kernel"].mean(3, keepdims=True)
    share = 1 - 3 * np.square(grey).sum((1, 2, 3)) / np.square(
        loaded.params["conv1"]["kernel"]
    ).sum((1, 2, 3))
    np.testing.assert_allclose(result["colour_share"], share.mean(1), rtol=1e-4)
    error = (seen.probabilities.argmax(1) != seen.label).mean()
    assert error == pytest.approx(result["test"]["top1_error"], abs=1e-6)
    assert seen.index.tolist() == list(range(40))
    assert len(joined(report.features_of(loaded, opened["train"], 50)).label) == 50


def joined(parts):
    return report.Features(
        *map(np.concatenate, zip(*(vars(p).values() for p in parts), strict=True))
    )


def in_parts(features, size=7):
    for first in range(0, len(features.label), size):
        yield report.Features(*(x[first : first + size] for x in vars(features).values()))


def test_a_page_holds_the_features_of_one_batch_at_a_time(monkeypatch, tmp_path):
    """Of 3,000 images with 4,096 features (50 MB), in batches of 100 (1.6 MB)."""
    rng = np.random.default_rng(0)

    def features(run, source, most):
        del run, most
        for first in range(0, source.num_examples, 100):
            rows = np.arange(first, first + 100)
            ones = np.full((100, 2), 0.5, np.float32)
            yield report.Features(rows % 2, rows, ones, rng.random((100, 4096), np.float32))

    source = types.SimpleNamespace(num_examples=3000)
    network = types.SimpleNamespace(
        class_names=("ant", "bee"),
        params={"conv1": {"kernel": np.ones((1, 3, 3, 3, 4), np.float32)}},
        tower=types.SimpleNamespace(layers=[types.SimpleNamespace(name="conv1")]),
    )
    monkeypatch.setattr(
        sources, "open_sources", lambda config, *names: {"test": source, "train": source}
    )
    monkeypatch.setattr(trained, "load", lambda workdir, placement: network)
    monkeypatch.setattr(report, "features_of", features)
    monkeypatch.setattr(report, "thumbnails", lambda config, source, at: dict.fromkeys(at.tolist()))
    monkeypatch.setattr(report, "picture", lambda figure: "")
    tracemalloc.start()
    report.seen_images(default(), tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10e6


def test_without_its_images_the_page_says_so(run, tmp_path):
    root, _, _ = run
    copy = shutil.copytree(root / "a run", tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["data"]["source"] = f"folder:{tmp_path / 'gone'}"
    (copy / "config.json").write_text(json.dumps(config))
    text = report.write(copy).read_text()
    assert "Without kernels" in text and f"there is no folder {tmp_path / 'gone'}" in text
    assert "top-1 error" in text
    with pytest.raises(UsageError, match="neither a run nor a study"):
        report.write(tmp_path)


def test_the_page_of_a_study_shows_the_table(study_folder):
    text = report.write(study_folder).read_text()
    page = Page(text)
    words = re.sub(r"\s+", " ", " ".join(page.text))
    for row in comparison.table(small(), study_folder).cells()[1]:
        for cell in filter(None, row):
            assert cell in words
    pictures = [a for a in page.addresses if a.startswith("data:image/")]
    assert len(pictures) == 5
    # Of the runs that have pages.
    assert set(page.addresses) - set(pictures) == {"base/seed-1/report.html"}


def test_names_are_text_and_no_markup(run, tmp_path):
    root, _, _ = run
    copy = shutil.copytree(root / "a run", tmp_path / "<b>bold</b> & co")
    assert "<b>bold</b>" not in report.write(copy).read_text()


def test_neighbours_and_confusions_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    features, query = rng.normal(size=(200, 12)), rng.normal(size=12)
    tree = sklearn.neighbors.NearestNeighbors(n_neighbors=6).fit(features)
    images = report.Features(np.arange(200) % 7, np.arange(200), np.zeros((200, 1)), features)
    for size in (1, 7, 200):
        (found,) = report.nearest([query], in_parts(images, size), 6)
        expected = tree.kneighbors(query[None])[1][0].tolist()
        assert found == [(i, i % 7) for i in expected]
    equal = report.Features(np.arange(9), np.arange(9), np.zeros((9, 1)), np.zeros((9, 2)))
    assert report.nearest([np.ones(2)], in_parts(equal, 2), 3) == [[(0, 0), (1, 1), (2, 2)]]
    label, answer = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    matrix = report.confusion(label, answer, 5)
    expected = sklearn.metrics.confusion_matrix(label, answer, labels=range(5))
    np.testing.assert_array_equal(matrix, expected)
    pairs = report.confused_pairs(matrix, tuple("abcde"), 20)
    assert len(pairs) == 12 and [p[2] for p in pairs] == sorted((p[2] for p in pairs), reverse=True)
    for name, other, times, total in pairs:
        a, b = "abcde".index(name), "abcde".index(other)
        assert times == ((label == a) & (answer == b)).sum() and total == (label == a).sum()


def test_results_are_of_the_final_test_or_of_the_last_one_in_the_log():
    final = {
        "num_examples": 360,
        "top1_error": 0.125,
        "top5_error": 0.03,
        "top1_error_9_views": 0.1,
        "top5_error_9_views": 0.02,
        "top1_error_10_views": 0.09,
        "top5_error_10_views": 0.01,
    }
    log = [
        evaluation("train", 1.0, 1.0, 0.5, 9, top5_error=0.4),
        evaluation("validation", 1.0, 1.0, 0.9, 40, top5_error=0.8),
        evaluation("train", 2.0, 1.0, 0.3, 9, top5_error=0.2),
        training_mean(2.0, 1.0, 0.1),
    ]
    last = [
        ("validation, 40 images", "1", "90.00", "80.00"),
        ("train, 9 images", "1", "30.00", "20.00"),
    ]
    assert report.results({"test": final}, log) == [
        ("test, 360 images", "1", "12.50", "3.00"),
        ("test, 360 images", "9", "10.00", "2.00"),
        ("test, 360 images", "10", "9.00", "1.00"),
        *last,
    ]
    assert report.results({}, log) == last
    assert report.results({}, []) == []


def test_changed_fields_are_those_that_differ_from_the_defaults():
    assert report.changed_fields(default()) == []
    config = default()
    with config.unlocked():
        config.optimizer.drop_epochs = (1.0, 2.0)
        config.model.layers.conv2.bias = 1.0
        config.model.layers.conv9 = {"kind": "conv"}
    assert sorted(report.changed_fields(config)) == [
        ("model.layers.conv2.bias", "1.0", "0.0"),
        ("model.layers.conv9.kind", '"conv"', ""),
        ("optimizer.drop_epochs", "[1.0, 2.0]", "[30.0, 60.0, 80.0]"),
    ]


def test_the_command_can_be_typed_again():
    typed = ["__main__.py", "train", "--config=my experiments/a.py", "--workdir=x"]
    text = report.command({"command": typed})
    assert text.splitlines()[0] == "python -m alexnet_jax train \\"
    assert shlex.split(text.replace("\\\n", " ")) == ["python", "-m", "alexnet_jax", *typed[1:]]
    assert report.command({"command": ["start.py"]}) == "start.py"
    assert report.command({}) == "unknown"


def test_the_summary_is_of_the_last_step_and_of_the_machine():
    config = default()
    config.update(seed=3, batch_size=64)
    log = [
        training_mean(1.5, 1.0, 0.5, step=20),
        evaluation("train", 2.5, 1.0, 0.5, step=40),
        Warned(41, "slow"),
        Saved(42, "0123"),
    ]
    env = {
        "placement": "pmap, 2",
        "packages": {"jax": "1", "flax": "2", "numpy": "3"},
        "git_revision": "0123456789abcdef",
        "git_dirty": True,
    }
    assert dict(report.summary(config, env, log)) == {
        "data": "tfds:imagenet2012, 1000 classes",
        "network": "2 towers, width 1, 224 pixel crops",
        "trained": "42 steps, 2.5 epochs of batches of 64",
        "seed": "3",
        "placement": "pmap, 2",
        "versions": "jax 1, flax 2",
        "revision": "0123456789ab with changes",
    }
    rest = dict(report.summary(config, {}, []))
    assert rest["trained"] == "0 steps, 0 epochs of batches of 64"
    assert rest["placement"] == rest["versions"] == rest["revision"] == "unknown"


def test_thumbnails_are_the_squares_of_their_images(tmp_path):
    """The centre of 36 x 40 pixels, each shown as 2 x 2; of two images that are not the first."""
    root = png_folder(tmp_path, 10, test=10)
    config = small().base
    config.data.update(source=f"folder:{root}", image_size=36)
    source = open_sources(config)["train"]
    found = report.thumbnails(config, source, np.array([3, 1]))
    assert list(found) == [3, 1]
    for number, address in found.items():
        kind, _, content = address.partition(";base64,")
        assert kind == "data:image/png"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        pixels = np.asarray(Image.open(root / "train" / f"{number}" / f"{number}.png"))[:, 2:38]
        np.testing.assert_array_equal(shown, pixels.repeat(2, 0).repeat(2, 1))


def test_what_is_shown_of_each_image_is_its_own(monkeypatch, tmp_path):
    """Answers, neighbours and pictures of images whose numbers are not their places."""
    rng = np.random.default_rng(1)
    names = ("ant", "bee", "cat")

    def features(count):
        return report.Features(
            label=rng.integers(0, 3, count),
            index=100 + rng.permutation(count),
            probabilities=rng.dirichlet((1, 1, 1), count),
            features=rng.normal(size=(count, 4)),
        )

    seen = {"test": features(30), "train": features(50)}
    kernels = np.zeros((2, 3, 3, 3, 4))
    kernels[1, ..., 0, :] = 1.0  # red: two thirds of it are colour
    network = types.SimpleNamespace(
        class_names=names,
        params={"conv1": {"kernel": kernels}},
        tower=types.SimpleNamespace(layers=[types.SimpleNamespace(name="conv1")]),
    )
    opened = {name: types.SimpleNamespace(name=name, num_examples=len(images.label))
              for name, images in seen.items()}  # fmt: skip
    monkeypatch.setattr(sources, "open_sources", lambda config, *names: opened)
    monkeypatch.setattr(trained, "load", lambda workdir, placement: network)
    monkeypatch.setattr(
        report, "features_of", lambda run, source, most: in_parts(seen[source.name])
    )
    monkeypatch.setattr(
        report,
        "thumbnails",
        lambda config, source, which: {int(i): (source.name, int(i)) for i in which},
    )
    found = report.seen_images(default(), tmp_path)
    test, train = seen["test"], seen["train"]
    place = {("test", int(number)): i for i, number in enumerate(test.index)}

    assert len({picture for picture, *_ in found.predictions}) == report.PREDICTIONS
    for picture, name, best in found.predictions:
        i = place[picture]
        order = np.argsort(test.probabilities[i])[::-1]
        assert name == names[test.label[i]]
        assert best == [
            (names[k], pytest.approx(100 * test.probabilities[i, k]), k == test.label[i])
            for k in order
        ]
    assert len({picture for picture, *_ in found.neighbours}) == report.QUERIES
    for picture, name, others in found.neighbours:
        i = place[picture]
        distance = [np.linalg.norm(test.features[i] - row) for row in train.features]
        nearest = np.argsort(distance)[: report.NEIGHBOURS]
        assert name == names[test.label[i]]
        assert others == [(("train", train.index[j]), names[train.label[j]]) for j in nearest]
    answer = test.probabilities.argmax(1)
    assert {(a, b): n for a, b, n, _ in found.pairs} == {
        (names[a], names[b]): n
        for a in range(3)
        for b in range(3)
        if a != b and (n := ((test.label == a) & (answer == b)).sum())
    }
    assert all(of == (test.label == names.index(a)).sum() for a, _, _, of in found.pairs)
    assert found.examples == 30
    assert found.colour == ["of tower 1: 0 %", "of tower 2: 67 %"]
