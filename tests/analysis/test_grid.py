"""Studies over a grid of values, and variants with more seeds than others."""

import json

import pytest

from alexnet_jax.analysis import comparison, study
from alexnet_jax.errors import UsageError
from tests.support import tiny_config

RATE = "optimizer.learning_rate"


def over_rates(**more):
    variants = {"base": {}, "tanh": {"model.activation": "tanh"}}
    return study.study(
        tiny_config(), variants, seeds=(7,), title="Rates", measures=("validation_error",),
        grid={RATE: (0.01, 0.05, 0.1)}, **more,
    )  # fmt: skip


def write_result(folder, variant, seed, error):
    path = folder / variant / f"seed-{seed}"
    path.mkdir(parents=True)
    (path / "result.json").write_text(json.dumps({"validation": {"top1_error": error}}))


def test_a_grid_makes_every_variant_with_every_value():
    config = over_rates()
    study.check(config)
    made = {
        (run["model"]["activation"], run["optimizer"]["learning_rate"]): name
        for name, _ in config.variants
        for run in [study.run_config(config, name, 7)]
    }
    assert made == {
        ("relu", 0.01): "base_0.01", ("relu", 0.05): "base_0.05", ("relu", 0.1): "base_0.1",
        ("tanh", 0.01): "tanh_0.01", ("tanh", 0.05): "tanh_0.05", ("tanh", 0.1): "tanh_0.1",
    }  # fmt: skip


def test_a_grid_without_the_value_of_the_base_is_refused():
    config = study.study(
        tiny_config(), {"base": {}}, seeds=(0,), title="Rates", grid={RATE: (0.02, 0.03)}
    )
    with pytest.raises(UsageError, match="exactly one of them must change nothing"):
        study.check(config)


def test_the_best_value_is_chosen_for_each_variant_alone(tmp_path):
    errors = {
        "base_0.01": 0.3, "base_0.05": 0.2, "base_0.1": 0.25,
        "tanh_0.01": 0.5, "tanh_0.05": 0.6,
    }  # fmt: skip
    for name, error in errors.items():
        write_result(tmp_path, name, 7, error)
    config = over_rates()
    table = comparison.rows(config, tmp_path)
    assert comparison.best_of_grid(config, table) == {"base": (0.05,), "tanh": (0.01,)}
    assert "base 0.05; tanh 0.01." in comparison.table(config, tmp_path).markdown()


def test_some_variants_have_more_seeds():
    config = study.study(
        tiny_config(),
        {"base": {}, "tanh": {"model.activation": "tanh"}},
        seeds=(0, 1),
        title="Two",
        more_seeds={"base": (5,)},
    )
    assert study.runs(config) == [
        ("base", 0), ("tanh", 0), ("base", 1), ("tanh", 1), ("base", 5),
    ]  # fmt: skip


def test_more_seeds_are_of_a_variant():
    config = study.study(
        tiny_config(), {"base": {}}, seeds=(0,), title="One", more_seeds={"bass": (5,)}
    )
    with pytest.raises(UsageError, match=r"more_seeds: 'bass' is not a variant"):
        study.check(config)


def test_a_study_comes_back_from_its_file(tmp_path):
    config = over_rates(more_seeds={"base_0.05": (8,)})
    again = study.from_json(json.loads(config.to_json()))
    assert json.loads(again.to_json()) == json.loads(config.to_json())
    assert study.runs(again) == study.runs(config)
