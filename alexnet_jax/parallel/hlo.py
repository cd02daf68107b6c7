"""Optimized programs of XLA, read from their text (`compiled.as_text()`).

Only what is needed to count: computations, instructions, their results, operands and attributes.
The syntax is that of XLA's `HloModule::ToString`; there is no stable interface.
"""

import dataclasses
import functools
import math
import re

_WIDTHS = {"pred": 1.0, "s4": 0.5, "u4": 0.5, "c64": 8.0, "c128": 16.0}
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a program.

    Attributes:
      kind: the type of its elements, such as `bf16`.
      shape: its sides.
      layout: the text of its layout, such as `1,0:T(8,128)(2,1)S(1)`; empty if it has none.
    """

    kind: str
    shape: tuple[int, ...]
    layout: str = ""

    @property
    def elements(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.shape)

    @property
    def width(self) -> float:
        """Bytes of an element; 0 of XLA's type `token`, which only orders effects."""
        if self.kind in _WIDTHS:
            return _WIDTHS[self.kind]
        digits = re.match(r"[a-z]+(\d+)", self.kind)
        return int(digits[1]) / 8 if digits else 0.0

    @property
    def bytes(self) -> float:
        """Bytes with the padding of its layout: a TPU stores whole tiles, as in `T(8,128)`."""
        order, _, rest = self.layout.partition(":")
        tile = re.search(r"T\(([\d,]+)\)", rest)
        if not tile or not self.shape:
            return self.elements * self.width
        minor_first = [self.shape[int(axis)] for axis in order.split(",") if axis]
        for place, side in enumerate(reversed(tile[1].split(","))):
            if place < len(minor_first):
                minor_first[place] = -(-minor_first[place] // int(side)) * int(side)
        return math.prod(minor_first) * self.width

    @property
    def in_device_memory(self) -> bool:
        """Whether it is in the device's main memory and not, for example, in a TPU's VMEM."""
        return re.search(r"S\([1-9]", self.layout) is None


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: its name, which is unique in its computation.
      opcode: such as `fusion` or `all-reduce-start`.
      results: the arrays of its result; several if it is a tuple.
      operands: the names of its operands.
      attributes: the rest of the line.
      is_root: whether its result is that of the computation.
      number: of a parameter, which one it is.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False
    number: int = -1

    @property
    def scope(self) -> str:
        """The named scopes in which it was traced."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""

    def computations(self, *attributes: str) -> list[str]:
        """The names of the computations in these attributes, such as `calls`."""
        found = []
        for attribute in attributes:
            match = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|(%?[\w.\-]+))", self.attributes)
            if match:
                found += re.findall(r"[\w.\-]+", match[1] or match[2])
        return found


@dataclasses.dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
      entry: the name of the computation that runs.
      computations: the instructions of each computation, in order.
    """

    entry: str
    computations: dict[str, tuple[Instruction, ...]]

    @functools.cached_property
    def results(self) -> dict[str, dict[str, tuple[Array, ...]]]:
        """The result of every instruction, by computation and name."""
        return {
            name: {one.name: one.results for one in instructions}
            for name, instructions in self.computations.items()
        }


def parse(text: str) -> Program:
    """Reads the text of a program.

    Raises:
      ValueError: it has no entry.
    """
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    entry = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            head = _HEAD.match(line)
            current = computations.setdefault(head[2], []) if head else None
            entry = head[2] if head and head[1] else entry
        elif current is not None and (match := _LINE.match(line)):
            current.append(_instruction(match[2], match[3], bool(match[1])))
    if not entry:
        raise ValueError("the text of a program has no ENTRY")
    return Program(entry, {name: tuple(found) for name, found in computations.items()})


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    """Reads `TYPE OPCODE(OPERANDS), ATTRIBUTES`."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    rest = text[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    start = len(opcode)
    close = _closing(rest, start)
    inside = rest[start + 1 : close]
    number = int(inside) if opcode == "parameter" and inside.isdigit() else -1
    return Instruction(
        name, opcode, _arrays(text[:end]), tuple(_NAME.findall(inside)), rest[close + 1 :],
        is_root, number,
    )  # fmt: skip


def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(kind, tuple(int(side) for side in shape.split(",") if side), layout)
        for kind, shape, layout in _ARRAY.findall(text)
    )


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`; the last place if none does."""
    depth = 0
    for place in range(start, len(text)):
        depth += text[place] == "("
        depth -= text[place] == ")"
        if not depth:
            return place
    return len(text) - 1
