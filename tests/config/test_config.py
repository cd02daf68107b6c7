"""Every field is read by something, and survives its own JSON."""

import json
import re
from pathlib import Path

import pytest

from alexnet_jax.cli.arguments import parse
from alexnet_jax.config import default, from_json, leaves, presets, validate
from alexnet_jax.config.fields import FIELDS
from alexnet_jax.errors import UsageError

PACKAGE = Path(__file__).parents[2] / "alexnet_jax"


def test_every_field_is_read_by_something_besides_its_check():
    """As an attribute, outside the modules that declare, check, set and print the fields."""
    code = "\n".join(
        path.read_text()
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "config" or path.name == "table.py"
        if path.name != "inspect.py"
    )
    for path, _ in leaves(default()):
        name = path.rpartition(".")[2]
        read = re.search(rf"\.{name}\b(?!\s*=[^=])", code) or f'"{name}"' in code
        assert read, path


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
        ({"evaluate.splits": ("test",)}, "evaluate.splits"),
        ({"evaluate.splits": ("validation",), "data.validation_fraction": 0.0}, "evaluate.splits"),
        ({"evaluate.splits": (), "optimizer.schedule": "plateau"}, "optimizer.schedule"),
        ({"evaluate.splits": (), "stop_at_error": 0.1}, "stop_at_error"),
        ({"data.validation_fraction": 1.0}, "data.validation_fraction"),
        ({"data.validation_fraction": -0.1}, "data.validation_fraction"),
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
        ({"model.dropout.rate": 1.0}, "model.dropout.rate"),
        ({"model.dropout.rate": -0.1}, "model.dropout.rate"),
        ({"data.test_fraction": 0.0}, "data.test_fraction"),
        ({"data.test_fraction": 1.0}, "data.test_fraction"),
        ({"data.crop_size": 257}, "data.crop_size"),
        ({"data.crop_size": 257, "data.pad": 4}, "data.crop_size"),
        ({"data.channel_mean": (1.0, 2.0)}, "data.channel_mean"),
        ({"data.colour.eigenvectors": ((1.0, 0.0), (0.0, 1.0))}, "data.colour.eigenvectors"),
        ({"optimizer.drop_epochs": (10.0, -1.0)}, "optimizer.drop_epochs"),
        ({"optimizer.conv1_drop_epochs": ("ten",)}, "optimizer.conv1_drop_epochs"),
        ({"optimizer.drop_epochs": ((10.0,), 20.0)}, "optimizer.drop_epochs"),
        ({"data.channel_mean": ("1", "2", "3")}, "data.channel_mean"),
        ({"model.layers.conv1.padding": (0.5, 1)}, "model.layers.conv1.padding"),
        ({"freeze": (1,)}, "freeze"),
        ({"freeze": ("conv1", "conv6")}, "freeze"),
        ({"model.width": 60.0}, "model"),
        ({"keep_checkpoints": True}, "keep_checkpoints"),
        ({"data.max_pixels": 2**41}, "data.max_pixels"),
        ({"max_not_finite_steps": 2**40 + 1}, "max_not_finite_steps"),
    ],
)
def test_a_wrong_value_is_named(change, field):
    config = default()
    with config.unlocked():
        config.update_from_flattened_dict(change)
    with pytest.raises(UsageError, match=rf"^config\.{field}"):
        validate(config)


@pytest.mark.parametrize(
    "group,field,value,kind",
    [
        ("data", "random_flip", 1, "True or False"),
        ("data", "pad", True, "a whole number"),
        ("data", "pad", 1.0, "a whole number"),
        ("data", "scale", True, "a number"),
        ("data", "scale", "1", "a number"),
        ("data", "source", 3, "a str"),
        ("data", "channel_mean", 3.0, "a tuple"),
        ("model", "width", 1, ""),
    ],
)
def test_a_value_of_another_type_is_refused_in_json(group, field, value, kind):
    config = json.loads(default().to_json())
    config[group][field] = value
    if not kind:  # a whole number is a number
        assert from_json(json.dumps(config), "x")[group][field] == value
        return
    with pytest.raises(UsageError, match=rf"^x: config\.{group}\.{field} = .*: give {kind}$"):
        from_json(json.dumps(config), "x")


