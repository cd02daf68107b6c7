"""Where the towers run: the three placements of one per-tower function.

The network and the train step are written for one tower. A placement maps that function over the
towers (axis `tower`) and over parts of the batch (axis `data`); nothing else in the code knows:

  vmap   one device holds every tower
  pmap   one tower a device, the split of 2012
  mesh   a grid of (data, tower) over all devices of all processes
"""

import contextlib
import ctypes
import dataclasses
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from alexnet_jax import cache
from alexnet_jax.errors import UsageError
from alexnet_jax.models.layers import TOWER

DATA = "data"
PLACEMENTS = ("auto", "vmap", "pmap", "mesh")

# XLA's YNNPACK convolutions run at a third of the speed of its Eigen ones on x86 CPUs, and more so
# for weight gradients; see benchmarks/NOTES.md.
_FAST_CPU_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"

# On CPU XLA drops `optimization_barrier` before it decides what to fuse wherever a program runs on
# more than one device, and with it what the layers and the update say of what to keep in memory.
_COMPILER_OPTIONS = {"cpu": {"xla_disable_hlo_passes": "cse_barrier_expander"}}

_M_ARENA_MAX = -8  # of glibc's malloc.h

Spread = Literal["tower", "batch", "same"]
"""How an argument or result is laid out: a leading axis of towers, a leading axis of examples
(split over `data`), or one value that every device holds."""


def prepare_host(config: ConfigDict) -> None:
    """Settings that must be in place before JAX starts its backend.

    A CPU host gets one device a tower, so that the default run there is a real split, and the
    convolutions that are fast there. The user's own XLA_FLAGS win. No effect on GPU and TPU.
    With `config.distributed.enabled` the processes of the run find each other.

    Compiled programs are kept in `~/.cache/alexnet_jax`, or where `JAX_COMPILATION_CACHE_DIR` says,
    so that the same run starts faster the next time.

    Raises:
      UsageError: if the other processes are not found; names the field.
    """
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache.folder()))
        # JAX keeps what took a second to compile; the parts of a small network take less, together
        # more.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_experimental_ynn_fusion_type" not in flags:
        os.environ["XLA_FLAGS"] = f"{_FAST_CPU_CONVOLUTIONS} {flags}".strip()
    if "xla_force_host_platform_device_count" not in flags and not os.environ.get(
        "JAX_NUM_CPU_DEVICES"
    ):
        jax.config.update("jax_num_cpu_devices", config.model.towers)
    _share_arenas()
    if config.distributed.enabled:
        _join(config.distributed)


