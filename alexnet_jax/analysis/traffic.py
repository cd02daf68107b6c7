"""What an optimized program moves through the memory of its device, operation by operation.

Each kernel reads its operands once and writes its results once. A fusion that only slices an
operand reads the slices; an update in place writes the update; of an asynchronous pair the start
counts; a conditional counts as its most expensive branch, a loop as often as it runs. What a TPU
keeps in its VMEM is free, and what it stores in tiles counts with its padding.
"""

import dataclasses
import re

from alexnet_jax.parallel.hlo import Array, Instruction, Program
from alexnet_jax.registry import OPERATIONS

LARGE = 10e6
"""Bytes from which a copy or a pass in float32 is named."""

_NOTHING = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "add-dependency", "iota", "async-update",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Moved:
    """One kernel.

    Attributes:
      opcode: what it is; within control flow, `while/fusion` and so on.
      name: its name in the program.
      bytes: read and written in device memory, all times together.
      scope: the named scopes in which it was traced.
    """

    opcode: str
    name: str
    bytes: float
    scope: str


def moved(program: Program) -> list[Moved]:
    """Every kernel of a program, with what it moves."""
    return _of_computation(program, program.entry, 1)


def _of_computation(program: Program, name: str, times: int) -> list[Moved]:
    found: list[Moved] = []
    for one in program.computations.get(name, ()):
        if one.opcode in _NOTHING or one.opcode.endswith("-done") or not one.opcode:
            continue
        inner = _inside(program, one, times)
        if inner is None:
            size = times * _bytes(program, name, one)
            found.append(Moved(one.opcode, one.name, size, one.scope))
        else:
            found += inner
    return found


def _inside(program: Program, one: Instruction, times: int) -> list[Moved] | None:
    """The kernels of the computations that an instruction runs; None if it is a kernel itself."""
    if one.opcode == "conditional":
        names = one.computations("branch_computations", "true_computation", "false_computation")
        branches = [_of_computation(program, name, times) for name in names]
        return _named("conditional", max(branches, key=lambda b: sum(x.bytes for x in b)))
    if one.opcode == "while":
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', one.attributes)
        often = times * (int(known[1]) if known else 1)
        return _named("while", _of_computation(program, one.computations("body")[0], often))
    called = {"call": "to_apply", "async-start": "calls"}.get(one.opcode)
    if called and (names := one.computations(called)):
        found = _of_computation(program, names[0], times)
        return found if one.opcode == "call" else _named("async", found)
    return None


def _named(kind: str, found: list[Moved]) -> list[Moved]:
    return [dataclasses.replace(one, opcode=f"{kind}/{one.opcode}") for one in found]


def _bytes(program: Program, computation: str, one: Instruction) -> float:
    """Bytes that one kernel reads and writes once."""
    results = program.results[computation]
    operands = [results.get(name, ()) for name in one.operands]
    reads, writes = [_size(arrays) for arrays in operands], _size(one.results)
    if one.opcode == "fusion":
        reads, writes = _of_fusion(program, one, reads, writes)
    elif one.opcode in ("slice", "dynamic-slice", "gather"):
        reads = [writes]
    elif one.opcode == "dynamic-update-slice":
        reads, writes = [reads[1]], reads[1]
    elif one.opcode == "slice-start":
        # ((operand), slice, context): as much of the operand as the slice holds.
        part = one.results[len(operands) : len(operands) + 1]
        from_memory = any(array.in_device_memory for array in operands[0])
        reads, writes = [sum(x.bytes for x in part) if from_memory else 0.0], _size(part)
    elif one.opcode == "copy-start":
        writes = _size(one.results[:1])
    elif one.opcode.endswith("-start") and not one.opcode.startswith("all-reduce"):
        # The operands stand before the results.
        writes = _size(one.results[sum(map(len, operands)) :])
    return writes + sum(reads)


def _of_fusion(
    program: Program, one: Instruction, reads: list[float], writes: float
) -> tuple[list[float], float]:
    """What a fusion reads of each operand, and writes."""
    names = one.computations("calls")
    inside = program.computations.get(names[0], ()) if names else ()
    for number, size in _sliced(inside).items():
        if number < len(reads):
            reads[number] = min(size, reads[number])
    root = next((x for x in inside if x.is_root), None)
    if root is not None and root.opcode == "dynamic-update-slice":
        writes = _size(program.results[names[0]].get(root.operands[1], ()))
    return reads, writes


