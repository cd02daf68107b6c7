"""Where the towers run: the three placements of one per-tower function.

The network and the train step are written for one tower. A placement maps that function over the
towers (axis `tower`) and over parts of the batch (axis `data`); nothing else in the code knows:

  vmap   one device runs every tower
  pmap   one device per tower, the split of 2012
  mesh   a grid of (data, tower) over all devices of all processes
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from ml_collections import ConfigDict

from alexnet_jax.errors import UsageError
from alexnet_jax.model.collectives import TOWER
from alexnet_jax.model.derivatives import for_cpu

DATA = "data"
"""Name of the mapped axis over the parts of a batch."""

# On CPU, XLA drops every `optimization_barrier` before it decides what to fuse if a program runs on
# more than one device, and so ignores what the layers and the update mark as stored.
_COMPILER_OPTIONS = {"cpu": {"xla_disable_hlo_passes": "cse_barrier_expander"}}

Spread = Literal["tower", "batch", "same"]
"""The layout of an argument or result: a leading axis of towers, a leading axis of examples (split
over `data`), or one value that every device holds."""

_SPECS = {
    "tower": PartitionSpec(TOWER),
    "batch": PartitionSpec(DATA),
    "same": PartitionSpec(),
}


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
        """Number of parts into which a batch is split."""
        return self.mesh.shape[DATA]

    @property
    def batch_part(self) -> tuple[int, int]:
        """The part of every batch that this process reads, and the number of equal parts.

        A process with one or more groups of towers reads its own part; processes that share a group
        read the same part.
        """
        me = jax.process_index()
        groups = enumerate(self.mesh.devices)
        mine = [i for i, group in groups if any(d.process_index == me for d in group)]
        return mine[0] // len(mine), self.data_parallel // len(mine)

    def describe(self) -> str:
        """In words, such as `mesh 4 x 2 (data x tower), 8 cpu devices`."""
        devices = self.mesh.devices
        kind = devices.flat[0].device_kind
        grid = f" {devices.shape[0]} x {devices.shape[1]} (data x tower)"
        where = self.name + (grid if self.name == "mesh" else "")
        return f"{where}, {devices.size} {kind} device{'s' if devices.size > 1 else ''}"

    def sum_over_data(self, tree: Any, sent_as: jnp.dtype | None = None) -> Any:
        """Inside a mapped function: the sum of every leaf over the parts of the batch.

        Args:
          tree: arrays.
          sent_as: the type in which devices exchange them; None for their own.
        """
        if self.name != "mesh":
            return tree
        if sent_as is None:
            return lax.psum(tree, DATA)
        total = lax.psum(jax.tree.map(lambda x: x.astype(sent_as), tree), DATA)
        return jax.tree.map(lambda x, y: y.astype(x.dtype), tree, total)

    def join_over_data(self, x: jax.Array) -> jax.Array:
        """Inside a mapped function: the examples of all parts of the batch, in their order."""
        return lax.all_gather(x, DATA, tiled=True) if self.name == "mesh" else x

    def spread(
        self,
        fn: Callable[..., Any],
        inputs: tuple[Spread, ...],
        outputs: Spread | tuple[Spread, ...],
        donate: tuple[int, ...] = (),
    ) -> Any:
        """Compiles `fn`, written for one tower and one part of the batch, for all of them.

        Args:
          fn: sees each `tower` argument without its leading axis and each `batch` argument with
            its share of the examples; may use collectives over the axis `tower`.
          inputs: the layout of each argument (a pytree counts as one).
          outputs: the layout of each result.
          donate: arguments whose buffers the results may reuse.

        Returns:
          A function as `jax.jit` returns it.
        """
        if self.on_cpu:
            fn = for_cpu(fn)
        mapped = _MAPS[self.name](fn, inputs, outputs, self.mesh)
        # Results have the shardings that arguments have. An equal but different one, such as pmap's
        # own, would make the next call compile the program once more.
        return jax.jit(
            mapped,
            in_shardings=tuple(self._sharding(kind) for kind in inputs),
            out_shardings=jax.tree.map(self._sharding, outputs),
            donate_argnums=donate,
            compiler_options=self.compiler_options(),
        )

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are those of a CPU, which also makes the batches."""
        return self.mesh.devices.flat[0].platform == "cpu"

    def compiler_options(self) -> dict[str, str]:
        """Options of XLA for these devices."""
        options = _COMPILER_OPTIONS.get(self.mesh.devices.flat[0].platform, {})
        flags = os.environ.get("XLA_FLAGS", "")  # the user's own options win
        return {name: value for name, value in options.items() if name not in flags}

    def put_towers(self, tree: Any) -> Any:
        """Places host arrays that have a leading axis of towers (whole on every process)."""
        sharding = self._sharding("tower")

        def put(x: Any) -> jax.Array:
            x = np.asarray(x)
            return jax.make_array_from_process_local_data(sharding, x, x.shape)

        return jax.tree.map(put, tree)

    def put_batch(self, batch: Any) -> Any:
        """Places this process's part of a batch of host arrays."""
        sharding = self._sharding("batch")
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
        )

    def _sharding(self, kind: Spread) -> Sharding:
        if self.name == "vmap":
            return SingleDeviceSharding(self.mesh.devices.flat[0])
        return NamedSharding(self.mesh, _SPECS[kind])


