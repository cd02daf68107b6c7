"""Activation functions, by the names that `config.model.activation` takes in `ACTIVATIONS`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alexnet_jax.errors import UsageError
from alexnet_jax.model.derivatives import custom_vjp
from alexnet_jax.model.memory import stored
from alexnet_jax.model.operation import Graph, GraphSite, Operation, Site
from alexnet_jax.registry import ACTIVATIONS, OPERATIONS


@dataclasses.dataclass(frozen=True)
class Activation:
    """One activation function.

    Attributes:
      function: of every element.
      onnx: the ONNX operator that computes it; or a function that adds several nodes to a graph,
        after its second argument, and returns the name of the last; empty if it cannot be exported.
      torch: the name of PyTorch's function, such as `torch.tanh` or `F.silu`; or empty.
    """

    function: Callable[[jax.Array], jax.Array]
    onnx: str | Callable[[Graph, str], str] = ""
    torch: str = ""


@functools.partial(custom_vjp, plain=jax.nn.relu)
def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`, with gradient 0 at 0; the gradient needs the output only, not the input."""
    return jnp.maximum(x, 0)


def _relu_fwd(x):
    y = stored(relu(x))
    return y, y


def _relu_bwd(y, g):
    return (jnp.where(y > 0, g, 0),)


relu.defvjp(_relu_fwd, _relu_bwd)


@dataclasses.dataclass(frozen=True)
class Activate(Operation):
    """Applies the activation function of the network, `config.model.activation`."""

    activation: Activation

    @classmethod
    def of(cls, model: ConfigDict) -> Self:
        """The activation function that `config.model` names."""
        return cls(ACTIVATIONS[model.activation])

    def __call__(self, x: jax.Array, at: Site) -> jax.Array:
        """Applies it to every element."""
        del at
        return self.activation.function(x)

    def onnx(self, graph: Graph, x: str, at: GraphSite) -> str:
        """Adds one node, or those of the activation's own function.

        Raises:
          UsageError: the activation does not say how it is exported.
        """
        del at
        onnx = self.activation.onnx
        if not onnx:
            raise UsageError("cannot be exported to ONNX: give its Activation(...) onnx=...")
        return graph.add(onnx, x) if isinstance(onnx, str) else onnx(graph, x)

    def torch(self, x: str, at: GraphSite) -> str:
        """Calls the activation's function.

        Raises:
          UsageError: the activation does not name it.
        """
        del at
        if not self.activation.torch:
            raise UsageError("cannot be exported to PyTorch: give its Activation(...) torch=...")
        return f"{self.activation.torch}({x})"


ACTIVATIONS["relu"] = Activation(relu, onnx="Relu", torch="F.relu")
ACTIVATIONS["tanh"] = Activation(jnp.tanh, onnx="Tanh", torch="torch.tanh")
ACTIVATIONS["sigmoid"] = Activation(jax.nn.sigmoid, onnx="Sigmoid", torch="torch.sigmoid")

OPERATIONS["activation"] = Activate
