"""Resizing and the centre crop as ONNX nodes, so that a graph takes images as they are decoded.

ONNX's own `Resize` has no mean over areas, and its antialiased form is another one in each runtime.
Every resizing of this project is linear and separable: along each side, pixel i of the crop is a
sum of the image's pixels with the shares of a row of a matrix. The nodes compute the two matrices
from the image's size, in the arithmetic of TensorFlow's kernels (float32, the centres of pixels at
halves, reciprocals where they have them), and apply them. `data.decode.to_square` says what the
rules are.
"""

import numpy as np
from ml_collections import ConfigDict
from onnx import TensorProto

from alexnet_jax.data.augment import center_offset
from alexnet_jax.model.operation import Graph


def add_square(graph: Graph, images: str, data: ConfigDict, name: str) -> None:
    """Adds the nodes from whole images to the crops that the network sees at test time.

    Args:
      graph: to add nodes and constants to.
      images: name of the input, uint8 `[N, height, width, 3]`, or 4 with an alpha, which is
        dropped.
      data: `config.data`.
      name: of the output, float32 `[N, 3, crop, crop]`, whole grey levels.
    """
    size, add = data.image_size, graph.add
    offset, _ = center_offset((size, size), data.crop_size)
    sides = add("Shape", images, start=1, end=3)
    if data.resize == "stretch":
        wanted = graph.constant(np.array([size, size]))
    else:  # sides * size / short, rounded
        short = add("ReduceMin", sides, keepdims=1)
        double = add("Add", add("Mul", sides, graph.constant(np.array([2 * size]))), short)
        wanted = add("Div", double, add("Mul", short, graph.constant(np.array([2]))))
    margins = add("Sub", wanted, graph.constant(np.array([size])))
    halves = add("Div", margins, graph.constant(np.array([2])))
    first = add("Add", halves, graph.constant(np.array([offset])))
    larger = add("Cast", add("Greater", wanted, sides), to=TensorProto.FLOAT)
    grows = add("Greater", add("ReduceMax", larger, keepdims=0), graph.constant(np.float32(0)))
    old, new = (add("Cast", n, to=TensorProto.FLOAT) for n in (sides, wanted))
    # TensorFlow's triangles are placed by the reciprocal of the enlargement, rounded twice.
    scales, inverse = add("Div", old, new), add("Reciprocal", add("Div", new, old))
    scales = inverse if data.shrink == "triangle" else add("Where", grows, inverse, scales)
    shares = []
    for side in range(2):
        number = graph.constant(np.array(side))
        old, scale, start = (add("Gather", of, number) for of in (sides, scales, first))
        shares.append(_shares(graph, old, scale, start, grows, data))
    colours = add(
        "Slice", images, graph.constant(np.array([0])), graph.constant(np.array([3])),
        graph.constant(np.array([3])),
    )  # fmt: skip
    maps = add("Transpose", add("Cast", colours, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    rows = add("MatMul", shares[0], maps)
    square = add("MatMul", rows, add("Transpose", shares[1], perm=[1, 0]))
    if data.shrink == "area":  # Divided last, as in TensorFlow: sums over areas are often exact.
        pixel = add("Reciprocal", add("ReduceProd", scales, keepdims=0))
        square = add("Mul", square, add("Where", grows, graph.constant(np.float32(1)), pixel))
    add("Round", square, name=name)


def _shares(graph: Graph, old: str, scale: str, first: str, grows: str, data: ConfigDict) -> str:
    """The shares of the old pixels of one side in the pixels of the crop: `[crop, old]`.

    They add up to 1; of `area`, in units of old pixels, to the scale.

    Args:
      graph: to add nodes and constants to.
      old: number of pixels before.
      scale: the same for each pixel after.
      first: number of the crop's first pixel among the new ones.
      grows: whether a side of the image grows: the interpolation is `triangle` then.
      data: `config.data`.
    """
    add, one = graph.add, graph.constant(np.float32(1))
    zero, half = graph.constant(np.float32(0)), graph.constant(np.float32(0.5))

    def numbers(start: str, count: str, axis: int) -> str:
        found = add("Range", start, add("Add", start, count), graph.constant(np.array(1)))
        found = add("Cast", found, to=TensorProto.FLOAT)
        return add("Unsqueeze", found, graph.constant(np.array([axis])))

    row = numbers(first, graph.constant(np.array(data.crop_size)), 1)
    column = numbers(graph.constant(np.array(0)), old, 0)
    radius = add("Max", scale, one)
    if data.shrink != "triangle":
        radius = add("Where", grows, radius, one)
    centre = add("Mul", add("Add", row, half), scale)
    distance = add("Abs", add("Sub", add("Add", column, half), centre))
    share = add("Max", add("Sub", one, add("Mul", distance, add("Reciprocal", radius))), zero)
    total = add("ReduceSum", share, graph.constant(np.array([1])), keepdims=1)
    share = add("Mul", share, add("Reciprocal", total))
    if data.shrink == "area":
        ends = [add("Add", place, one) for place in (column, row)]
        end = add("Min", ends[0], add("Mul", ends[1], scale))
        start = add("Max", column, add("Mul", row, scale))
        share = add("Where", grows, share, add("Max", add("Sub", end, start), zero))
    return share