def _over_one_device(fn, inputs, outputs, mesh):
    del mesh  # the function runs where its arguments are
    axes = tuple(0 if kind == "tower" else None for kind in inputs)
    mapped = jax.vmap(fn, in_axes=axes, axis_name=TOWER)

    def first(kind: Spread, out: Any) -> Any:
        # A `same` result is equal in all towers: keep that of the first.
        return out if kind == "tower" else jax.tree.map(lambda x: x[0], out)

    @functools.wraps(fn)
    def every_tower(*args: Any) -> Any:
        return jax.tree.map(first, outputs, mapped(*args))

    return every_tower


def _over_one_device_per_tower(fn, inputs, outputs, mesh):
    def axis(kind: Spread) -> int | None:
        return 0 if kind == "tower" else None

    return jax.pmap(
        fn,
        axis_name=TOWER,
        in_axes=tuple(axis(kind) for kind in inputs),
        out_axes=jax.tree.map(axis, outputs),
        devices=list(mesh.devices.flat),
    )


def _over_mesh(fn, inputs, outputs, mesh):
    def squeeze(kind: Spread, arg: Any) -> Any:
        return jax.tree.map(lambda x: x[0], arg) if kind == "tower" else arg

    def expand(kind: Spread, out: Any) -> Any:
        return jax.tree.map(lambda x: x[None], out) if kind == "tower" else out

    @functools.wraps(fn)
    def per_device(*args: Any) -> Any:
        return jax.tree.map(expand, outputs, fn(*map(squeeze, inputs, args)))

    # check_vma=False gives psum and all_gather pmap's transposes, which the loss relies on.
    return jax.shard_map(
        per_device,
        mesh=mesh,
        in_specs=tuple(_SPECS[kind] for kind in inputs),
        out_specs=jax.tree.map(lambda kind: _SPECS[kind], outputs),
        check_vma=False,
    )


_MAPS = {"vmap": _over_one_device, "pmap": _over_one_device_per_tower, "mesh": _over_mesh}


def copy_to_host_async(tree: Any) -> None:
    """Starts the copies that `to_host` waits for; the devices may still compute these results."""
    for x in jax.tree.leaves(tree):
        if isinstance(x, jax.Array):
            x.copy_to_host_async()


