"""What a page shows of a network: against scikit-learn, brute force and the network itself."""

import base64
import io
import tracemalloc
import types

import numpy as np
import pytest
import sklearn.metrics
import sklearn.neighbors
from PIL import Image

import alexnet_jax
from alexnet_jax.analysis import images
from alexnet_jax.config import default
from alexnet_jax.data import sources
from alexnet_jax.data.sources import open_sources
from alexnet_jax.model.tower import build_tower
from alexnet_jax.training import origin as trained
from tests.analysis.test_study import small
from tests.support import png_folder, tiny_config


def joined(parts):
    return images.Features(
        *map(np.concatenate, zip(*(vars(p).values() for p in parts), strict=True))
    )


def in_parts(features, size=7):
    for first in range(0, len(features.label), size):
        yield images.Features(*(x[first : first + size] for x in vars(features).values()))


def test_a_page_holds_the_features_of_one_batch_at_a_time(monkeypatch, tmp_path):
    """Of 3,000 images with 4,096 features (50 MB), in batches of 100 (1.6 MB)."""
    rng = np.random.default_rng(0)

    def features(run, source, most):
        del run, most
        for first in range(0, source.num_examples, 100):
            rows = np.arange(first, first + 100)
            ones = np.full((100, 2), 0.5, np.float32)
            yield images.Features(rows % 2, rows, ones, rng.random((100, 4096), np.float32))

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
    monkeypatch.setattr(images, "features_of", features)
    tiny = np.zeros((4, 4, 3), np.uint8)
    monkeypatch.setattr(images, "squares", lambda config, source, at: dict.fromkeys(at, tiny))
    monkeypatch.setattr(images, "kernels_at_start", lambda tower, config: None)
    monkeypatch.setattr(images.figures, "picture", lambda figure: "")
    monkeypatch.setattr(images.figures, "png", lambda figure, dots, few_colours=False: b"")
    tracemalloc.start()
    images.look(default(), tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10e6


def test_neighbours_and_confusions_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    features, query = rng.normal(size=(200, 12)), rng.normal(size=12)
    tree = sklearn.neighbors.NearestNeighbors(n_neighbors=6).fit(features)
    searched = images.Features(np.arange(200) % 7, np.arange(200), np.zeros((200, 1)), features)
    for size in (1, 7, 200):
        (found,) = images.nearest([query], in_parts(searched, size), 6)
        expected = tree.kneighbors(query[None])[1][0].tolist()
        assert found == [(i, i % 7) for i in expected]
    equal = images.Features(np.arange(9), np.arange(9), np.zeros((9, 1)), np.zeros((9, 2)))
    assert images.nearest([np.ones(2)], in_parts(equal, 2), 3) == [[(0, 0), (1, 1), (2, 2)]]
    label, answer = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    matrix = images.confusion(label, answer, 5)
    expected = sklearn.metrics.confusion_matrix(label, answer, labels=range(5))
    np.testing.assert_array_equal(matrix, expected)
    pairs = images.confused_pairs(matrix, tuple("abcde"), 20)
    assert len(pairs) == 12 and [p[2] for p in pairs] == sorted((p[2] for p in pairs), reverse=True)
    for name, other, times, total in pairs:
        a, b = "abcde".index(name), "abcde".index(other)
        assert times == ((label == a) & (answer == b)).sum() and total == (label == a).sum()


def test_squares_are_the_middles_of_their_images_and_small_ones_are_shown_exactly(tmp_path):
    """36 x 36 of 36 x 40 pixels; of two images that are not the first."""
    root = png_folder(tmp_path, 10, test=10)
    config = small().base
    config.data.update(source=f"folder:{root}", image_size=36)
    found = images.squares(config, open_sources(config)["train"], [3, 1, 3])
    assert sorted(found) == [1, 3]
    for number, square in found.items():
        pixels = np.asarray(Image.open(root / "train" / f"{number}" / f"{number}.png"))[:, 2:38]
        np.testing.assert_array_equal(square, pixels)
        np.testing.assert_array_equal(shown(images.thumbnail(square, 100), "png"), pixels)


def shown(address, kind):
    """The pixels of a picture in a page."""
    assert address.startswith(f"data:image/{kind};base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_a_large_photograph_is_shrunk():
    rows = np.linspace(0, 255, 256).astype(np.uint8)
    square = np.repeat(np.repeat(rows[:, None, None], 256, 1), 3, 2)
    pixels = shown(images.thumbnail(square, 112), "jpeg")
    assert pixels.shape == (112, 112, 3)
    assert np.abs(pixels[:, 50, 0] - np.linspace(0, 255, 112)).max() < 5


def test_what_is_shown_of_each_image_is_its_own(monkeypatch, tmp_path):
    """Answers, neighbours and pictures of images whose numbers are not their places."""
    rng = np.random.default_rng(1)
    names = ("ant", "bee", "cat")

    def features(count):
        return images.Features(
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
        images, "features_of", lambda run, source, most: in_parts(seen[source.name])
    )

    def squares(config, source, which):
        """The pixels of an image say which split and number it is of."""
        side = {"test": 2, "train": 3}[source.name]
        return {int(i): np.full((side, side, 3), int(i), np.uint8) for i in which}

    monkeypatch.setattr(images, "squares", squares)
    start = rng.normal(size=kernels.shape)
    monkeypatch.setattr(images, "kernels_at_start", lambda tower, config: start)
    found = images.look(default(), tmp_path)
    test, train = seen["test"], seen["train"]
    place = {int(number): i for i, number in enumerate(test.index)}
    answer = test.probabilities.argmax(1)

    def of(picture, side):
        pixels = shown(picture, "png")
        assert pixels.shape == (side, side, 3)
        return int(pixels[0, 0, 0])

    assert len({picture for picture, *_ in found.answers}) == images.ANSWERS
    for picture, name, best in found.answers:
        i = place[of(picture, 2)]
        order = np.argsort(test.probabilities[i])[::-1]
        assert name == names[test.label[i]]
        assert best == [
            (names[k], pytest.approx(100 * test.probabilities[i, k]), k == test.label[i])
            for k in order
        ]
    queries = [of(picture, 2) for picture, *_ in found.neighbours]
    assert queries == [of(picture, 2) for picture, *_ in found.answers][: images.QUERIES]
    for number, (_, name, others) in zip(queries, found.neighbours, strict=True):
        i = place[number]
        distance = [np.linalg.norm(test.features[i] - row) for row in train.features]
        nearest = np.argsort(distance)[: images.NEIGHBOURS]
        assert name == names[test.label[i]]
        assert [(of(other, 3), label) for other, label in others] == [
            (train.index[j], names[train.label[j]]) for j in nearest
        ]
    for each in (*found.mistakes, *found.right):
        i = place[each.index]
        assert of(each.picture, 2) == each.index
        assert (each.truth, each.answer) == (names[test.label[i]], names[answer[i]])
        assert each.percent == pytest.approx(100 * test.probabilities[i].max())
    assert all(each.truth != each.answer for each in found.mistakes)
    assert len(found.mistakes) == min(images.MISTAKES, (answer != test.label).sum()) > 1
    assert sorted(each.truth for each in found.right) == sorted(
        {names[a] for a, b in zip(test.label, answer, strict=True) if a == b}
    )
    assert {(a, b): n for a, b, n, _ in found.pairs} == {
        (names[a], names[b]): n
        for a in range(3)
        for b in range(3)
        if a != b and (n := ((test.label == a) & (answer == b)).sum())
    }
    assert all(of == (test.label == names.index(a)).sum() for a, _, _, of in found.pairs)
    assert found.examples == 30
    drawn = found.kernels
    assert drawn.grey  # as all the squares are
    summed = [k.sum(3).ravel() for k in (kernels, start)]
    assert drawn.correlation == pytest.approx(np.corrcoef(*summed)[0, 1])
    assert drawn.colour == pytest.approx([0, 200 / 3])
    assert (drawn.towers, drawn.columns, drawn.shape) == (2, 4, "8 kernels of 3 x 3 pixels")
    for name, content in found.pngs.items():
        assert Image.open(io.BytesIO(content)).format == "PNG", name
    assert drawn.trained == images.pages.uri("png", found.pngs["kernels.png"])


@pytest.mark.parametrize("classes,count", [(3, 200), (5, 8), (30, 500)])
def test_mistakes_are_mistakes_and_the_most_certain_ones(classes, count):
    rng = np.random.default_rng(classes)
    label, answer = rng.integers(0, classes, count), rng.integers(0, classes, count)
    certainty = rng.random(count)
    every = [i for i in range(count) if label[i] != answer[i]]
    assert (
        images.mistakes(label, answer, certainty)
        == sorted(every, key=lambda i: -certainty[i])[: images.MISTAKES]
    )
    best = {}
    for i in sorted(range(count), key=lambda i: -certainty[i]):
        if label[i] == answer[i]:
            best.setdefault(label[i], i)
    assert images.successes(label, answer, certainty) == list(best.values())[: images.MISTAKES]
    same = np.zeros(9, int)
    assert images.mistakes(same, same, certainty[:9]) == []
    assert images.successes(same, same + 1, certainty[:9]) == []


def test_errors_of_classes_are_one_minus_the_recall_of_scikit_learn():
    rng = np.random.default_rng(0)
    label, answer = rng.integers(0, 4, 300), rng.integers(0, 5, 300)
    label[label == 3] = 2  # no image of the fourth class, and of the fifth
    found = images.class_errors(images.confusion(label, answer, 5), tuple("abcde"))
    recall = sklearn.metrics.recall_score(label, answer, labels=range(3), average=None)
    assert {row.name: row.percent for row in found} == pytest.approx(
        {name: 100 * (1 - r) for name, r in zip("abc", recall, strict=True)}
    )
    assert [row.percent for row in found] == sorted((row.percent for row in found), reverse=True)
    for row in found:
        of = label == "abcde".index(row.name)
        assert (row.images, row.wrong) == (of.sum(), (answer[of] != label[of]).sum())
        others = [((answer[of] == k) & (label[of] != k)).sum() for k in range(5)]
        assert others["abcde".index(row.instead)] == max(others)
    (row,) = images.class_errors(np.array([[3, 0], [0, 0]]), ("a", "b"))
    assert (row.images, row.wrong, row.percent, row.instead) == (3, 0, 0.0, "")


def test_kernels_at_the_start_are_those_that_a_run_draws_or_imports(tmp_path):
    config = tiny_config()
    config.seed = 3
    net = alexnet_jax.create(config=config)
    tower = build_tower(config.model)
    start = images.kernels_at_start(tower, config)
    np.testing.assert_array_equal(start, net.params["conv1"]["kernel"])
    config.init_from = str(tmp_path / "there.safetensors")
    assert images.kernels_at_start(tower, config) is None
    net.save(config.init_from)
    config.seed = 4
    np.testing.assert_allclose(images.kernels_at_start(tower, config), start, atol=1e-7)


def test_correlations_are_those_of_numpy():
    rng = np.random.default_rng(0)
    one, noise = rng.normal(size=(2, 2, 3, 3, 3, 8))
    other = 0.5 * one + noise
    expected = np.corrcoef(one.flatten(), other.flatten())[0, 1]
    assert images.correlation(one, other) == pytest.approx(expected)
    assert images.correlation(one, np.zeros_like(one)) is None


def test_an_image_is_grey_if_no_pixel_has_a_colour():
    square = np.full((4, 4, 3), 7, np.uint8)
    assert images.is_grey(square)
    square[2, 3, 1] = 8
    assert not images.is_grey(square)
