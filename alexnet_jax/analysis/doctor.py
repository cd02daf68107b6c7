"""Examines an installation: packages, devices, placement and data, and what is missing.

`NEEDED` repeats the dependencies of pyproject.toml, since in a clone the package itself is not
installed and has no metadata.
"""

import dataclasses
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from alexnet_jax.errors import UsageError
from alexnet_jax.paths import expanded

NEEDED = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections", "absl-py",
    "tqdm", "tensorflow", "tensorflow-datasets", "scikit-learn", "scipy", "matplotlib", "jinja2",
    "pillow", "safetensors", "onnx", "google-crc32c",
)  # fmt: skip
OPTIONAL = {
    "onnxruntime": "runs exported .onnx files",
    "tensorboard": "shows what --config.tensorboard=True writes",
    "wandb": "needed by --config.wandb_project",
}
_INSTEAD = {"tensorflow": ("tensorflow-cpu",)}
_CLONE = (Path(__file__).parents[2] / "requirements.txt").is_file()
_INSTALL = f"pip install {'-r requirements.txt' if _CLONE else '--upgrade alexnet-jax'}"
_BROKEN = {
    ("jax", "0.10.2"): "miscomputes reductions on CPU (jax issue 39103): "
    + (_INSTALL if _CLONE else "pip install jax==0.10.1 jaxlib==0.10.1")
}
PYTHONS = ((3, 11), (3, 13))


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
      name: what was looked at.
      text: what was found.
      advice: what to do about it; empty if nothing is wrong.
      needed: whether nothing works without it.
    """

    name: str
    text: str
    advice: str = ""
    needed: bool = False


def version(package: str) -> str | None:
    """The version of an installed package, or of one that takes its place."""
    for name in (package, *_INSTEAD.get(package, ())):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def python() -> Finding:
    """Examines the Python interpreter."""
    low, high = (".".join(map(str, pair)) for pair in PYTHONS)
    fits = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    make = ": make PYTHON=python3.12 .venv" if _CLONE else ""
    advice = "" if fits else f"use Python {low} to {high}{make}"
    return Finding("python", platform.python_version(), advice, needed=True)


def packages() -> list[Finding]:
    """Examines the packages that everything needs, then those of some features."""
    found = []
    for name in NEEDED:
        has = version(name)
        advice = _INSTALL if has is None else _BROKEN.get((name, has), "")
        found.append(Finding(name, has or "not installed", advice, needed=True))
    for name, use in OPTIONAL.items():
        has = version(name)
        advice = "" if has else f"{use}: pip install {name}"
        found.append(Finding(name, has or "not installed", advice))
    return found


def devices() -> list[Finding]:
    """Examines the devices: what JAX uses, what it could use, and where the towers would run."""
    try:
        import jax

        from alexnet_jax.config import default
        from alexnet_jax.parallel import place, prepare_host

        config = default()
        prepare_host(config)
        found = jax.devices()
        placement = place(config).describe()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        return [Finding("devices", f"JAX does not start: {reason}", _GPU_ADVICE, needed=True)]
    kinds = sorted({device.device_kind for device in found})
    text = f"{len(found)} {found[0].platform} ({', '.join(kinds)})"
    advice = ""
    if found[0].platform == "cpu":
        if has_nvidia_gpu():
            advice = f"an NVIDIA GPU is here, and JAX does not see it: {_GPU_ADVICE}"
        elif Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists():
            advice = 'a TPU seems to be here, and JAX does not see it: pip install "jax[tpu]"'
    default_precision = jax.config.values["jax_default_matmul_precision"]
    return [
        Finding("devices", text, advice),
        Finding("placement", f"auto is {placement}"),
        _precision(found[0].platform, default_precision, config.model.precision),
        *_first_hour(found[0].platform),
    ]


def _first_hour(platform: str) -> list[Finding]:
    """What to run once on a machine with an accelerator."""
    if platform == "cpu":
        return []
    clone = "" if _CLONE else ", in a clone of the project,"
    text = f"python -m benchmarks.device{clone} checks and times these devices in ten minutes"
    return [Finding("first hour", text)]


def _precision(platform: str, default: str | None, chosen: str) -> Finding:
    """What float32 products are computed in, by JAX's default and in a run."""
    usual = {"cpu": "float32", "tpu": "bfloat16", "gpu": "TensorFloat-32 where the GPU has it"}
    text = f"JAX's default on {platform} is {default or usual.get(platform, 'not known')}"
    return Finding("precision", f"{text}; a run uses model.precision = {chosen}")


_CUDA = "jax[cuda13]" if _CLONE else "alexnet-jax[cuda]"
_GPU_ADVICE = f'pip install "{_CUDA}"; then nvidia-smi must list the GPU'


def has_nvidia_gpu() -> bool:
    """Whether the driver shows an NVIDIA GPU, whatever JAX finds."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def data_sets() -> list[Finding]:
    """Examines whether TFDS has prepared the data sets of the configurations."""
    where = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    try:
        root = expanded(where)
    except UsageError as error:
        return [Finding("data sets", str(error), "or set TFDS_DATA_DIR")]
    found = []
    for name in ("cifar10", "imagenet2012"):
        versions = sorted(path.parent.name for path in root.glob(f"{name}/*/dataset_info.json"))
        advice = ""
        if not versions and name == "imagenet2012":
            advice = "cannot be downloaded without an account: docs/data.md has the steps"
        elif not versions:
            advice = f"python -c \"import tensorflow_datasets as tfds; tfds.load('{name}')\""
        text = f"{', '.join(versions)} in {root}" if versions else f"not in {root}"
        found.append(Finding(name, text, advice))
    return found


def examine() -> list[Finding]:
    """Examines everything, in the order in which to fix it."""
    found = [python(), *packages()]
    if any(finding.advice and finding.needed for finding in found):
        return found  # JAX might not even import
    return [*found, *devices(), *data_sets()]


def table(found: list[Finding]) -> str:
    """The findings as text: one line each, with the advice below it."""
    width = max(len(finding.name) for finding in found)
    lines = []
    for finding in found:
        mark = "ok" if not finding.advice else ("MISSING" if finding.needed else "-")
        lines.append(f"{mark:<8}{finding.name:<{width}}  {finding.text}")
        if finding.advice:
            lines.append(f"{'':<{8 + width + 2}}{finding.advice}")
    return "\n".join(lines)
