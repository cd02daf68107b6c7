"""Folders as people have them: which classes they hold, and that everything else is named."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import image_files, pipeline
from alexnet_jax.data.sources import check_classes, open_source, open_sources
from alexnet_jax.data.sources.folder import account
from alexnet_jax.errors import UsageError
from tests.data.test_pipeline import data_config
from tests.support import tiny_config

CLASSES = ("cat", "dog", "owl")
PIXELS = {name: 60 * number + 40 for number, name in enumerate(CLASSES)}


def image(path, value=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (value, 0, 0)).save(buffer, "PNG", **options)
    path.write_bytes(buffer.getvalue())


def text(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text")


def base(root, split=""):
    """Ten images of each class, whose pixels say which class it is."""
    for name, value in PIXELS.items():
        for number in range(10):
            image(root / split / name / f"{number}.png", value)


def link(path, to):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


def moved(root):
    """A class of links: the folder, and each of its images."""
    (root / "cat").rename(root.parent / "elsewhere")
    (root / "dog").rename(root.parent / "others")
    link(root / "cat", root.parent / "elsewhere")
    for path in (root.parent / "others").iterdir():
        link(root / "dog" / path.name, path)


BESIDE = {
    "what macOS packs": (lambda p: image(p / "__MACOSX" / "cat" / "._0.png"), "__MACOSX"),
    "annotations": (lambda p: text(p / "Annotations" / "0.xml"), "Annotations"),
    "a run": (lambda p: text(p / "run" / "config.json"), "run"),
    "its checkpoints": (lambda p: text(p / "run" / "10" / "state" / "d"), "run"),
    "an empty folder": (lambda p: (p / "lost+found").mkdir(), "lost+found"),
    "a link to itself": (lambda p: link(p / "loop", p / "loop"), "1 file left out (no ending 1)"),
    "a link to nothing": (lambda p: link(p / "old", "no"), "1 file left out (no ending 1)"),
    "notebooks": (lambda p: image(p / ".ipynb_checkpoints" / "0.png"), "(hidden 1)"),
    "a table": (lambda p: text(p / "labels.csv"), "1 file left out (.csv 1)"),
    "an image of no class": (lambda p: image(p / "x.JPG"), "1 file left out (.jpg 1)"),
    "halves of files": (lambda p: image(p / "cat" / "._0.png"), "1 file left out (hidden 1)"),
    "a folder in a class": (lambda p: image(p / "cat" / "more" / "0.png"), "cat/more"),
    "other endings": (
        lambda p: [text(p / "dog" / x) for x in ("a.heic", "b.HEIC", "c.txt", "d", "Thumbs.db")],
        "5 files left out (.heic 2, ",
    ),
    "links": (moved, "3 classes"),
}  # fmt: skip


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("what", BESIDE)
def test_classes_are_the_folders_that_hold_images_and_the_rest_is_named(tmp_path, what, divided):
    root = tmp_path / "D"
    base(root, "train" if divided else "")
    if divided:
        base(root, "test")
    make, says = BESIDE[what]
    make(root / "train" if divided else root)
    train, test = (open_source(f"folder:{root}", split) for split in ("train", "test"))
    assert train.class_names == test.class_names == CLASSES
    assert train.num_examples + test.num_examples == (60 if divided else 30)
    config = data_config(image_size=10, crop_size=10, pad=0)
    for source in (train, test):
        (batch,) = pipeline.eval_batches(source, config, batch_size=source.num_examples)
        expected = [PIXELS[CLASSES[label]] for label in batch["label"]]
        np.testing.assert_array_equal(batch["image"][:, 5, 5, 0], expected)
    line = account([train, test])
    assert says in line and "\n" not in line
    if not says.startswith("3"):
        assert "left out" in line or "not read: " + ("train/" if divided else "") + says in line
    check_classes(train, test)


@pytest.mark.parametrize(
    ("other", "changes", "says"),
    [
        ("val", {}, "not read: val"),
        ("__MACOSX/train", {}, "not read: __MACOSX"),
        ("val", {"validation_split": "val"}, "10 images in val, 4 classes"),
        ("extra", {"train_split": "extra"}, "4 classes"),
    ],
)
def test_a_split_that_is_not_used_adds_no_classes(tmp_path, other, changes, says):
    for split in ("train", "test"):
        base(tmp_path, split)
    for number in range(10):
        image(tmp_path / other / "fox" / f"{number}.png")
    config = tiny_config()
    config.model.num_classes = 4 if changes else 3
    config.data.update(source=f"folder:{tmp_path}", **changes)
    sources = open_sources(config)
    assert len(sources["test"].class_names) == config.model.num_classes
    opened = dict.fromkeys((config.data.train_split, "test", *filter(None, changes.values())))
    assert says in account([open_source(f"folder:{tmp_path}", s, config.data) for s in opened])


def test_a_run_says_it_once_when_it_opens_its_sources(tmp_path, capsys):
    base(tmp_path)
    text(tmp_path / "cat" / "notes.txt")
    config = tiny_config()
    config.model.num_classes, config.data.source = 3, f"folder:{tmp_path}"
    open_source(config.data.source, "train")
    assert capsys.readouterr().err == ""
    open_sources(config)
    assert capsys.readouterr().err == (
        f"folder:{tmp_path}: 24 images in train, 6 images in test, 3 classes; "
        "1 file left out (.txt 1)\n"
    )


def test_a_folder_that_may_not_be_read_is_named_and_a_split_is_an_error(tmp_path, monkeypatch):
    base(tmp_path, "train")
    (tmp_path / "train" / "lost+found").mkdir()
    ordinary = os.scandir

    def scandir(path):
        if Path(path) in forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return ordinary(path)

    monkeypatch.setattr(os, "scandir", scandir)
    forbidden = {tmp_path / "train" / "lost+found"}
    source = open_source(f"folder:{tmp_path}", "train")
    assert source.class_names == CLASSES
    assert "not read: train/lost+found (Permission denied)" in account([source])
    told = []
    assert len(image_files.image_paths([str(tmp_path)], told.append)) == 30
    assert told == [f"cannot read {tmp_path}/train/lost+found: Permission denied"]
    for place in (tmp_path, tmp_path / "train"):
        forbidden = {place}
        with pytest.raises(UsageError, match=r"cannot read .*: Permission denied"):
            open_source(f"folder:{tmp_path}", "train")


@pytest.mark.parametrize(
    ("change", "says", "fits"),
    [
        (lambda p: (p / "test/cat").rename(p / "test/Cat"),
         "no images of Cat in train; no images of cat in test", False),
        (lambda p: (p / "train/owl").rename(p / "away"), "no images of owl in train", False),
        (lambda p: (p / "test/owl").rename(p / "away"), "no images of owl in test", False),
        (lambda p: image(p / "test/owl " / "0.png"), "no images of owl  in train", False),
        (lambda p: [x.unlink() for x in (p / "test/owl").iterdir()],
         "no images of owl in test", True),
        (lambda p: None, "3 classes", True),
    ],
)  # fmt: skip
def test_a_class_of_one_split_is_named_and_an_error_in_an_evaluation(tmp_path, change, says, fits):
    for split in ("train", "test"):
        base(tmp_path, split)
    change(tmp_path)
    config = tiny_config()
    config.data.source = f"folder:{tmp_path}"
    train, test = (open_source(config.data.source, split) for split in ("train", "test"))
    assert train.class_names == test.class_names
    assert says in account([train, test])
    if fits:
        check_classes(train, test)
        return
    with pytest.raises(UsageError, match=r"has no folder of the classes .*same names"):
        check_classes(train, test)


def test_opening_a_split_lists_each_class_once_and_asks_about_no_image(tmp_path, monkeypatch):
    for split in ("train", "test"):
        base(tmp_path, split)
    listed, ordinary = [], os.scandir

    class Entry:
        def __init__(self, entry):
            self.name, self._entry = entry.name, entry

        def is_dir(self):
            assert not self.name.endswith(".png")
            return self._entry.is_dir()

    class Entries:
        def __init__(self, path):
            listed.append(Path(path))
            self._entries = ordinary(path)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._entries.close()

        def __iter__(self):
            for number, entry in enumerate(self._entries):
                # Of the other split, one image says that it is a class.
                assert number == 0 or Path(entry.path).parents[1] != tmp_path / "test"
                yield Entry(entry)

    monkeypatch.setattr(os, "scandir", Entries)
    open_source(f"folder:{tmp_path}", "train")
    below = [tmp_path / split / name for split in ("train", "test") for name in CLASSES]
    assert sorted(listed) == sorted([tmp_path, tmp_path / "train", tmp_path / "test", *below])


NAMES = {"plain": b"plain", "é": "é".encode(), "caf\\xe9": b"caf\xe9", "猫 $x$": "猫 $x$".encode()}
"""Classes, from what they are called to the bytes of their folders' names."""

