"""The `caffe` preset against Caffe's own AlexNet graph, run by onnxruntime.

`light_bvlc_alexnet.onnx` was exported by others from Caffe's model and ships in the `onnx` wheel
with all weights constant. Ours go into it; nothing of ours computes the expected logits.
"""

from pathlib import Path

import jax
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from alexnet_jax.config import presets
from alexnet_jax.model import collectives
from alexnet_jax.model.columns import merge_towers
from alexnet_jax.model.tower import build_tower, draw_parameters

GRAPH = Path(onnx.__file__).parent / "backend/test/data/light/light_bvlc_alexnet.onnx"


def caffe_logits(merged, images_Bx3x227x227):
    model = onnx.load(GRAPH)
    graph = model.graph
    weights = {}
    for name, leaves in merged.items():
        kernel = leaves["kernel"]
        if kernel.ndim == 4:
            kernel = kernel.transpose(3, 2, 0, 1)  # HWIO to OIHW
        elif name == "fc6":  # rows from height, width, channel to channel, height, width
            kernel = kernel.reshape(6, 6, 256, -1).transpose(2, 0, 1, 3).reshape(9216, -1).T
        else:
            kernel = kernel.T
        weights[f"{name}_w_0"], weights[f"{name}_b_0"] = kernel, leaves["bias"]
    batch = len(images_Bx3x227x227)
    del graph.node[:16]  # the constants that stand in for weights
    keep = {"OC2_DUMMY_1": np.array([batch, 9216], np.int64)} | weights
    del graph.initializer[:]
    for name, value in keep.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    del graph.input[1:]
    for dimension, size in zip(
        graph.input[0].type.tensor_type.shape.dim, (batch, 3, 227, 227), strict=True
    ):
        dimension.dim_value = size
    # At 224 the maps were 54, 26, 12 and the last pool padded; at 227 everything fits.
    pool5 = next(node for node in graph.node if node.output[0] == "r14")
    next(a for a in pool5.attribute if a.name == "pads").ints[:] = [0, 0, 0, 0]
    # Logits, not probabilities.
    del graph.node[-1]
    graph.output[0].name = "r24"
    graph.output[0].type.tensor_type.ClearField("shape")
    model.ir_version = 4  # where initializers need not be inputs
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(["r24"], {"data_0": images_Bx3x227x227})
    return logits


def test_caffe_gives_the_logits_of_caffes_graph():
    config = presets.get("caffe")
    tower = build_tower(config.model)
    params = draw_parameters(tower, 0, 227)
    rng = np.random.default_rng(0)
    for leaves in params.values():
        # He's size, so that every layer matters, and biases that differ from unit to unit.
        kernel = leaves["kernel"]
        kernel *= np.sqrt(2 / np.prod(kernel.shape[1:-1])) / kernel.std()
        leaves["bias"] += rng.normal(0, 0.1, leaves["bias"].shape).astype(np.float32)
    params["fc8"]["bias"][1] = params["fc8"]["bias"][0]
    images = rng.uniform(-120, 135, (2, 227, 227, 3)).astype(np.float32)
    run = jax.jit(
        jax.vmap(lambda p: tower.apply({"params": p}, images), axis_name=collectives.TOWER)
    )
    logits = np.asarray(run(params))
    np.testing.assert_allclose(logits[0], logits[1])
    expected = caffe_logits(merge_towers(params, tower.layers), images.transpose(0, 3, 1, 2))
    assert np.std(expected) > 1
    assert np.abs(logits[0] - expected).max() < 1e-4 * np.abs(expected).max()
