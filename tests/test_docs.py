"""What the documents promise is there."""

import ast
import http.client
import importlib
import json
import re
import runpy
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_row_of_the_fault_table_names_tests_that_exist():
    inside, count = False, 0
    for row in (ROOT / "docs" / "faults.md").read_text().splitlines():
        if row.startswith("| fault"):
            inside = row.endswith("| test |")
            file = None
        elif inside and row.startswith("| "):
            last = row.strip("| ").split("|")[-1].strip()
            names = re.findall(r"`([\w/]*(?:\.py|::)[\w.:]*)`", last)
            assert names or (last == "the same" and file), row
            for name in names:
                path, _, function = name.partition("::")
                file = ROOT / "tests" / path if path else file
                assert file.is_file(), name
                assert not function or f"def {function}(" in file.read_text(), name
            count += 1
        elif not row.startswith("|"):
            inside = False
    assert count >= 30


@pytest.mark.parametrize(
    "name", ["README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / name).parent.joinpath(target).exists(), target


def test_every_picture_is_shown_and_they_are_small():
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert {path.name for path in pictures} == set(re.findall(r"\]\(pictures/([^)]+)\)", pages))
    assert sum(path.stat().st_size for path in pictures) < 600_000


def test_the_pictures_of_layers_hold_the_strongest_maps_of_each_tower():
    import numpy as np

    from tests.training.test_explanation import lively, small

    net = lively(small())
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    draw_layer = runpy.run_path(str(ROOT / "docs" / "pictures.py"))["layer"]
    for walk in net.explain(image).layers[:-1]:
        last_row = draw_layer(walk, net).axes[-2:]
        features = net.features(image[None], walk.name)[0]
        for tower, axis in zip(np.split(features, 2, axis=-1), last_row, strict=True):
            drawn = axis.images[0].get_array()
            if features.ndim == 3:
                order = np.argsort(-tower.max((0, 1)), kind="stable")
                expected = [tower[..., channel] for channel in order[:4]]
                width = tower.shape[1] + 1  # and a white column between two maps
                shown = [drawn[:, n * width :][:, : width - 1] for n in range(4)]
            else:
                expected, shown = [tower], [drawn.ravel()[: len(tower)]]
            for values, picture in zip(expected, shown, strict=True):
                scaled = (values - values.min()) / (np.ptp(values) or 1)
                np.testing.assert_allclose(picture, scaled, atol=1e-5)


def test_public_names_are_those_that_type_checkers_see_and_lead_somewhere():
    import alexnet_jax

    tree = ast.parse((ROOT / "alexnet_jax" / "__init__.py").read_text())
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("alexnet_jax.")
        for alias in node.names
    }
    assert seen.keys() == set(alexnet_jax.__all__)
    for name, module in seen.items():
        assert getattr(alexnet_jax, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = alexnet_jax.nothing


def python_of(page):
    """The Python of a page, block after block, on the lines where it stands."""
    inside, kept = False, []
    for line in (ROOT / "docs" / page).read_text().splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            line = ""
        kept.append(line if inside else "")
    return "\n".join(kept)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in; what is registered meanwhile is forgotten."""
    from alexnet_jax.registry import METRICS

    monkeypatch.chdir(tmp_path)
    before = set(METRICS)
    yield tmp_path
    for name in set(METRICS) - before:
        del METRICS[name]


def test_the_examples_of_the_library_run_as_they_stand(elsewhere):
    names = {"__name__": "library"}
    exec(compile(python_of("library.md"), "docs/library.md", "exec"), names)
    numpy = importlib.import_module("numpy")
    jax = importlib.import_module("jax")
    assert names["features"].shape == (4, 512) or names["features"].shape == (2, 4096)
    assert names["kernels"].shape == (11, 11, 3, 96)
    assert names["logits"].shape == (4, 3) and names["change"].shape == (4, 10)
    # Both loops have learned, and both run the same network.
    guess = numpy.log(10)
    x, y, trained = names["x"], names["y"], names["trained"]
    logits = trained(x[:256])
    loss = names["optax"].softmax_cross_entropy_with_integer_labels(logits, y[:256]).mean()
    assert loss < 0.9 * guess
    numpy.testing.assert_allclose(
        names["gradient"], names["net"].gradient(names["pixels"], names["labels"]), atol=1e-7
    )
    assert set(names["by_weight"]["params"]) == set(names["net"].params)
    assert isinstance(names["result"].metrics["test"]["metrics"]["margin"], float)
    assert jax.tree.structure(names["variables"]["params"]["alexnet"]) == jax.tree.structure(
        names["net"].params
    )
    assert (elsewhere / "runs" / "digits" / "result.json").is_file()


def test_the_lines_of_code_are_those_that_the_page_says(elsewhere, monkeypatch):
    """Ours run, with narrow networks; the table is counted anew."""
    import functools

    import numpy as np

    import alexnet_jax
    from alexnet_jax.data.classes import imagenet_classes
    from benchmarks.lines import count

    assert count.table() in (ROOT / "docs" / "library.md").read_text()
    small = functools.partial(alexnet_jax.create, width=1 / 16)
    small(class_names=imagenet_classes()).save("bvlcalexnet.onnx")
    monkeypatch.setattr(alexnet_jax, "create", small, raising=False)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (128, 32, 32, 3), np.uint8), rng.integers(0, 10, 128)
    given = {
        "images": rng.integers(0, 256, (2, 224, 224, 3), np.uint8), "classes": np.array([3, 4]),
        "x": x, "y": y, "xv": x[:64], "yv": y[:64], "batches": [(x[:64], y[:64])] * 2,
    }  # fmt: skip
    found = {}
    for task in count.TASKS:
        names = dict(given)
        exec((count.FOLDER / "ours" / f"{task}.py").read_text(), names)
        found[task] = names
    assert found["forward"]["logits"].shape == (2, 10)
    assert found["predict"]["predictions"].names[0] in imagenet_classes()
    assert found["features"]["features"].shape == (2, 256)
    assert found["kernels"]["kernels"].shape == (11, 11, 3, 6)
    assert found["gradient"]["gradient"].shape == (2, 224, 224, 3)
    for task in ("train", "optimizer"):
        assert found[task]["result"].metrics["validation"]["num_examples"] == 64
    assert found["loop"]["net"](x[:2]).shape == (2, 10)


def test_lines_are_counted_without_imports_comments_and_blanks():
    from benchmarks.lines.count import lines

    assert lines("import a\nfrom b import c\n\n# Why.\nfor x in y:\n    # Again.\n    z(x)\n") == 2


def test_a_grouped_network_of_pytorch_is_read_as_the_page_says(elsewhere, monkeypatch):
    """Narrow, beside a transcription in NumPy of what its modules compute, from PyTorch's docs."""
    import functools

    import numpy as np
    from safetensors.numpy import save_file

    import alexnet_jax
    from tests import numpy_reference

    monkeypatch.setattr(
        alexnet_jax, "create", functools.partial(alexnet_jax.create, width=1 / 16), raising=False
    )
    # Outputs, inputs of a group, side.
    shapes = {"features.0": (6, 3, 11), "features.4": (16, 3, 5), "features.8": (24, 16, 3),
              "features.10": (24, 12, 3), "features.12": (16, 12, 3), "classifier.1": (256, 576),
              "classifier.4": (256, 256), "classifier.6": (3, 256)}  # fmt: skip
    rng, arrays = np.random.default_rng(0), {}
    for name, (out, inputs, *side) in shapes.items():
        shape = (out, inputs, *(side * 2))
        # Large enough in the first layer that sums of squares matter beside k.
        std = (2 / np.prod(shape[1:])) ** 0.5 * (100 if name == "features.0" else 1)
        arrays[f"{name}.weight"] = np.float32(rng.normal(0, std, shape))
        arrays[f"{name}.bias"] = np.float32(rng.normal(0, 0.3, out))
    save_file(arrays, "own.safetensors")
    page = (ROOT / "docs" / "pytorch.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    names = {}
    exec(next(block for block in blocks if "own.safetensors" in block), names)

    images = rng.integers(0, 256, (2, 224, 224, 3), np.uint8)
    x = (images - np.float64(names["net"].config.data.channel_mean)) / 255
    for number, stride, padding, groups, pools in (
        (0, 4, (0, 3), 1, True), (4, 1, (2, 2), 2, True), (8, 1, (1, 1), 1, False),
        (10, 1, (1, 1), 2, False), (12, 1, (1, 1), 2, True),
    ):  # fmt: skip
        weight = arrays[f"features.{number}.weight"].transpose(2, 3, 1, 0)
        parts = zip(np.split(x, groups, -1), np.split(weight, groups, -1), strict=True)
        x = np.concatenate([numpy_reference.conv(*part, stride, padding) for part in parts], -1)
        x = np.maximum(x + arrays[f"features.{number}.bias"], 0)
        if number < 8:
            x = numpy_reference.lrn(x, 5, 2.0, 1e-4 / 5, 0.75)
        x = numpy_reference.pool(x, 3, 2, np.max) if pools else x
    x = x.transpose(0, 3, 1, 2).reshape(2, -1)
    for number in (1, 4, 6):
        x = x @ arrays[f"classifier.{number}.weight"].T + arrays[f"classifier.{number}.bias"]
        x = np.maximum(x, 0) if number < 6 else x
    np.testing.assert_allclose(names["net"](images), x, atol=1e-4 * np.abs(x).max())
    again = alexnet_jax.load("own-network.safetensors")
    np.testing.assert_array_equal(again(images), names["net"](images))
    assert again.class_names == ("cat", "dog", "horse")


@pytest.fixture
def exported(elsewhere):
    """`network.onnx`, which resizes, and `photo.png`; returns what `predict` says of it."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from alexnet_jax.training import origin as trained
    from tests.weights.test_weights import changed, network

    net = trained.of_column(network(changed(data__image_size=40))[1])
    net.save("network.onnx", pixels=True)
    Image.fromarray(load_sample_images().images[0][:300, :350]).save("photo.png")
    return net.predict("photo.png")[0]


def test_the_example_of_onnxruntime_runs_as_it_stands(exported, elsewhere, capsys):
    exec(compile(python_of("onnxruntime.md"), "docs/onnxruntime.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{probability:6.1%}  {name}" for name, probability in exported]
    names = json.loads((elsewhere / "classes.json").read_text())
    assert names == [f"class {i}" for i in range(10)]


def test_the_server_of_the_page_answers_as_predict_does(exported, elsewhere):
    names, code = {"__name__": "server"}, python_of("server.md")
    assert len([line for line in code.splitlines() if line.strip()]) < 30
    exec(compile(code.replace("8000", "0"), "docs/server.md", "exec"), names)
    server = names["server"]
    names["Classify"].log_message = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        port = server.server_address[1]

        def posted(body):
            connection = http.client.HTTPConnection("localhost", port, timeout=60)
            connection.request("POST", "/", body)
            answer = connection.getresponse()
            found = answer.status, answer.read()
            connection.close()
            return found

        status, body = posted((elsewhere / "photo.png").read_bytes())
        best = [(row["class"], row["probability"]) for row in json.loads(body)["best"]]
        assert status == 200 and [name for name, _ in best] == [name for name, _ in exported]
        assert [p for _, p in best] == pytest.approx([p for _, p in exported], abs=1e-3)
        assert posted(b"nothing that is an image")[0] == 400
    finally:
        server.shutdown()
        server.server_close()