CHILD = """
import json, sys
from alexnet_jax.data.image_files import image_paths
from alexnet_jax.data.sources import open_source
from alexnet_jax.data.sources.folder import account
sources = [open_source(f"folder:{sys.argv[1]}", split) for split in ("train", "test")]
print(json.dumps({
    "encoding": sys.getfilesystemencoding(),
    "classes": [s.class_names for s in sources],
    "files": [[s.describe(i) for i in range(s.num_examples)] for s in sources],
    "read": [[len(x) for x in s.read(range(s.num_examples))[0]] for s in sources],
    "found": len(image_paths([sys.argv[1]])),
    "account": account(sources),
}))
"""


def test_names_are_bytes_and_mean_the_same_in_every_locale(tmp_path):
    for name in NAMES.values():
        folder = os.fsencode(tmp_path) + b"/D/" + name
        os.makedirs(folder)
        for number in range(7):
            image(tmp_path / "x.png", number)
            os.rename(tmp_path / "x.png", folder + b"/%d \xff\xc3\xa9.png" % number)
    root = tmp_path / "D"
    sources = [open_source(f"folder:{root}", split) for split in ("train", "test")]
    here = {
        "encoding": "utf-8",
        "classes": [list(s.class_names) for s in sources],
        "files": [[s.describe(i) for i in range(s.num_examples)] for s in sources],
        "read": [[len(x) for x in s.read(np.arange(s.num_examples))[0]] for s in sources],
        "found": 28,
        "account": account(sources),
    }
    assert here["classes"] == [sorted(NAMES)] * 2
    assert str(here).isprintable() and str(here).encode()
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, root], capture_output=True, text=True, check=False,
        env=os.environ | environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here | {"encoding": "ascii"}


@pytest.mark.parametrize("what", ["pipe", "folder", "large", "device"])
def test_what_is_no_file_of_an_image_is_named_at_once(tmp_path, what):
    base(tmp_path)
    path = tmp_path / "cat" / "a.png"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "large":
        path.touch()
        os.truncate(path, 2**40)
    else:
        path.symlink_to("/dev/zero")
    source = open_source(f"folder:{tmp_path}", "train")
    (place,) = [i for i in range(source.num_examples) if source.describe(i) == str(path)]
    with pytest.raises(UsageError, match=f"cannot read {path}: it "):
        source.read(np.array([place]))
