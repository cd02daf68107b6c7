"""The rows of docs/faults.md that strike a run from outside, each done for real."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax.cli import main as command_line
from alexnet_jax.errors import UsageError
from alexnet_jax.training.api import evaluate_workdir
from alexnet_jax.training.loop import train_and_evaluate
from alexnet_jax.training.workdir import Writer
from tests.parallel.test_multihost import finish, losses, start, start_pair, wait_for
from tests.training.test_train import log, short_config

# Sixty steps, saved often; one process with one tower per device.
SIXTY = ("num_epochs=1.5", "checkpoint_every_steps=3")


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
    wanted = int(os.environ.get("KILLS", "2"))
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


HANGS = """
import time
import numpy as np
from alexnet_jax.registry import SOURCES

class Images:
    class_names = tuple("0123456789")

    def __len__(self):
        return 64

    def __getitem__(self, index):
        while index == 7:  # as of a network disk that is gone
            time.sleep(1)
        return np.zeros((32, 32, 3), np.uint8), index % 10

SOURCES["hangs"] = lambda rest, split, data: Images()
"""


def test_a_step_that_hangs_is_shown_and_ends_at_the_second_signal(tmp_path, monkeypatch):
    """An image that is never read to its end."""
    (tmp_path / "source_that_hangs.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = start(
        tmp_path / "run", "data.source=hangs", "imports=('source_that_hangs',)",
        "warn_slow_step_after_seconds=1", "num_epochs=50", "data.validation_split=test",
    )  # fmt: skip
    wait_for(tmp_path / "run" / "stacks.txt")
    for _ in range(2):
        time.sleep(1)
        run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=5)
    assert run.returncode == 128 + signal.SIGTERM
    assert "has taken more than 1 s" in err and "stopping after this batch; once more" in err
    stacks = (tmp_path / "run" / "stacks.txt").read_text()
    assert "__getitem__" in stacks and "next_batch" in stacks


def test_of_two_runs_in_one_folder_one_is_refused(tmp_path):
    config = short_config()
    with Writer(tmp_path), pytest.raises(UsageError, match=rf"by process {os.getpid()} on"):
        train_and_evaluate(config, tmp_path)
    assert not (tmp_path / "config.json").exists()  # nothing of the first one's was touched


def test_a_lock_of_a_run_that_was_killed_holds_nobody_up(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from alexnet_jax.training.workdir import Writer\n"
        "with Writer(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match=rf"by process {holder.pid} on"), Writer(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    assert (tmp_path / "lock").exists()
    with Writer(tmp_path) as writer:
        writer.check()


def test_a_folder_that_was_removed_or_replaced_is_noticed(tmp_path):
    for replaced in (False, True):
        with Writer(tmp_path / "run") as writer:
            writer.check()
            shutil.rmtree(tmp_path / "run")
            if replaced:
                (tmp_path / "run").mkdir()
                (tmp_path / "run" / "lock").touch()
            with pytest.raises(UsageError, match=r"run was removed while"):
                writer.check()


@pytest.mark.parametrize("code,name,says", [
    (errno.ENOSPC, None, "No space left on device: make room"),
    (errno.EROFS, None, "Read-only file system"), (errno.EDQUOT, None, "quota exceeded"),
    (errno.EACCES, "run/metrics.jsonl", "Permission denied"),
    (errno.EACCES, "elsewhere", None), (errno.ENOENT, None, None),
])  # fmt: skip
def test_errors_of_the_folder_or_its_disk_are_explained_and_others_are_not(
    tmp_path, code, name, says
):
    error = OSError(code, os.strerror(code), *([str(tmp_path / name)] if name else []))
    with pytest.raises(UsageError if says else type(error), match=says), Writer(tmp_path / "run"):
        raise error
    with Writer(tmp_path / "run"):  # the lock was released
        pass


def test_a_disk_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(code):
        def flock(*args):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("fcntl.flock", flock)

    refuse(errno.ENOLCK)
    with Writer(tmp_path) as writer:
        writer.check()
    assert "is on a disk without locks" in capsys.readouterr().err
    refuse(errno.EIO)
    with pytest.raises(UsageError, match=f"--workdir={tmp_path}: Input/output"), Writer(tmp_path):
        pass


def test_a_folder_removed_under_the_run_ends_it(tmp_path):
    config = short_config()
    config.num_epochs = 50.0

    def remove():
        wait_for_step(tmp_path / "run")
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    thread = threading.Thread(target=remove)
    thread.start()
    with pytest.raises(UsageError, match=f"--workdir={tmp_path / 'run'} was removed"):
        train_and_evaluate(config, tmp_path / "run")
    thread.join()


@contextlib.contextmanager
def small_disk(path, options):
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=False)
    if done.returncode:
        pytest.skip("only root may mount a disk of its own")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


# Orbax does not wait for its other writes when one has failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_loses_the_steps_since_the_last_save_only(tmp_path):
    """At 3 there is room to save, at 4 and 6 there is none, then there is room again."""
    whole = train_and_evaluate(short_config(), tmp_path / "whole")
    with small_disk(tmp_path / "disk", "size=60m") as disk:
        workdir = disk / "run"
        train_and_evaluate(short_config(), workdir, until=3)
        left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "ballast").write_bytes(bytes(left - 2**16))
        with pytest.raises(UsageError, match="No space left on device") as error:
            train_and_evaluate(short_config(), workdir)
        assert "\n" not in str(error.value)
        assert max(line["step"] for line in log(workdir)) <= 6  # within one interval
        (disk / "ballast").unlink()
        result = train_and_evaluate(short_config(), workdir)
        assert result == whole
        assert not list((workdir / "checkpoints").glob("*tmp*"))
        # And what cannot be written can still be read.
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert train_and_evaluate(short_config(), workdir) == whole  # It has ended.
        longer = short_config()
        longer.num_epochs *= 2
        with pytest.raises(UsageError, match="Read-only file system"):
            train_and_evaluate(longer, workdir)
        fields = evaluate_workdir(short_config(), workdir, 1, "test")
        assert fields["loss"] == pytest.approx(whole["test"]["loss"], rel=1e-6)


def test_runs_leave_no_files_or_threads_behind(tmp_path):
    def count():
        # TensorStore's own pool starts and ends threads as it likes.
        native = [comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")]
        native = [name for name in native if name != "ts_pool_worker\n"]
        return len(os.listdir("/proc/self/fd")), len(threading.enumerate()), len(native)

    seen = []
    for number in range(3):
        train_and_evaluate(short_config(), tmp_path / str(number))
        time.sleep(0.2)
        seen.append(count())
    # A pool fills up now and then; what leaks grows with every run.
    grown = np.diff(seen, axis=0).min(0)
    assert all(grown <= 0), seen


def test_the_first_steps_of_a_run_are_what_its_log_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "_start", lambda config: None)
    train_and_evaluate(short_config(), tmp_path)
    assert command_line.main(["verify", f"--workdir={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert text == (
        "the same to the bit, steps 1 to 3: 3 lines of metrics.jsonl, "
        "1 with a checksum of all parameters\n"
    )
    assert command_line.main(["verify", f"--workdir={tmp_path}", "--until=8"]) == 0
    # One digit of one loss, and of one checksum.
    path = tmp_path / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if (line["step"], line["event"]) == (2, "training"):
            line["loss"] = float(np.nextafter(line["loss"], 9))
        if line["event"] == "checkpoint":
            line["parameters_sha256"] = "0" * 64
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    assert command_line.main(["verify", f"--workdir={tmp_path}"]) == command_line.NOT_THE_SAME
    text = capsys.readouterr().out
    assert "step 2, training loss" in text and "step 3, checkpoint parameters_sha256" in text
