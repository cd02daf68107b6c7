"""The flags that verbs take, and what is typed turned into them: by absl, in our own words."""

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from alexnet_jax.errors import UsageError

EXAMPLE = "experiments/quickstart.py"

_COUNT = {"lower_bound": 1}
FLAGS: dict[str, tuple[Callable[..., Any], Any, str, dict[str, Any]]] = {
    "workdir": (flags.DEFINE_string, None, "The folder that holds everything about the run.", {}),
    "step": (
        flags.DEFINE_integer, 0, "Of the checkpoint, such as the best's; 0: the newest.",
        {"lower_bound": 0},
    ),
    "weights": (
        flags.DEFINE_string, "",
        "Instead of a workdir: FILE.safetensors or FILE.onnx, ours or of others.", {},
    ),
    "out": (flags.DEFINE_string, None, "The file or folder to write.", {}),
    "views": (
        flags.DEFINE_enum, "1", "Centre crop; nine or ten views too.",
        {"enum_values": ["1", "9", "10"]},
    ),
    "split": (
        flags.DEFINE_enum, "test", "Which part of the data.", {"enum_values": ["test", "train"]},
    ),
    "json": (flags.DEFINE_bool, False, "A line of JSON an image, for programs.", {}),
    "images": (
        flags.DEFINE_multi_string, [],
        "Files, folders or patterns; the word --images is not needed.", {},
    ),
    "profile": (
        flags.DEFINE_string, "", "M:N: trace steps M to N into WORKDIR/profile.", {},
    ),
    "part": (
        flags.DEFINE_string, "1/1",
        "K/N: run every N-th run from the K-th on, so that N machines share a study.", {},
    ),
    "table_only": (
        flags.DEFINE_bool, False,
        "Run nothing: make the table and the figure from the logs there are.", {},
    ),
    "until": (
        flags.DEFINE_integer, 0,
        "The last step to run again; 0: up to the first checkpoint that was logged.",
        {"lower_bound": 0},
    ),
    "exchange": (
        flags.DEFINE_bool, False,
        "Instead: what the devices send each other, by arithmetic and as compiled.", {},
    ),
    "rounds": (flags.DEFINE_integer, 5, "How often each thing is measured.", _COUNT),
    "steps": (flags.DEFINE_integer, 5, "Steps a measurement.", _COUNT),
}  # fmt: skip


def _define(name: str, flag: flags.FlagValues, arguments: list[str] | None = None) -> None:
    if name == "config":
        config_flags.DEFINE_config_file(
            "config", None, "FILE.py[:PRESET]; change a field with --config.FIELD=VALUE.",
            flag_values=flag, sys_argv=["alexnet_jax", *(arguments or [])],
        )  # fmt: skip
    else:
        define, default, text, more = FLAGS[name]
        define(name, default, help=text, flag_values=flag, **more)


def meaning(name: str) -> str:
    """What a flag is for, as help says it."""
    flag = flags.FlagValues()
    _define(name, flag)
    # Of flags that may be repeated absl says so in a line of its own.
    return flag[name].help.partition(";\n")[0]


def parse(verb: str, names: tuple[str, ...], arguments: list[str]) -> flags.FlagValues:
    """What was typed after a verb.

    Args:
      verb: as errors call it.
      names: of the flags that it takes.
      arguments: that were typed.

    Raises:
      UsageError: naming the flag or the field.
    """
    flag = flags.FlagValues()
    for name in names:
        _define(name, flag, arguments)
    for argument in arguments:
        name = re.split(r"[=.\[]", argument.lstrip("-"))[0]
        if argument.startswith("-") and name not in names and name.removeprefix("no") not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise UsageError(
                f"--{name}: no such flag of {verb}; "
                + (f"did you mean --{close[0]}?" if close else f"it has --{', --'.join(names)}")
            )
        if name == "config" and argument.startswith(("--config=", "-config=")):
            path = Path(argument.split("=", 1)[1].split(":")[0])
            if not path.is_file():
                raise UsageError(f"--config={path}: no such file; {EXAMPLE} is one")
    try:
        rest = flag(["alexnet_jax", *arguments])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UsageError(_plain(error, arguments)) from error
    if "images" in names:
        flag.images = [*flag.images, *rest]
    elif rest:
        raise UsageError(f"{rest[0]!r}: {verb} takes flags only; see `{verb} --help`")
    for name in names:
        # One of a run and a file, where a verb takes either.
        if flag[name].value is None and not (name == "workdir" and "weights" in names):
            raise UsageError(f"--{name} is missing; {verb} needs it: {flag[name].help}")
    return flag


def _plain(error: Exception, arguments: list[str]) -> str:
    """A parser's error as one line that names the field as it was typed."""
    text = " ".join(str(error).split())
    if "Traceback" in text:
        # What a config file raised comes whole; its last line says what is wrong.
        text = re.split(r"\b(?:alexnet_jax\.errors\.)?\w*Error: ", text)[-1]
    if isinstance(error, (AttributeError, KeyError)):
        # ml_collections names the last part of the path only.
        words = re.findall(r"\w+", text)
        typed = [a.lstrip("-").split("=")[0] for a in arguments if a.startswith("--config.")]
        path = next((p for p in typed if words and words[0] in p.split(".")), "config")
        close = re.search(r'Did you mean \\?"(\w+)', text)
        return f"{path}: no such field" + (f"; did you mean {close[1]!r}?" if close else "")
    return text


def steps(text: str) -> tuple[int, int] | None:
    """`20:25` as (20, 25); none of nothing.

    Raises:
      UsageError: it is no such pair.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--profile={text}: give the first and the last step, such as 20:25")
    return int(match[1]), int(match[2])


def part(text: str) -> tuple[int, int]:
    """`2/3` as (2, 3).

    Raises:
      UsageError: it is no such pair, or its first is above its second.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--part={text}: give K/N with K from 1 to N, such as 2/3")
    return int(match[1]), int(match[2])
