"""What an installed package holds, and that configurations and networks are found there."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.training.test_library import lively
from tests.weights.test_weights import changed

ROOT = Path(__file__).parents[1]
NETWORKS = "alexnet_jax/weights/networks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def files(folder):
    """Those of a folder, without what Python leaves in it."""
    return [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]


def test_the_packages_are_the_folders_with_modules():
    modules = [path for path in files("alexnet_jax") + files("experiments") if path.suffix == ".py"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in modules}
    inside = {re.sub(r"^experiments\b", "alexnet_jax.experiments", name) for name in found}
    table = PROJECT["tool"]["setuptools"]
    assert set(table["packages"]) == inside and len(table["packages"]) == len(inside)
    outside = {f"alexnet_jax.{name}": name for name in found if name.startswith("experiments")}
    assert {n: f.replace("/", ".") for n, f in table["package-dir"].items()} == outside


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built offline from what is in the repository, with a tiny network besides: `tiny`."""
    root = tmp_path_factory.mktemp("package")
    source = root / "source"  # A build leaves files behind.
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("alexnet_jax", "experiments", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / NETWORKS).mkdir(exist_ok=True)
    lively(changed()).save(source / NETWORKS / "tiny.safetensors", dtype="float16")
    (source / NETWORKS / "tiny.md").write_text("# tiny\n")
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(root)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = root.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel unpacked, as pip does with one of Python alone."""
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_a_wheel_holds_every_file_and_no_other(installed):
    expected = {str(path.relative_to(ROOT)) for path in files("alexnet_jax")}
    expected |= {f"alexnet_jax/{path.relative_to(ROOT)}" for path in files("experiments")}
    expected |= {f"{NETWORKS}/tiny.safetensors", f"{NETWORKS}/tiny.md"}
    found = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
    about = {name for name in found if ".dist-info/" in name}
    assert found - about == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in about)
    assert {
        "py.typed", "analysis/templates/run.html", "analysis/templates/card.md.jinja",
        "weights/templates/module.py.jinja", "experiments/studies/components.py",
    } <= {name.removeprefix("alexnet_jax/") for name in found}  # fmt: skip


def test_a_wheel_needs_no_tools_of_development_and_names_its_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info" in name}
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        commands = archive.read(f"{info}/entry_points.txt").decode()
    required = metadata.get_all("Requires-Dist", [])
    names = {re.split(r"[^\w-]", line)[0].lower() for line in required if "extra ==" not in line}
    tools = {
        re.split(r"[^\w-]", line)[0] for line in PROJECT["project"]["optional-dependencies"]["dev"]
    }
    assert "jax" in names and "pytest" in tools and not names & tools
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "alexnet-jax = alexnet_jax.__main__:main" in commands


def run(installed, folder, code):
    """Python in another folder, with the installed package alone."""
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_help_of_an_installed_package_starts_no_library(installed, tmp_path):
    out = run(
        installed,
        tmp_path,
        "import sys, alexnet_jax, alexnet_jax.__main__ as m; assert m.main(['--help']) == 0;"
        "assert not {'jax', 'tensorflow'} & set(sys.modules); print(alexnet_jax.__file__)",
    )
    assert out.splitlines()[-1].startswith(str(installed)) and "usage:" in out


def test_configurations_are_found_by_name_in_an_installed_package(installed, tmp_path):
    names = sorted(
        str(path.relative_to(ROOT / "experiments").with_suffix(""))
        for path in files("experiments")
        if path.suffix == ".py"
    )
    code = (
        "from alexnet_jax.config import find; print(*find.names())\n"
        "for name in find.names():\n"
        "    if name != 'finetune': find.get_config(name)\n"
        "print(find.folder()); assert find.get_config('imagenet:caffe').data.crop_size == 227"
    )
    out = run(installed, tmp_path, code).splitlines()
    assert out == [" ".join(names), str(installed / "alexnet_jax" / "experiments")]


def test_networks_are_loaded_by_name_from_an_installed_package(installed, tmp_path):
    names = {path.stem for path in files(NETWORKS)} | {"tiny"}
    code = (
        "import alexnet_jax; from alexnet_jax.weights import named\n"
        "print(*named.names())\n"
        "print(*alexnet_jax.load('tiny').params['fc8']['kernel'].sum((0, 1)))"
    )
    found, sums = run(installed, tmp_path, code).splitlines()
    assert found.split() == sorted(names)
    weight = load_file(installed / NETWORKS / "tiny.safetensors")["fc8.weight"]
    expected = weight.astype(np.float32).sum(1)
    np.testing.assert_allclose([float(x) for x in sums.split()], expected, rtol=1e-5, atol=1e-5)