def _share_arenas() -> None:
    """One heap a core for glibc to allocate from, where it would take eight.

    A hundred threads of TensorFlow and TensorStore use them all in turn, and what is free in one is
    not given to another: a run of hours grows by tens of megabytes until each has been at its
    largest. `MALLOC_ARENA_MAX` wins.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):  # of a system without glibc
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, os.cpu_count() or 1)


def _join(distributed: ConfigDict) -> None:
    """Meets the other processes; what is not given is told by Slurm, Kubernetes or Cloud TPU."""
    given, patience = distributed.coordinator or None, distributed.start_timeout_seconds

    def give_up() -> None:
        # JAX would abort with a stack trace, and nothing else reaches the thread that waits.
        text = f"config.distributed: the processes of this run did not meet within {patience} s"
        where = f" at {given}" if given else ""
        print(f"error: {text}{where}; were all of them started?", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(patience, give_up)
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator_address=given,
            num_processes=distributed.process_count or None,
            process_id=distributed.process_id if distributed.process_id >= 0 else None,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=2 * patience,
            heartbeat_timeout_seconds=distributed.lost_after_seconds,
        )
    except ValueError as error:
        raise UsageError(
            "config.distributed.enabled = True, but neither Slurm, Kubernetes nor Cloud TPU says "
            "who takes part: give --config.distributed.coordinator=HOST:PORT, "
            f".process_count=N and .process_id=0 to N-1 ({error})"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"config.distributed: the processes did not meet ({reason})") from error
    finally:
        timer.cancel()


@dataclasses.dataclass(frozen=True)
class Placement:
    """One way to run a per-tower function.

    Attributes:
      name: `vmap`, `pmap` or `mesh`.
      mesh: devices as (data, tower); one row of them under `pmap`, a single one under `vmap`.
    """

    name: str
    mesh: Mesh

    @property
    def data_parallel(self) -> int:
        """Into how many parts a batch is split."""
        return self.mesh.shape[DATA]

    @property
    def batch_part(self) -> tuple[int, int]:
        """Which part of every batch this process reads, and of how many equal ones.

        One process a pair of devices or more reads its own part; processes that share a pair read
        the same one.
        """
        me = jax.process_index()
        mine = [row for row, pair in enumerate(self.mesh.devices) if any(
            device.process_index == me for device in pair)]  # fmt: skip
        return mine[0] // len(mine), self.data_parallel // len(mine)

    def describe(self) -> str:
        """Such as `mesh 4 x 2 (data x tower), 8 cpu devices`."""
        devices = self.mesh.devices
        kind = devices.flat[0].device_kind
        grid = f" {devices.shape[0]} x {devices.shape[1]} (data x tower)"
        where = self.name + (grid if self.name == "mesh" else "")
        return f"{where}, {devices.size} {kind} device{'s' if devices.size > 1 else ''}"

    def sum_over_data(self, tree: Any) -> Any:
        """Inside a mapped function: the sum of every leaf over the parts of the batch."""
        return lax.psum(tree, DATA) if self.name == "mesh" else tree

    def join_over_data(self, x: jax.Array, axis: int = 0) -> jax.Array:
        """Inside a mapped function: the examples of all parts of the batch, in their order."""
        return lax.all_gather(x, DATA, axis=axis, tiled=True) if self.name == "mesh" else x

    def spread(
        self,
        fn: Callable[..., Any],
        inputs: tuple[Spread, ...],
        outputs: Spread | tuple[Spread, ...],
        donate: tuple[int, ...] = (),
    ) -> Callable[..., Any]:
        """Compiles `fn`, written for one tower and one part of the batch, for all of them.

        Args:
          fn: sees each `tower` argument without its leading axis and each `batch` argument with
            its share of the examples; may use collectives over the axis `tower`.
          inputs: the layout of each argument (a pytree counts as one).
          outputs: the layout of each result.
          donate: arguments whose buffers the results may take over.
        """
        if self.name == "vmap":
            axes = tuple(0 if kind == "tower" else None for kind in inputs)
            mapped = jax.vmap(fn, in_axes=axes, out_axes=0, axis_name=TOWER)

            def run(*args: Any) -> Any:
                # What is not a tower's own is the same in all: keep the first.
                def first(kind: Spread, out: Any) -> Any:
                    return out if kind == "tower" else jax.tree.map(lambda x: x[0], out)

                out = mapped(*args)
                if isinstance(outputs, str):
                    return first(outputs, out)
                return tuple(first(kind, x) for kind, x in zip(outputs, out, strict=True))

            return jax.jit(run, donate_argnums=donate, compiler_options=self.compiler_options())
        if self.name == "pmap":
            axes = tuple(0 if kind == "tower" else None for kind in inputs)
            out_axes = jax.tree.map(lambda kind: 0 if kind == "tower" else None, outputs)
            mapped = jax.pmap(
                fn,
                axis_name=TOWER,
                in_axes=axes,
                out_axes=out_axes,
                devices=list(self.mesh.devices.flat),
                donate_argnums=donate,
            )
            return _compiled(mapped, self.compiler_options())

        def inside(*args: Any) -> Any:
            args = [
                jax.tree.map(lambda x: x[0], arg) if kind == "tower" else arg
                for kind, arg in zip(inputs, args, strict=True)
            ]

            def widen(kind: Spread, out: Any) -> Any:
                return jax.tree.map(lambda x: x[None], out) if kind == "tower" else out

            out = fn(*args)
            if isinstance(outputs, str):
                return widen(outputs, out)
            return tuple(widen(kind, x) for kind, x in zip(outputs, out, strict=True))

        # check_vma=False gives psum and all_gather pmap's transposes, which the loss counts on.
        mapped = jax.shard_map(
            inside,
            mesh=self.mesh,
            in_specs=tuple(_SPECS[kind] for kind in inputs),
            out_specs=jax.tree.map(lambda kind: _SPECS[kind], outputs),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donate, compiler_options=self.compiler_options())

    def compiler_options(self) -> dict[str, str]:
        """What XLA is told on these devices."""
        options = _COMPILER_OPTIONS.get(self.mesh.devices.flat[0].platform, {})
        flags = os.environ.get("XLA_FLAGS", "")  # the user's own win
        return {name: value for name, value in options.items() if name not in flags}

    def put_towers(self, tree: Any) -> Any:
        """Places host arrays that have a leading axis of towers (whole on every process)."""
        if self.name == "vmap":
            return jax.device_put(tree, self.mesh.devices.flat[0])
        return self._put(tree, "tower")

    def put_batch(self, batch: Any) -> Any:
        """Places this process's part of a batch of host arrays."""
        if self.name == "vmap":
            return jax.device_put(batch, self.mesh.devices.flat[0])
        sharding = NamedSharding(self.mesh, _SPECS["batch"])
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
        )

    def _put(self, tree: Any, kind: Spread) -> Any:
        sharding = NamedSharding(self.mesh, _SPECS[kind])

        def put(x: Any) -> jax.Array:
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(put, tree)


