"""Processes that tell each other what they have seen: threads, joined by a dictionary."""

import json
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from alexnet_jax.errors import LOST_ANOTHER, Stopped, UsageError
from alexnet_jax.parallel import agreement
from alexnet_jax.training import loop
from alexnet_jax.training.state import init_state
from tests.support import tiny_config


class Store:
    """What JAX's coordination service keeps, as far as it is used."""

    def __init__(self):
        self.content, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            if key in self.content:
                raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
            self.content[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key):
        if key not in self.content:
            raise jax.errors.JaxRuntimeError("NOT_FOUND")
        return self.content[key]

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.content, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return self.content[key]


class Own(threading.local):
    """Variables of which every process has its own."""


@pytest.fixture
def processes(monkeypatch):
    """A function that runs one function per process and returns what each returns or raises."""
    state, progress, ending = Own(), Own(), Own()
    monkeypatch.setattr(agreement, "global_state", state)
    monkeypatch.setattr(agreement, "_Progress", progress)
    monkeypatch.setattr(agreement, "_ending", ending)

    def run(*functions, store=None, seconds=5.0):
        store, found = store or Store(), {}

        def one(number, function):
            state.client, state.process_id, state.num_processes = store, number, len(functions)
            progress.calls, progress.seconds, progress.failed = 0, seconds, False
            ending.acquire = lambda blocking: True
            try:
                found[number] = function()
            except Exception as error:
                found[number] = error

        threads = [threading.Thread(target=one, args=pair) for pair in enumerate(functions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[number] for number in range(len(functions))]

    return run


def test_each_gets_what_all_have_seen_in_their_order(processes):
    def of(name):
        return lambda: [agreement.everyone([name, i]) for i in range(3)]

    expected = [[["a", i], ["b", i], ["c", i]] for i in range(3)]
    assert processes(of("a"), of("b"), of("c")) == [expected] * 3


def test_one_process_alone_asks_nobody():
    assert agreement.everyone({"x": 1}) == [{"x": 1}]
    assert agreement.agree({"x": 1}) is None and agreement.processes() == 1


@pytest.mark.parametrize(
    "mine,other,text",
    [
        ({"x": 1, "y": 2}, {"x": 1, "y": 3}, "y is 2 for process 0 and 3 for process 1: start all"),
        ({"x": 1}, {"x": 1, "z": "a"}, "z is None for process 0 and 'a' for process 1"),
        ({"x": 1, "z": [1]}, {"x": 1}, "z is [1] for process 0 and None for process 1"),
        ({"x": "a" * 99}, {"x": "b"}, f"x is '{'a' * 56}... for process 0 and 'b'"),
    ],
)
def test_all_refuse_what_one_has_seen_otherwise(processes, mine, other, text):
    found = processes(lambda: agreement.agree(mine), lambda: agreement.agree(other))
    assert all(isinstance(error, UsageError) and text in str(error) for error in found)
    assert processes(*[lambda: agreement.agree(mine)] * 3) == [None] * 3


def test_a_process_that_never_comes_is_waited_for_in_vain(processes):
    found = processes(lambda: agreement.everyone(1), lambda: 0, seconds=0.1)
    assert isinstance(found[0], jax.errors.JaxRuntimeError)


def test_a_folder_that_not_all_share_is_refused_by_all(processes, tmp_path):
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    places = [shared, shared, own], [shared, tmp_path / "none"], [shared, shared]
    for folders in places:
        found = processes(*(lambda folder=f: agreement.share(folder) for f in folders))
        if set(folders) == {shared}:
            assert found == [None, None]
        else:
            blind = f"process {len(folders) - 1} does not see"
            assert all(isinstance(e, UsageError) and blind in str(e) for e in found)
        assert not list(shared.iterdir()) and not list(own.iterdir())


def failing(error):
    @agreement.failing_together()
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    "error,code,text",
    [
        (UsageError("the disk\nis full"), 2, "the disk is full"),
        (OSError(28, "No space left on device"), 2, "[Errno 28] No space left on device"),
        (KeyError("bug"), LOST_ANOTHER, "KeyError: 'bug'"),
    ],
)
def test_who_fails_says_so_and_waits_until_it_is_heard(processes, monkeypatch, error, code, text):
    """What the thread of the other process does with it is in the next test."""
    monkeypatch.setattr(agreement, "_PATIENCE_SECONDS", 5)
    store = Store()

    def hears():
        end = json.loads(store.blocking_key_value_get(agreement._FAILED, 5000))
        store.key_value_set(f"{agreement._HEARD}/1", "")
        return end

    raised, end = processes(failing(error), hears, store=store)
    assert raised is error and end == {"process": 0, "code": code, "text": text}


