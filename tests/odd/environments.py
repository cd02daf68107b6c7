"""Machines and shells as people have them: variables, permissions, and what is closed or full."""

import ctypes
import dataclasses
import os
import resource
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Environment:
    """What differs from an ordinary shell.

    Attributes:
      variables: to set; None removes one.
      before: what the child does before Python starts, given a scratch folder.
      closed: file descriptors that are closed.
      full: whether standard output is a device that is full.
      must_answer: whether every verb has to do its work, and not only to say why it does not.
      may_not_train: whether verbs that train may refuse nevertheless: batches have to be divided.
    """

    variables: dict[str, str | None] = dataclasses.field(default_factory=dict)
    before: Callable[[Path], None] = lambda scratch: None
    closed: tuple[int, ...] = ()
    full: bool = False
    must_answer: bool = True
    may_not_train: bool = False


def permissions_count() -> None:
    """Lets the permissions of files count for root as well, from the next program on."""
    if os.getuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, of the bounding set
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def _read_only(scratch: Path) -> None:
    folder = scratch / "read-only"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o555)
    os.chdir(folder)
    permissions_count()


def _nobody(scratch: Path) -> None:
    """A namespace in which the user has a number that no file knows."""
    me = os.getuid()
    if ctypes.CDLL(None).unshare(0x10000000) == 0:  # CLONE_NEWUSER
        Path("/proc/self/uid_map").write_text(f"54321 {me} 1")


def _gone(scratch: Path) -> None:
    folder = scratch / f"gone{os.getpid()}"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


def _limit(what: int, number: int) -> Callable[[Path], None]:
    return lambda scratch: resource.setrlimit(what, (number, number))


COUNT = "--xla_force_host_platform_device_count"
NO_CACHE: dict[str, str | None] = {"JAX_COMPILATION_CACHE_DIR": None}
ENVIRONMENTS: dict[str, Environment] = {
    "an ordinary shell": Environment(),
    "no HOME": Environment({"HOME": None} | NO_CACHE),
    "no HOME and a user without a name": Environment({"HOME": None} | NO_CACHE, _nobody),
    "a HOME that is not there": Environment({"HOME": "/nonexistent/home"} | NO_CACHE),
    "an empty HOME": Environment({"HOME": ""} | NO_CACHE),
    "a folder that nobody may write to": Environment(
        {"HOME": "/nonexistent"} | NO_CACHE, _read_only
    ),
    "a folder that is gone": Environment(before=_gone, must_answer=False),
    "standard output closed": Environment(closed=(1,), must_answer=False),
    "standard error closed": Environment(closed=(2,)),
    "standard input closed": Environment(closed=(0,)),
    "all three closed": Environment(closed=(0, 1, 2), must_answer=False),
    "standard output full": Environment(full=True, must_answer=False),
    "ASCII alone": Environment({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "a locale that is not there": Environment({"LC_ALL": "xx_YY.UTF-8", "LANG": "?"}),
    "PYTHONIOENCODING=ascii": Environment({"PYTHONIOENCODING": "ascii"}),
    "JAX_PLATFORMS=cuda": Environment({"JAX_PLATFORMS": "cuda"}, must_answer=False),
    "JAX_PLATFORMS of no machine": Environment({"JAX_PLATFORMS": "abacus"}, must_answer=False),
    "JAX_ENABLE_X64": Environment({"JAX_ENABLE_X64": "1"}),
    "one device": Environment({"XLA_FLAGS": f"{COUNT}=1"}),
    "three devices": Environment({"XLA_FLAGS": f"{COUNT}=3"}, may_not_train=True),
    "six devices": Environment({"XLA_FLAGS": f"{COUNT}=6"}, may_not_train=True),
    "a cache that is a file": Environment({"JAX_COMPILATION_CACHE_DIR": "/etc/passwd"}),
    "a cache in a bucket": Environment(
        {"JAX_COMPILATION_CACHE_DIR": "gs://b/c"}, must_answer=False
    ),
    "a relative cache": Environment({"JAX_COMPILATION_CACHE_DIR": "cache"}),
    "no TMPDIR": Environment({"TMPDIR": "/nonexistent/tmp"}),
    "no TFDS_DATA_DIR": Environment({"TFDS_DATA_DIR": None}),
    "a TFDS_DATA_DIR that is not there": Environment({"TFDS_DATA_DIR": "/nonexistent"}),
    "a dumb terminal of one column": Environment({"TERM": "dumb", "COLUMNS": "1"}),
    "umask 077": Environment(before=lambda scratch: os.umask(0o077) and None),
    "a matplotlib for windows": Environment({"MPLBACKEND": "TkAgg", "DISPLAY": ":99"}),
    "a proxy that is not there": Environment({"https_proxy": "http://127.0.0.1:9"}),
    "24 open files": Environment(before=_limit(resource.RLIMIT_NOFILE, 24), must_answer=False),
    "files of 10 KB": Environment(before=_limit(resource.RLIMIT_FSIZE, 10_000), must_answer=False),
}
