"""The network as a file of Python that defines it in PyTorch.

The file is written from the table of layers: one line for a layer and one for each operation that
follows it. The arrays of a column already have PyTorch's layout, and the module calls its own by
the same names, so it loads the safetensors file that `weights.files` writes as it is.
"""

import keyword
import math

from alexnet_jax import templates
from alexnet_jax.config import table
from alexnet_jax.errors import UsageError
from alexnet_jax.model.operation import GraphSite, Operation
from alexnet_jax.weights.column import Column


def to_source(column: Column, weights: str) -> str:
    """A module of Python with the network, its input and its classes.

    Args:
      column: the network.
      weights: name of the safetensors file, which lies beside the module.

    Raises:
      UsageError: an operation cannot be exported, or a layer has a name that an attribute of a
        module cannot have; says which.
    """
    config, model = column.config, column.config.model
    parts: list[str] = []
    steps: list[str] = []
    shape = (config.data.crop_size, config.data.crop_size, 3)
    for number, row in enumerate(table.count(model, config.data.crop_size)):
        layer = row.layer
        own = f"self.{_attribute(layer.name)}"
        sides = " x ".join(map(str, (row.next_shape[-1], *row.next_shape[:-1])))
        steps.append(f"# {layer.name}: {sides}")
        if layer.kind == "conv":
            before, after = layer.padding
            if before != after:
                steps.append(f"x = F.pad(x, ({before}, {after}, {before}, {after}))")
            padding = before if before == after else 0
            groups = model.towers if number and layer.exchange == "none" else 1
            parts.append(
                f"{own} = nn.Conv2d({row.in_channels * groups}, {row.out_shape[-1]}, "
                f"{layer.kernel}, stride={layer.stride}, padding={padding}, groups={groups})"
            )
        else:
            steps += ["x = x.flatten(1)"] if len(shape) == 3 else []
            # Of all inputs: where towers do not exchange them, a column has zeros.
            parts.append(f"{own} = nn.Linear({math.prod(shape)}, {row.out_shape[-1]})")
        steps.append(f"x = {own}(x)")
        shape = row.out_shape
        for name, op in zip(layer.then, layer.operations, strict=True):
            if values := _values(op, shape[-1]):
                parts.append(f"{own}.{_attribute(name)} = {values}")
            at = GraphSite(
                shape=shape,
                towers=model.towers,
                parameters={part: f"{own}.{name}.{part}" for part in op.parameters()},
                statistics={part: f"{own}.{name}.{part}" for part in op.statistics()},
            )
            try:
                step = op.torch("x", at)
            except UsageError as error:
                raise UsageError(f"{name} after {layer.name} {error}") from error
            steps += [f"x = {step}"] if step != "x" else []
            shape = op.shape(shape)
    return templates.render(
        "alexnet_jax.weights",
        "module.py.jinja",
        weights=weights,
        towers="The two towers of 2012 are its groups." if model.towers == 2 else "",
        size=config.data.image_size,
        crop=config.data.crop_size,
        classes=model.num_classes,
        mean=column.mean.shape,
        scale=config.data.scale,
        resize=config.data.resize,
        shrink=config.data.shrink,
        parts=parts,
        steps=steps,
    )


def _values(op: Operation, channels: int) -> str:
    """What holds the values of an operation; nothing if it has none."""
    trained, running = tuple(op.parameters()), tuple(op.statistics())
    return f"Values({trained}, {running}, ({channels},))" if trained or running else ""


def _attribute(name: str) -> str:
    """Returns the name.

    Raises:
      UsageError: no attribute can have it.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name == "input":
        raise UsageError(f"{name!r} cannot be the name of a part of a PyTorch module")
    return name
