"""JSON as it is read everywhere: files that people edit, copy and damage, not only our own."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn, cast

from alexnet_jax.errors import UsageError

_DEEPEST = 64
"""Levels of lists and objects; a configuration has four."""


def loads(text: str, finite: bool = True) -> Any:
    """What `json.loads` returns of text that every program understands alike.

    Args:
      text: may begin with a byte order mark.
      finite: whether NaN and infinite numbers are refused, which JSON does not have.

    Raises:
      ValueError: it is not JSON, nests too deeply, names a key twice, or holds a number that no
        array holds.
    """
    try:
        value = json.loads(
            text.removeprefix("\ufeff"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_finite if finite else None,
            parse_constant=_refuse if finite else None,
        )
    except RecursionError:
        raise ValueError(f"more than {_DEEPEST} levels deep") from None
    level, depth = [value], 0
    while level := [child for item in level for child in _children(item)]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} levels deep")
    return value


def read(path: Path, finite: bool = True) -> Any:
    """What a file holds; see `loads`.

    Raises:
      OSError: it cannot be read.
      UsageError: it is not JSON; names the file.
    """
    try:
        return loads(path.read_text(encoding="utf-8"), finite)
    except ValueError as error:
        raise UsageError(f"{path} is not JSON that can be read: {error}") from error


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(cast(dict[str, Any], item).values())
    return cast(list[Any], item) if isinstance(item, list) else []


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there more than once")
    return found


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{text[:20]}... does not fit into 64 bits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not finite")
    return value


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")
