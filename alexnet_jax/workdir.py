"""What a run leaves in its folder besides logs and checkpoints: config, environment, result."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.config import default
from alexnet_jax.errors import UsageError


def prepare(config: ConfigDict, workdir: Path) -> None:
    """Creates the folder and writes `config.json`: what is run, not which processes run it.

    Raises:
      UsageError: if it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            kept = config.copy_and_resolve_references()
            with kept.unlocked():
                kept.distributed = default().distributed
            (workdir / "config.json").write_text(kept.to_json(indent=2) + "\n")
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir}: {error.strerror or error}: choose a folder that can be written"
        ) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes one of a workdir's JSON files, whole or not at all; one process does so for all."""
    if jax.process_index() > 0:
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def environment(placement: parallel.Placement) -> dict[str, Any]:
    """What a run's numbers depend on besides its config: versions, revision, devices, command."""
    packages = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "tensorflow-datasets",
        "numpy",
    )
    folder = Path(__file__).parent

    def git(*args: str) -> str:
        try:
            done = subprocess.run(
                ["git", *args], cwd=folder, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.strip()

    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "git_revision": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "placement": placement.describe(),
        "devices": [str(device) for device in placement.mesh.devices.flat],
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "cpu_count": os.cpu_count(),
    }


def parameters_sha256(params: Any) -> str:
    """A checksum over names, shapes and bytes of every parameter."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
