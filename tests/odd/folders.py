"""Folders of images as people have them.

Each function changes a good folder `D/{train,test}/{cat,dog,owl}`, of 12 and 4 small images a
class, and returns the names of the classes that a person would say it has; an empty tuple if it is
to be refused; None if it may be read or refused.
"""

import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")
COLOURS = {"cat": (200, 60, 60), "dog": (60, 200, 60), "owl": (60, 60, 200)}
FOLDERS: dict[str, Callable[[Path], tuple[str, ...] | None]] = {}


def picture(path: Path, colour: tuple[int, int, int] = (128, 128, 128), seed: int = 0) -> None:
    """Writes noise around a colour, 40 x 36 pixels, by the suffix of the path."""
    noise = np.random.default_rng(seed).integers(-40, 40, (36, 40, 3))
    image = Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jfif": "JPEG", ".jpe": "JPEG", ".tif": "TIFF"}.get(path.suffix.lower())
    image.save(path, kind)


def good(folder: Path) -> None:
    """`D/{train,test}/{cat,dog,owl}`."""
    for split, count in (("train", 12), ("test", 4)):
        for name in CLASSES:
            for i in range(count):
                picture(folder / split / name / f"{i}.jpg", COLOURS[name], i + 100 * len(split))


def folder(name: str):
    def add(function):
        FOLDERS[name] = function
        return function

    return add


@folder("as it should be")
def _(d):
    return CLASSES


@folder("__MACOSX beside the splits")
def _(d):
    for split in ("train", "test"):
        path = d / "__MACOSX" / split / "cat" / "._0.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\0\5\x16\7" + bytes(80))
    return CLASSES


@folder("__MACOSX in a split")
def _(d):
    path = d / "train" / "__MACOSX" / "._0.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\0\5\x16\7" + bytes(80))
    return CLASSES


@folder("Annotations beside the splits")
def _(d):
    (d / "Annotations").mkdir()
    (d / "Annotations" / "cat.xml").write_text("<a/>")
    return CLASSES


@folder("a folder of pictures beside the splits")
def _(d):
    picture(d / "figures" / "plot.png")
    return CLASSES


@folder("a workdir inside")
def _(d):
    (d / "run" / "12" / "params").mkdir(parents=True)
    (d / "run" / "config.json").write_text("{}")
    picture(d / "run" / "kernels.png")
    return CLASSES


@folder("lost+found that nobody may read")
def _(d):
    for place in (d, d / "train"):
        (place / "lost+found").mkdir(mode=0)
    return CLASSES


@folder(".ipynb_checkpoints with an image")
def _(d):
    picture(d / "train" / ".ipynb_checkpoints" / "0-checkpoint.jpg")
    picture(d / "train" / "cat" / ".ipynb_checkpoints" / "0-checkpoint.jpg")
    return CLASSES


@folder(".DS_Store, Thumbs.db, desktop.ini, @eaDir")
def _(d):
    for split in ("train", "test"):
        for place in (d, d / split, d / split / "cat"):
            for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.jpg"):
                (place / name).write_bytes(b"\0\1\2")
    picture(d / "train" / "cat" / "@eaDir" / "0.jpg")
    return CLASSES


@folder("Cat in test, cat in train")
def _(d):
    (d / "test" / "cat").rename(d / "test" / "Cat")
    return ()


@folder("a class in train only")
def _(d):
    picture(d / "train" / "yak" / "0.jpg")
    return None


@folder("a class in test only")
def _(d):
    picture(d / "test" / "yak" / "0.jpg")
    return ()


@folder("an empty class in both")
def _(d):
    for split in ("train", "test"):
        (d / split / "yak").mkdir()
    return None


@folder("an empty folder")
def _(d):
    shutil.rmtree(d)
    d.mkdir()
    return ()


@folder("no folder")
def _(d):
    shutil.rmtree(d)
    return ()


@folder("a file in place of the folder")
def _(d):
    shutil.rmtree(d)
    d.write_text("cat")
    return ()


@folder("a link to nowhere in place of the folder")
def _(d):
    shutil.rmtree(d)
    d.symlink_to(d.with_name("nowhere"))
    return ()


@folder("a link to the folder")
def _(d):
    real = d.rename(d.with_name("real"))
    d.symlink_to(real)
    return CLASSES


@folder("links for splits, classes and images")
def _(d):
    real = d.rename(d.with_name("real"))
    (d / "train").mkdir(parents=True)
    (d / "test").symlink_to(real / "test")
    for name in ("cat", "dog"):
        (d / "train" / name).symlink_to(real / "train" / name)
    (d / "train" / "owl").mkdir()
    for path in (real / "train" / "owl").iterdir():
        (d / "train" / "owl" / path.name).symlink_to(path)
    return CLASSES


@folder("a link that leads in a circle")
def _(d):
    (d / "train" / "cat" / "again").symlink_to(d / "train")
    (d / "train" / "self").symlink_to(d / "train" / "self")
    return CLASSES


@folder("a link to an image that is gone")
def _(d):
    (d / "train" / "cat" / "gone.jpg").symlink_to(d / "gone.jpg")
    return None


@folder("images one level deeper")
def _(d):
    for split in ("train", "test"):
        for name in CLASSES:
            inner = d / split / name / "inner"
            inner.mkdir()
            for path in list(inner.parent.glob("*.jpg")):
                path.rename(inner / path.name)
    return None


@folder("the folder once more inside itself")
def _(d):
    inner = d.rename(d.with_name("inner"))
    d.mkdir()
    inner.rename(d / "data")
    return None


