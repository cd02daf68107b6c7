"""Files of half the size: what rounding to float16 changes, and what it must not."""

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from alexnet_jax.cli.main import main
from alexnet_jax.errors import UsageError
from alexnet_jax.weights.files import read, write
from tests.weights.test_weights import changed, network, ours


@pytest.fixture
def both(tmp_path):
    """The same network in float32 and in float16, with a mean image."""
    mean = np.random.default_rng(0).uniform(50, 200, (32, 32, 3)).astype(np.float32)
    _, found = network(changed(), mean)
    write(found, tmp_path / "single.safetensors")
    write(found, tmp_path / "half.safetensors", dtype="float16")
    return tmp_path


def texts(path):
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def test_every_number_is_numpys_float16_of_the_float32_file(both):
    single, half = (load_file(both / f"{name}.safetensors") for name in ("single", "half"))
    assert single.keys() == half.keys() and "input.mean" in half
    again = read(both / "half.safetensors")
    for name, array in single.items():
        assert half[name].dtype == np.float16
        np.testing.assert_array_equal(half[name], array.astype(np.float16), err_msg=name)
        # As the documentation of `write` says.
        error = np.abs(half[name].astype(np.float64) - array)
        assert (error <= np.maximum(np.abs(array) / 2048, 3e-8)).all(), name
        here = again.mean if name == "input.mean" else again.arrays[name]
        assert here.dtype == np.float32
        np.testing.assert_array_equal(here, half[name].astype(np.float32))
    assert texts(both / "half.safetensors") == texts(both / "single.safetensors")
    sizes = [(both / f"{name}.safetensors").stat().st_size for name in ("half", "single")]
    assert sizes[0] < 0.52 * sizes[1]


def test_probabilities_move_by_less_than_a_thousandth(both):
    images = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), np.uint8)
    single, half = (ours(read(both / f"{name}.safetensors"), images) for name in ("single", "half"))
    assert np.ptp(single, axis=0).max() > 0.01  # They depend on the image.
    assert 0 < np.abs(half - single).max() < 1e-3


def test_bfloat16_is_read_as_float32(both):
    path = both / "single.safetensors"
    rounded = {name: a.astype(ml_dtypes.bfloat16) for name, a in load_file(path).items()}
    save_file(rounded, both / "brain.safetensors", texts(path))
    found = read(both / "brain.safetensors")
    for name, array in found.arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, rounded[name].astype(np.float32))


@pytest.mark.parametrize("value,fits", [(65519.0, True), (65520.0, False), (-1e30, False)])
def test_a_number_outside_the_range_is_refused_and_nothing_is_written(tmp_path, value, fits):
    """float16 ends at 65504; up to half a step more is rounded to it (IEEE 754, to nearest)."""
    _, found = network(changed())
    found.arrays["conv3.bias"][1] = value
    path = tmp_path / "net.safetensors"
    if fits:
        write(found, path, dtype="float16")
        assert read(path).arrays["conv3.bias"][1] == 65504
        return
    with pytest.raises(UsageError, match=r"^conv3\.bias has numbers up to .*65504.*as float32$"):
        write(found, path, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_only_safetensors_have_a_type(tmp_path):
    _, found = network(changed())
    for name in ("net.onnx", "net.py"):
        with pytest.raises(UsageError, match=rf"{name}: only a \.safetensors file can be of floa"):
            write(found, tmp_path / name, dtype="float16")
    with pytest.raises(UsageError, match="dtype = 'int8': use one of float32, float16"):
        write(found, tmp_path / "net.safetensors", dtype="int8")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_float16(both, capsys):
    single, out = both / "single.safetensors", both / "again.safetensors"
    assert main(["export", f"--weights={single}", "--dtype=float16", f"--out={out}"]) == 0
    expected = load_file(both / "half.safetensors")
    for name, array in load_file(out).items():
        assert array.dtype == np.float16
        np.testing.assert_array_equal(array, expected[name])
    assert texts(out) == texts(single)
    capsys.readouterr()
    for name in ("a.onnx", "a.md"):
        assert main(["export", f"--weights={single}", "--dtype=float16", f"--out={name}"]) == 2
        says = f"error: --dtype=float16: of a .safetensors file, and not of --out={name}\n"
        assert capsys.readouterr().err == says
