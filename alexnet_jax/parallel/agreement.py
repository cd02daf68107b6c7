"""What the processes of a run tell each other besides arrays: what each has seen, and why one ends.

A process that acts on what it alone has seen, such as a damaged file, leaves the others waiting in
an exchange for ever. Hence what may differ is agreed on before anyone acts, and a process that
fails says so to the others, which end as well. All of it goes through JAX's coordination service,
so that it works while devices wait.
"""

import atexit
import contextlib
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # JAX has no public name for its key-value store.

from alexnet_jax.errors import LOST_ANOTHER, Stopped, UsageError

_LISTEN_SECONDS = 0.5
_PATIENCE_SECONDS = 20
_FAILED, _HEARD, _LEFT, _SEEN = (
    f"alexnet_jax/{what}" for what in ("failed", "heard", "left", "seen")
)

_ending = threading.Lock()
"""Held by the thread that ends this process: that of the run, or the one that listens to others."""


class _Progress:
    """The number of calls of `everyone`, how long each waits, and whether this process failed."""

    calls = 0
    seconds = 300.0
    failed = False


def processes() -> int:
    """The number of processes of this run, found without starting a backend of JAX."""
    return (global_state.num_processes or 1) if global_state.client is not None else 1


def _client() -> Any:
    return global_state.client


def everyone(mine: Any) -> list[Any]:
    """What every process passes to this call, in the order of the processes.

    Every process must call it equally often.

    Args:
      mine: what this process has seen, as JSON holds it.

    Raises:
      JaxRuntimeError: another process did not come within `distributed.start_timeout_seconds`.
    """
    if processes() == 1:
        return [mine]
    client, every = _client(), range(processes())
    _Progress.calls += 1
    place, wait = f"{_SEEN}/{_Progress.calls}", int(1000 * _Progress.seconds)
    client.key_value_set(f"{place}/{global_state.process_id}", json.dumps(mine))
    return [json.loads(client.blocking_key_value_get(f"{place}/{i}", wait)) for i in every]


def agree(seen: Mapping[str, Any]) -> None:
    """Compares what the processes have seen, before any of them acts on it.

    Args:
      seen: by name, values that JSON holds.

    Raises:
      UsageError: on every process; names the first difference.
    """
    first, *others = everyone(seen)
    for number, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise UsageError(
                    f"{name} is {_short(first.get(name))} for process 0 and "
                    f"{_short(other.get(name))} for process {number}: start all processes of a run "
                    "with the same command, versions and files"
                )


def share(folder: Path) -> None:
    """Checks that every process sees what the first one writes to a folder.

    Raises:
      UsageError: on every process; one of them does not.
    """
    if processes() == 1:
        return
    path, token = folder / ".shared", everyone(secrets.token_hex())[0]
    if global_state.process_id == 0:
        path.write_text(token)
    everyone("written")
    try:
        sees = path.read_text() == token
    except OSError:
        sees = False
    blind = [number for number, other in enumerate(everyone(sees)) if not other]
    if global_state.process_id == 0:
        path.unlink()
    if blind:
        raise UsageError(
            f"--workdir={folder}: process {blind[0]} does not see what process 0 writes there: all "
            "processes of a run need one folder, on a disk that they share"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """A context in which an error of this process ends the others as well, with one line each."""
    try:
        yield
    except Stopped:  # All stop after the same batch.
        raise
    except Exception as error:
        _tell(error)
        raise


def _tell(error: Exception) -> None:
    """Says to the others why this process ends, and waits until they have heard it."""
    if processes() == 1 or _Progress.failed:
        return
    client, me = _client(), global_state.process_id
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # The thread that heard of another's end ends this process.
    _Progress.failed = True
    usage = isinstance(error, (UsageError, OSError))
    text = " ".join((str(error) if usage else f"{type(error).__name__}: {error}").split())
    end = {"process": me, "code": 2 if usage else LOST_ANOTHER, "text": text}
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # One has failed before, or is gone.
        client.key_value_set(_FAILED, json.dumps(end))
        if not isinstance(error, jax.errors.JaxRuntimeError):  # Another one is gone already.
            _wait_for_others(_HEARD)


def _wait_for_others(what: str) -> None:
    for other in set(range(processes())) - {global_state.process_id}:
        _client().blocking_key_value_get(f"{what}/{other}", 1000 * _PATIENCE_SECONDS)


def leave(code: int, alone: bool = False) -> NoReturn:
    """Ends this process after an error; an ordinary exit would wait for processes that hang.

    The first process, through which all are joined, leaves last: JAX aborts the others without it.

    Args:
      code: the exit code.
      alone: whether another process is gone, so that there is nobody to wait for.
    """
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if global_state.process_id == 0 and not alone:
            _wait_for_others(_LEFT)
            time.sleep(_LISTEN_SECONDS)  # They said so before they end.
        elif global_state.process_id:
            _client().key_value_set(f"{_LEFT}/{global_state.process_id}", "")
    os._exit(code)


def listen(start_timeout_seconds: float) -> None:
    """Starts to listen for the end of other processes, in a thread.

    Args:
      start_timeout_seconds: how long `everyone` waits.
    """
    _Progress.seconds = start_timeout_seconds
    leaving = threading.Event()
    thread = threading.Thread(target=_listen, args=(leaving,), daemon=True)
    thread.start()

    def leave() -> None:  # before JAX takes leave of the others
        leaving.set()
        thread.join()

    atexit.register(leave)


def _listen(leaving: threading.Event) -> None:
    while not leaving.wait(_LISTEN_SECONDS):
        if (client := _client()) is None:  # The program has taken leave of the others.
            return
        try:
            end = json.loads(client.key_value_try_get(_FAILED))
        except jax.errors.JaxRuntimeError:  # Nobody has failed, or the store itself is gone.
            continue
        if end["process"] == global_state.process_id:
            return
        mine = _ending.acquire(blocking=False)
        if mine:
            more = "" if end["code"] == 2 else "; start all of them again: they resume"
            text = f"error: process {end['process']} of this run failed: {end['text']}{more}"
            print(text, file=sys.stderr, flush=True)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.key_value_set(f"{_HEARD}/{global_state.process_id}", "")
        if mine:
            leave(end["code"])
        return
