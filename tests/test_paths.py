"""Paths as people type them: of this machine alone."""

from pathlib import Path

import pytest

from alexnet_jax.errors import UsageError
from alexnet_jax.paths import local


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