def test_who_hears_of_it_says_why_and_ends(processes, monkeypatch, capsys):
    store, ends = Store(), []
    monkeypatch.setattr(agreement, "_LISTEN_SECONDS", 0.01)
    monkeypatch.setattr(agreement, "leave", ends.append)
    leaving = threading.Event()
    raised, _ = processes(
        failing(UsageError("full")), lambda: agreement._listen(leaving), store=store
    )
    assert str(raised) == "full" and ends == [2]
    assert capsys.readouterr().err == "error: process 0 of this run failed: full\n"


def test_one_that_was_asked_to_stop_tells_nobody(processes):
    """All stop after the same batch, by themselves."""
    store = Store()
    stopped = Stopped(3, 15)
    assert processes(failing(stopped), lambda: 1, store=store) == [stopped, 1]
    assert not store.content


def test_the_first_process_leaves_last(processes, monkeypatch):
    order = []
    monkeypatch.setattr(agreement.os, "_exit", lambda code: order.append(code))

    def later(code):
        time.sleep(code / 20)
        agreement.leave(code)

    processes(*(lambda code=code: later(code) for code in (0, 1, 2)))
    assert order == [1, 2, 0]


# ------------------------------------------------------------------ what a run compares


@pytest.fixture
def run_of_two(monkeypatch):
    """A function that returns what a process of two compares, with something changed in it."""

    def look(config=None, state=None, memory=None, step=0, **changes):
        config = config or tiny_config()
        sources = {"train": SimpleNamespace(num_examples=9, class_names=("a", "b"))}
        sources["train"].__dict__.update(changes)
        mean = np.full(3, changes.get("mean", 7.0), np.float32)
        inputs = SimpleNamespace(mean=mean)
        placement = SimpleNamespace(batch_part=(0, changes.get("parts", 2)))
        state = state or init_state({"fc": np.ones((2, 3), np.float32)}, optax.sgd(0.1))
        return loop.seen(config, placement, sources, inputs, step, state, memory or {})

    monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
    return look


def changed(**fields):
    config = tiny_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


@pytest.mark.parametrize(
    "change,name",
    [
        (lambda: {"config": changed(batch_size=64)}, "config.batch_size"),
        (lambda: {"config": changed(optimizer__momentum=0.5)}, "config.optimizer.momentum"),
        (lambda: {"num_examples": 8}, "the number of images of train"),
        (lambda: {"class_names": ("b", "a")}, "the checksum of the classes of train"),
        (lambda: {"mean": 8.0}, "the checksum of the mean"),
        (lambda: {"step": 8}, "the step to start from"),
        (lambda: {"memory": {"Save": {"step": 1}}}, "the checksum of the state"),
        (
            lambda: {"state": init_state({"fc": np.zeros((2, 3), np.float32)}, optax.sgd(0.1))},
            "the checksum of the state",
        ),
        (lambda: {"config": changed(distributed__process_id=1)}, None),
    ],
)
def test_each_thing_that_would_go_unnoticed_is_compared(run_of_two, change, name):
    before, now = run_of_two(), run_of_two(**change())
    assert before.keys() == now.keys() and json.loads(json.dumps(now)) == now
    assert [key for key in before if before[key] != now[key]] == [name][: name is not None]


def test_processes_that_read_the_same_images_may_replace_none(run_of_two):
    """Each would replace those that it alone cannot read, and towers would see other images."""
    with pytest.raises(UsageError, match=r"config\.data\.max_unreadable = 3: .* or 2 devices"):
        run_of_two(config=changed(data__max_unreadable=3), parts=1)
    assert run_of_two(config=changed(data__max_unreadable=3), parts=2)
    assert run_of_two(parts=1)
