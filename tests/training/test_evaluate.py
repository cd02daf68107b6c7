"""Errors, loss and dead units against plain NumPy, on a network whose answers are known."""

import dataclasses
import io
import types

import numpy as np
import optax
import pytest
from PIL import Image

from alexnet_jax.data import inputs
from alexnet_jax.data.encoded import Encoded
from alexnet_jax.errors import UsageError
from alexnet_jax.training import drawing, evaluate
from alexnet_jax.training.parts.pictures import Pictures
from alexnet_jax.training.run import Due
from alexnet_jax.training.state import init_state
from tests.support import PLACEMENTS, placement_of, tiny_config

SIDE, CROP, CLASSES, COUNT = 6, 3, 10, 61
# Where the top left pixel of each view comes from in the image; a mirrored one begins at its end.
CORNERS = [(0, 0), (0, 3), (3, 0), (3, 3), (1, 1)]
PLACES = {
    1: [(1, 1)],
    9: [(y, x) for y in (0, 1, 3) for x in (0, 1, 3)],
    10: CORNERS + [(y, x + CROP - 1) for y, x in CORNERS],
}
CENTRE = (1, 1)
MIRRORED, NO_VIEW = (3, 5), (2, 2)


@dataclasses.dataclass(frozen=True)
class Sharp:
    """A tower that looks its answers up: by a view's first pixel, which says where it is from."""

    layers: tuple = (
        types.SimpleNamespace(name="hidden", then=("activation",)),
        types.SimpleNamespace(name="last", then=()),
    )
    towers: int = 2

    def apply(self, variables, images, prepare, mutable):
        del mutable
        images = prepare(images)
        number, y, x = (images[:, 0, 0, i].astype(int) for i in range(3))
        hidden, last = (variables["params"][name]["kernel"][number, y, x] for name in NAMES)
        return last, {"intermediates": {"hidden_out": (hidden,), "last_out": (last,)}}


NAMES = ("hidden", "last")


@dataclasses.dataclass(frozen=True)
class Places(Encoded):
    """Images whose pixels are (number of the image, row, column), with known labels."""

    labels: np.ndarray
    split: str = "test"
    name: str = "places"
    class_names: tuple = tuple("abcdefghij")
    files: tuple = ()
    num_examples: int = COUNT

    def pixels(self, index):
        image = np.indices((SIDE, SIDE)).transpose(1, 2, 0)
        return np.insert(image, 0, index, axis=2).astype(np.uint8)

    def read(self, indices):
        files = [io.BytesIO() for _ in indices]
        for file, index in zip(files, indices, strict=True):
            Image.fromarray(self.pixels(index)).save(file, format="PNG")
        return [file.getvalue() for file in files], self.labels[indices]

    def describe(self, index):
        return f"image {index}"


@pytest.fixture(scope="module")
def sharp():
    """A source, its configuration and a network with answers for each place of each image."""
    rng = np.random.default_rng(0)
    config = tiny_config()
    with config.unlocked():
        config.data.update(image_size=SIDE, crop_size=CROP, pad=0)
    logits = rng.normal(0, 3, (COUNT, SIDE, SIDE, CLASSES)).astype(np.float32)
    units = np.full((2, COUNT, SIDE, SIDE, 5), -1, np.float32)
    units[:, 7, *MIRRORED, 0] = 1  # one view of one image alone
    units[1, COUNT - 1, *CENTRE, 1] = 1  # the last image, in the second tower
    units[:, :, *NO_VIEW, 2] = 1  # where no view begins
    units[0, :, :, :, 3] = 1
    params = {"hidden": {"kernel": units}, "last": {"kernel": np.stack([logits, logits])}}
    variables = {"params": params}
    rule = inputs.Inputs(np.zeros(3, np.float32), 1.0, 1.0, CROP)
    source = Places(rng.integers(0, CLASSES, COUNT).astype(np.int32))
    return config, source, rule, variables, logits


