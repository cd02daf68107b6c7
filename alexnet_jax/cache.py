"""Where what took long to compute is kept for the next run: programs and statistics."""

import os
from pathlib import Path


def folder() -> Path:
    """`~/.cache/alexnet_jax`, or where `JAX_COMPILATION_CACHE_DIR` says.

    Nothing in it is ever needed.
    """
    if moved := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(moved)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alexnet_jax"
