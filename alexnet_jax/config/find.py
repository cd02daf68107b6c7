"""Configurations by name: the files in `experiments/`, or any file with a function `get_config`."""

import difflib
import importlib.util
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.errors import UsageError

FORMS = "NAME[:PRESET] or FILE.py[:PRESET]"
"""What --config may be."""


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
    if not name:
        raise UsageError(f"--config is empty: give {FORMS}")
    if Path(name).is_file():
        if not name.endswith(".py"):
            raise UsageError(f"--config={name}: not a Python file, whose name ends with .py")
        return Path(name)
    if Path(f"{name}.py").is_file():
        raise UsageError(f"--config={name}: no such configuration; did you mean {name}.py?")
    if Path(name).is_dir() and name not in names():
        raise UsageError(f"--config={name}: a folder; give {FORMS}")
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
    name, arguments = _divided(os.fspath(spec))
    path = find(name)
    try:
        function = getattr(_module(path), "get_config", None)
        if not callable(function):
            raise UsageError(f"--config={spec}: has no function get_config(), which returns it")
        _check_takes(function, arguments, name)
        config: Any = function(*arguments)
    except UsageError:
        raise
    # Of code that is not ours: anything may go wrong in it.
    except (Exception, SystemExit) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"--config={spec}: {text}") from error
    if not isinstance(config, ConfigDict):
        raise UsageError(
            f"--config={spec}: get_config() returns a {type(config).__name__}, not a ConfigDict: "
            "begin with that of alexnet_jax.get_config(NAME), and change its fields"
        )
    return config


def _divided(spec: str) -> tuple[str, list[str]]:
    """A name or file that there is, and what stands behind the colon that follows, if any."""
    parts, known = spec.split(":"), names()
    for count in range(len(parts), 0, -1):
        name = ":".join(parts[:count])
        if Path(name).is_file() or name in known:
            return name, [":".join(parts[count:])][: len(parts) - count]
    return parts[0], [":".join(parts[1:])][: len(parts) - 1]


def _check_takes(function: Callable[..., Any], arguments: list[str], name: str) -> None:
    """Checks that a configuration is asked for with an argument or without, as it can be.

    Raises:
      UsageError: says what to type.
    """
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        if arguments:
            text = f"--config={name}:{arguments[0]}: takes nothing behind a colon: --config={name}"
        else:
            text = f"--config={name}: needs a preset or the like behind a colon: --config={name}:X"
        raise UsageError(text) from error


def _module(path: Path) -> Any:
    """A file as a module, executed anew. It is not listed among the imported modules."""
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--config={path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
