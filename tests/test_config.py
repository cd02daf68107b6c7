"""Every field is read by something, and survives its own JSON."""

import json
import re
from pathlib import Path

import pytest

from alexnet_jax import presets
from alexnet_jax.arguments import parse
from alexnet_jax.config import default, from_json, validate
from alexnet_jax.errors import UsageError

PACKAGE = Path(__file__).parents[1] / "alexnet_jax"


def leaves(config, path=()):
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name)


def test_every_field_is_read_by_something_besides_its_check():
    """As an attribute, outside the module that defines and checks the fields."""
    code = "\n".join(
        path.read_text()
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("config.py", "alexnet.py", "convnet.py", "presets.py", "inspect.py")
    )
    for path in leaves(default()):
        name = path[-1]
        read = re.search(rf"\.{name}\b(?!\s*=[^=])", code) or f'"{name}"' in code
        assert read, ".".join(path)


@pytest.mark.parametrize("name", [*presets.PRESETS, *presets.ROWS])
def test_a_config_survives_its_json(name):
    config = presets.get(name)
    assert from_json(config.to_json(), "x").to_dict() == config.to_dict()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seed": 1}', "null", '{"model": 3}'])
def test_json_of_something_else_names_the_file(text):
    with pytest.raises(UsageError, match=r"^runs/a/config\.json"):
        from_json(text, "runs/a/config.json")


@pytest.mark.parametrize(
    "change,field",
    [
        ({"evaluate.splits": ()}, "evaluate.splits"),
        ({"evaluate.splits": ("validation",)}, "evaluate.splits"),
        ({"evaluate.final_views": 5}, "evaluate.final_views"),
        ({"data.mean": "pixel"}, "data.mean"),
        ({"data.colour.rule": "pca"}, "data.colour.rule"),
        ({"data.scale": 0.0}, "data.scale"),
        ({"optimizer.schedule": "step"}, "optimizer.schedule"),
        ({"optimizer.rate_scaling": "linaer"}, "optimizer.rate_scaling"),
        ({"optimizer.warmup_epochs": -1.0}, "optimizer.warmup_epochs"),
        ({"accumulate_steps": 0}, "accumulate_steps"),
        ({"distributed.process_count": 2}, "distributed.enabled"),
        (
            {"distributed.enabled": True, "distributed.coordinator": "host:1"},
            "distributed.process_count",
        ),
        (
            {
                "distributed.enabled": True,
                "distributed.coordinator": "host",
                "distributed.process_count": 2,
                "distributed.process_id": 0,
            },
            "distributed.coordinator",
        ),
        (
            {
                "distributed.enabled": True,
                "distributed.coordinator": "host:1",
                "distributed.process_count": 2,
                "distributed.process_id": 2,
            },
            "distributed.process_id",
        ),
        ({"optimizer.learning_rate": float("nan")}, "optimizer.learning_rate"),
        ({"optimizer.momentum": -0.1}, "optimizer.momentum"),
        ({"model.pool.stride": 4}, "model.pool.stride"),
        ({"model.layers.fc8.features": 7}, "model.layers.fc8.features"),
        ({"model.layer_order": ()}, "model.layer_order"),
    ],
)
def test_a_wrong_value_is_named(change, field):
    config = default()
    with config.unlocked():
        config.update_from_flattened_dict(change)
    with pytest.raises(UsageError, match=rf"^config\.{field}"):
        validate(config)


ROOT = PACKAGE.parent
# finetune.py takes its network from a file: see test_trained.py.
EXPERIMENTS = sorted(
    str(path) for path in (ROOT / "experiments").glob("*.py") if path.stem != "finetune"
)


@pytest.mark.parametrize(
    "name",
    [*EXPERIMENTS, *(f"{ROOT}/experiments/large_batch.py:{batch}" for batch in (4096, 8192))],
)
def test_every_experiment_is_a_run_that_would_start(name):
    validate(parse("inspect", ("config",), [f"--config={name}"]).config)


def test_a_mistyped_field_cannot_be_set():
    with pytest.raises(AttributeError, match="learning_rate"):
        default().optimizer.learning_rat = 0.1


def test_a_configuration_of_before_has_what_came_later():
    """As a run wrote it that knew nothing of the fields."""
    config = json.loads(default().to_json())
    del config["init_from"], config["freeze"], config["data"]["test_fraction"]
    found = from_json(json.dumps(config), "config.json")
    assert found.init_from == "" and found.freeze == () and found.data.test_fraction == 0.2
    del config["batch_size"]
    with pytest.raises(UsageError, match="batch_size is missing"):
        from_json(json.dumps(config), "config.json")