def softmax(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def brier(probabilities, labels):
    return np.square(probabilities - np.eye(CLASSES)[labels]).sum(1).mean()


def wrong(scores, labels, best):
    ranking = np.argsort(-scores, axis=-1)[..., :best]
    return np.array([label not in row for label, row in zip(labels, ranking, strict=True)])


@pytest.mark.parametrize("name", ["vmap", "pmap", "mesh 2 x 2"])
@pytest.mark.parametrize("views", [1, 9, 10])
def test_errors_and_loss_are_those_counted_image_by_image(sharp, views, name):
    """61 images in batches of 8: the last one holds three that do not count."""
    config, source, rule, variables, logits = sharp
    config.evaluate.batch_size = 8 * views
    placement = placement_of(*PLACEMENTS[name])
    step = evaluate.make_eval_step(Sharp(), rule, placement, views, ("brier", "loss"))
    towers = placement.put_towers(variables)
    found = evaluate.evaluate(step, towers, source, config, placement, views)

    of_views = np.stack([logits[:, y, x] for y, x in PLACES[views]])
    centre, mean = logits[:, *CENTRE], softmax(of_views).mean(0)
    losses = -np.log(softmax(centre)[np.arange(COUNT), source.labels])
    alive = 4 if views == 10 else 2  # of ten; see `sharp`
    expected = {
        "loss": losses.mean(),
        "top1_error": wrong(centre, source.labels, 1).mean(),
        "top5_error": wrong(centre, source.labels, 5).mean(),
        "num_examples": COUNT,
        "dead_units": {"hidden": pytest.approx(1 - alive / 10)},
        "views": views,
        "top1_error_views": None,
        "top5_error_views": None,
        "metrics": {"brier": brier(softmax(centre), source.labels), "loss": losses.mean()},
    }
    if views > 1:
        losses = -np.log(mean[np.arange(COUNT), source.labels])
        expected["metrics"] |= {
            "brier_views": brier(mean, source.labels), "loss_views": losses.mean(),
        }  # fmt: skip
        expected["top1_error_views"] = wrong(mean, source.labels, 1).mean()
        expected["top5_error_views"] = wrong(mean, source.labels, 5).mean()
        for best in (1, 5):  # the table tells the mean of probabilities from that of logits
            errors = [wrong(x, source.labels, best).mean() for x in (of_views.mean(0), mean)]
            assert errors[0] != errors[1]
    assert found.metrics == pytest.approx(expected.pop("metrics"), rel=1e-5)
    found = dataclasses.asdict(found) | {"metrics": ...}
    assert found == {"metrics": ...} | {
        k: pytest.approx(v, rel=1e-5) if isinstance(v, float) else v for k, v in expected.items()
    }


def test_it_ends_with_the_batch_in_which_it_was_asked_to(sharp):
    config, source, rule, variables, _ = sharp
    config.evaluate.batch_size = 8
    placement, seen = placement_of("vmap"), []
    step = evaluate.make_eval_step(Sharp(), rule, placement, 1)
    towers = placement.put_towers(variables)

    def counted(*args):
        seen.append("batch")
        return step(*args)

    def asked():
        seen.append("asked")
        return len(seen) >= 6

    with pytest.raises(evaluate.Interrupted):
        evaluate.evaluate(counted, towers, source, config, placement, 1, interrupted=asked)
    assert seen == ["batch", "asked"] * 3


def test_what_the_mask_leaves_out_counts_nowhere(sharp):
    _, source, rule, variables, logits = sharp
    index = np.array([7, 3, 60, 12])
    batch = {
        "image": np.stack([source.pixels(i) for i in index]),
        "label": source.labels[index],
        "mask": np.float32([0, 1, 0, 1]),
    }
    placement = placement_of("vmap")
    step = evaluate.make_eval_step(Sharp(), rule, placement, 10)
    sums, fired = step(placement.put_towers(variables), placement.put_batch(batch))
    kept = index[batch["mask"] > 0]
    assert sums["count"] == 2
    assert sums["top1_error"] == wrong(logits[kept][:, *CENTRE], source.labels[kept], 1).sum()
    # Units 0 and 1 are positive for images 7 and 60 alone.
    np.testing.assert_array_equal(fired["hidden"], [[0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize("name", ["pmap", "mesh 2 x 2"])
@pytest.mark.parametrize("views", [1, 10])
def test_predictions_are_means_of_probabilities_and_features_of_the_centre(sharp, views, name):
    _, source, rule, variables, logits = sharp
    index = np.array([7, 3, 60, 12])
    placement = placement_of(*PLACEMENTS[name])
    step = evaluate.make_predict_step(Sharp(), rule, placement, views)
    batch = placement.put_batch({"image": np.stack([source.pixels(i) for i in index])})
    probabilities, features = step(placement.put_towers(variables), batch)
    expected = np.mean([softmax(logits[index, y, x]) for y, x in PLACES[views]], axis=0)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    units = variables["params"]["hidden"]["kernel"]
    np.testing.assert_array_equal(features, units[:, index][:, :, *CENTRE])


def pictures_of(config, source, placement, rule, variables):
    """What `Pictures` shows of a run after step 3, by name."""
    drawn = {}
    viewer = types.SimpleNamespace(picture=lambda *what: drawn.update({what[:2]: what[2]}))
    run = types.SimpleNamespace(
        sources={"train": None, "validation": source}, placement=placement, tower=Sharp(),
        inputs=rule, state=init_state(placement.put_towers(variables["params"]), optax.identity()),
        step=3,
    )  # fmt: skip
    part = Pictures(config, [viewer])
    part.start(run)
    for evaluate_now in (False, True):
        assert not drawn
        part.after_step(run, Due(log=True, save=True, evaluate=evaluate_now, leave=False))
    return drawn


def test_pictures_show_images_of_the_split_that_steers(sharp, monkeypatch):
    config, source, rule, variables, logits = sharp
    config = config.copy_and_resolve_references()
    config.evaluate.splits = ("train", "validation")
    monkeypatch.setattr(drawing, "kernels", lambda kernels: kernels)
    monkeypatch.setattr(drawing, "predictions", lambda rows: rows)
    drawn = pictures_of(config, source, placement_of(*PLACEMENTS["mesh 4 x 2"]), rule, variables)
    np.testing.assert_array_equal(
        drawn[3, "conv1 kernels"], variables["params"]["hidden"]["kernel"]
    )
    seen = [image[0, 0, 0] for image, _, _ in drawn[3, "predictions"]]
    assert len(seen) == 8 and seen == sorted(set(seen))
    for (image, label, best), index in zip(drawn[3, "predictions"], seen, strict=True):
        np.testing.assert_array_equal(image, source.pixels(index))
        assert label == source.class_names[source.labels[index]]
        probabilities = softmax(logits[index, *CENTRE])
        order = np.argsort(-probabilities)[:5]
        assert [(name, right) for name, _, right in best] == [
            (source.class_names[i], i == source.labels[index]) for i in order
        ]
        np.testing.assert_allclose([p for _, p, _ in best], 100 * probabilities[order], rtol=1e-4)


def test_without_a_readable_image_or_a_split_nothing_is_drawn(sharp):
    config, source, rule, variables, _ = sharp
    config = config.copy_and_resolve_references()

    class Cut(Places):
        def read(self, indices):
            raise UsageError("image 7: cut short")

    cut = Cut(source.labels)
    with pytest.raises(UsageError, match="image 7"):
        pictures_of(config, cut, placement_of("vmap"), rule, variables)
    config.data.max_unreadable = 1
    assert not pictures_of(config, cut, placement_of("vmap"), rule, variables)
    config.evaluate.splits = ()
    assert not pictures_of(config, source, placement_of("vmap"), rule, variables)


@pytest.mark.parametrize("name,views,size", [
    ("vmap", 1, 256), ("vmap", 10, 25), ("mesh 4 x 2", 1, 256), ("mesh 4 x 2", 10, 24),
    ("mesh 4 x 2", 9, 28), ("vmap", 300, 1),
])  # fmt: skip
def test_views_count_as_images_of_a_batch(name, views, size):
    assert evaluate.batch_size(tiny_config(), views, placement_of(*PLACEMENTS[name])) == size


@pytest.mark.parametrize("views,flips,noted", [(10, False, True), (10, True, False),
                                               (9, False, False), (1, False, False)])  # fmt: skip
def test_mirrored_views_are_noted_where_training_had_none(views, flips, noted):
    config = tiny_config()
    config.data.random_flip = flips
    assert ("mirrored" in evaluate.views_unlike_training(config, views)) == noted
