"""What a process sets before JAX starts, and how the processes of a run find each other."""

import os
import re
import threading
import time
from pathlib import Path

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


@pytest.mark.parametrize(
    "platforms,machine,version,plugin,device,expected",
    [
        ("", "x86_64", "0.10.1", False, False, True),
        ("", "x86_64", "0.12.0.1", False, False, True),
        ("cpu", "AMD64", "0.10.1", True, True, True),
        ("cpu,cuda", "x86_64", "0.10.1", True, True, True),
        ("", "x86_64", "0.10.1", True, False, True),  # a GPU build without a GPU
        ("", "x86_64", "0.10.1", False, True, True),  # a GPU that JAX has no plugin for
        ("", "x86_64", "0.10.1", True, True, False),
        ("cuda", "x86_64", "0.10.1", True, True, False),
        ("tpu,cpu", "x86_64", "0.10.1", False, False, False),
        ("", "aarch64", "0.10.1", False, False, False),
        ("", "x86_64", "0.10.2", False, False, False),
        ("", "x86_64", "0.13.0", False, False, False),
    ],
)
def test_the_flag_is_set_where_it_is_known_and_needed(
    settings, monkeypatch, tmp_path, platforms, machine, version, plugin, device, expected
):
    """XLA ends the process at a flag that it does not know."""
    monkeypatch.setattr(hosts, "_platforms", lambda: platforms)
    monkeypatch.setattr(hosts.platform, "machine", lambda: machine)
    monkeypatch.setattr(hosts.metadata, "version", lambda package: version)
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: plugin or None)
    monkeypatch.setattr(hosts, "_ACCELERATORS", (tmp_path if device else tmp_path / "none",))
    prepare_host(default())
    assert os.environ.get("XLA_FLAGS", "") == (CONVOLUTIONS if expected else "")


def test_the_versions_that_know_the_flag_are_those_that_are_tested():
    """A process that starts JAX with it goes on: every test of this one has it."""
    assert hosts.metadata.version("jaxlib") in hosts._KNOWN_IN
    pins = (Path(__file__).parents[2] / "requirements.txt").read_text()
    assert set(re.findall(r"^jaxlib==(\S+)", pins, re.M)) == set(hosts._KNOWN_IN)


@pytest.mark.parametrize("file", [False, True])
def test_a_cache_that_cannot_be_written_is_left_alone(monkeypatch, tmp_path, file):
    """JAX would warn about every program."""
    name, before = "jax_compilation_cache_dir", jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    folder = tmp_path / "file" if file else tmp_path
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    try:
        jax.config.update(name, None)
        hosts.prepare_process()
        assert jax.config.values[name] == (None if file else str(folder / "alexnet_jax"))
    finally:
        jax.config.update(name, before)


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
        monkeypatch.setattr(hosts.agreement, "listen", run.listens.append)
        monkeypatch.setattr(hosts.os, "_exit", lambda code: (ends.append(code), ended.set()))
        prepare_host(config)
        return ends

    run.listens = []
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
    assert ends == [] and join.listens == [0.05]  # for the end of another


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
