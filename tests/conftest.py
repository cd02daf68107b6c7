"""Eight host devices for every test, set before JAX starts; and which tests are slow."""

import os
import tempfile

import pytest

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution "
    + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Programs that several tests compile are compiled once, by whichever worker comes first, and never
# taken from an earlier session.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _programs = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

SLOW = (
    "test_multihost.py::",
    "test_parallel.py::test_twenty_steps",
    "test_parallel.py::test_a_checkpoint_walks",
    "test_parallel.py::test_loss_and_every_gradient_equal_the_merged_network[partial_sums]",
    "test_parallel.py::test_a_batch_in_parts_gives_the_same_losses[",
    "test_faults.py::test_killed_at_random",
    "test_faults.py::test_one_of_two",
    "test_faults.py::test_a_full_disk",
    "test_faults.py::test_a_step_that_hangs",
    "test_faults.py::test_the_first_steps_of_a_run",
    "test_faults.py::test_runs_leave_no_files",
    "test_faults.py::test_a_signal_ends_the_step_saves_and_says_so",
    "test_not_finite.py::test_a_gradient_of_one_tower_stops_all[mesh",
    "test_not_finite.py::test_a_gradient_of_one_tower_stops_all[vmap",
    "test_evaluate.py::test_evaluation_is_the_mean_over_every_example[10]",
    "test_presets.py::test_the_first_loss_is_in_the_known_range[article]",
    "test_presets.py::test_the_first_loss_is_in_the_known_range[caffe]",
    "test_presets.py::test_the_first_loss_is_in_the_known_range[paper]",
    "test_train.py::test_bfloat16",
    "test_train.py::test_the_full_network_takes_a_step",
    "test_train.py::test_a_run_goes_on_under_another_placement[mesh]",
    "test_study.py::test_killed_and_started",
    "test_study.py::test_in_parts_and_any_order",
    "test_study.py::test_seeds_share",
    "test_study.py::test_a_run_that_fails",
    "test_exchange.py::test_parts_of_a_batch",
    "test_exchange.py::test_one_device_sends_nothing",
    "test_malformed.py::test_a_run_counts_them",
    "test_malformed.py::test_what_a_fuzzer_makes",
    "test_notebook.py::",
    "test_trained.py::test_classes_are_those_of_the_folder",
    "test_pipeline.py::test_the_program_ends_while",
    "test_layers.py::test_a_window_across_seams_is_that_of_all_channels_in_one[2]",
    "test_layers.py::test_a_window_across_seams_is_that_of_all_channels_in_one[3]",
    "test_layers.py::test_a_window_across_seams_is_that_of_all_channels_in_one[5]",
    "test_numpy_reference.py::test_logits_equal_the_network_by_hand[caffe]",
    "test_numpy_reference.py::test_logits_equal_the_network_by_hand[paper]",
    "test_numpy_reference.py::test_gradients_equal_differences_of_the_network_by_hand[article]",
    "test_numpy_reference.py::test_gradients_equal_differences_of_the_network_by_hand[caffe]",
    "test_numpy_reference.py::test_gradients_equal_differences_of_the_network_by_hand[paper]",
)
"""Of ten seconds to a minute and a half: `make test-all` runs them, `make test` and CI do not."""


def pytest_collection_modifyitems(items):
    """Marks what is slow: the list above, and whatever is marked where it is written."""
    for item in items:
        if any(name in item.nodeid for name in SLOW):
            item.add_marker(pytest.mark.slow)
