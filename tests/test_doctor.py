"""What is missing is named, with what to do about it."""

from importlib import metadata

import pytest

from alexnet_jax import doctor
from alexnet_jax.__main__ import main


def without(monkeypatch, **versions):
    """As if a package were of another version, or None: not there."""
    real = metadata.version

    def version(name):
        if name in versions and versions[name] is None:
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_a_sound_machine_needs_nothing(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "MISSING" not in text
    assert f"jax                  {metadata.version('jax')}" in text
    assert "8 cpu" in text and "auto is mesh" in text  # the devices that tests make
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    "name,version,mend",
    [
        ("optax", None, "pip install -r requirements.txt"),
        ("jax", "0.10.2", "miscomputes reductions"),
    ],
)
def test_what_cannot_work_is_exit_code_2(monkeypatch, capsys, name, version, mend):
    without(monkeypatch, **{name: version})
    assert main(["doctor"]) == 2
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if line.startswith("MISSING"))
    assert name in line and mend in text


def test_what_would_be_nice_is_no_error(monkeypatch, capsys, tmp_path):
    without(monkeypatch, tensorboard=None)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: True)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "pip install tensorboard" in text and 'pip install "jax[cuda13]"' in text
    assert "tfds.load('cifar10')" in text and f"not in {tmp_path}" in text


def test_another_python_is_named(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 0))
    assert "3.11 to 3.13" in doctor.python().mend
