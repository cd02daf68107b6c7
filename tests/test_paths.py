"""Paths as people type them: of this machine alone."""

import os
import pwd
from pathlib import Path

import pytest

from alexnet_jax import cache
from alexnet_jax.analysis import doctor
from alexnet_jax.data import image_files
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UsageError
from alexnet_jax.paths import expanded, local, shown


def test_a_path_of_this_machine_is_taken_as_typed(monkeypatch):
    monkeypatch.setenv("HOME", "/home/alex")
    assert local("runs/a", "--workdir") == Path("runs/a")
    assert local("/data/a b/../c:d", "--workdir") == Path("/data/a b/../c:d")
    assert local("~/runs/a", "--workdir") == Path("/home/alex/runs/a")
    assert local("runs/~/a", "--workdir") == Path("runs/~/a")


@pytest.mark.parametrize(
    "address,tool",
    [
        ("gs://bucket/runs/a", "gcsfuse"),
        ("s3://bucket/runs/a", "mount-s3"),
        ("hdfs://host:9000/a", "a file system in user space"),
        ("gs://", "gcsfuse"),
    ],
)
def test_the_address_of_a_bucket_is_refused_with_the_tool_that_mounts_it(address, tool):
    with pytest.raises(UsageError) as error:
        local(address, "--out")
    assert str(error.value).startswith(f"--out={address}: ") and f"({tool})" in str(error.value)


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(UsageError, match=r"^--workdir is empty: name a folder$"):
        local("", "--workdir")


@pytest.fixture
def homeless(monkeypatch):
    """As in a container whose user is a number that no list knows."""

    def unknown(_):
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)


def test_without_a_home_folder_nothing_needs_it_but_what_names_it(homeless):
    assert expanded("runs/a") == local("runs/a", "--workdir") == Path("runs/a")
    for use in (
        lambda: local("~/runs", "--workdir"), lambda: expanded("~nobody/runs"),
        lambda: open_source("folder:~/D", "train"), lambda: open_source("prepared:~/D", "train"),
        lambda: open_source("tfds:cifar10", "train"), lambda: image_files.image_paths(["~/a.jpg"]),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="there is no such home folder: set HOME"):
            use()
    assert any("HOME" in finding.text for finding in doctor.data_sets())
    with pytest.raises(OSError, match="null"):
        cache.folder().mkdir(parents=True)


@pytest.mark.parametrize(
    "variables,expected",
    [
        ({"JAX_COMPILATION_CACHE_DIR": "/a"}, "/a"),
        ({"JAX_COMPILATION_CACHE_DIR": "gs://bucket/a"}, "/home/.cache/alexnet_jax"),
        ({"JAX_COMPILATION_CACHE_DIR": "gs://bucket/a", "XDG_CACHE_HOME": "/c"}, "/c/alexnet_jax"),
        ({"JAX_COMPILATION_CACHE_DIR": ""}, "/home/.cache/alexnet_jax"),
        ({"XDG_CACHE_HOME": ""}, "/home/.cache/alexnet_jax"),
        ({"XDG_CACHE_HOME": "~/c"}, "/home/c/alexnet_jax"),
    ],
)
def test_what_took_long_is_kept_on_this_machine(monkeypatch, variables, expected):
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.folder() == Path(expected)


@pytest.mark.parametrize(
    "name,text",
    [
        (b"cat", "cat"),
        ("Käse 猫".encode(), "Käse 猫"),
        (b"caf\xe9", r"caf\xe9"),
        (b"a\nb\tc", r"a\nb\tc"),
        (b"\x1b[31m", r"\x1b[31m"),
        ("a\u2028b".encode(), r"a\u2028b"),
    ],
)
def test_a_name_is_one_line_whatever_its_bytes_are(name, text):
    assert shown(os.fsdecode(name)) == text
