"""The page that walks images through a network: its numbers, its pictures, its layout."""

import base64
import html
import io
import re

import numpy as np
import pytest
from PIL import Image

import alexnet_jax
from alexnet_jax.analysis import explain, pages
from alexnet_jax.analysis.inspect import layer_table
from alexnet_jax.cli.main import main
from alexnet_jax.config import table
from alexnet_jax.training.loop import train_and_evaluate
from tests.analysis.test_report import Page
from tests.training.test_explanation import lively, small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on grey digits of a few steps, photographs and a file that is none."""
    root = tmp_path_factory.mktemp("explain")
    config = small().copy_and_resolve_references()
    config.update(placement="vmap", num_epochs=0.1)
    train_and_evaluate(config, root / "run")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(root / f"{name}.png")
    (root / "c.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def written(folder):
    """The page of two photographs, and what the third says."""
    return explained(folder, "--workdir=run", "--classes=3,4", "a.png", "b.png", "c.png")


def explained(folder, *typed):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return main(["explain", *typed])


def text_of(path):
    return path.read_text()


def words(text):
    return re.sub(
        r"\s+", " ", html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", text, flags=re.S))
    )


def pixels(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(";base64,")[2]))))


def test_the_page_of_a_run_holds_itself_and_both_photographs(folder, written):
    assert written == 2  # c.png is no image.
    text = text_of(folder / "run" / "explain.html")
    page = Page(text)
    addresses = [a for a in page.addresses if not a.startswith("#")]
    assert len(addresses) > 100 and all(a.startswith("data:image/") for a in addresses)
    assert "@import" not in text and "url(" not in text and len(text) < 1e6
    anchors = {a.removeprefix("#") for a in page.addresses if a.startswith("#")}
    assert len(anchors) == 2 + 2 * 5 and anchors <= set(re.findall(r'id="([^"]+)"', text))
    said = words(text)
    assert "2 images, layer by layer" in said and "a.png: " in said and "b.png: " in said
    # The training images, all of which show digits, are searched.
    assert said.count("1,000 images of digits, train") == 2


def test_a_file_that_is_no_image_is_one_line(folder, capsys):
    assert explained(folder, "--workdir=run", "--out=other.html", "c.png", "missing.png") == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and not (folder / "other.html").exists()
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
    assert "missing.png" in lines[0] and "c.png" in lines[1]


@pytest.mark.parametrize(
    "typed,message",
    [
        (["--workdir=run", "--unit=conv9", "a.png", "b.png"], "unit 'conv9'"),
        (["--workdir=run", "--classes=10", "a.png"], "class '10'"),
        (["--workdir=run"], "no images"),
        (["a.png"], "give one of --workdir"),
        (["--workdir=run", *["a.png"] * 21], "21 images: a page holds 20"),
    ],
)
def test_a_mistake_is_one_line(folder, capsys, typed, message):
    assert explained(folder, *typed) == 2
    assert re.fullmatch(f"error: .*{re.escape(message)}.*\n", capsys.readouterr().err)


def shown(net, **given):
    rng = np.random.default_rng(0)
    found = net.explain(rng.integers(0, 256, (80, 80, 3), np.uint8), **given)
    return found, explain.page(net, [found], "a network", "there are none")


def caffe():
    """Caffe's graph: norm before pooling, windows across the seam, 67 pixels in place of 227."""
    fields = {"width": 1 / 32, "num_classes": 7, "crop_size": 67, "image_size": 72}
    net = alexnet_jax.create("caffe", mean="channel", **fields)
    net = lively(net.config, class_names=[f"n0000000{i} {x}" for i, x in enumerate("abcdefg")])
    net.params["fc8"]["kernel"][:] /= 64  # Its inputs are not scaled, and logits would be hundreds.
    return net


NETWORKS = {"two towers": lambda: lively(small()), "one tower": lambda: lively(small(1)),
            "caffe": caffe}  # fmt: skip


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    net = NETWORKS[request.param]()
    return net, *shown(net)