def _sliced(inside: tuple[Instruction, ...]) -> dict[int, float]:
    """For each parameter of a fusion that is only sliced or updated in place, the bytes read."""
    users: dict[str, list[Instruction]] = {}
    for one in inside:
        for name in dict.fromkeys(one.operands):
            users.setdefault(name, []).append(one)
    found = {}
    for parameter in (one for one in inside if one.opcode == "parameter"):
        todo, total = [parameter.name], 0.0
        while todo:
            name = todo.pop()
            for user in users.get(name, []):
                first = user.operands[0] == name
                if user.opcode in ("bitcast", "get-tuple-element"):
                    todo.append(user.name)
                elif first and user.opcode in ("slice", "dynamic-slice", "gather"):
                    total += _size(user.results)
                elif not (first and user.opcode == "dynamic-update-slice"):
                    break
            else:
                continue
            break
        else:
            found[parameter.number] = total
    return found


def _size(arrays: tuple[Array, ...]) -> float:
    return sum(array.bytes for array in arrays if array.in_device_memory)


def by_kind(kernels: list[Moved]) -> dict[str, float]:
    """Bytes by kind of operation, largest first."""
    sums: dict[str, float] = {}
    for kernel in kernels:
        kind = _kind(kernel)
        sums[kind] = sums.get(kind, 0) + kernel.bytes
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")


def _kind(kernel: Moved) -> str:
    words = re.findall(r"\w+", kernel.scope)
    opcode = kernel.opcode.rpartition("/")[2]
    if opcode.startswith(_COLLECTIVES):
        return "exchange"
    for word in reversed(words):
        if word in OPERATIONS:
            return word
    if opcode.startswith("copy"):
        return "copies"
    for word in reversed(words):
        if re.fullmatch(r"(conv|fc|local)\d+", word):
            return {"conv": "convolutions", "fc": "dense layers", "local": "local layers"}[
                word.rstrip("0123456789")
            ]
    return "update and checks"


def warnings(program: Program, kernels: list[Moved], compute_dtype: str) -> list[str]:
    """What slows a step on a device, or makes it wait for the host."""
    found = []
    instructions = [one for many in program.computations.values() for one in many]
    for opcode, why in (
        ("conditional", "the host waits for the device to know which branch"),
        ("infeed", "waits for data from the host"),
        ("outfeed", "waits for the host"),
        ("send", "waits for the host"),
    ):
        if count := sum(one.opcode == opcode for one in instructions):
            found.append(f"{count} {opcode}: {why}")
    calls = (one.attributes for one in instructions if one.opcode == "custom-call")
    if any(re.search("callback|xla_ffi_python", attributes) for attributes in calls):
        found.append("a callback into Python")
    # A copy from or to other memory, such as a TPU's VMEM, is how an array is fetched or stored.
    ends = {one.name: one.results[0] for one in instructions if one.results}
    begins = {one.name: ends.get(one.operands[0]) for one in instructions if one.operands}
    for kernel in kernels:
        copies = kernel.opcode.rpartition("/")[2] in ("copy", "copy-start", "transpose")
        inside = re.search(r"conv\d|local\d", kernel.scope)
        large = kernel.bytes / 2 > LARGE
        arrays = begins.get(kernel.name), ends[kernel.name]
        within = all(array is None or array.in_device_memory for array in arrays)
        if copies and large and not inside and within:
            found.append(f"a copy of {kernel.bytes / 2e6:.0f} MB, {kernel.name}")
    if compute_dtype != "float32":
        found += _wide_passes(instructions, {kernel.name: kernel for kernel in kernels})
    return found


def _wide_passes(instructions: list[Instruction], kernels: dict[str, Moved]) -> list[str]:
    """Feature maps that a narrow network writes into its memory as float32."""
    found = []
    for one in instructions:
        kernel = kernels.get(one.name)
        if kernel is None or one.opcode != "fusion":
            continue
        wide = [x for x in one.results if x.kind == "f32" and len(x.shape) > 3]
        size = sum(x.bytes for x in wide if x.in_device_memory)
        if size > LARGE and any(word in OPERATIONS for word in re.findall(r"\w+", kernel.scope)):
            found.append(f"{size / 1e6:.0f} MB of maps in float32, {kernel.name}: {kernel.scope}")
    return found
