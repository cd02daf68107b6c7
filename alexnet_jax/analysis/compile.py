"""Programs compiled for GPUs and TPUs that are not here, and what they would need there.

XLA compiles ahead of time for both on a plain CPU machine. Nothing runs: what comes out are counts
of the program and, from them and a device's peaks, ceilings. See
https://docs.jax.dev/en/latest/aot.html; the interface that describes devices which are not there
(`jax.experimental.topologies`) is experimental, and so is the text of programs.
"""

import dataclasses
import importlib.util
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.analysis.exchange import lower_step
from alexnet_jax.analysis.inspect import align
from alexnet_jax.analysis.targets import Device, Target
from alexnet_jax.analysis.traffic import by_kind, moved, warnings
from alexnet_jax.config import table, validate
from alexnet_jax.data import inputs as input_rules
from alexnet_jax.errors import UsageError
from alexnet_jax.model.tower import build_tower, initial_statistics, parameter_shapes
from alexnet_jax.parallel import exchange, hlo
from alexnet_jax.parallel.placement import arrange
from alexnet_jax.training import evaluate

EXTRAS = {
    "cuda": ("jax_plugins.xla_cuda13", "compile-cuda", "0.7 GB, no CUDA toolkit and no driver"),
    "tpu": ("libtpu", "compile-tpu", "0.7 GB"),
}
"""For each platform: the module that compiles for it, the extra that installs it, its size."""

_NO_TPU_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # There is no device that two processes could share.
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one program would need.

    Attributes:
      name: `training` or `evaluation, N views`.
      batch: images of a step, over all devices.
      arguments: bytes of device memory for what goes in and stays: weights, state, batch.
      scratch: bytes of device memory for everything between.
      kernels: number of kernels of a step.
      traffic: bytes that a device moves through its memory, by kind of operation, largest first.
      exchanged: bytes that a device receives from others, by point (`parallel.exchange`).
      expected: the same by the arithmetic of the table of layers; empty for evaluations.
      operations: multiply and add operations of a device in the layers.
      warnings: one line each.
    """

    name: str
    batch: int
    arguments: int
    scratch: int
    kernels: int
    traffic: dict[str, float]
    exchanged: dict[str, float]
    expected: dict[str, float]
    operations: float
    warnings: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes of device memory at the fullest moment."""
        return self.arguments + self.scratch

    @property
    def bytes(self) -> float:
        """Bytes that a device moves through its memory."""
        return sum(self.traffic.values())

    def limits(self, device: Device, peak: float) -> dict[str, float]:
        """The shortest time of a step by each limit, in seconds.

        Args:
          device: the kind of device.
          peak: its operations per second with these types.
        """
        return {
            "memory traffic": self.bytes / device.bandwidth,
            "arithmetic": self.operations / peak,
            "exchange": sum(self.exchanged.values()) / device.link,
        }


def compile_for(config: ConfigDict, target: Target) -> dict[str, Any]:
    """Compiles training and evaluation, and returns what they would need, as data for JSON.

    Raises:
      UsageError: what compiles for the platform is not installed, or the run does not fit the
        devices.
    """
    validate(config)
    devices = devices_of(target)
    placement = arrange(config, devices)
    programs = [
        training(config, placement, target),
        evaluation(config, placement, target, config.evaluate.final_views),
    ]
    return {
        "target": target.name,
        "device": target.device.title,
        "devices": len(devices),
        "placement": placement.describe(),
        "jax": jax.__version__,
        "compute_dtype": config.model.compute_dtype,
        "memory": target.device.memory,
        "programs": [as_data(one, config, target.device) for one in programs],
        "largest_batch": _largest_batch(config, placement, target, programs[0]),
    }


