"""Real processes on one machine, two devices each, joined over loopback: what hosts would do."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

LOST_AFTER = 20
CHANGES = (
    "model.width=0.125", "batch_size=32", "num_epochs=0.5", "log_every_steps=1",
    "checkpoint_every_steps=4", "data.colour.rule=source", "warn_stuck_after_steps=0",
    # Slow: a rounding that moves the maximum of a pool to its neighbour shall not grow.
    "optimizer.learning_rate=0.002",
)  # fmt: skip


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(workdir, *flags, env=()):
    """`train` as a user types it, with two devices of its own."""
    command = [
        sys.executable, "-m", "alexnet_jax", "train", "--config=experiments/quickstart.py",
        f"--workdir={workdir}", *(f"--config.{change}" for change in (*CHANGES, *flags)),
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL")}
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=kept | {"JAX_PLATFORMS": "cpu"} | dict(env),
    )  # fmt: skip


def start_pair(workdir, *flags, env=((), ())):
    port = free_port()
    joined = (
        "distributed.enabled=True", f"distributed.coordinator=127.0.0.1:{port}",
        "distributed.process_count=2", f"distributed.lost_after_seconds={LOST_AFTER}",
    )  # fmt: skip
    return [
        start(workdir, *flags, *joined, f"distributed.process_id={i}", env=env[i]) for i in range(2)
    ]


def finish(*processes):
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert "cpu_aot_loader" not in err  # which says of a program from the cache what is untrue
    return out


def wait_for(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)


def losses(workdir, split=None):
    """By step: of the means of training, or of the evaluations of a split."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    event = "evaluation" if split else "training"
    return {
        line["step"]: line["loss"]
        for line in lines
        if line["event"] == event and line.get("split") == split
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run by one process, one tower per device."""
    workdir = tmp_path_factory.mktemp("alone")
    finish(start(workdir))
    return workdir


def same_run(workdir, alone):
    assert len(losses(alone)) == 20
    for split in (None, "validation", "test"):
        expected, got = losses(alone, split), losses(workdir, split)
        assert list(got) == list(expected)
        np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=1e-4)
    results = [json.loads((d / "result.json").read_text()) for d in (workdir, alone)]
    assert results[0]["placement"] == "mesh" and results[0]["devices"] == 4
    assert results[0]["test"]["num_examples"] == 360
    for name, value in results[1]["test"].items():
        if name != "dead_units":
            assert results[0]["test"][name] == pytest.approx(value, rel=1e-3, abs=3 / 360), name
    # Of both towers, whichever process is asked; a unit on the brink may fall to either side.
    dead = [result["test"]["dead_units"] for result in results]
    assert dead[0] == pytest.approx(dead[1], abs=0.05)
    assert json.loads((workdir / "env.json").read_text())["processes"] == 2
    # Which processes ran it is no part of the run: one resumes or tests it.
    config = json.loads((workdir / "config.json").read_text())
    assert config["distributed"]["enabled"] is False


def test_two_processes_train_as_one(tmp_path, alone):
    """Told who takes part as `launch/slurm.sh` relies on: by Slurm's variables alone."""
    slurm = {
        "SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "1", "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
    }  # fmt: skip
    pair = [
        start(
            tmp_path, "distributed.enabled=True",
            env=slurm | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
        )
        for i in range(2)
    ]  # fmt: skip
    finish(*pair)
    same_run(tmp_path, alone)


def test_one_lost_ends_the_other_and_the_pair_resumes(tmp_path, alone):
    """Told who takes part by flags; the one lost is now the one that all met at, now the other."""
    for killed, saved in ((1, "4"), (0, "12")):
        pair = start_pair(tmp_path)
        wait_for(tmp_path / "checkpoints" / saved)
        pair[killed].kill()
        since = time.monotonic()
        _, err = pair[1 - killed].communicate(timeout=120)
        assert time.monotonic() - since < LOST_AFTER + 10
        pair[killed].communicate()
        # Ours, of the exchange that failed; JAX's own where it notices first, and aborts.
        lines = {3: "another process of this run is gone", -signal.SIGABRT: "another task died"}
        assert lines[pair[1 - killed].returncode] in err
        assert not (tmp_path / "result.json").exists()
    finish(*start_pair(tmp_path))
    same_run(tmp_path, alone)


FAULTS = """
import os

from alexnet_jax.training import checkpoint, log

def read(self, step, like, before=checkpoint.Checkpoints._read):
    if step == 8:
        raise ValueError("other bytes")
    return before(self, step, like)

def full(self, run, event):
    if event.step == 6:
        raise OSError(28, "No space left on device")

match os.environ["FAULT"]:
    case "damaged": checkpoint.Checkpoints._read = read
    case "full": log.Log.on_event = full
"""


def faulty_pair(workdir, faults, *flags):
    (workdir.parent / "faults.py").write_text(FAULTS)
    path = f"{ROOT}:{workdir.parent}"
    env = [{"FAULT": fault, "PYTHONPATH": path} for fault in faults]
    pair = start_pair(workdir, "imports=('faults',)", *flags, env=env)
    return pair, [process.communicate(timeout=240)[1] for process in pair]


def test_what_one_process_alone_has_seen_ends_or_steers_both(tmp_path, alone):
    """A disk that is full for one ends both; a checkpoint that one finds damaged is used by none,
    stays where it is, and the run ends as one without a fault."""
    workdir = tmp_path / "run"
    for faults in (["", "full"], ["full", ""]):
        pair, errors = faulty_pair(workdir, faults)
        assert [process.returncode for process in pair] == [2, 2], errors
        for fault, err in zip(faults, errors, strict=True):
            (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
            assert "No space left on device" in line and ("of this run failed" in line) != (
                fault == "full"
            )
    faulty_pair(workdir, ["", ""], "num_epochs=0.2")
    assert (workdir / "checkpoints" / "8").is_dir()
    (workdir / "result.json").unlink()
    for faults in (["damaged", ""], ["", "damaged"]):
        again = shutil.copytree(workdir, tmp_path / "".join(faults) / f"{faults[0] or 'other'}")
        (again.parent / "faults.py").write_text(FAULTS)
        pair, errors = faulty_pair(again, faults)
        assert [process.returncode for process in pair] == [0, 0], errors
        assert "checkpoint 8 in" in errors[0] and "it is skipped" in errors[0]
        assert "from step 4" in errors[0] and not list(again.glob("checkpoints/*.damaged"))
        same_run(again, alone)


def test_processes_without_a_common_folder_are_refused(tmp_path):
    port = free_port()
    joined = (
        "distributed.enabled=True", f"distributed.coordinator=127.0.0.1:{port}",
        "distributed.process_count=2",
    )  # fmt: skip
    pair = [start(tmp_path / str(i), *joined, f"distributed.process_id={i}") for i in range(2)]
    for process in pair:
        err = process.communicate(timeout=120)[1]
        assert process.returncode == 2 and "does not see what process 0 writes there" in err


def test_one_that_waits_in_vain_says_so(tmp_path):
    waits = start(
        tmp_path, "distributed.enabled=True", f"distributed.coordinator=127.0.0.1:{free_port()}",
        "distributed.process_count=2", "distributed.process_id=0",
        "distributed.start_timeout_seconds=2",
    )  # fmt: skip
    _, err = waits.communicate(timeout=60)
    assert waits.returncode == 2
    (line,) = err.splitlines()
    assert line.startswith("error: config.distributed: the processes of this run did not meet")
