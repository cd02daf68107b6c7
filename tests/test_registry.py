"""The open mappings: built-in entries come by themselves, guests' entries in the same way."""

import importlib
import json
import subprocess
import sys

import pytest

from alexnet_jax import registry
from alexnet_jax.config import default, from_json, validate
from alexnet_jax.config.fields import Field
from alexnet_jax.errors import UsageError
from alexnet_jax.model.activation import Activation
from alexnet_jax.registry import ACTIVATIONS, OPERATIONS, Registry

ALL = [value for value in vars(registry).values() if isinstance(value, Registry)]


@pytest.fixture
def colours(tmp_path, monkeypatch):
    """A mapping whose built-in entries are in two modules of a package."""
    home = tmp_path / "colours_of_a_test"
    home.mkdir()
    (home / "__init__.py").write_text(
        "from alexnet_jax.registry import Registry\nCOLOURS = Registry('colour', __name__)\n"
    )
    for name, value in (("warm", "red"), ("cold", "blue")):
        (home / f"{name}.py").write_text(
            f"from colours_of_a_test import COLOURS\nCOLOURS['{value}'] = '{name}'\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("colours_of_a_test").COLOURS
    for name in [name for name in sys.modules if name.startswith("colours_of_a_test")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "use,result",
    [
        (lambda colours: colours["red"], "warm"),
        (len, 2),
        (sorted, ["blue", "red"]),
        (lambda colours: "blue" in colours, True),
        (lambda colours: dict(colours), {"blue": "cold", "red": "warm"}),
    ],
    ids=["item", "length", "names", "membership", "dictionary"],
)
def test_built_in_entries_are_there_at_the_first_reading_whatever_it_is(colours, use, result):
    assert repr(colours) == "Registry(colour: )"  # which imports nothing
    assert use(colours) == result


def test_a_guests_entry_can_be_added_replaced_and_removed(colours):
    colours["green"] = "warm"
    colours["green"] = "cold"
    assert colours["green"] == "cold" and len(colours) == 3
    del colours["green"]
    assert "green" not in colours
    with pytest.raises(KeyError):
        del colours["green"]


@pytest.mark.parametrize("before", [True, False])
def test_a_built_in_entry_stays_as_it_is(colours, before):
    """A guest cannot take its name, not even before the built-in one is imported."""
    if before:
        colours["red"] = "mine"
        with pytest.raises(UsageError, match=r"^the colour 'red' is built in"):
            _ = colours["red"]
        return
    assert colours["red"] == "warm"
    with pytest.raises(UsageError, match=r"^the colour 'red' is built in: choose another name$"):
        colours["red"] = "mine"
    with pytest.raises(KeyError):
        del colours["red"]
    assert colours["red"] == "warm"


def test_there_are_six_and_each_fills_itself():
    assert len(ALL) == 6
    for mapping in ALL:
        assert len(mapping) >= 3


def test_reading_the_names_of_operations_starts_no_tensorflow():
    program = (
        "import sys; from alexnet_jax.registry import OPERATIONS; assert 'jax' not in sys.modules;"
        "assert 'lrn' in OPERATIONS; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_choice_of_a_configuration_may_be_registered_after_it_was_made():
    config = default()
    config.model.activation = "cube"
    with pytest.raises(UsageError, match=r"^config\.model\.activation = 'cube': use one of relu"):
        validate(config)
    ACTIVATIONS["cube"] = Activation(lambda x: x**3)
    try:
        validate(config)
        field = Field("relu", "The function.", choices=ACTIVATIONS)
        assert field.range() == "relu, tanh, sigmoid, cube"
    finally:
        del ACTIVATIONS["cube"]


GUEST = """
import dataclasses
from alexnet_jax.config.fields import Field
from alexnet_jax.model.operation import Operation
from alexnet_jax.registry import OPERATIONS

@dataclasses.dataclass(frozen=True)
class Shift(Operation):
    group = "shift"
    fields = {"by": Field(0.5, "What is added.", low=0, since="0.2.0")}
    by: float

    def __call__(self, x, at):
        return x + self.by

OPERATIONS["shift"] = Shift
"""


@pytest.fixture
def guest(tmp_path, monkeypatch):
    """The name of a module that registers the operation `shift`."""
    (tmp_path / "guest_of_a_test.py").write_text(GUEST)
    monkeypatch.syspath_prepend(tmp_path)
    yield "guest_of_a_test"
    OPERATIONS.pop("shift", None)
    sys.modules.pop("guest_of_a_test", None)


def test_a_configuration_imports_what_it_names_and_has_its_fields(guest):
    config = default()
    assert "shift" not in config.model
    config.model.layers.conv3.then = ("activation", "shift")
    with pytest.raises(UsageError, match=r"config\.model\.layers\.conv3\.then = .*: use one of"):
        validate(config)
    config.imports = (guest,)
    validate(config)
    assert config.model.shift.by == 0.5 and config.is_locked
    config.model.shift.by = -1.0
    with pytest.raises(UsageError, match=r"^config\.model\.shift\.by = -1\.0: must be at least 0$"):
        validate(config)


def test_the_file_of_a_run_imports_it_again(guest):
    config = default()
    config.imports = (guest,)
    config.model.layers.conv3.then = ("activation", "shift")
    validate(config)
    config.model.shift.by = 2.0
    text = config.to_json()
    del OPERATIONS["shift"], sys.modules[guest]
    again = from_json(text, "config.json")
    assert again.model.shift.by == 2.0 and again.to_dict() == config.to_dict()
    # Without it, the operation is missing.
    del OPERATIONS["shift"], sys.modules[guest]
    orphan = json.loads(text)
    orphan["imports"] = []
    with pytest.raises(UsageError, match=r"^config\.json: config\.model\.shift\.by: no such") as no:
        from_json(json.dumps(orphan), "config.json")
    assert str(no.value).endswith("config.imports names the modules with operations of your own")


def test_a_file_of_before_the_operation_has_its_fields(guest):
    text = default().to_json()
    importlib.import_module(guest)
    assert from_json(text, "config.json").model.shift.by == 0.5


@pytest.mark.parametrize(
    "text,reason",
    [(None, "ModuleNotFoundError: No module named"), ("1 / 0", "ZeroDivisionError: division by")],
)
def test_a_module_that_cannot_be_imported_is_named(tmp_path, monkeypatch, text, reason):
    if text:
        (tmp_path / "broken_guest.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    config = default()
    config.imports = ("broken_guest",)
    with pytest.raises(UsageError) as found:
        validate(config)
    line = str(found.value)
    assert line.startswith("config.imports holds 'broken_guest', which cannot be imported (")
    assert reason in line and "\n" not in line
