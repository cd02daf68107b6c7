"""Networks by name: a tiny one in a folder of its own, and those that come with the package."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from safetensors.numpy import load_file

import alexnet_jax
from alexnet_jax.analysis import card
from alexnet_jax.cli import main as command_line
from alexnet_jax.cli.main import main
from alexnet_jax.data import decode
from alexnet_jax.errors import UsageError
from alexnet_jax.training import api, origin
from alexnet_jax.weights import named
from experiments import finetune
from tests.support import needs_data, png_folder
from tests.training.test_library import lively
from tests.weights.test_weights import changed

RESULTS = Path(__file__).parents[2] / "results"
LOGS = {"imagenette": RESULTS / "imagenette" / "quarter"}
"""The log of the run behind each network of the package."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with images of ten classes; `tiny` is the name of a network."""
    monkeypatch.setattr(command_line, "_start", lambda config: None)
    monkeypatch.setattr(named, "FOLDER", tmp_path / "networks")
    named.FOLDER.mkdir()
    work = tmp_path / "work"
    png_folder(work / "images", train=20, test=20)
    # Relative, so that it is found in no other folder.
    config = changed(data__source="folder:images", data__test_split="test", placement="vmap")
    net = lively(config, class_names=tuple("0123456789"))
    net.save(named.FOLDER / "tiny.safetensors", dtype="float16")
    monkeypatch.chdir(work)
    return work


def test_a_name_is_the_file_of_that_name(here):
    file = named.FOLDER / "tiny.safetensors"
    assert named.names() == ["tiny"] and named.located("tiny") == file
    net, same = alexnet_jax.load("tiny"), alexnet_jax.load(file)
    for layer, leaves in same.params.items():
        for part, value in leaves.items():
            np.testing.assert_array_equal(net.params[layer][part], value)
    assert alexnet_jax.config_of("tiny").to_dict() == same.config.to_dict()
    assert origin.classes_of("tiny") == (tuple("0123456789"), str(file))
    np.testing.assert_array_equal(origin.mean_of("tiny"), same.inputs.mean)
    with pytest.raises(UsageError, match=r"step 3: .*holds no steps"):
        alexnet_jax.load("tiny", step=3)


def test_every_verb_that_takes_weights_takes_a_name(here, capsys):
    def typed(*words):
        assert main(list(words)) == 0
        return capsys.readouterr().out

    # The error that `evaluate` finds is the share of images that `predict` puts elsewhere than
    # into the class of their folder.
    error = json.loads(typed("evaluate", "--weights=tiny"))
    rows = typed("predict", "--weights=tiny", "--format=json", "images/test").splitlines()
    best = [json.loads(row) for row in rows]
    wrong = [row["best"][0]["class"] != Path(row["image"]).parent.name for row in best]
    assert error["num_examples"] == len(wrong) == 20 and error["split"] == "test"
    assert error["top1_error"] == pytest.approx(sum(wrong) / 20) and sum(wrong) > 0
    png_folder(here / "others", train=10, test=10, seed=1)
    others = json.loads(typed("evaluate", "--weights=tiny", "--source=folder:others"))
    assert others["num_examples"] == 10
    typed("export", "--weights=tiny", "--out=a.safetensors")
    half, single = load_file(named.FOLDER / "tiny.safetensors"), load_file("a.safetensors")
    np.testing.assert_array_equal(single["fc7.weight"], half["fc7.weight"].astype(np.float32))
    typed("import", "--weights=tiny", "--out=a.onnx")
    typed("export", "--weights=tiny", "--out=a.md")
    assert (here / "a.md").read_text().startswith("# tiny\n")
    assert card.text(Path("tiny")) == (here / "a.md").read_text()
    for verb in ("predict", "evaluate", "explain", "export", "import"):
        assert "\nNetworks by name: tiny\n" in typed(verb, "--help")
    assert "Networks by name" not in typed("train", "--help")


def test_a_run_starts_from_a_name(here):
    there = alexnet_jax.load("tiny")
    config = finetune.get_config("tiny")
    assert config.init_from == "tiny" and config.data.scale == there.config.data.scale
    drawn = {"params": {k: dict(v) for k, v in there.params.items()}}
    start = origin.initial(config, drawn, there.class_names)
    np.testing.assert_array_equal(start["params"]["fc6"]["kernel"], there.params["fc6"]["kernel"])


