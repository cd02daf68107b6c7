"""Paths as people type them: of this machine alone."""

import pwd
from pathlib import Path

import pytest

from alexnet_jax import cache
from alexnet_jax.analysis import doctor
from alexnet_jax.data import image_files
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UsageError
from alexnet_jax.paths import expanded, local


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