def test_shapes_counts_and_exchange_are_those_of_inspect(network):
    net, _, text = network
    said = words(text)
    lines = layer_table(net.config).splitlines()[2:]
    for row, line in zip(table.count(net.config.model, net.inputs.crop_size), lines, strict=False):
        name, shape = row.layer.name, " x ".join(map(str, row.out_shape))
        cells = re.split(r"\s{2,}", line.strip())
        assert cells[0] == name and cells[2] == shape
        start = said.index(f" {name}: {shape} ")
        part = said[start : said.index(" multiply-adds.", start) + 400]
        assert f" {cells[4]} parameters, {cells[5]} multiply-adds." in part
        after = " x ".join(map(str, row.next_shape))
        assert part.index(f", {after}") > 0
        if net.tower.towers == 1:
            assert "tower" not in part.partition(" multiply-adds.")[2][:60]
        elif cells[6] != "-":
            numbers = [n for n in (row.exchanged, row.halo) if n]
            assert sum(numbers) == int(cells[6].replace(",", ""))
            assert all(f" {n:,} values per image" in part for n in numbers)
        else:
            assert "nothing crosses (section 3.2)" in part


def test_pictures_show_the_feature_maps_before_and_after_each_operation(network):
    _, found, text = network
    pairs = re.findall(r'src="([^"]+)" alt="([^"]+)" title', text)
    pictures = {html.unescape(alt): pixels(address) for address, alt in pairs}
    names = {"conv": "convolution", "activation": "ReLU", "max_pool": "max pooling", "lrn": "LRN"}
    drawn = 0
    for walk in found.layers[:3]:
        for before, stage in zip((None, *walk.stages), walk.stages, strict=False):
            changed = before is None or not np.array_equal(before.values, stage.values)
            for channel in walk.strongest(explain.MAPS).flat if changed else ():
                values = stage.values[..., channel]
                low, high = values.min(), values.max()
                row, column = np.unravel_index(values.argmax(), values.shape)
                grey = pictures[
                    f"map {channel} after {names[stage.name]}: {low:.3g} (black) to {high:.3g} "
                    f"(white), largest at row {row}, column {column}"
                ]
                assert grey.shape == values.shape
                there = grey / 255 * (high - low) + low
                np.testing.assert_allclose(there, values, atol=0.51 * (high - low) / 255)
                drawn += high > low
    assert drawn > 10


def test_the_page_says_which_answers_the_data_hold(network):
    _, found, text = network
    said = words(text)
    for label, _, probability in found.best:
        assert f" {found.name(label)} {100 * probability:.1f} %" in said
    assert "n0000000" not in text  # WordNet numbers are for files.
    for variant in found.variants:
        assert variant.title in said
        assert not variant.why_not or f"Not possible with these weights: {variant.why_not}." in said
    for name in explain.VIEWS:
        assert f" {name} " in said
    mean = found.views.mean(0)
    assert f" {found.name(mean.argmax())} {100 * mean.max():.1f} %" in said
    assert "No other images were searched: there are none." in said


def test_occlusion_is_drawn_where_it_matters(network):
    _, found, text = network
    best = found.classes[0]
    drop = found.drop(best)
    weights = explain._per_pixel(drop, found)
    size, places = found.occlusion.size, found.occlusion.places
    for y, x in [(0, 0), (3, 11), (len(found.crop) - 1, 7)]:
        covering = [
            max(drop[i, j], 0)
            for i, top in enumerate(places)
            for j, left in enumerate(places)
            if top <= y < top + size and left <= x < left + size
        ]
        assert weights[y, x] == pytest.approx(np.mean(covering) / worst(drop, found))
    i, j = np.unravel_index(drop.argmax(), drop.shape)
    before, after = found.probabilities[best], found.occlusion.probabilities[i, j, best]
    assert f"{100 * before:.3g} to {100 * after:.3g} % with the outlined square" in words(text)


def worst(drop, found):
    size, places = found.occlusion.size, found.occlusion.places
    total = np.zeros(found.crop.shape[:2])
    count = np.zeros(found.crop.shape[:2])
    for i, j in np.ndindex(drop.shape):
        box = slice(places[i], places[i] + size), slice(places[j], places[j] + size)
        total[box] += max(drop[i, j], 0)
        count[box] += 1
    return (total / count).max()


