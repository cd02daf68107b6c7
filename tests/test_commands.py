"""Every command in the README and in the docs is run, as it is written there.

Commands are the lines of fenced blocks without a language. They run page after page in one folder,
as a reader would type them, with what makes them small appended; placeholders are there by their
names: a folder PATH, and tiny data sets and networks under the names of the real ones.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.cli.main import VERBS, main
from alexnet_jax.model.tower import build_tower, draw_parameters
from alexnet_jax.weights import column, files, named
from tests.support import png_folder, tiny_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "docs" / "walks.md")  # test_walks.py types these

TINY = ("--config.placement=vmap", "--config.num_epochs=1.0")
SMALL = (*TINY, "--config.model.width=0.05", "--config.batch_size=4")
LOW = ("--config.data.image_size=72", "--config.data.crop_size=67")
# What is appended to which configuration, and what the commands of a verb need besides.
APPENDED = {
    "quickstart": TINY,
    "cifar10": (*SMALL, "--config.batch_size=16"),
    "imagenet": (*SMALL, *LOW),
    "large_batch": (*LOW, "--config.model.width=0.05", "--config.batch_size=8",
                    "--config.num_epochs=1.0"),
    "finetune": (*TINY, "--config.batch_size=8"),
    "imagenette": SMALL,
    "studies/imagenette": (
        "--config.base.num_epochs=0.0", "--config.base.placement=vmap",
        "--config.base.model.width=0.05", "--config.base.data.source=digits",
        "--config.base.data.test_split=test", "--config.base.evaluate.final_views=1",
        "--config.seeds=(0,)"),
    "my_study.py": ("--config.base.num_epochs=0.0", "--config.base.placement=vmap"),
    "studies/figure1_relu_vs_tanh": (
        "--config.base.num_epochs=0.0", "--config.base.placement=vmap",
        "--config.base.data.source=digits", "--config.seeds=(0,)"),
}  # fmt: skip


def commands():
    """(page, command) of every fenced block that has no language, each command once."""
    found = {}
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S):
            for line in re.sub(r"\\\n\s*", "", block).splitlines() if not language else ():
                command = re.split(r"\s+# ", line)[0].strip()
                if command and not command.startswith("#"):
                    found.setdefault(command, page.name)
    return [(page, command) for command, page in found.items()]


COMMANDS = commands()


def tfds_folder(root, name, version, classes, splits, size):
    """A data set of noise as TFDS would have prepared it."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder = root / name / version
    folder.mkdir(parents=True)
    form = "png" if name == "cifar10" else "jpeg"
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format=form),
            "label": tfds.features.ClassLabel(names=[f"c{i:04d}" for i in range(classes)]),
        }
    )
    rng, infos = np.random.default_rng(0), []
    for split, count in splits.items():
        path = folder / f"{name}-{split}.tfrecord-00000-of-00001"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for i in range(count):
                image = {"image": rng.integers(0, 256, size, np.uint8), "label": i % classes}
                writer.write(features.serialize_example(features.encode_example(image)))
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=split, filetype_suffix="tfrecord"
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[count], num_bytes=0, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=infos, supervised_keys=("image", "label")
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A copy of what commands name, to be run in."""
    root = tmp_path_factory.mktemp("as typed")
    for name in ("docs", "experiments", "results"):
        shutil.copytree(ROOT / name, root / name)
    png_folder(root / "PATH", 40, test=10)
    data = root / "tensorflow_datasets"
    tfds_folder(data, "cifar10", "3.0.2", 10, {"train": 32, "test": 16}, (32, 32, 3))
    tfds_folder(data, "imagenet2012", "5.1.0", 1000, {"train": 8, "validation": 4}, (80, 100, 3))
    photographs = {"train": 20, "validation": 10}
    tfds_folder(data, "imagenette_224", "1.0.0", 10, photographs, (60, 60, 3))
    config = tiny_config()
    params = draw_parameters(build_tower(config.model), 0, config.data.crop_size)
    mean = np.float32(config.data.channel_mean)
    page = (ROOT / "docs" / "adding.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    (root / "waves.py").write_text(next(block for block in blocks if "class Waves" in block))
    page = (ROOT / "docs" / "studies.md").read_text()
    (root / "my_study.py").write_text(re.search(r"^```python\n(.*?)^```$", page, re.M | re.S)[1])
    found = column.from_towers(config, {"params": params}, mean, ())
    for name in ("network.onnx", "bvlcalexnet-12.onnx", "alexnet.safetensors"):
        files.write(found, root / name)
    (root / "networks").mkdir()
    files.write(found, root / "networks" / "imagenette.safetensors")
    noise = np.random.default_rng(0).integers(0, 256, (36, 40, 3), np.uint8)
    Image.fromarray(noise).save(root / "photo.jpg")
    return root


def is_verb(command):
    return command.startswith("python -m alexnet_jax ")


def test_there_are_commands_and_of_every_verb():
    verbs = {command.split()[3] for _, command in COMMANDS if is_verb(command)}
    # `bench` says how fast a machine is; a test runs it (test_cli.py), and no page needs it.
    assert len(COMMANDS) > 30 and verbs >= VERBS.keys() - {"bench"}


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(named, "FOLDER", place / "networks")
    monkeypatch.setenv("TFDS_DATA_DIR", str(place / "tensorflow_datasets"))
    return place


SLOW = ("=imagenet:", "=cifar10 ", "large_batch", "runs/source")
"""Of commands that train, or need one that does: `make test-all` runs them."""


def slow(command):
    trains = " train " in command or "runs/source" in command or "prepare " in command
    return (trains and any(name in command for name in SLOW)) or "imagenet2012" in command


@pytest.mark.parametrize(
    "page,command",
    [
        pytest.param(page, command, marks=[pytest.mark.slow] if slow(command) else [])
        for page, command in COMMANDS
    ],
)
def test_it_runs_as_written(here, page, command, capsys):
    words = shlex.split(command)
    if words[0] == "make":
        # What it would do; the verbs among it are run like all others, the rest by CI.
        done = subprocess.run(
            ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            if "-m alexnet_jax " in line:
                verb(["python", *shlex.split(line)[1:]], capsys)
    elif is_verb(command):
        verb(words, capsys)
    elif command == "pip install .":
        install(here)
    elif words[:2] == ["python", "-c"]:
        # Of its own: TFDS looks at TFDS_DATA_DIR once, when it is imported.
        done = subprocess.run(
            [sys.executable, *words[1:]], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    elif words[:3] == ["python", "-m", "benchmarks.device"]:
        # Without time for a measurement; test_device.py runs it whole.
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *words[1:], "--seconds=0"], env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and (here / "runs/device/device.md").is_file(), done.stderr
    elif words[0] == "python" and words[1].endswith(".py"):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *words[1:]], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        pytest.fail(f"{page}: no test knows how to run {command!r}")


def verb(words, capsys):
    """Runs one in this process, small."""
    arguments = words[3:]
    config = next((a for a in arguments if a.startswith("--config=")), "")
    name = config.removeprefix("--config=").partition(":")[0]
    if name and arguments[0] != "inspect":
        arguments += APPENDED[name]
    elif "--exchange" in arguments:
        arguments += ["--config.model.width=0.05", "--config.placement=pmap"]
    if "--config.distributed.enabled=True" in arguments:
        return alone(arguments)
    if arguments[0] == "study" and "--table_only" not in arguments:
        arguments += ["--part=11/11"]  # one run of them
    if "--table_only" in arguments:
        arguments = [a for a in arguments if not a.startswith(("--config.base", "--config.seeds"))]
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code == 0, err[-2000:]
    return out


def alone(arguments):
    """A run of several hosts, of which this is all, in a process of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments += [
        f"--config.distributed.coordinator=localhost:{port}",
        "--config.distributed.process_count=1", "--config.distributed.process_id=0",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "alexnet_jax", *arguments], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def install(folder):
    """The package alone, somewhere else; tests/test_package.py says what it holds."""
    target, source = folder / "installed", folder / "source"  # A build leaves files behind.
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("alexnet_jax", "experiments"):
        shutil.copytree(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, f"--target={target}", "."], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (target / "bin" / "alexnet-jax").is_file()