def to_host(tree: Any) -> Any:
    """Copies results to NumPy, whole, whether they are stacked by tower or the same everywhere.

    Every process must call it with the same results.
    """
    copy_to_host_async(tree)

    def fetch(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(jax.device_get(x))
        if x.is_fully_replicated:
            return jax.device_get(x.addressable_data(0))
        # In most cases a process holds the stacked values of every tower.
        parts = {str(shard.index): shard for shard in x.addressable_shards}
        if sum(shard.data.size for shard in parts.values()) == x.size:
            whole = np.empty(x.shape, x.dtype)
            for shard in parts.values():
                whole[shard.index] = jax.device_get(shard.data)
            return whole
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(fetch, tree)


def place(config: ConfigDict) -> Placement:
    """The placement that `config.placement` names, over the devices found.

    Raises:
      UsageError: the devices do not fit, or the batch does not divide; names the field.
    """
    devices, name = find_devices(), config.placement
    if name == "auto":
        name = _automatic(config.model.towers, len(devices))
    if name != "mesh" and jax.process_count() > 1:
        raise UsageError(
            f"config.placement = {name!r} is for one process, and this run has "
            f"{jax.process_count()}: use --config.placement=mesh"
        )
    return arrange(config, devices)


def arrange(config: ConfigDict, devices: list[Any]) -> Placement:
    """The placement that `config.placement` names over these devices, which need not be here.

    Raises:
      UsageError: the devices do not fit, or the batch does not divide; names the field.
    """
    name, towers = config.placement, config.model.towers
    if name == "auto":
        name = _automatic(towers, len(devices))
    mesh = Mesh(_grid(name, towers, devices), (DATA, TOWER))
    _check_batches(config, mesh.shape[DATA])
    return Placement(name, mesh)


def place_near(
    config: ConfigDict, like: tuple[str, int] | None = None, trains: bool = False
) -> Placement:
    """The placement nearest to that of a run which the devices of this machine allow.

    It is for work on a run that exists, whatever devices that had: as many groups of towers as
    there were, or as fit here; one device if none fits.

    Args:
      config: the configuration of the run.
      like: a placement by its name and its number of devices, for equal bits; None for
        `config.placement` over all devices.
      trains: whether training batches must divide over the groups as well.

    Raises:
      UsageError: as `place`, in one of several processes.
    """
    if jax.process_count() > 1:
        return place(config)
    devices, towers = find_devices(), config.model.towers
    name, count = like or (config.placement, len(devices))
    if name == "auto":
        name = _automatic(towers, len(devices))
    groups = {"vmap": 0, "pmap": 1}.get(name, count // towers)
    for parts in range(min(groups, len(devices) // towers), 0, -1):
        if not trains or _divides(config, parts):
            grid = np.array(devices[: parts * towers]).reshape(parts, towers)
            return Placement(name, Mesh(grid, (DATA, TOWER)))
    return Placement("vmap", Mesh(_grid("vmap", towers, devices), (DATA, TOWER)))


def find_devices() -> list[Any]:
    """All devices, those of a process side by side, so that a group of towers stays in one process.

    Raises:
      UsageError: JAX finds none.
    """
    try:
        found = jax.devices()
    except Exception as error:  # RuntimeError, or AssertionError where a plugin is missing
        reason, asked = str(error).partition("\n")[0], os.environ.get("JAX_PLATFORMS", "")
        advice = "set it to cpu, or unset it; `python -m alexnet_jax doctor` shows what is missing"
        if asked == "cpu":
            advice = "check JAX_NUM_CPU_DEVICES and XLA_FLAGS"
        reason = f" ({reason})" if reason else ""
        raise UsageError(
            f"JAX finds no device with JAX_PLATFORMS={asked}{reason}: {advice}"
        ) from error
    return sorted(found, key=lambda device: (device.process_index, device.id))


def _divides(config: ConfigDict, parts: int) -> bool:
    try:
        _check_batches(config, parts)
    except UsageError:
        return False
    return True


def _automatic(towers: int, devices: int) -> str:
    """What `auto` stands for."""
    if devices == 1:
        return "vmap"
    one_per_tower = towers > 1 and devices == towers and jax.process_count() == 1
    return "pmap" if one_per_tower else "mesh"


def _grid(name: str, towers: int, devices: list[Any]) -> np.ndarray:
    """The devices as (data, tower).

    Raises:
      UsageError: they do not fit.
    """
    found = f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}"
    if name == "vmap":
        return np.array(devices[:1]).reshape(1, 1)
    if name == "pmap":
        if len(devices) < towers:
            raise UsageError(
                f"config.placement = 'pmap' needs {towers} devices, one per tower; found {found}: "
                "use --config.placement=vmap"
            )
        return np.array(devices[:towers]).reshape(1, towers)
    if len(devices) % towers:
        raise UsageError(
            f"config.placement = 'mesh' needs a multiple of {towers} devices "
            f"(config.model.towers); found {found}: use --config.placement=vmap, or hide a "
            "device with CUDA_VISIBLE_DEVICES"
        )
    local = jax.local_device_count()
    if local % towers and towers % local:
        raise UsageError(
            f"config.model.towers = {towers} and the {local} devices of each process do not divide "
            "each other, so that groups of towers do not fit into processes"
        )
    return np.array(devices).reshape(-1, towers)


def _check_batches(config: ConfigDict, parts: int) -> None:
    """Checks that batches divide over the groups of towers.

    Raises:
      UsageError: one does not; names the field.
    """
    for field, size in (
        ("batch_size", config.batch_size),
        ("evaluate.batch_size", config.evaluate.batch_size),
    ):
        if size % parts:
            raise UsageError(
                f"config.{field} = {size} does not divide over {parts} data-parallel groups of "
                f"{config.model.towers}: use a multiple of {parts}"
            )
    share = config.batch_size // parts
    if share % config.accumulate_steps:
        raise UsageError(
            f"config.accumulate_steps = {config.accumulate_steps} does not divide the {share} "
            "images per batch of each data-parallel group"
        )
