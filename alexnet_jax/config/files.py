"""Configurations as files: written by a run, read again by every later version."""

from typing import Any, cast

from ml_collections import ConfigDict

from alexnet_jax import jsonfiles
from alexnet_jax.config.fields import declared, leaves
from alexnet_jax.config.guests import import_guests
from alexnet_jax.config.rules import validate
from alexnet_jax.errors import UsageError

FIRST_VERSION = "0.1.0"


def completed(config: ConfigDict) -> ConfigDict:
    """The same configuration with the fields that did not exist when it was written.

    Each gets what runs did before it existed (`Field.before`), or its default.

    Raises:
      UsageError: a module that `config.imports` names cannot be imported.
    """
    import_guests(config)
    there, known = dict(leaves(config)), declared()
    missing = [path for path in known if path not in there]
    with config.unlocked():
        for path in missing:
            field = known[path]
            if field.since == FIRST_VERSION:
                continue
            value = field.default if field.before is None else field.before
            if isinstance(value, str):
                value = there.get(value, value)  # the field whose value says what was done
            config.update_from_flattened_dict({path: value})
        if "data.validation_split" in missing and "evaluate.splits" in there:
            # Version 0.1 steered by the test split, which is now the validation split as well.
            names = {"test": "validation"}
            splits = tuple(names.get(split, split) for split in there["evaluate.splits"])
            config.update_from_flattened_dict({"evaluate.splits": splits})
    return config


def tuples(value: Any) -> Any:
    """What JSON read, with tuples for its lists."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return tuple(map(tuples, cast(list[Any], value)))
    return value


def from_json(text: str, name: str) -> ConfigDict:
    """The configuration that a run wrote to `name`.

    Raises:
      UsageError: it is not a configuration.
    """
    try:
        config = ConfigDict(tuples(jsonfiles.loads(text)))
        validate(completed(config).lock())
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{name}: not a configuration of this version: {reason}") from error
    return config
