"""What an operation is: something that may follow a layer, by its name in `OPERATIONS`.

An operation states its fields, its trained values and its running statistics, how it changes a
shape, what it computes and how it is exported. Everything else asks it: the configuration for its
fields, the tower for its values, the arithmetic of the table for its shapes, the optimizer and the
files of weights for its arrays. docs/adding.md adds one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Self

import jax
from ml_collections import ConfigDict

from alexnet_jax.config.fields import Field
from alexnet_jax.errors import UsageError

Shape = tuple[int, ...]
"""`(H, W, C)` or `(C,)`: of one image, without the axis of the batch."""


@dataclasses.dataclass
class Site:
    """Where an operation is applied, in one tower.

    Attributes:
      layer: name of the layer that it follows.
      number: of that layer in the table, from 0.
      training: whether to act as in training; False at test time.
      key: of this step and layer, for random draws; None at test time. What is drawn for an example
        should depend on `index_B` and the tower only, so that it does not depend on the devices.
      index_B: each example's index in its data set; None at test time.
      towers: number of towers. `collectives.TOWER` names their axis.
      parameters: the trained values by name, `[C]` each, float32 or wider.
      statistics: the running values by name, `[C]` each. In training, assign to change one.
      sum_over_data: the sum of a tree over the parts of the batch, where it is divided.
    """

    layer: str
    number: int
    training: bool
    key: jax.Array | None
    index_B: jax.Array | None
    towers: int
    parameters: Mapping[str, jax.Array]
    statistics: dict[str, jax.Array]
    sum_over_data: Callable[[Any], Any]


class Graph(Protocol):
    """An ONNX graph that is being written."""

    def add(
        self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        """Adds a node and returns the name of its output, or a list of several."""
        ...

    def constant(self, value: Any) -> str:
        """Adds a constant and returns its name."""
        ...


@dataclasses.dataclass(frozen=True)
class GraphSite:
    """Where an operation is exported: after a layer of all towers side by side.

    Attributes:
      shape: of one image, before the operation.
      towers: number of towers, each of which has an equal part of the channels.
      parameters: what the trained values, `[C]` each, are called there, by their own names.
      statistics: the same of the running values.
    """

    shape: Shape
    towers: int
    parameters: Mapping[str, str]
    statistics: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Operation:
    """Base class; a subclass is a frozen dataclass of constants.

    Attributes:
      group: of its fields in a configuration, which are `model.GROUP.NAME`. Operations of one kind
        may share a group.
      fields: their declarations, by name.
    """

    group: ClassVar[str] = ""
    fields: ClassVar[Mapping[str, Field]] = {}

    def __init_subclass__(cls) -> None:
        """Checks the class.

        Raises:
          TypeError: it has fields but no group for them.
        """
        if cls.fields and not cls.group:
            raise TypeError(f"{cls.__name__} has fields: set its group, such as group = 'norm'")

    @classmethod
    def of(cls, model: ConfigDict) -> Self:
        """The operation with the constants of `config.model`: by default those of its fields.

        Raises:
          UsageError: a field has a value that does not fit the others; names it.
        """
        return cls(**{name: model[cls.group][name] for name in cls.fields})

    def parameters(self) -> dict[str, float]:
        """Trained values, one per channel each, with their initial value."""
        return {}

    def statistics(self) -> dict[str, float]:
        """Running values, one per channel each, that are not trained, with their initial value."""
        return {}

    def shape(self, shape: Shape) -> Shape:
        """The shape after it; the number of channels stays.

        Raises:
          UsageError: it cannot be applied to such a shape.
        """
        return shape

    def shape_text(self, shape: Shape) -> str:
        """The arithmetic of `shape` for one side of a map, to be read; empty if the side stays."""
        del shape
        return ""

    def reach(self) -> tuple[int, int, int]:
        """What one output of a map sees of that map.

        Returns:
          The side of a square in pixels, the pixels between two squares, and how many pixels the
          first square reaches over the border at the top and on the left.
        """
        return 1, 1, 0

    def received(self, shape: Shape, towers: int) -> int:
        """Elements that each tower receives from others per image, in the forward pass.

        Args:
          shape: before it, with the channels of all towers.
          towers: number of towers.
        """
        del shape, towers
        return 0

    def __call__(self, x: jax.Array, at: Site) -> jax.Array:
        """Applies it to `[B, H, W, C]` or `[B, C]`, the channels of one tower.

        The result is rounded to the type of `x`, and may be of a wider one. At test time that of an
        image depends on this image alone: `x` may hold a few of the batch (`memory.in_parts`).
        """
        raise NotImplementedError

    def onnx(self, graph: Graph, x: str, at: GraphSite) -> str:
        """Adds its nodes to a graph and returns the name of the output.

        Args:
          graph: to add nodes and constants to.
          x: name of the input, `[N, C, H, W]` or `[N, C]`.
          at: where it is applied.

        Raises:
          UsageError: it cannot be exported.
        """
        del graph, x, at
        raise UsageError(f"cannot be exported to ONNX: {type(self).__name__} has no method onnx")

    def torch(self, x: str, at: GraphSite) -> str:
        """Returns a PyTorch expression, in which `F` is `torch.nn.functional`.

        Args:
          x: name of the input, `[N, C, H, W]` or `[N, C]`.
          at: where it is applied; `self.training` says whether in training.

        Raises:
          UsageError: it cannot be exported.
        """
        del x, at
        name = type(self).__name__
        raise UsageError(f"cannot be exported to PyTorch: {name} has no method torch")


def of_maps(shape: Shape) -> Shape:
    """Returns the shape.

    Raises:
      UsageError: it is not one of feature maps.
    """
    if len(shape) != 3:
        raise UsageError("no map left: the operation is for outputs of conv and local layers")
    return shape
