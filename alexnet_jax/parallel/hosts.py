"""What a process sets up before JAX starts: devices, flags, the other processes of the run.

If JAX is running already, what can no longer be set stays as it is.
"""

import contextlib
import ctypes
import importlib.util
import os
import platform
import sys
import threading
from importlib import metadata
from pathlib import Path

import jax
from ml_collections import ConfigDict

from alexnet_jax import cache
from alexnet_jax.errors import UsageError
from alexnet_jax.parallel import agreement

# On x86 CPUs the gradients of kernels take XLA's YNNPACK convolutions two to five times as long as
# its Eigen ones, and on some of them all convolutions do; see benchmarks/NOTES.md.
_FAST_CPU_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
_KNOWN_IN = ("0.10.1", "0.12.0.1")
"""Versions of jaxlib that know this flag, those of requirements.txt: XLA ends the process at a flag
that it does not know, and cannot be asked before."""
_ACCELERATORS = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")

_M_ARENA_MAX = -8  # from glibc's malloc.h


def prepare_process() -> None:
    """Sets what makes any use of the network faster, and changes no result.

    An x86 CPU gets XLA's faster convolutions; the user's own XLA_FLAGS win. Compiled programs are
    cached in `~/.cache/alexnet_jax`, or in `JAX_COMPILATION_CACHE_DIR`, so that the same program
    starts faster the next time.
    """
    # XLA prints an error for each program from the cache, because of two features of the processor
    # that are only hints. If JAX was imported first, it is too late to silence them: no cache then.
    silent = os.environ.get("TF_CPP_MIN_LOG_LEVEL") not in (None, "0", "1", "2")
    unset = not jax.config.values["jax_compilation_cache_dir"]
    if silent and unset and _is_writable(cache.folder()):
        jax.config.update("jax_compilation_cache_dir", str(cache.folder()))
        # By default JAX caches programs that took a second to compile; those of a small network
        # take less each, but more in total.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_experimental_ynn_fusion_type" not in flags and _needs_flag():
        os.environ["XLA_FLAGS"] = f"{_FAST_CPU_CONVOLUTIONS} {flags}".strip()
    _share_arenas()


def _needs_flag() -> bool:
    """Whether JAX will run on an x86 CPU, by a jaxlib that knows the flag."""
    asked = _platforms()
    plugins = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    accelerated = plugins and any(Path(device).exists() for device in _ACCELERATORS)
    on_cpu = asked.split(",")[0] == "cpu" if asked else not accelerated
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return on_cpu and x86 and metadata.version("jaxlib") in _KNOWN_IN


def _platforms() -> str:
    """What JAX_PLATFORMS or the program asks JAX for."""
    return jax.config.values["jax_platforms"] or ""


def _is_writable(folder: Path) -> bool:
    """Whether a folder can be made and written; JAX would warn about each program."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def prepare_host(config: ConfigDict) -> None:
    """Does what `prepare_process` does, and settles the devices of a run.

    A CPU host gets one device per tower, so that a run there is split by default; the user's own
    XLA_FLAGS win. GPU and TPU are not affected. With `config.distributed.enabled` the process
    connects to the others of the run.

    Raises:
      UsageError: the other processes are not found; names the field.
    """
    prepare_process()
    counted = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not counted and not os.environ.get("JAX_NUM_CPU_DEVICES"):
        with contextlib.suppress(RuntimeError):  # JAX is running, with the devices that it has.
            jax.config.update("jax_num_cpu_devices", config.model.towers)
    if config.distributed.enabled and not jax.distributed.is_initialized():
        _join(config.distributed)


def _share_arenas() -> None:
    """Limits glibc to one heap per core instead of eight.

    The hundred threads of TensorFlow and TensorStore use all heaps in turn, and memory that is free
    in one is not available to another: a run of hours grows by tens of megabytes until each heap
    has reached its largest size. `MALLOC_ARENA_MAX` wins.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):  # a system without glibc
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, os.cpu_count() or 1)


def _join(distributed: ConfigDict) -> None:
    """Connects to the other processes; Slurm, Kubernetes or Cloud TPU supply what is not given."""
    given, timeout = distributed.coordinator or None, distributed.start_timeout_seconds

    def give_up() -> None:
        # JAX would abort with a stack trace, and the thread that waits cannot be interrupted.
        text = f"config.distributed: the processes of this run did not meet within {timeout} s"
        where = f" at {given}" if given else ""
        print(f"error: {text}{where}; were all of them started?", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(timeout, give_up)
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator_address=given,
            num_processes=distributed.process_count or None,
            process_id=distributed.process_id if distributed.process_id >= 0 else None,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=2 * timeout,
            heartbeat_timeout_seconds=distributed.lost_after_seconds,
        )
    except ValueError as error:
        raise UsageError(
            "config.distributed.enabled = True, but neither Slurm, Kubernetes nor Cloud TPU tells "
            "the processes about each other: give --config.distributed.coordinator=HOST:PORT, "
            f".process_count=N and .process_id=0 to N-1 ({error})"
        ) from error
    except RuntimeError as error:  # Of JAX's runtime, or JAX is running already.
        reason = str(error).splitlines()[0]
        raise UsageError(f"config.distributed: the processes did not meet ({reason})") from error
    finally:
        timer.cancel()
    agreement.listen(timeout)
