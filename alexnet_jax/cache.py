"""Where what took long to compute is kept for the next run: programs and statistics."""

import os
from pathlib import Path

from alexnet_jax.errors import UsageError
from alexnet_jax.paths import expanded


def folder() -> Path:
    """`~/.cache/alexnet_jax`, or where `JAX_COMPILATION_CACHE_DIR` says, unless that is a bucket.

    Nothing in it is ever needed. Where there is no home folder, nothing can be written to it.
    """
    moved = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if moved and "://" not in moved:
        return Path(moved)
    try:
        return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "alexnet_jax"
    except UsageError:
        return Path(os.devnull) / "alexnet_jax"
