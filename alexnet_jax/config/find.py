"""Configurations by name: the files in `experiments/`, or any file with a function `get_config`."""

import difflib
import importlib.util
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.errors import UsageError


def folder() -> Path:
    """Where the configurations are: inside an installed package, and beside it in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def names() -> list[str]:
    """The names of all configurations, such as `quickstart` and `studies/components`."""
    root = folder()
    found = (path.relative_to(root).with_suffix("") for path in root.rglob("*.py"))
    return sorted(name.as_posix() for name in found)


def find(name: str) -> Path:
    """The file of a configuration.

    Args:
      name: the path of a file, or one of `names`. A file that exists comes first.

    Raises:
      UsageError: there is neither; the message says what comes nearest.
    """
    if Path(name).is_file():
        return Path(name)
    known = names()
    if name in known:
        return folder() / f"{name}.py"
    wanted = name.removeprefix("experiments/").removesuffix(".py")
    # Of a study, the last part of its name alone comes near as well.
    near = {part: full for full in known for part in (full, full.rpartition("/")[2])}
    close = difflib.get_close_matches(wanted, near, n=1)
    hint = f"did you mean {near[close[0]]}?" if close else f"there are {', '.join(known)}"
    raise UsageError(f"--config={name}: no such file and no configuration of this name; {hint}")


def get_config(spec: str | os.PathLike[str]) -> ConfigDict:
    """A configuration by its name or its file.

    Args:
      spec: `NAME` or `NAME:ARGUMENT`, such as `quickstart` or `imagenet:source`, where NAME may
        also be the path of a file. The argument is passed to the file's function `get_config`.

    Raises:
      UsageError: there is no such configuration, its file does not take this argument, or the file
        has errors.
    """
    name, colon, argument = os.fspath(spec).partition(":")
    path = find(name)
    try:
        function = _module(path).get_config
        config = function(argument) if colon else function()
    except UsageError:
        raise
    except Exception as error:  # Of code that is not ours: anything may go wrong in it.
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"--config={spec}: {text}") from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f"--config={spec}: get_config() returns no ConfigDict")
    return config


def _module(path: Path) -> Any:
    """A file as a module, executed anew. It is not listed among the imported modules."""
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--config={path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
