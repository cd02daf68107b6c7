"""Runs that are ended from outside, for real: signals and kills, then the same command again."""

import json
import os
import signal
import time

import numpy as np
import pytest

from tests.test_multihost import finish, losses, start, start_pair, wait_for

# Sixty steps, saved often; one process with one tower a device.
SIXTY = ("num_epochs=1.3636", "checkpoint_every_steps=3")


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def wait_for_step(workdir):
    wait_for(workdir / "metrics.jsonl")
    while not losses(workdir):
        time.sleep(0.01)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    finish(start(workdir, *SIXTY))
    assert result(workdir)["steps"] == 60
    return workdir


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(tmp_path, unbroken):
    """Also in the middle of a save: there is one every three steps. KILLS=20 takes minutes."""
    rng, kills = np.random.default_rng(0), 0
    wanted = int(os.environ.get("KILLS", "3"))
    while kills < wanted:
        run = start(tmp_path, *SIXTY)
        saved = tmp_path / "checkpoints"
        # Once it has gone on from where the last one was killed, at a moment of no step.
        seen = {p.name for p in saved.glob("*")}
        while {p.name for p in saved.glob("*")} <= seen and run.poll() is None:
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.15)))
        run.kill()
        run.communicate()
        kills += run.returncode == -signal.SIGKILL
        assert not (tmp_path / "result.json").exists(), f"only {kills} kills"
    finish(start(tmp_path, *SIXTY))
    ours, theirs = result(tmp_path), result(unbroken)
    assert ours["parameters_sha256"] == theirs["parameters_sha256"]
    assert ours["test"] == theirs["test"]
    assert losses(tmp_path) == losses(unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_says_so(tmp_path, unbroken, number):
    flags = (*SIXTY[:1], "checkpoint_every_steps=1000")
    run = start(tmp_path, *flags)
    wait_for_step(tmp_path)
    run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + number, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("stopped after step") and last.endswith("the same command resumes")
    (step,) = (int(p.name) for p in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert f"step {step}," in last and step == max(losses(tmp_path))
    if number == signal.SIGTERM:
        finish(start(tmp_path, *flags))
        assert result(tmp_path)["parameters_sha256"] == result(unbroken)["parameters_sha256"]


def test_one_of_two_asked_to_stop_stops_both(tmp_path):
    pair = start_pair(tmp_path, "num_epochs=50", "checkpoint_every_steps=1000")
    wait_for_step(tmp_path)
    pair[1].send_signal(signal.SIGTERM)
    for process in pair:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM, err
        assert "stopped after step" in err
    assert len(list((tmp_path / "checkpoints").glob("[0-9]*"))) == 1
