"""The pages: their numbers, what stands on them, and how a browser lays them out."""

import base64
import html.parser
import json
import os
import re
import shlex
import shutil

import numpy as np
import pytest

import alexnet_jax
from alexnet_jax.analysis import comparison, headline, images, report, study
from alexnet_jax.config import default, find
from alexnet_jax.data.classes import imagenet_classes
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


def words_of(text):
    """The text of a page as a browser shows it, without tags."""
    return re.sub(r"\s+", " ", " ".join(Page(text).text))


def test_the_page_of_a_run_holds_itself_and_its_numbers(run):
    root, result, text = run
    page, words = Page(text), words_of(text)
    addresses = [a for a in page.addresses if not a.startswith("#")]
    assert all(a.startswith("data:image/") for a in addresses)
    assert "@import" not in text and "url(" not in text
    for split in ("test", "validation", "train"):
        for name in ("top1_error", "top5_error"):
            for views in ("", "_10_views") if split == "test" else ("",):
                assert f"{100 * result[split][name + views]:.2f}" in words
    error, views = (100 * result["test"][f"top1_error{x}"] for x in ("", "_10_views"))
    assert (
        f"{100 - error:.1f} % right on 40 test images; {error:.1f} % top-1 error, "
        f"{views:.1f} % over ten views." in words
    )
    assert "Guessing among 10 classes: 10.0 % right" in words and "In 2012" not in words
    assert f"{root / 'images'}" in words and "config.seed" not in words
    assert "jax" in words and "pmap, 2" in words
    # 2 curves, 2 pictures of kernels, a confusion matrix; 8 answers; 5 rows of 1 + 6 neighbours.
    wrong, classes = round(0.4 * error), 10
    right = text.count("<figcaption><b>")
    assert text.count("truth: ") == min(wrong, 12) and right <= classes
    assert len(addresses) == 5 + min(wrong, 12) + right + 8 + 5 * 7
    assert report.write(root / "a run").read_text() == text  # the same again


def test_the_page_tells_its_story_in_order(run):
    _, _, text = run
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert titles == [
        "Training", "Errors by class", "Mistakes", "Right answers",
        "8 test images with their five most probable classes", "Nearest training images",
        "Kernels of the first layer", "Confusions", "Configuration", "How to repeat it",
    ]  # fmt: skip
    assert text.index('class="headline"') < text.index("<h2")
    links, ids = re.findall(r'href="#(.*?)"', text), re.findall(r'id="(.*?)"', text)
    assert links and links == [name for name in ids if name in links]
    # Every picture says in words what it shows, and no two curves or kernels the same.
    texts = re.findall(r'<img[^>]*alt="(.*?)"', text)
    assert len(texts) == text.count("<img") and all(len(x.split()) > 4 for x in texts)


def test_the_kernels_are_those_of_the_run_beside_those_it_drew(run):
    root, _, text = run
    config = trained.config_of(root / "a run")
    after = alexnet_jax.load(root / "a run").kernels("conv1")
    before = alexnet_jax.create(config=config).kernels("conv1")
    r = np.corrcoef(after.flatten(), before.flatten())[0, 1]
    assert f"with those at the start is {r:.2f}: " in text and r > 0.9  # of four steps
    picture = base64.b64encode((root / "a run" / "kernels.png").read_bytes()).decode()
    assert text.count(picture) == 1 and "Share of colour:" in text


def test_every_test_image_is_counted_once_by_class(run):
    _, result, text = run
    rows = re.findall(r'<td class="number">(\d+) of (\d+)</td><td class="share">', text)
    assert sum(int(of) for _, of in rows) == 40 and len(rows) == 10
    assert sum(int(n) for n, _ in rows) == round(40 * result["test"]["top1_error"])


