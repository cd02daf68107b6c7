"""What others register: the modules that a configuration names, and the fields they bring."""

import importlib
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.config.fields import FIELDS, declared
from alexnet_jax.errors import UsageError


def import_guests(config: ConfigDict) -> None:
    """Imports the modules that `config.imports` names, which register what they add.

    The fields of an operation that was registered after the configuration was made are added to it
    with their defaults.

    Raises:
      UsageError: a module cannot be imported; names it.
    """
    names = config.get("imports", ())
    FIELDS["imports"].check("imports", names)
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UsageError(
                f"config.imports holds {name!r}, which cannot be imported ({reason}); a module is "
                "looked for in the folders of PYTHONPATH"
            ) from error
    model = config.get("model", {})
    missing: dict[str, dict[str, Any]] = {}
    for path, field in declared().items():
        parts = path.split(".")
        if parts[0] == "model" and len(parts) == 3 and parts[1] not in model:
            missing.setdefault(parts[1], {})[parts[2]] = field.default
    with config.unlocked():
        for group, fields in missing.items():
            model[group] = ConfigDict(fields)
