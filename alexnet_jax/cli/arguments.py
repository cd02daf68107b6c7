"""The flags of all verbs and their parsing: by absl, with one line per error."""

import difflib
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from alexnet_jax.config import find
from alexnet_jax.config.fields import declared, leaves, suggestion
from alexnet_jax.config.rules import check_run
from alexnet_jax.errors import UsageError
from alexnet_jax.paths import local

EXAMPLE = "quickstart"
_PATHS = {"workdir", "weights", "out"}

_COUNT = {"lower_bound": 1}
FLAGS: dict[str, tuple[Callable[..., Any], Any, str, dict[str, Any]]] = {
    "workdir": (flags.DEFINE_string, None, "The folder of the run or the study.", {}),
    "step": (
        flags.DEFINE_integer, 0, "The step of the checkpoint; 0 takes the newest.",
        {"lower_bound": 0},
    ),
    "weights": (
        flags.DEFINE_string, "",
        "Instead of a workdir: a file of weights, .safetensors or .onnx, or the name of a network.",
        {},
    ),
    "dtype": (
        flags.DEFINE_enum, "float32",
        "The type of the numbers in a .safetensors file; float16 halves its size.",
        {"enum_values": ["float32", "float16"]},
    ),
    "pixels": (
        flags.DEFINE_bool, False,
        "An .onnx file resizes images itself: its input is uint8 [N, height, width, 3].", {},
    ),
    "out": (flags.DEFINE_string, None, "The file or folder to write.", {}),
    "views": (
        flags.DEFINE_enum, "1", "Views per image: 1 is the centre crop; 9 or 10 adds the others.",
        {"enum_values": ["1", "9", "10"]},
    ),
    "max_pixels": (
        flags.DEFINE_integer, 0,
        "The largest image that is read, in pixels; 0: that of the run, data.max_pixels.",
        {"lower_bound": 0},
    ),
    "split": (
        flags.DEFINE_enum, "test", "The split to evaluate.",
        {"enum_values": ["test", "validation", "train"]},
    ),
    "source": (
        flags.DEFINE_string, "",
        "The data set to read in place of that of the run, with the same classes: folder:PATH.", {},
    ),
    "json": (flags.DEFINE_bool, False, "JSON, for programs.", {}),
    "format": (
        flags.DEFINE_enum, "text",
        "One line per image with its best class (text), or the five best: in columns (table), as a "
        "line of JSON, or as CSV.",
        {"enum_values": ["text", "table", "json", "csv"]},
    ),
    "group": (
        flags.DEFINE_string, "", "Only fields whose names begin with this, such as optimizer.", {},
    ),
    "diagram": (
        flags.DEFINE_string, "", "Draws the towers into this file, as SVG.", {},
    ),
    "markdown": (flags.DEFINE_bool, False, "A table in Markdown, for the documentation.", {}),
    "classes": (
        flags.DEFINE_list, [],
        "Names or numbers of classes whose evidence is shown besides that of the answer.", {},
    ),
    "unit": (
        flags.DEFINE_string, "",
        "A layer, or a layer and the number of a unit, such as conv3:17, whose images are shown.",
        {},
    ),
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
        "Run nothing; write the table and the figure from the existing logs.", {},
    ),
    "compare": (
        flags.DEFINE_list, [],
        "A,B: run nothing; print how two variants differ in every outcome.", {},
    ),
    "until": (
        flags.DEFINE_integer, 0,
        "The last step to run again; 0: that of the first checkpoint in the log.",
        {"lower_bound": 0},
    ),
    "exchange": (
        flags.DEFINE_bool, False,
        "Print what the devices send each other, as computed and as compiled.", {},
    ),
    "compile": (
        flags.DEFINE_string, "",
        "Compile for devices that need not be here, and print what the step would need: h100:2, "
        "a100:8, rtx4090:1, v5e:2x2, v5p:2x2x1, v6e:2x2.", {},
    ),
    "rounds": (flags.DEFINE_integer, 5, "The number of measurements of each quantity.", _COUNT),
    "steps": (flags.DEFINE_integer, 5, "Training steps per measurement.", _COUNT),
}  # fmt: skip


_CONFIG = f"{find.FORMS}; change a field with --config.FIELD=VALUE."

_SHORT = {
    "lr": "optimizer.learning_rate", "wd": "optimizer.weight_decay", "epochs": "num_epochs",
    "bs": "batch_size", "dropout": "model.dropout.rate", "classes": "model.num_classes",
    "dataset": "data.source", "data": "data.source",
}  # fmt: skip
"""Fields by the names that other programs have for them."""


def meaning(name: str) -> str:
    """The meaning of a flag, for help."""
    return _CONFIG if name == "config" else FLAGS[name][2]


