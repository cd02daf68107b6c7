"""The two-tower network and its update in TensorFlow: one graph, separate operations per tower."""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from worker import serve

CONVOLUTIONS = (
    # side, inputs of one tower, outputs of one tower, stride
    ("conv1", 11, 3, 48, 4),
    ("conv2", 5, 48, 128, 1),
    ("conv3", 3, 256, 192, 1),
    ("conv4", 3, 192, 192, 1),
    ("conv5", 3, 192, 128, 1),
)
DENSE = (("fc6", 9216, 2048), ("fc7", 4096, 2048), ("fc8", 4096, 1000))


def variables() -> dict[str, tf.Variable]:
    """The weights of both towers by `LAYER/TOWER`; fc8 is not split."""
    shapes = {}
    for tower in (0, 1):
        for name, side, inputs, outputs, _ in CONVOLUTIONS:
            shapes[f"{name}/{tower}"] = (side, side, inputs, outputs)
        for name, inputs, outputs in DENSE[:2]:
            shapes[f"{name}/{tower}"] = (inputs, outputs)
    shapes["fc8/0"] = DENSE[2][1:]
    made = {}
    for name, shape in shapes.items():
        made[f"{name}/kernel"] = tf.Variable(tf.random.normal(shape, stddev=0.01))
        made[f"{name}/bias"] = tf.Variable(tf.ones(shape[-1:]) * 0.1)
    return made


def network(x: tf.Tensor, w: dict[str, tf.Variable], training: bool) -> tf.Tensor:
    """Logits; the outputs of the towers are joined before conv3 and before the dense layers."""
    pads = {"conv1": 2, "conv2": 2, "conv3": 1, "conv4": 1, "conv5": 1}
    maps = [x, x]
    for name, _, _, _, stride in CONVOLUTIONS:
        if name == "conv3":
            maps = [tf.concat(maps, 3)] * 2
        pad = pads[name]
        padding = [[0, 0], [pad, pad], [pad, pad], [0, 0]]
        outs = []
        for tower, h in enumerate(maps):
            h = tf.nn.conv2d(h, w[f"{name}/{tower}/kernel"], stride, padding)
            h = tf.nn.relu(tf.nn.bias_add(h, w[f"{name}/{tower}/bias"]))
            if name in ("conv1", "conv2"):
                h = tf.nn.local_response_normalization(h, 2, bias=2.0, alpha=1e-4, beta=0.75)
            if name in ("conv1", "conv2", "conv5"):
                h = tf.nn.max_pool2d(h, 3, 2, "VALID")
            outs.append(h)
        maps = outs
    h = tf.reshape(tf.concat(maps, 3), [x.shape[0], -1])
    for name in ("fc6", "fc7"):
        parts = [h @ w[f"{name}/{t}/kernel"] + w[f"{name}/{t}/bias"] for t in (0, 1)]
        h = tf.concat([tf.nn.relu(part) for part in parts], 1)
        if training:
            h = tf.nn.dropout(h, 0.5)
    return h @ w["fc8/0/kernel"] + w["fc8/0/bias"]


def main() -> None:
    """Builds the network and serves it to `run.py`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--xla", action="store_true", help="jit_compile=True")
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    images = generator.normal(0, 60, (args.batch_size, 224, 224, 3)).astype(np.float32)
    x = tf.constant(images)
    y = tf.constant(generator.integers(0, 1000, args.batch_size))
    w = variables()
    velocity = {name: tf.Variable(tf.zeros_like(value)) for name, value in w.items()}

    @tf.function(jit_compile=args.xla)
    def train_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = network(x, w, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
            loss = tf.reduce_mean(losses)
        for name, gradient in tape.gradient(loss, w).items():
            decay = 5e-4 if name.endswith("kernel") else 0.0
            new = 0.9 * velocity[name] - 1e-4 * (gradient + decay * w[name])
            w[name].assign_add(velocity[name].assign(new))
        return loss

    @tf.function(jit_compile=args.xla)
    def forward_step(x: tf.Tensor) -> tf.Tensor:
        return network(x, w, training=False)

    def train(steps: int) -> None:
        for _ in range(steps):
            train_step(x, y).numpy()

    def forward(steps: int) -> None:
        for _ in range(steps):
            forward_step(x).numpy()

    serve({"train": train, "forward": forward}, {"version": tf.__version__})


if __name__ == "__main__":
    main()