def test_a_run_of_the_same_name_comes_first_and_a_folder_does_not(here):
    (here / "tiny").mkdir()  # such as the photographs of Imagenette
    assert named.located("tiny") == named.FOLDER / "tiny.safetensors"
    assert "a file of weights does not say" in card.text(Path("tiny"))
    (here / "tiny" / "config.json").touch()
    assert named.located("tiny") == Path("tiny")
    assert named.located("./tiny") == Path("tiny")


def test_other_classes_than_those_of_the_network_are_named(here, capsys):
    (here / "images" / "test" / "3").rename(here / "images" / "test" / "three")
    (here / "images" / "train" / "3").rename(here / "images" / "train" / "three")
    assert main(["evaluate", "--weights=tiny"]) == 2
    says = f"has other classes than {named.FOLDER / 'tiny.safetensors'} (missing: 3; new: three)"
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb,more",
    [
        ("predict", ["images/test"]), ("evaluate", []), ("explain", ["images/test/3/3.png"]),
        ("export", ["--out=a.onnx"]), ("export", ["--out=a.md"]),
    ],
)  # fmt: skip
def test_an_unknown_name_is_told_what_there_is(here, capsys, verb, more):
    assert main([verb, "--weights=tony", *more]) == 2
    assert capsys.readouterr().err == (
        "error: tony: No such file or directory: name a folder that `train` wrote, a file "
        "(.safetensors, .onnx) or a network of the package (tiny)\n"
    )
    with pytest.raises(UsageError, match=r"or a network of the package \(tiny\)$"):
        alexnet_jax.load("tony")
    with pytest.raises(UsageError, match="only paths of this machine"):
        alexnet_jax.load("gs://bucket/tiny")


def test_the_networks_of_the_package_are_small_and_say_what_they_are():
    for name in named.names():
        file, about = named.located(name), (named.FOLDER / f"{name}.md").read_text()
        assert file.stat().st_size <= 8e6
        assert {str(array.dtype) for array in load_file(file).values()} == {"float16"}
        # The card and the configuration are those of the run whose log is kept. Its training images
        # were squares already: of others the shape is changed as that of these had been.
        run = alexnet_jax.config_of(LOGS[name])
        run.data.resize = "stretch"
        assert alexnet_jax.config_of(name).to_dict() == run.to_dict()
        test = json.loads((LOGS[name] / "result.json").read_text())["test"]
        assert about.startswith(f"# {name}\n")
        images, percent = test["num_examples"], 100 * test["top1_error"]
        assert f"| test | {images:,} images | 1 | {percent:.2f} % |" in about


@needs_data
def test_the_networks_of_the_package_have_the_errors_that_their_runs_had():
    """To five images: rounding to float16 may change an answer between two close classes."""
    for name in named.names():
        test = json.loads((LOGS[name] / "result.json").read_text())["test"]
        config = alexnet_jax.config_of(name)
        config.data.source = "tfds:imagenette_224"  # from which the run's squares were prepared
        found = api.evaluate_workdir(config, name, config.evaluate.final_views, "test")
        assert found["num_examples"] == test["num_examples"]
        for error in (key for key in test if "_error" in key):
            assert found[error] == pytest.approx(test[error], abs=5 / test["num_examples"])


@needs_data
def test_it_names_seven_of_ten_photographs_that_it_was_not_trained_on():
    """The first 400 of the test split, by TFDS, in 4:3, which is the shape of most photographs.

    It scales both sides, as those of its training images were; cutting a square out costs 15.
    """
    builder = tfds.builder("imagenette_224")
    names = builder.info.features["label"].names
    photographs = list(tfds.as_numpy(builder.as_dataset(split="validation[:400]")))
    net = alexnet_jax.load("imagenette")

    def right(images):
        pairs = zip(net.predict(np.stack(images)).labels, photographs, strict=True)
        return sum(net.class_names[label] == names[int(x["label"])] for label, x in pairs)

    wide = [np.asarray(Image.fromarray(x["image"]).resize((400, 300))) for x in photographs]
    assert right(list(map(decode.resizer(net.config.data), wide))) == pytest.approx(297, abs=2)
    net.config.data.resize = "short_side"
    assert right(list(map(decode.resizer(net.config.data), wide))) == pytest.approx(282, abs=2)