def test_what_is_shown_of_one_image_and_three_classes(run, tmp_path, monkeypatch):
    """No top-5 error, no plural of one, and only the classes that there are."""
    root, _, _ = run
    copy = shutil.copytree(root / "a run", tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["model"]["num_classes"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "classes.json").write_text(json.dumps(["ant", "bee", "cat"]))
    only = {"num_examples": 1, "top1_error": 0.0, "top5_error": 0.0}
    (copy / "result.json").write_text(json.dumps({"steps": 1, "test": only}))
    picture = "data:image/png;base64,"
    kernels = images.Kernels(picture, "", "1 kernel of 3 x 3 pixels", 1, 1, None, True, [0.0])
    answer = images.Answer(picture, 0, "ant", "ant", 99.0)
    seen = images.Seen(
        kernels=kernels, classes=[images.ClassErrors("ant", 1, 0, 0.0, "")], mistakes=[],
        right=[answer], answers=[(picture, "ant", [("ant", 99.0, True), ("bee", 1.0, False)])],
        neighbours=[], confusion=None, pairs=[], examples=1, pngs={},
    )  # fmt: skip
    monkeypatch.setattr(images, "look", lambda config, workdir: seen)
    text = report.write(copy).read_text()
    words = words_of(text)
    assert "100.0 % right on 1 test image; 0.0 % top-1 error." in words
    assert "test, 1 image " in words and "the test image is classified correctly" in words
    assert "1 test image with its 3 classes" in words and "Guessing among 3 classes" in words
    assert "top-5" not in words and "1 images" not in words and "tower 1" not in words
    assert "most certain and wrong" not in words and "The correlation" not in words
    assert "kernel acts by the sum of its weights" in words


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
    seen = joined(images.features_of(loaded, opened["test"], None))
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
    assert len(joined(images.features_of(loaded, opened["train"], 50)).label) == 50


def joined(parts):
    return images.Features(
        *map(np.concatenate, zip(*(vars(p).values() for p in parts), strict=True))
    )


def test_without_its_images_the_page_says_so(run, tmp_path):
    root, _, _ = run
    copy = shutil.copytree(root / "a run", tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["data"]["source"] = f"folder:{tmp_path / 'gone'}"
    (copy / "config.json").write_text(json.dumps(config))
    text = report.write(copy).read_text()
    assert "Without images" in text and f"there is no folder {tmp_path / 'gone'}" in text
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


@pytest.mark.parametrize(
    "fields,expected",
    [
        (
            {"num_examples": 2000, "top1_error": 0.1945, "top1_error_10_views": 0.1675},
            "80.6 % right on 2,000 test images; 19.4 % top-1 error, 16.8 % over ten views",
        ),
        (
            {"num_examples": 360, "top1_error": 3 / 360, "top1_error_9_views": 1 / 360},
            "99.2 % right on 360 test images; 0.83 % top-1 error, 0.28 % over nine views",
        ),
        (
            {"num_examples": 1, "top1_error": 1.0},
            "0.0 % right on 1 test image; 100.0 % top-1 error",
        ),
    ],
)
def test_the_result_is_a_sentence(fields, expected):
    log = [evaluation("validation", 1.0, 1.0, 0.25, 40), evaluation("train", 1.0, 1.0, 0.5, 9)]
    assert headline.sentence({"test": fields}, log) == expected
    assert headline.sentence({}, log) == (
        "75.0 % right on 40 validation images; 25.0 % top-1 error; the run has not ended"
    )
    assert "on 9 training images" in headline.sentence({}, log[1:])
    assert headline.sentence({}, []) == "Not evaluated yet"


@pytest.mark.parametrize(
    "classes,expected",
    [
        (10, "10 classes: 10.0 % right, 90.0 % top-1 error."),
        (1000, "1,000 classes: 0.10 % right, 99.9 % top-1 error."),
        (1, "1 class: 100.0 % right, 0.0 % top-1 error."),
    ],
)
def test_chance_is_one_of_the_classes(classes, expected):
    assert report.guessing(classes) == f"Guessing among {expected}"


CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@pytest.mark.parametrize(
    "network,views,error",
    [("80sec", "1 view", 26), ("19pct", "1 view", 19), ("18pct", "1 view", 18),
     ("13pct", "9 views", 13), ("11pct", "9 views", 11)],
)  # fmt: skip
def test_networks_of_cuda_convnet_stand_beside_its_errors(network, views, error):
    config = find.get_config(f"cifar10_2012:{network}")
    config.model.precision = "high"  # does not make it another network
    (line,) = report.in_2012(config, CIFAR10[::-1])
    assert line.startswith(f"In 2012: {error} % top-1 error with {views} (cuda-convnet")
    assert report.in_2012(config, (*CIFAR10[1:], "n01440764")) == []
    config.model.activation = "tanh"
    assert report.in_2012(config, CIFAR10) == []


def test_every_network_on_imagenet_stands_beside_the_papers():
    names = [line.partition(" ")[0] for line in imagenet_classes()]
    (line,) = report.in_2012(default(), tuple(names))
    assert line.startswith(
        "In 2012: 40.7 % top-1 error, 18.2 % top-5 error with 10 views (the paper"
    )
    assert report.in_2012(default(), tuple(names[:999])) == []
    assert report.in_2012(default(), ()) == []


def test_time_and_speed_are_those_of_the_log(tmp_path):
    log = [training_mean(1.0, 1.0, 0.5, step=10), training_mean(2.0, 1.0, 0.5, step=30)]
    write_log(tmp_path / "a", log)
    (tmp_path / "a" / "config.json").write_text('{"batch_size": 200}')
    # 30 steps of 200 images at 100 images/s.
    assert report.speed(tmp_path / "a", log) == (
        "The training steps took 1 minute, at 100 images/s (median); 10 % of the time was spent "
        "waiting for images."
    )
    write_log(tmp_path / "b", [])
    assert report.speed(tmp_path / "b", []) == ""


@pytest.mark.parametrize(
    "seconds,expected",
    [(0.2, "0 seconds"), (1, "1 second"), (59.6, "1 minute"), (125, "2 minutes 5 seconds"),
     (3600, "1 hour"), (7384, "2 hours 3 minutes"), (90061, "1 day 1 hour")],
)  # fmt: skip
def test_times_are_in_their_two_largest_units(seconds, expected):
    assert report.duration(seconds) == expected


@pytest.mark.parametrize(
    "r,init_from,verdict",
    [
        (0.74, "", "0.74: they are still mostly their initial noise"),
        (0.6, "", "0.60: they are partly their initial noise"),
        (-0.02, "", "-0.02: little is left of their initial noise"),
        (0.9, "runs/net.onnx", "0.90: they are still mostly what they were in net.onnx"),
    ],
)
def test_how_far_kernels_moved_is_a_sentence(r, init_from, verdict):
    kernels = images.Kernels("", "", "", 2, 16, r, False, [])
    assert report.moved(kernels, init_from).endswith(f"at the start is {verdict}.")


def test_several_runs_are_a_table_and_curves_on_one_page(tmp_path):
    """Of different length, one without a result."""
    config = small().base
    for number, name in enumerate(("a/one", "a/two", "b")):
        events = [training_mean(s / 10, 2.0 / s, 0.9 - 0.005 * s, step=s) for s in range(1, 101)]
        write_log(tmp_path / name, [*events, evaluation("validation", 10.0, 1.0, 0.3, step=100)])
        config.seed = number
        (tmp_path / name / "config.json").write_text(config.to_json())
    final = {"num_examples": 2000, "top1_error": 0.1234, "top5_error": 0.0321}
    (tmp_path / "a" / "one" / "result.json").write_text(json.dumps({"steps": 100, "test": final}))
    (tmp_path / "a" / "one" / "report.html").write_text("<p>a run</p>")
    folders = [tmp_path / name for name in ("a/one", "a/two", "b")]
    text = report.write_runs(folders, tmp_path / "a" / "both.html").read_text()
    words = words_of(text)
    assert "3 runs" in words and "12.34" in words and "3.21" in words and "30.00" in words
    assert words.count("not finished") == 2
    # 100 steps of 32 images at 100 images/s.
    assert words.count("32 seconds") == 3
    assert re.findall(r'href="(.*?)">(.*?)<', text) == [("one/report.html", "a/one")]
    pictures = [a for a in Page(text).addresses if a.startswith("data:image/")]
    assert len(pictures) == 2
    assert report.differing([config, config]) == []
    rows = re.findall(r"<code>(\w[\w.]*)</code></td>(.*)", text)
    assert [name for name, _ in rows] == ["seed"]
    assert re.findall(r"<code>(.*?)</code>", rows[0][1]) == ["0", "1", "2"]
    with pytest.raises(UsageError, match="gone is not a run"):
        report.write_runs([folders[0], tmp_path / "gone"], tmp_path / "x.html")


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