# The smallest value of every number that has one of its own; a fraction must be more than that.
SMALLEST = {
    -1: "distributed.process_id",
    0: "seed stop_at_error num_epochs warn_stuck_after_steps warn_slow_step_after_seconds data.pad "
    "data.max_unreadable data.colour.until_epoch distributed.process_count model.lrn.k "
    "model.lrn.alpha model.within_map_norm.k model.within_map_norm.alpha optimizer.momentum "
    "optimizer.weight_decay optimizer.warmup_epochs optimizer.trust_coefficient "
    "optimizer.plateau_drops optimizer.conv1_freeze_epoch optimizer.bias_rate_multiplier",
    1: "batch_size accumulate_steps log_every_steps checkpoint_every_steps keep_checkpoints "
    "max_not_finite_steps distributed.start_timeout_seconds distributed.lost_after_seconds "
    "model.towers model.pool.window model.pool.stride model.lrn.size model.within_map_norm.size "
    "data.image_size data.crop_size data.max_pixels optimizer.rate_scaling_batch "
    "optimizer.exponential_steps optimizer.bias_exponential_steps optimizer.plateau_patience "
    "evaluate.batch_size",
    2: "model.num_classes",
}
POSITIVE = (
    "model.width optimizer.learning_rate data.scale evaluate.every_epochs optimizer.drop_factor "
    "optimizer.exponential_factor optimizer.bias_exponential_factor optimizer.polynomial_power"
)
LARGEST = {
    2**32 - 1: "seed",
    2**20: "batch_size evaluate.batch_size",
    1e6: "num_epochs model.num_classes",
    64: "model.towers model.width",
    10**4: "model.lrn.size model.within_map_norm.size model.pool.window "
    "optimizer.exponential_steps optimizer.bias_exponential_steps",
    2**13: "data.image_size data.crop_size data.pad",
    2**40: "data.max_pixels",
}
# Checked otherwise, or without a limit: an exponent may be anything.
OTHERS = (
    "model.dropout.rate data.test_fraction data.validation_fraction evaluate.final_views "
    "model.lrn.beta model.within_map_norm.beta"
)


def complaint(path, value):
    """What is said of a value of the field itself; other fields that it does not fit may be."""
    config = default()
    with config.unlocked():
        config.update_from_flattened_dict({path: type(dict(leaves(config))[path])(value)})
    try:
        validate(config)
    except UsageError as error:
        return str(error).partition(f"config.{path} = ")[2].partition(": must be ")[2]
    return ""


def test_every_number_has_its_limits():
    covered = " ".join([*SMALLEST.values(), POSITIVE, OTHERS]).split()
    numbers = [
        path
        for path, value in leaves(default())
        # The tests of an operation are about its fields.
        if type(value) in (int, float) and path in FIELDS
    ]
    assert set(numbers) <= set(covered)
    for low, paths in SMALLEST.items():
        for path in paths.split():
            assert complaint(path, low) == "", path
            step = 1 if isinstance(dict(leaves(default()))[path], int) else 1e-6
            assert complaint(path, low - step) == f"at least {low}", path
    for path in POSITIVE.split():
        assert complaint(path, 1e-9) == "", path
        assert complaint(path, 0) == complaint(path, -1.0) == "more than 0", path
    for high, paths in LARGEST.items():
        for path in paths.split():
            assert complaint(path, high) == "", path
            assert complaint(path, high + 1).startswith("at most "), path


@pytest.mark.parametrize(
    "change",
    [
        {"model.dropout.rate": 0.0},
        {"model.pool.stride": 3},
        {"data.crop_size": 256},
        {"data.test_fraction": 0.01},
        {"freeze": ("conv1", "fc8")},
        {"evaluate.splits": ("train", "validation"), "evaluate.final_views": 9},
        {"evaluate.splits": (), "data.validation_fraction": 0.0},
        {"data.validation_split": "validation", "data.validation_fraction": 0.0},
        {"optimizer.drop_epochs": (0, 1.5), "optimizer.conv1_drop_epochs": ()},
        {
            "distributed.enabled": True,
            "distributed.coordinator": "host:1",
            "distributed.process_count": 2,
            "distributed.process_id": 1,
        },
        {"distributed.enabled": True},
    ],
    ids=str,
)
def test_what_is_just_right_is_no_mistake(change):
    config = default()
    with config.unlocked():
        config.update_from_flattened_dict(change)
    validate(config)


WORDS = {
    "model.activation": "relu tanh sigmoid",
    "model.compute_dtype": "float32 bfloat16 float64",
    "model.precision": "highest high default",
    "placement": "auto vmap pmap mesh",
    "data.resize": "short_side stretch",
    "data.shrink": "area bilinear triangle",
    "data.mean": "channel image",
    "data.colour.rule": "none source paper",
    "optimizer.schedule": "constant steps exponential_steps plateau polynomial",
    "optimizer.rate_scaling": "none linear sqrt",
}


@pytest.mark.parametrize("path", WORDS)
def test_each_word_of_a_choice_is_taken_and_a_mistyped_one_is_guessed(path):
    config = default()
    for word in WORDS[path].split():
        config.update_from_flattened_dict({path: word})
        validate(config)
    config.update_from_flattened_dict({path: word[:-1]})
    with pytest.raises(UsageError, match=f"^config.{path} = '{word[:-1]}': did you mean '{word}'"):
        validate(config)
    config.update_from_flattened_dict({path: "???"})
    # Another test of this process may have registered a schedule of its own.
    words = ", ".join(WORDS[path].split())
    with pytest.raises(UsageError, match=f"use one of {words}(, cosine)?$"):
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
    for name in ("init_from", "freeze", "tensorboard", "wandb_project"):
        del config[name]
    del config["data"]["test_fraction"]
    assert from_json(json.dumps(config), "config.json").to_dict() == default().to_dict()
    # What is there is kept.
    kept = config | {"tensorboard": True}
    assert from_json(json.dumps(kept), "config.json").tensorboard is True
    del config["batch_size"]
    with pytest.raises(UsageError, match="batch_size is missing"):
        from_json(json.dumps(config), "config.json")
