"""A run that is asked to stop ends within one batch, whatever it is doing, and loses nothing."""

import asyncio
import json
import os
import signal
import time

import pytest

from alexnet_jax.cli import main as command_line
from alexnet_jax.data import pipeline
from alexnet_jax.errors import Stopped
from alexnet_jax.training import log, stop
from alexnet_jax.training.events import Evaluation, Saved, TrainingMean
from alexnet_jax.training.loop import train_and_evaluate
from tests.support import tiny_config


def small_run():
    """Eight steps, evaluated after four and eight, then tested with ten views."""
    config = tiny_config()
    config.placement = "vmap"
    config.num_epochs = 8 / 40
    config.evaluate.update(every_epochs=4 / 40, batch_size=32, final_views=10)
    config.log_every_steps = 3
    return config


def untimed(workdir):
    """The events of a run without what depends on time."""
    events = []
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        fields = json.loads(line)
        fields.pop("images_per_second", None), fields.pop("data_wait_fraction", None)
        events.append(fields)
    return events


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, train_and_evaluate(small_run(), workdir)


def asked_at(monkeypatch, split, evaluation, batch):
    """Sends SIGTERM while a batch of an evaluation is read; returns the batches read since."""
    since, seen = [], {}
    true_batches = pipeline.eval_batches

    def eval_batches(source, *args, **kwargs):
        number = seen[source.split] = seen.get(source.split, 0) + 1
        for i, found in enumerate(true_batches(source, *args, **kwargs)):
            if since:
                since.append(i)
            if (source.split, number, i) == (split, evaluation, batch):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.3)  # so that the listening thread has heard it
                since.append(i)
            yield found

    monkeypatch.setattr(pipeline, "eval_batches", eval_batches)
    return since


def test_in_the_middle_of_an_evaluation(unbroken, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        since = asked_at(patch, "validation", 1, 1)
        with pytest.raises(Stopped, match="after step 4, which is saved") as stopped:
            train_and_evaluate(small_run(), tmp_path)
    assert stopped.value.signal == signal.SIGTERM
    assert since == [1]  # no batch after the one in which it was asked
    assert [event.step for event in log.read(tmp_path) if isinstance(event, Saved)] == [4]
    assert not [event for event in log.read(tmp_path) if isinstance(event, Evaluation)]
    result = train_and_evaluate(small_run(), tmp_path)
    assert result == unbroken[1]
    assert untimed(tmp_path) == untimed(unbroken[0])


def test_in_the_middle_of_the_final_ten_views(unbroken, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "_start", lambda config: None)
    config = small_run()
    path = tmp_path / "config.py"
    path.write_text(
        "from tests.training.test_interruption import small_run\n"
        "def get_config():\n    return small_run()\n"
    )
    del config
    command = ["train", f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        since = asked_at(patch, "test", 1, 2)
        assert command_line.main(command) == 143
    assert since == [2]
    assert "stopped after step 8, which is saved" in capsys.readouterr().err
    assert not (tmp_path / "run" / "result.json").exists()
    assert command_line.main(command) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == unbroken[1]
    assert untimed(tmp_path / "run") == untimed(unbroken[0])


def test_the_final_views_are_an_evaluation_like_any_other(unbroken):
    workdir, result = unbroken
    last = log.read(workdir)[-1]
    assert isinstance(last, Evaluation) and last.split == "test" and last.views == 10
    assert last.top1_error_views == result["test"]["top1_error_10_views"]
    assert last.num_examples == result["test"]["num_examples"] == 360


def test_it_saves_before_it_evaluates(unbroken):
    kinds = [(e.step, type(e)) for e in log.read(unbroken[0]) if e.step in (4, 8)]
    assert kinds == [
        (4, TrainingMean), (4, Saved), (4, Evaluation),
        (8, TrainingMean), (8, Saved), (8, Evaluation), (8, Evaluation),
    ]  # fmt: skip


def test_until_is_at_least_so_far(unbroken, tmp_path):
    for until, step in ((3, 3), (3, 3), (2, 3), (5, 5)):
        assert train_and_evaluate(small_run(), tmp_path, until=until) == {"step": step}
    assert train_and_evaluate(small_run(), tmp_path) == unbroken[1]


def test_it_says_from_where_the_run_resumes():
    says = "stopped after step 7, which is saved; the same command resumes"
    assert str(Stopped(7, signal.SIGTERM, 7)) == str(Stopped(7, signal.SIGTERM)) == says
    # Among steps that are not finite the newest checkpoint is an earlier one.
    says = "stopped after step 7, and saved after step 4; the same command resumes from there"
    assert str(Stopped(7, signal.SIGTERM, 4)) == says


def test_a_loop_of_asyncio_has_its_own_signals_again_after_a_run():
    """Both of those that a run listens to and others, which reach it meanwhile as well."""
    heard = []

    async def program():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            loop.add_signal_handler(number, heard.append, number)
        before = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(before)
        with stop.Stop() as asked:
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(_until(lambda: heard), 10)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.wait_for(_until(lambda: asked.signal), 10)
        assert signal.set_wakeup_fd(before) == before
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        await asyncio.wait_for(_until(lambda: len(heard) == 3), 10)

    asyncio.run(program())
    assert heard == [signal.SIGUSR1, signal.SIGINT, signal.SIGTERM]


async def _until(condition):
    while not condition():
        await asyncio.sleep(0.01)
