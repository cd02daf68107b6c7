"""What is missing is named, with what to do about it."""

import runpy
import types
from importlib import metadata
from pathlib import Path

import pytest

from alexnet_jax.analysis import doctor
from alexnet_jax.cli.main import main


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
    "name,version,advice",
    [
        ("optax", None, "pip install -r requirements.txt"),
        ("jax", "0.10.2", "miscomputes reductions"),
    ],
)
def test_what_cannot_work_is_exit_code_2(monkeypatch, capsys, name, version, advice):
    without(monkeypatch, **{name: version})
    assert main(["doctor"]) == 2
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if line.startswith("MISSING"))
    assert name in line and advice in text


@pytest.mark.parametrize("clone", [True, False])
def test_advice_is_for_a_clone_or_for_an_installed_package(monkeypatch, clone):
    """An installed package has no requirements.txt beside it, and no Makefile."""
    home = Path(doctor.__file__).parents[2]
    monkeypatch.setattr(Path, "is_file", lambda path: clone and path.parent == home)
    fresh = runpy.run_path(doctor.__file__)
    advice = [fresh["_INSTALL"], *fresh["_BROKEN"].values(), fresh["_GPU_ADVICE"]]
    assert any("requirements.txt" in text for text in advice) == clone
    assert ("alexnet-jax[cuda]" in advice[-1]) != clone


def test_what_would_be_nice_is_no_error(monkeypatch, capsys, tmp_path):
    without(monkeypatch, tensorboard=None)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: True)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "pip install tensorboard" in text and 'pip install "jax[cuda13]"' in text
    assert "tfds.load('cifar10')" in text and f"not in {tmp_path}" in text


@pytest.mark.parametrize(
    "version,fits",
    [((3, 10, 9), False), ((3, 11, 0), True), ((3, 13, 7), True), ((3, 14, 0), False)],
)
def test_another_python_is_named(monkeypatch, version, fits):
    monkeypatch.setattr(doctor.sys, "version_info", version)
    found = doctor.python()
    assert found.needed and bool(found.advice) is not fits
    assert fits or "3.11 to 3.13" in found.advice


def test_another_package_may_take_the_place_of_tensorflow(monkeypatch):
    without(monkeypatch, tensorflow=None, **{"tensorflow-cpu": "2.20.0"})
    assert doctor.version("tensorflow") == "2.20.0"
    without(monkeypatch, **{"tensorflow-cpu": None})
    assert doctor.version("tensorflow") is None


def test_data_sets_are_those_that_tfds_has_prepared(monkeypatch, tmp_path):
    """A folder of a version without its description was never finished."""
    for name, finished in (
        ("cifar10/3.0.2", True),
        ("cifar10/2.0.0", True),
        ("imagenet2012/5.1.0", False),
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        if finished:
            (folder / "dataset_info.json").touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    cifar, imagenet = doctor.data_sets()
    assert (cifar.name, cifar.advice) == ("cifar10", "")
    assert cifar.text == f"2.0.0, 3.0.2 in {tmp_path}"
    assert imagenet.text == f"not in {tmp_path}" and "docs/data.md" in imagenet.advice
    assert not cifar.needed and not imagenet.needed


def test_jax_that_does_not_start_is_needed(monkeypatch, capsys):
    def broken():
        raise RuntimeError("Unable to initialize backend\nand a page more")

    monkeypatch.setattr("jax.devices", broken)
    (found,) = doctor.devices()
    assert found.needed and found.text == "JAX does not start: Unable to initialize backend"
    assert main(["doctor"]) == 2
    assert "MISSING devices" in capsys.readouterr().out


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_where_there_is_an_accelerator_the_first_hour_is_named(monkeypatch, platform):
    device = types.SimpleNamespace(platform=platform, device_kind="some device")
    monkeypatch.setattr("jax.devices", lambda: [device])
    placement = types.SimpleNamespace(describe=lambda: "vmap, 1 device")
    monkeypatch.setattr("alexnet_jax.parallel.place", lambda config: placement)
    lines = doctor.table(doctor.devices())
    assert ("python -m benchmarks.device" in lines) == (platform != "cpu")
    assert "MISSING" not in lines and f"1 {platform} (some device)" in lines


def test_without_a_needed_package_jax_is_not_even_imported(monkeypatch):
    without(monkeypatch, flax=None)
    monkeypatch.setattr(doctor, "devices", lambda: pytest.fail("JAX was asked for its devices"))
    names = [finding.name for finding in doctor.examine()]
    assert names == ["python", *doctor.NEEDED, *doctor.OPTIONAL]


def test_the_table_marks_what_is_missing_and_what_would_be_nice():
    found = [
        doctor.Finding("a", "1.0"),
        doctor.Finding("long name", "none", "do this", needed=True),
        doctor.Finding("b", "none", "or that"),
        doctor.Finding("c", "2.0", needed=True),
    ]
    assert doctor.table(found).splitlines() == [
        "ok      a          1.0",
        "MISSING long name  none",
        "                   do this",
        "-       b          none",
        "                   or that",
        "ok      c          2.0",
    ]
