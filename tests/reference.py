"""The single-column network with grouped convolutions, in plain JAX operations.

Independent of the towers: its own LRN and pooling, `feature_group_count` for the groups, ordinary
dropout of given masks. It reads the configuration's table and a merged parameter tree.
"""

import jax
import jax.numpy as jnp
from jax import lax


def lrn(x, size, k, alpha, beta, groups):
    """LRN whose windows stay inside each of `groups` parts of the channels."""
    parts = []
    for part in jnp.split(x, groups, axis=-1):
        channels = part.shape[-1]
        band = [
            [1.0 if -((size - 1) // 2) <= j - i <= size // 2 else 0.0 for i in range(channels)]
            for j in range(channels)
        ]
        s = jnp.square(part) @ jnp.asarray(band, x.dtype)
        parts.append(part / (k + alpha * s) ** beta)
    return jnp.concatenate(parts, -1)


def max_pool(x, window, stride):
    """Overlapping max pooling; the last window may hang over the edge."""
    dims, strides = (1, window, window, 1), (1, stride, stride, 1)
    over = [(0, 0) if i in (0, 3) else (0, (window - n) % stride) for i, n in enumerate(x.shape)]
    return lax.reduce_window(x, -jnp.inf, lax.max, dims, strides, over)


def grouped_network(model, merged, images, masks):
    """Logits `[B, classes]`.

    Args:
      model: `config.model`.
      merged: the tree of `merge_towers`.
      images: `[B, H, W, 3]` float.
      masks: `{layer: bool [B, features]}` for layers with dropout, or {} when testing.
    """
    norm = model.lrn
    alpha = norm.alpha / norm.size if norm.alpha_divided_by_size else norm.alpha
    groups = 1 if norm.across_towers else model.towers
    activation = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}
    x = images
    for name in model.layer_order:
        row, kernel, bias = model.layers[name], merged[name]["kernel"], merged[name]["bias"]
        if row.kind == "dense":
            x = x.reshape(len(x), -1) @ kernel + bias
        else:
            x = lax.conv_general_dilated(
                x, kernel, (row.stride,) * 2, (row.padding, row.padding),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=x.shape[-1] // kernel.shape[2],
            ) + bias  # fmt: skip
        for op in row.then:
            if op == "activation":
                x = activation[model.activation](x)
            elif op == "max_pool":
                x = max_pool(x, model.pool.window, model.pool.stride)
            elif op == "lrn" and norm.enabled:
                x = lrn(x, norm.size, norm.k, alpha, norm.beta, groups)
            elif op == "dropout" and name in masks:
                x = jnp.where(masks[name], x / (1 - model.dropout.rate), 0)
    return x