@folder("train and val")
def _(d):
    (d / "test").rename(d / "val")
    return None


@folder("Train and Test")
def _(d):
    (d / "test").rename(d / "Test")
    (d / "train").rename(d / "Train")
    return None


@folder("train alone")
def _(d):
    shutil.rmtree(d / "test")
    return None


@folder("classes without splits")
def _(d):
    shutil.rmtree(d / "test")
    for name in CLASSES:
        (d / "train" / name).rename(d / name)
    (d / "train").rmdir()
    return CLASSES


@folder("images without classes")
def _(d):
    shutil.rmtree(d)
    for i in range(20):
        picture(d / f"{i}.jpg", seed=i)
    (d / "labels.csv").write_text("file,label\n0.jpg,cat\n")
    return ()


@folder("one class")
def _(d):
    for split in ("train", "test"):
        for name in CLASSES[1:]:
            shutil.rmtree(d / split / name)
    return None


@folder("one image")
def _(d):
    shutil.rmtree(d)
    picture(d / "train" / "cat" / "0.jpg")
    return ()


@folder("one image per class")
def _(d):
    for split in ("train", "test"):
        for name in CLASSES:
            for path in list((d / split / name).glob("[1-9]*.jpg")):
                path.unlink()
    return None


def renamed(d: Path, names: dict[str, str | bytes]) -> tuple[str, ...]:
    for split in ("train", "test"):
        for old, new in names.items():
            where = os.fsencode(d / split)
            os.rename(where + b"/" + os.fsencode(old), where + b"/" + os.fsencode(new))
    result = [names.get(name, name) for name in CLASSES]
    return tuple(sorted(os.fsdecode(name) for name in result))


@folder("names of other scripts")
def _(d):
    return renamed(d, {"cat": "gatto è", "dog": "狗", "owl": "sova 🦉"})


@folder("two forms of one accent")
def _(d):
    return renamed(d, {"cat": "caf\u00e9", "dog": "cafe\u0301"})


@folder("a class that is not UTF-8")
def _(d):
    renamed(d, {"cat": b"caf\xe9"})
    return None


@folder("an image that is not UTF-8")
def _(d):
    where = os.fsencode(d / "train" / "cat")
    os.rename(where + b"/0.jpg", where + b"/caf\xe9.jpg")
    return CLASSES


@folder("names with spaces, dashes and quotes")
def _(d):
    return renamed(d, {"cat": "-rf", "dog": " dog ", "owl": 'o\'wl "x"'})


@folder("names of mathematics and markup")
def _(d):
    return renamed(d, {"cat": "$5 & <b>", "dog": "a_b^c$", "owl": "%s {x} \\alpha"})


@folder("names that are numbers")
def _(d):
    return renamed(d, {"cat": "10", "dog": "2", "owl": "1e3"})


@folder("names with a line break")
def _(d):
    renamed(d, {"cat": "ca\nt"})
    (d / "train" / "dog" / "0.jpg").rename(d / "train" / "dog" / "a\nb.jpg")
    return None


@folder("names as long as they may be")
def _(d):
    (d / "train" / "dog" / "0.jpg").rename(d / "train" / "dog" / f"{'x' * 251}.jpg")
    return renamed(d, {"cat": "c" * 255})


@folder("names with commas, stars and brackets")
def _(d):
    (d / "train" / "dog" / "0.jpg").rename(d / "train" / "dog" / "[0]*?.jpg")
    return renamed(d, {"cat": "cat, tabby [1]", "owl": "*"})


@folder("three hundred classes")
def _(d):
    shutil.rmtree(d)
    names = [f"c{i:03}" for i in range(300)]
    for split in ("train", "test"):
        for i, name in enumerate(names):
            picture(d / split / name / "0.jpg", seed=i)
    return tuple(names)


@folder("a pipe, a socket and a folder called .jpg")
def _(d):
    os.mkfifo(d / "train" / "cat" / "pipe.jpg")
    before = os.getcwd()
    os.chdir(d / "train" / "cat")  # paths of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket.jpg")
    os.chdir(before)
    (d / "train" / "cat" / "folder.jpg").mkdir()
    return None


@folder("a pipe in place of a split")
def _(d):
    shutil.rmtree(d / "train")
    os.mkfifo(d / "train")
    return ()


@folder("archives in place of folders")
def _(d):
    for split in ("train", "test"):
        with zipfile.ZipFile(d / f"{split}.zip", "w") as archive:
            for path in (d / split).rglob("*.jpg"):
                archive.write(path, path.relative_to(d))
        shutil.rmtree(d / split)
    return ()


@folder("an archive beside the splits")
def _(d):
    with zipfile.ZipFile(d / "data.zip", "w") as archive:
        archive.write(d / "train" / "cat" / "0.jpg", "0.jpg")
    return CLASSES


@folder("images of many suffixes")
def _(d):
    for i, suffix in enumerate((".jfif", ".jpe", ".JPG", ".webp", ".gif", ".tif", ".bmp", ".png")):
        picture(d / "train" / "cat" / f"x{i}{suffix}", COLOURS["cat"], i)
    return CLASSES


@folder("an empty file among the images")
def _(d):
    (d / "train" / "cat" / "empty.jpg").touch()
    return None


@folder("a web page called .jpg")
def _(d):
    (d / "test" / "dog" / "page.jpg").write_text("<html><title>403</title></html>")
    return None


@folder("one image of 8000 x 8000 pixels")
def _(d):
    Image.new("RGB", (8000, 8000), (9, 9, 9)).save(d / "train" / "cat" / "large.jpg")
    return CLASSES
