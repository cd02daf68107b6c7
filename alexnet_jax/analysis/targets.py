"""Devices that a program can be compiled for without having one: a table, with sources.

Peaks and bandwidths are those that the maker states, and no program reaches them. A peak is one of
dense matrix products with sums in float32. `float32` is that of products of float32 itself, and
`default` that of how JAX multiplies float32 there unless it is told otherwise: in TF32 on these
GPUs, in one pass of bfloat16 on a TPU, whose products of float32 take six such passes.

Sources: NVIDIA H100 and H200 datasheets (SXM; an H200 computes as an H100 does) and A100 datasheet
(80 GB SXM), NVIDIA Ada GPU architecture whitepaper, appendix A;
https://docs.cloud.google.com/tpu/docs/v5e, v5p and v6e. Links are in one direction, those of a
TPU one of its links (between neighbours); an RTX 4090 has PCIe 4.0 x16.
"""

import dataclasses
import re

from alexnet_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Device:
    """One kind of device.

    Attributes:
      title: its full name; that of a GPU is what JAX calls it (`device_kind`).
      platform: `cuda` or `tpu`.
      memory: bytes of its main memory.
      bandwidth: bytes per second of that memory.
      peak: multiply and add operations per second, by `bfloat16`, `float32` and `default` (of
        float32).
      link: bytes per second to another device, in one direction.
      chip: what XLA must know of a GPU, as fields of its `GpuDeviceInfoProto`.
      capability: the compute capability of a GPU.
      kinds: other names by which JAX calls it.
    """

    title: str
    platform: str
    memory: int
    bandwidth: float
    peak: dict[str, float]
    link: float
    chip: dict[str, float] = dataclasses.field(default_factory=dict[str, float])
    capability: tuple[int, int] = (0, 0)
    kinds: tuple[str, ...] = ()

    def peak_of(self, compute_dtype: str, precision: str) -> float:
        """Operations per second of a network in `compute_dtype`, float32 at this `precision`."""
        if compute_dtype != "float32":
            return self.peak["bfloat16"]
        if precision == "high" and self.platform == "tpu":  # three passes of bfloat16
            return self.peak["bfloat16"] / 3
        return self.peak["float32" if precision == "highest" else "default"]


def _gpu(
    cores: int, fpus: int, clock: float, cache: int, block: int, shared: int, threads: int = 2048
) -> dict[str, float]:
    """Multiprocessors, units of each, GHz, bytes of L2 and of shared memory, threads of each."""
    return {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": shared,
        "shared_memory_per_block_optin": block,
        "threads_per_core_limit": threads,
        "core_count": cores,
        "fpus_per_core": fpus,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "clock_rate_ghz": clock,
        "l2_cache_size": cache,
    }


def _tpu(title: str, gib: int, bandwidth: float, peak: float, link: float, *kinds: str) -> Device:
    peaks = {"bfloat16": peak, "float32": peak / 6, "default": peak}
    return Device(title, "tpu", gib * 2**30, bandwidth, peaks, link, kinds=kinds)


_HOPPER = (
    {"bfloat16": 989.4e12, "float32": 66.9e12, "default": 494.7e12}, 450e9,
    _gpu(132, 128, 1.98, 52428800, 232448, 233472), (9, 0),
)  # fmt: skip

DEVICES = {
    "h100": Device("NVIDIA H100 80GB HBM3", "cuda", 84978434048, 3352e9, *_HOPPER),
    "h200": Device("NVIDIA H200", "cuda", 141 * 10**9, 4800e9, *_HOPPER),
    "a100": Device(
        "NVIDIA A100-SXM4-80GB", "cuda", 85049802752, 2039e9,
        {"bfloat16": 312e12, "float32": 19.5e12, "default": 156e12}, 300e9,
        _gpu(108, 64, 1.41, 41943040, 166912, 167936), (8, 0),
    ),
    "rtx4090": Device(
        "NVIDIA GeForce RTX 4090", "cuda", 25756696576, 1008e9,
        {"bfloat16": 165.2e12, "float32": 82.6e12, "default": 82.6e12}, 32e9,
        _gpu(128, 128, 2.52, 75497472, 101376, 102400, 1536), (8, 9),
    ),
    "v5e": _tpu("TPU v5e", 16, 819e9, 197e12, 50e9, "TPU v5 lite"),
    "v5p": _tpu("TPU v5p", 95, 2765e9, 459e12, 100e9, "TPU v5"),
    "v6e": _tpu("TPU v6e", 32, 1638e9, 918e12, 100e9, "TPU v6 lite"),
}  # fmt: skip


def known(kind: str) -> Device | None:
    """The device that JAX calls `kind` (`jax.Device.device_kind`).

    None if the table does not have exactly that one: an H100 with PCIe has other peaks than one
    with SXM, and of a CPU no peaks are known.
    """
    named = (d for d in DEVICES.values() if kind in (d.title, *d.kinds))
    return next(named, None)


@dataclasses.dataclass(frozen=True)
class Target:
    """Some devices of one kind.

    Attributes:
      name: as typed, such as `h100:2` or `v5e:2x2`.
      device: what they are.
      grid: their number along each side.
    """

    name: str
    device: Device
    grid: tuple[int, ...]

    @property
    def topology(self) -> str:
        """The grid as XLA's topologies write it: on GPUs partitions x hosts x devices."""
        if self.device.platform == "tpu":
            return self.name
        return f"1x1x{self.grid[0]}"

    @property
    def config(self) -> str:
        """A GPU as the text of XLA's `GpuTargetConfigProto`."""
        fields = self.device.chip | {
            "memory_bandwidth": int(self.device.bandwidth),
            "device_memory_size": self.device.memory,
        }
        lines = [f"  {name}: {value}" for name, value in fields.items()]
        major, minor = self.device.capability
        return "\n".join([
            "gpu_device_info {", *lines,
            f"  cuda_compute_capability {{ major: {major} minor: {minor} }}", "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 12 }",
            "runtime_version { major: 13 minor: 0 }",
            f'device_description_str: "{self.device.title}"',
        ])  # fmt: skip


def target(name: str) -> Target:
    """The target of a name such as `h100:2` or `v5e:2x2`.

    Raises:
      UsageError: there is no such device, or its number is missing.
    """
    kind, _, grid = name.partition(":")
    device = DEVICES.get(kind)
    if device is None:
        raise UsageError(f"--compile={name}: no such device; use one of {', '.join(DEVICES)}")
    if device.platform == "cuda":
        if not re.fullmatch(r"[1-9]\d{0,3}", grid):
            raise UsageError(f"--compile={name}: say how many, such as {kind}:2")
    elif not re.fullmatch(r"[1-9]\d?(x[1-9]\d?){1,2}", grid):
        wanted = f"{kind}:2x2" if kind in ("v5e", "v6e") else f"{kind}:2x2x1"
        raise UsageError(f"--compile={name}: say which grid, such as {wanted}")
    return Target(name, device, tuple(int(side) for side in grid.split("x")))