def _compiled(mapped: Callable[..., Any], options: dict[str, str]) -> Callable[..., Any]:
    """`jax.pmap` takes no compiler options; what it lowers to does."""
    programs: dict[Any, Callable[..., Any]] = {}

    def run(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        key = (structure, *((x.shape, x.dtype) for x in leaves))
        if key not in programs:
            programs[key] = mapped.lower(*args).compile(options)
        return programs[key](*args)

    run.lower = mapped.lower
    return run


_SPECS = {
    "tower": PartitionSpec(TOWER),
    "batch": PartitionSpec(DATA),
    "same": PartitionSpec(),
}


def to_host(tree: Any) -> Any:
    """Copies results to NumPy, whole: `same` ones and stacked ones alike.

    Every process must call it, with the same results.
    """

    def fetch(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(x)
        if x.is_fully_replicated:
            return np.asarray(x.addressable_data(0))
        # Of stacked values a process mostly holds every tower's.
        parts = {str(shard.index): shard for shard in x.addressable_shards}
        if sum(shard.data.size for shard in parts.values()) == x.size:
            whole = np.empty(x.shape, x.dtype)
            for shard in parts.values():
                whole[shard.index] = shard.data
            return whole
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(fetch, tree)


def place(config: ConfigDict) -> Placement:
    """The placement that `config.placement` asks for, over the devices found.

    Raises:
      UsageError: if the devices do not fit, or the batch does not divide; names the field.
    """
    name, towers = config.placement, config.model.towers
    # A process's devices side by side, so that pairs stay inside a host where they can.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    found = f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}"
    if name == "auto":
        if len(devices) == 1:
            name = "vmap"
        elif towers > 1 and len(devices) == towers and jax.process_count() == 1:
            name = "pmap"
        else:
            name = "mesh"
    if name != "mesh" and jax.process_count() > 1:
        raise UsageError(
            f"config.placement = {name!r} is for one process, and this run has "
            f"{jax.process_count()}: use --config.placement=mesh"
        )
    if name == "vmap":
        grid = np.array(devices[:1]).reshape(1, 1)
    elif name == "pmap":
        if len(devices) < towers:
            raise UsageError(
                f"config.placement = 'pmap' needs {towers} devices, one a tower; found {found}: "
                "use --config.placement=vmap"
            )
        grid = np.array(devices[:towers]).reshape(1, towers)
    else:
        if len(devices) % towers:
            raise UsageError(
                f"config.placement = 'mesh' needs a multiple of {towers} devices "
                f"(config.model.towers); found {found}: use --config.placement=vmap, or hide a "
                "device with CUDA_VISIBLE_DEVICES"
            )
        here = jax.local_device_count()
        if here % towers and towers % here:
            raise UsageError(
                f"config.model.towers = {towers}: the {here} devices of each process hold neither "
                "whole groups of that many nor an equal part of one"
            )
        grid = np.array(devices).reshape(-1, towers)
    mesh = Mesh(grid, (DATA, TOWER))
    for field, size in (
        ("batch_size", config.batch_size),
        ("evaluate.batch_size", config.evaluate.batch_size),
    ):
        if size % mesh.shape[DATA]:
            raise UsageError(
                f"config.{field} = {size} does not divide over {mesh.shape[DATA]} data-parallel "
                f"groups of {towers}: use a multiple of {mesh.shape[DATA]}"
            )
    share, parts = config.batch_size // mesh.shape[DATA], config.accumulate_steps
    if share % parts:
        raise UsageError(
            f"config.accumulate_steps = {parts} does not divide the {share} images of a batch that "
            "each data-parallel group gets"
        )
    return Placement(name, mesh)
