"""What a process sets before JAX starts, and how the processes of a run find each other."""

import os
import threading
import time

import jax
import pytest

from alexnet_jax.config import default
from alexnet_jax.errors import UsageError
from alexnet_jax.parallel import hosts, prepare_host

CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


@pytest.fixture
def settings(monkeypatch):
    """What `prepare_host` sets in JAX, which has started long ago; no flags are set before."""
    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    return found


@pytest.mark.parametrize("towers", [1, 2, 4])
def test_a_cpu_host_gets_one_device_per_tower(settings, towers):
    config = default()
    config.model.towers = towers
    prepare_host(config)
    assert settings["jax_num_cpu_devices"] == towers
    assert os.environ["XLA_FLAGS"] == CONVOLUTIONS


@pytest.mark.parametrize(
    "name,value,flags",
    [
        (
            "XLA_FLAGS",
            "--xla_force_host_platform_device_count=8",
            f"{CONVOLUTIONS} --xla_force_host_platform_device_count=8",
        ),
        ("JAX_NUM_CPU_DEVICES", "8", CONVOLUTIONS),
    ],
    ids=["flags", "devices"],
)
def test_what_the_user_has_set_stays(settings, monkeypatch, name, value, flags):
    monkeypatch.setenv(name, value)
    prepare_host(default())
    assert "jax_num_cpu_devices" not in settings
    assert os.environ["XLA_FLAGS"] == flags


def test_convolutions_are_those_that_the_user_has_chosen(settings, monkeypatch):
    chosen = "--xla_cpu_experimental_ynn_fusion_type=+individual_convolution"
    monkeypatch.setenv("XLA_FLAGS", chosen)
    prepare_host(default())
    assert os.environ["XLA_FLAGS"] == chosen and settings["jax_num_cpu_devices"] == 2


@pytest.mark.parametrize("level,cached", [("3", True), ("1", False), (None, False)])
def test_programs_are_cached_only_where_nothing_is_printed_about_them(monkeypatch, level, cached):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if level is not None:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    name = "jax_compilation_cache_dir"
    before = jax.config.values[name]
    try:
        jax.config.update(name, None)
        hosts.prepare_process()
        assert (jax.config.values[name] is not None) == cached
    finally:
        jax.config.update(name, before)


def test_after_jax_has_started_its_devices_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    before = jax.device_count()
    config = default()
    config.model.towers = 4
    prepare_host(config)
    assert jax.device_count() == before != 4


# ------------------------------------------------------------------ several processes


@pytest.fixture
def join(settings, monkeypatch):
    """A function that prepares process 0 of three, or one of a cluster, in a twentieth of a second.

    `jax.distributed.initialize` is replaced, and so is the end of the process, whose codes are
    returned.
    """
    del settings
    ends = []

    def run(initialize, **fields):
        config = default()
        with config.ignore_type():
            config.distributed.update(enabled=True, start_timeout_seconds=0.05, **fields)
        ended = threading.Event()
        monkeypatch.setattr(jax.distributed, "initialize", lambda **given: initialize(ended, given))
        monkeypatch.setattr(hosts.os, "_exit", lambda code: (ends.append(code), ended.set()))
        prepare_host(config)
        return ends

    return run


BY_HAND = {"coordinator": "host:1234", "process_count": 3, "process_id": 0}


@pytest.mark.parametrize(
    "fields,expected",
    [
        (BY_HAND, ("host:1234", 3, 0, "deactivate")),
        ({}, (None, None, None, None)),
    ],
    ids=["by hand", "from the cluster"],
)
def test_the_processes_meet_where_the_configuration_says(join, fields, expected):
    calls = []
    join(lambda ended, given: calls.append(given), lost_after_seconds=7, **fields)
    (given,) = calls
    names = ("coordinator_address", "num_processes", "process_id", "cluster_detection_method")
    assert tuple(given[name] for name in names) == expected
    assert given["heartbeat_timeout_seconds"] == 7


def test_a_process_that_waits_in_vain_ends(join, capsys):
    assert join(lambda ended, given: ended.wait(5), **BY_HAND) == [2]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: config.distributed: ") and "0.05 s at host:1234" in line


def test_a_process_that_has_met_the_others_goes_on(join):
    ends = join(lambda ended, given: None, **BY_HAND)
    time.sleep(0.2)
    assert ends == []


@pytest.mark.parametrize(
    "error,text",
    [
        (ValueError("no cluster"), r"^config\.distributed\.enabled = True, .*\(no cluster\)$"),
        (
            jax.errors.JaxRuntimeError("refused\nat 0x0"),
            r"^config\.distributed: .*did not meet \(refused\)$",
        ),
    ],
    ids=["no cluster", "refused"],
)
def test_why_the_processes_did_not_meet_is_one_line(join, error, text):
    def initialize(ended, given):
        raise error

    with pytest.raises(UsageError, match=text):
        join(initialize)