def devices_of(target: Target) -> list[Any]:
    """Descriptions of the devices of a target, which programs can be compiled for.

    Raises:
      UsageError: what compiles for them is not installed, or XLA knows no such grid.
    """
    module, extra, size = EXTRAS[target.device.platform]
    try:
        known = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        known = False
    if not known:
        raise UsageError(
            f"--compile={target.name}: what compiles for {target.device.platform.upper()} is not "
            f"installed: pip install 'alexnet-jax[{extra}]' ({size})"
        )
    from jax.experimental import topologies

    # Devices of this machine are of no use for it, and JAX would look for them.
    jax.config.update("jax_platforms", "cpu")
    # It stores such programs, and cannot read them without a device.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        if target.device.platform == "tpu":
            # Otherwise it would ask Google's servers what it runs on, and complain of no answer.
            for name, value in _NO_TPU_HOST.items():
                os.environ.setdefault(name, value)
            found = topologies.get_topology_desc(platform="tpu", topology_name=target.topology)
        else:
            jax.devices("cpu")  # JAX registers the plugins that it finds when it starts.
            found = topologies.get_topology_desc(
                platform="cuda", topology_name=target.name, target_config=target.config,
                topology=target.topology,
            )  # fmt: skip
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"--compile={target.name}: XLA cannot compile for it here ({reason})"
        ) from error
    return list(found.devices)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program before XLA has compiled it.

    Attributes:
      name: `training` or `evaluation, N views`.
      batch: images of a step, over all devices.
      lowered: what JAX made of it.
      expected: bytes that a device receives at each point, by arithmetic; empty for evaluations.
      passes: forward and backward passes through the layers.
    """

    name: str
    batch: int
    lowered: jax.stages.Lowered
    expected: dict[str, float]
    passes: int


def training(config: ConfigDict, placement: parallel.Placement, target: Target) -> Compiled:
    """The training step."""
    return measure(lower_training(config, placement), config, placement, target)


def evaluation(
    config: ConfigDict, placement: parallel.Placement, target: Target, views: int
) -> Compiled:
    """One step of an evaluation with this number of views."""
    return measure(lower_evaluation(config, placement, views), config, placement, target)


def lower_training(config: ConfigDict, placement: parallel.Placement) -> Program:
    """The training step, not compiled yet."""
    images = config.batch_size // placement.data_parallel
    expected = {
        point.name: float(point.bytes * (images if point.axis == parallel.TOWER else 1))
        for point in exchange.points(config, placement.data_parallel)
        if placement.mesh.devices.size > 1
    }
    return Program("training", config.batch_size, lower_step(config, placement), expected, 3)


def lower_evaluation(config: ConfigDict, placement: parallel.Placement, views: int) -> Program:
    """One step of an evaluation with this number of views, not compiled yet."""
    data, tower = config.data, build_tower(config.model)
    inputs = input_rules.build(data, np.zeros((data.image_size, data.image_size, 3), np.float32))
    step: Any = evaluate.make_eval_step(tower, inputs, placement, views, config.evaluate.metrics)
    size = evaluate.batch_size(config, views, placement)
    variables = {
        "params": parameter_shapes(tower, data.crop_size),
        "batch_stats": initial_statistics(tower, data.crop_size),
    }
    side = data.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((size,), jnp.float32),
    }
    name = f"evaluation, {views} view{'s' if views > 1 else ''}"
    return Program(name, size, step.lower(variables, batch), {}, views)


def optimize(one: Program, placement: parallel.Placement, target: Target) -> jax.stages.Compiled:
    """Compiles a program.

    Raises:
      UsageError: XLA says that it does not fit into the memory of the device.
    """
    options: dict[str, str | bool] = dict(placement.compiler_options())
    if target.device.platform == "cuda":
        # Without a device there is nothing to try variants on.
        options["xla_gpu_autotune_level"] = "0"
    try:
        return one.lowered.compile(options or None)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        if "RESOURCE_EXHAUSTED" not in reason:
            raise
        raise UsageError(
            f"--compile={target.name}: {one.name} with {one.batch} images does not fit: {reason}; "
            "use a smaller --config.batch_size, or --config.accumulate_steps"
        ) from error


def measure(
    one: Program, config: ConfigDict, placement: parallel.Placement, target: Target
) -> Compiled:
    """Compiles a program and counts what is in it; see `optimize`."""
    return count(one, optimize(one, placement, target), config, placement)


def count(
    one: Program,
    compiled: jax.stages.Compiled,
    config: ConfigDict,
    placement: parallel.Placement,
) -> Compiled:
    """Counts what is in a compiled program, be it for devices elsewhere or one that runs here.

    Args:
      one: the program before.
      compiled: the program that XLA made of it.
      config: of the run.
      placement: of the run.
    """
    text = compiled.as_text() or ""
    memory: Any = compiled.memory_analysis()
    parsed = hlo.parse(text)
    kernels = moved(parsed)
    devices = placement.mesh.devices.size
    points = [point.name for point in exchange.points(config, placement.data_parallel)]
    found = exchange.by_point(exchange.collectives(text, devices), points)
    macs = sum(row.macs for row in table.count(config.model, config.data.crop_size))
    operations = 2.0 * macs * one.batch * one.passes
    if one.name == "training":  # Nobody asks for the gradient of the images.
        first = table.count(config.model, config.data.crop_size)[0].macs
        operations -= 2.0 * first * one.batch
    return Compiled(
        name=one.name,
        batch=one.batch,
        arguments=memory.argument_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        scratch=memory.temp_size_in_bytes,
        kernels=len(kernels),
        traffic=by_kind(kernels),
        exchanged={point: float(sent) for point, (_, sent) in found.items() if sent},
        expected=one.expected,
        operations=operations / devices,
        warnings=tuple(warnings(parsed, kernels, config.model.compute_dtype)),
    )  # fmt: skip


def _largest_batch(
    config: ConfigDict, placement: parallel.Placement, target: Target, first: Compiled
) -> int:
    """The largest batch whose training fits, on the line through the peaks of two programs.

    Of small batches the peak may be that of the update, which does not grow with them: the other
    program is the first of 4, 16 and 64 times as many images that needs more.
    """
    more = config.copy_and_resolve_references()
    smallest = placement.data_parallel * config.accumulate_steps
    for times in (4, 16, 64):
        more.batch_size = config.batch_size * times
        try:
            other = training(more, placement, target)
        except UsageError:  # It does not fit, and the peak is not known.
            return more.batch_size // 4
        each = (other.peak - first.peak) / (other.batch - first.batch)
        if each > 0:
            most = first.batch + int((target.device.memory - first.peak) / each)
            return max(most // smallest * smallest, 0)
    return more.batch_size


def text_of(found: dict[str, Any]) -> str:
    """What `compile_for` returned, as tables."""
    gigabytes, most = found["memory"] / 1e9, found["largest_batch"]
    lines = [
        f"{found['target']}: {found['placement']}, {found['compute_dtype']}, compiled by jax "
        f"{found['jax']}. Nothing has run: these are counts, and ceilings.",
    ]
    for one in found["programs"]:
        fits = "fits into" if one["fits"] else "DOES NOT FIT into"
        rows = [("moved through memory", "MB", "share")]
        for kind, size in one["traffic"].items():
            if size >= 1e5:
                rows.append((kind, f"{size / 1e6:,.1f}", f"{size / one['bytes']:.0%}"))
        rows.append(("in all", f"{one['bytes'] / 1e6:,.1f}", ""))
        received = [("received from other devices", "MB", "by arithmetic, MB")]
        for point, size in one["exchanged"].items():
            arithmetic = one["expected"].get(point)
            text = "" if arithmetic is None else f"{arithmetic / 1e6:,.3f}"
            received.append((point, f"{size / 1e6:,.3f}", text))
        limits = [("limit", "ms of a step", "images/s at most")]
        for name, seconds in sorted(one["limits"].items(), key=lambda item: -item[1]):
            if seconds:
                limits.append((name, f"{1e3 * seconds:.3f}", f"{one['batch'] / seconds:,.0f}"))
        lines += [
            "",
            f"{one['name']}, {one['batch']} images a step, {one['kernels']} kernels",
            f"  memory: {one['peak'] / 1e9:.2f} GB at the peak ({one['arguments'] / 1e9:.2f} of "
            f"weights, state and batch), {fits} the {gigabytes:.0f} GB of the device",
            f"  arithmetic: {one['operations'] / 1e9:,.0f} billion operations a device",
            f"  ceiling: {one['ceiling_images_per_second']:,.0f} images/s, by "
            f"{one['limited_by']}",
        ]  # fmt: skip
        for table_rows in (rows, received if len(received) > 1 else [], limits):
            if table_rows:
                lines += ["", *("  " + line for line in align(table_rows, right=(1, 2)))]
        lines += [f"  warning: {warning}" for warning in one["warnings"]]
    return "\n".join([
        *lines, "",
        f"Largest batch whose training fits: about {float(f'{most:.2g}'):,.0f}.",
        "A ceiling is what the device could do if its memory, its units or its links worked at "
        "their peak all the time and at once.",
    ])  # fmt: skip


def as_data(one: Compiled, config: ConfigDict, device: Device) -> dict[str, Any]:
    """What one program would need, with its limits on a device and the ceiling that they make."""
    peak = device.peak_of(config.model.compute_dtype, config.model.precision)
    limits = one.limits(device, peak)
    slowest = max(limits, key=lambda name: limits[name])
    return dataclasses.asdict(one) | {
        "peak": one.peak,
        "bytes": one.bytes,
        "fits": one.peak <= device.memory,
        "peak_operations": peak,
        "limits": limits,
        "limited_by": slowest,
        "ceiling_images_per_second": one.batch / limits[slowest],
    }