@pytest.mark.parametrize(
    "layer,says",
    [("conv1", "Every tower sees the whole image: nothing crosses"),
     ("conv2", "each receives the outputs of conv1 of the other, 64 values"),
     ("conv3", "Each tower sees its own maps only: nothing crosses"),
     ("fc4", "each receives the outputs of conv3 of the other, 16 values"),
     ("fc5", "the products are added. 10 values per image reach each tower")],
)  # fmt: skip
def test_what_crosses_is_said_in_numbers_of_the_table(layer, says):
    net = alexnet_jax.create(config=small())
    rows = {row.layer.name: row for row in table.count(net.config.model, 20)}
    before = list(rows)[max(list(rows).index(layer) - 1, 0)]
    assert says in explain.crosses(rows[layer], "" if layer == "conv1" else before, 2)
    assert explain.crosses(rows[layer], before, 1) == ""


@pytest.mark.parametrize(
    "change,name,says",
    [({}, "activation", "ReLU keeps positive values"),
     ({"activation": "tanh"}, "activation", "The function tanh of each value"),
     ({"lrn.enabled": False}, "lrn", "Switched off in this network"),
     ({"lrn.size": 7}, "lrn", "over 7 neighbouring maps"),
     ({"pool.window": 2}, "max_pool", "each 2 x 2 window, 2 pixels apart; the windows do not"),
     ({}, "avg_pool", "The mean of each 3 x 3 window, 2 pixels apart; the windows overlap"),
     ({}, "dropout", "multiplied by 0.5"),
     ({"dropout.rate": 0.25}, "dropout", "multiplied by 0.75"),
     ({"dropout.rescaled_in_training": True}, "dropout", "Acts in training only"),
     ({}, "conv", "Each of 8 kernels of 5 x 5 x 3 weights moves over its input in steps of 2"),
     ({}, "waves", "The operation waves.")],
)  # fmt: skip
def test_every_operation_is_explained(change, name, says):
    config = small().copy_and_resolve_references()
    config.model.update_from_flattened_dict(change)
    assert says in explain.about(name, table.count(config.model, 20)[0], config.model)


def test_a_picture_of_units_holds_each_once():
    values = np.float32([3, 1, 2, 5, 4])
    address, text = explain._units(values, "ReLU")
    grey = pixels(address)
    assert (
        grey.shape == (2, 4)
        and grey.reshape(-1)[:5].argsort().tolist() == values.argsort().tolist()
    )
    assert text == "5 units after ReLU, row by row: 1 (black) to 5 (white), 100% are positive"


def test_small_photographs_are_exact_and_maps_may_be_constant():
    square = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(pixels(pages.photo(square)), square)
    assert pages.photo(np.zeros((65, 64, 3), np.uint8)).startswith("data:image/jpeg;base64,")
    assert not pixels(pages.grey(np.full((3, 4), 7.0))).any()


def test_the_page_of_the_full_network_is_small_enough_for_a_telephone():
    """Its largest parts: 4 maps of 2 towers in 16 stages of noise, and 14 photographs."""
    rng = np.random.default_rng(0)
    sides = {55: 2, 27: 3, 13: 8, 6: 1}
    maps = sum(8 * n * len(pages.grey(rng.normal(size=(s, s)))) for s, n in sides.items())
    photographs = 24 * len(pages.photo(rng.integers(0, 256, (256, 256, 3), np.uint8)))
    assert maps + photographs < 6e6


def test_weights_in_a_file_have_a_page_as_well(folder, capsys):
    net = lively(small(), class_names=tuple("abcdefghij"))
    net.save(folder / "net.safetensors")
    assert explained(folder, "--weights=net.safetensors", "--unit=fc4:3", "a.png") == 0
    assert capsys.readouterr().out == "wrote explain.html\n"
    said = words(text_of(folder / "explain.html"))
    assert "unit 3 of fc4" in said and "sees the whole crop" in said
    assert "a file of weights has none" in said
