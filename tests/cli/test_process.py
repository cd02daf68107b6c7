"""A process of the command: signals at any moment, and standard streams that take nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "alexnet_jax"]
INSPECT = [*COMMAND, "inspect", "--config=quickstart"]


# Where a child of this test is when the signal comes: Python calls `hook` before each import.
_AT = """
import builtins, os, runpy, signal, sys
before, count = builtins.__import__, 0
def hook(name, *rest, **more):
    if name == os.environ["AT"]:
        os.kill(os.getpid(), int(os.environ["NUMBER"]))
    return before(name, *rest, **more)
builtins.__import__ = hook
# As at a terminal: a shell's background job inherits that it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["alexnet_jax", *sys.argv[1:]]
runpy.run_module("alexnet_jax", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "at,number",
    [
        ("difflib", signal.SIGINT),
        ("ml_collections", signal.SIGTERM),
        ("alexnet_jax.analysis.inspect", signal.SIGINT),
        ("alexnet_jax.analysis.inspect", signal.SIGTERM),
    ],
)
def test_a_signal_at_any_moment_ends_the_process_with_its_code(at, number):
    """While the command itself is imported, what it needs, and what a verb needs."""
    env = os.environ | {"AT": at, "NUMBER": str(int(number))}
    done = subprocess.run(
        [sys.executable, "-c", _AT, "inspect", "--config=quickstart"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


@pytest.mark.parametrize(
    "redirected,code,says",
    [
        (">/dev/full", 2, "error: cannot write to standard output: No space left on device\n"),
        (">&-", 2, "error: cannot write to standard output: Bad file descriptor\n"),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">&- 2>&- <&-", 2, ""),
    ],
)
def test_standard_streams_that_take_nothing(redirected, code, says):
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", *COMMAND, "fields", "--group=seed"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, says)
    assert bool(done.stdout) == (code == 0)


@pytest.mark.parametrize(
    "name,value", [("JAX_ENABLE_X64", "perhaps"), ("JAX_NUM_CPU_DEVICES", "many")]
)
def test_a_variable_that_jax_does_not_take_is_one_line(name, value):
    done = subprocess.run(
        [*COMMAND, "evaluate", "--workdir=/nowhere"], env=os.environ | {name: value},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: a variable of the environment: ")
    assert name.lower().removeprefix("jax_") in done.stderr.lower()


def test_without_a_home_folder_figures_are_drawn_and_images_read(tmp_path):
    """As in a container whose user is a number that no list knows; nothing is called `~`."""
    code = (
        "import pwd; pwd.getpwuid = lambda _: {}[0]\n"
        "from alexnet_jax.cli import process; process.prepare()\n"
        "import matplotlib; print(matplotlib.get_configdir())\n"
        "from alexnet_jax.data import tensorflow_cpu; tensorflow_cpu.import_tensorflow()\n"
        "import os; print(os.environ.get('HOME'))"
    )
    homeless = {"HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"}
    env = {k: v for k, v in os.environ.items() if k not in homeless}
    env |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=here, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(tmp_path / "alexnet_jax-"))
    assert done.stdout.endswith("\nNone\n") and not list(here.iterdir())


@pytest.mark.parametrize(
    "granted,given,expected",
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.check=0", "glibc.malloc.check=0"),
        ("[always] madvise never", None, "None"),
        (None, None, "None"),  # not Linux
    ],
)
def test_huge_pages_are_asked_for_by_starting_anew(granted, given, expected, tmp_path):
    """In the same process, with the same arguments, once."""
    setting = tmp_path / "enabled"
    if granted:
        setting.write_text(granted)
    code = (
        "import os, pathlib, sys; from alexnet_jax.cli import process\n"
        "process._HUGE_PAGES = pathlib.Path(sys.argv[1])\n"
        "process.use_huge_pages()\n"
        "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), *sys.argv[2:])"
    )
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    env |= {"PYTHONPATH": str(ROOT)} | ({"GLIBC_TUNABLES": given} if given else {})
    command = [sys.executable, "-c", code, str(setting), "a word", "--flag=x"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as child:
        out, _ = child.communicate()
    assert out == f"{child.pid} {expected} a word --flag=x\n"


def test_a_program_that_calls_the_command_goes_on(tmp_path):
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never")
    code = (
        "import os, pathlib, sys; from alexnet_jax import __main__; "
        "from alexnet_jax.cli import process\n"
        "print('started', flush=True)\n"
        f"process._HUGE_PAGES = pathlib.Path({str(setting)!r})\n"
        "code = __main__.main(['fields', '--group=seed'])\n"
        "print(code, os.environ.get('GLIBC_TUNABLES'))"
    )
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == "started" and lines.count("started") == 1 and lines[-1] == "0 None"
