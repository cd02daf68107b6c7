"""What a configuration chooses by name: open mappings, filled in the same way by us and by others.

A guest adds an entry by assignment, such as `ACTIVATIONS["silu"] = Activation(jax.nn.silu)`. The
built-in entries are made so too, each in the module that is about it; they are imported when a
mapping is first read. `config.imports` names modules of others, which are imported before the
names in a configuration are looked up.
"""

import importlib
import pkgutil
import sys
from collections.abc import Iterator, MutableMapping
from typing import Any

from alexnet_jax.errors import UsageError


class Registry(MutableMapping[str, Any]):
    """A dictionary from names to values that imports its built-in entries by itself.

    Guests can replace their own entries, for example by executing a cell of a notebook again, but
    not the built-in ones.
    """

    def __init__(self, kind: str, home: str):
        """Prepares the mapping.

        Args:
          kind: what its values are, for messages.
          home: the module, or the package of modules, that adds the built-in entries.
        """
        self._kind, self._home = kind, home
        self._entries: dict[str, Any] = {}
        self._builtin: set[str] = set()
        self._loaded = False

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # Already now, since the modules below may read the mapping.
        module = importlib.import_module(self._home)
        for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
            importlib.import_module(f"{self._home}.{found.name}")

    def __getitem__(self, name: str) -> Any:
        """Returns the entry.

        Raises:
          KeyError: there is none.
        """
        self._load()
        return self._entries[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Adds an entry.

        Raises:
          UsageError: a built-in entry has this name.
        """
        # An entry is built in if a module of ours assigns it, whichever module is imported first.
        ours = f"{sys._getframe(1).f_globals.get('__name__')}.".startswith(f"{self._home}.")
        if name in (self._entries if ours else self._builtin):
            raise UsageError(f"the {self._kind} {name!r} is built in: choose another name")
        if ours:
            self._builtin.add(name)
        self._entries[name] = value

    def __delitem__(self, name: str) -> None:
        """Removes an entry that is not built in.

        Raises:
          KeyError: there is none.
        """
        if name in self._builtin:
            raise KeyError(name)
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names, built-in ones first."""
        self._load()
        return iter(self._entries)

    def __len__(self) -> int:
        """Returns the number of entries."""
        self._load()
        return len(self._entries)

    def __repr__(self) -> str:
        """Returns the names, without importing anything."""
        return f"Registry({self._kind}: {', '.join(self._entries)})"


OPERATIONS = Registry("operation", "alexnet_jax.model")
"""What may follow a layer (`model.layers.NAME.then`): subclasses of `model.operation.Operation`."""

ACTIVATIONS = Registry("activation", "alexnet_jax.model.activation")
"""Values of `model.activation`: each a `model.activation.Activation`."""

OPTIMIZERS = Registry("optimizer", "alexnet_jax.training.optimizers")
"""Values of `optimizer.rule`: functions `(config, steps_per_epoch, num_steps)` that return an Optax
transformation."""

SCHEDULES = Registry("schedule", "alexnet_jax.training.schedules")
"""Values of `optimizer.schedule`: functions that return the learning rate by step; see there."""

SOURCES = Registry("data source", "alexnet_jax.data.sources")
"""What stands before the colon in `data.source`: functions `(rest, split, data)`; see there."""

METRICS = Registry("metric", "alexnet_jax.training.metrics")
"""Metrics of evaluation: functions from scores `[B, classes]` and labels `[B]` to one float32 per
example, `[B]`, of which the mean over all images is reported."""