def parse(
    verb: str, names: tuple[str, ...], arguments: list[str], optional: Collection[str] = ()
) -> flags.FlagValues:
    """Parses what was typed after a verb.

    Args:
      verb: the verb, for error messages.
      names: the names of the flags that it takes.
      arguments: the words that were typed.
      optional: the flags that may be left out although they have no default. A config is an empty
        text then, and others are None.

    Raises:
      UsageError: a flag or a field is wrong; the message names it.
    """
    for argument in arguments:
        name = re.split(r"[=.\[]", argument.lstrip("-"))[0]
        if argument.startswith("-") and name not in names and name.removeprefix("no") not in names:
            raise UsageError(f"--{name}: no such flag of {verb}; {_instead(argument, names)}")
    flag = flags.FlagValues()
    for name in names:
        if name != "config":
            define, default, text, more = FLAGS[name]
            define(name, default, help=text, flag_values=flag, **more)
    typed = ["alexnet_jax", *arguments]
    config = None
    if "config" in names:
        spec, typed = _without_config(typed)
        if spec is None and "config" not in optional:
            known = [word for word in arguments if word.partition(":")[0] in find.names()]
            hint = f"did you mean --config={known[0]}?" if known else f"{verb} needs it: {_CONFIG}"
            raise UsageError(f"--config is missing; {hint}")
        if spec is not None:
            config = find.get_config(spec)
            if verb != "study":
                check_run(config)
    try:
        if "config" in names and config is None:
            flags.DEFINE_string("config", "", help=_CONFIG, flag_values=flag)
        if config is not None:
            config_flags.DEFINE_config_dict("config", config, flag_values=flag, sys_argv=typed)
        rest = flag(typed)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UsageError(_plain(error, arguments, config)) from error
    if "images" in names:
        flag.images = [*flag.images, *rest]
    elif rest:
        raise UsageError(f"{rest[0]!r}: {verb} takes flags only; {_instead(rest[0], names)}")
    for name in _PATHS & set(names):
        if flag[name].present:
            flag[name].value = str(local(flag[name].value or "", f"--{name}"))
    for name in names:
        # Where a verb takes a workdir or a file, it checks by itself that one is given.
        may_lack = name in optional or (name == "workdir" and "weights" in names)
        if flag[name].value is None and not may_lack:
            raise UsageError(f"--{name} is missing; {verb} needs it: {meaning(name)}")
    return flag


def _instead(word: str, names: tuple[str, ...]) -> str:
    """What to type instead of a word that is no flag of a verb."""
    name, _, value = word.lstrip("-\u2010\u2011\u2012\u2013\u2014\u2212").partition("=")
    has = f"it has --{', --'.join(names)}" if names else "it has no flags"
    first = re.split(r"[.\[]", name)[0]
    if first == "config" and first not in names:
        return f"the configuration is that of the run; {has}"
    if first != "config" and (close := difflib.get_close_matches(first, names, n=1, cutoff=0.7)):
        return f"did you mean --{close[0]}?"
    if "config" in names and (field := _field(name.removeprefix("config."))):
        return f"did you mean --config.{field}={value or 'VALUE'}?"
    if not word.startswith("-") and "workdir" in names:
        return f"did you mean --workdir={word}?"
    return has


def _field(name: str) -> str:
    """The field that somebody may mean by a name, or nothing."""
    if name in (known := declared()):
        return name
    return _SHORT.get(name) or suggestion(name, list(known)).removeprefix("; did you mean ")[:-1]


def _without_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of --config, or None, and the other words."""
    spec, others, words = None, [], iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--config", "-config"):
            spec = value if equals else next(words, None)
        else:
            others.append(word)
    return spec, others


def _plain(error: Exception, arguments: list[str], config: Any) -> str:
    """An error of the parser as one line that names the field as it was typed."""
    text = " ".join(str(error).split())
    if match := re.match(r"flag --([\w.\[\]]+)=(.*?): (.*)", text):
        return f"--{match[1]}={match[2]}: {_wanted(match[1], match[2], match[3], config)}"
    if match := re.match(r"Missing value for flag (\S+)", text):
        return f"{match[1]}: give a value, {match[1]}=VALUE"
    if text.startswith("Could not parse ''"):
        return "--config.: give a field, --config.FIELD=VALUE"
    if isinstance(error, (AttributeError, KeyError)):
        # ml_collections names only the last part of the path.
        words = set(re.findall(r"\w+", text))
        typed = [a.lstrip("-").split("=")[0] for a in arguments if a.startswith("--config.")]
        path = next((p for p in typed if words & set(p.split("."))), "config")
        # A study holds a run as `base`.
        prefix = "config.base." if "base" in config else "config."
        name = path.removeprefix("config.").removeprefix("base.")
        hint = f"; did you mean {_SHORT[name]}?" if name in _SHORT else suggestion(name)
        return f"{path}: no such field" + hint.replace("mean ", f"mean {prefix}")
    return text


def _wanted(name: str, value: str, reason: str, config: Any) -> str:
    """What a flag takes, in the words of the person who types it."""
    if "as a ConfigDict" in reason:
        group = config
        for part in name.split(".")[1:]:
            group = group[part]
        fields = ", ".join(f"--{name}.{path}" for path, _ in list(leaves(group))[:3])
        return f"a group of fields; give one of them, such as {fields}"
    if "int()" in reason:
        try:
            whole = int(float(value))
        except (ValueError, OverflowError):
            whole = 128
        return f"give a whole number, such as {whole}"
    if "to float" in reason:
        return f"give a number, such as {value.replace(',', '.') if ',' in value else 0.01}"
    if "Non-boolean" in reason:
        return "give True or False"
    return reason


def steps(text: str) -> tuple[int, int] | None:
    """The first and the last step of `20:25`, or None for an empty text.

    Raises:
      UsageError: the text is anything else.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--profile={text}: give the first and the last step, such as 20:25")
    return int(match[1]), int(match[2])


def part(text: str) -> tuple[int, int]:
    """The two numbers of `2/3`.

    Raises:
      UsageError: the text is anything else, or the first number is larger than the second.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--part={text}: give K/N with K from 1 to N, such as 2/3")
    return int(match[1]), int(match[2])


def folders(text: str) -> list[Path]:
    """The folder of this name or, if there is none, those between its commas.

    Raises:
      UsageError: one of the names is empty.
    """
    if os.path.exists(text):  # False for whatever is no path
        return [Path(text)]
    return [local(name, "--workdir") for name in text.split(",")]


def pair(names: list[str]) -> tuple[str, str]:
    """The two names of `a,b`.

    Raises:
      UsageError: there are more or fewer.
    """
    if len(names) != 2:
        raise UsageError(f"--compare={','.join(names)}: give two variants, such as lrn-off,base")
    return names[0], names[1]
