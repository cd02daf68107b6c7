"""Both halves of the network by hand, in NumPy float64, from the configuration's table alone.

Written from the paper, `layers-145.cfg` as the reference describes it, and Caffe's prototxt: two
explicit halves that concatenate where the table says they exchange. Slow and plain on purpose.
"""

import numpy as np


def conv(x, kernel, stride, padding):
    """Sums over kernel taps: `[B, H, W, C]` by `[h, w, C, K]`."""
    x = np.pad(x, ((0, 0), padding, padding, (0, 0)))
    h, w = kernel.shape[:2]
    out_h, out_w = (x.shape[1] - h) // stride + 1, (x.shape[2] - w) // stride + 1
    out = np.zeros((len(x), out_h, out_w, kernel.shape[3]))
    for i in range(h):
        for j in range(w):
            tap = x[:, i : i + stride * out_h : stride, j : j + stride * out_w : stride]
            out += tap[:, :out_h, :out_w] @ kernel[i, j]
    return out


def max_pool(x, window, stride):
    """Windows that start inside the map; the last may hang over its edge."""
    starts = range(0, max(x.shape[1] - window, 0) + stride, stride)
    starts = [s for s in starts if s == 0 or s - stride + window < x.shape[1]]
    rows = [x[:, s : s + window].max(1) for s in starts]
    x = np.stack(rows, 1)
    return np.stack([x[:, :, s : s + window].max(2) for s in starts], 2)


def lrn(x, n, k, alpha, beta):
    """Section 3.3: the sum over channels i - n/2 to i + n/2."""
    out = np.empty_like(x)
    for i in range(x.shape[-1]):
        near = x[..., max(0, i - n // 2) : i + n // 2 + 1]
        out[..., i] = x[..., i] / (k + alpha * (near**2).sum(-1)) ** beta
    return out


def map_norm(x, n, k, alpha, beta):
    """The sum over an n x n square of the same map."""
    out, reach = np.empty_like(x), n // 2
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            near = x[:, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
            out[:, i, j] = x[:, i, j] / (k + alpha * (near**2).sum((1, 2))) ** beta
    return out


def logits(model, params, images, masks=None):
    """`[B, classes]`.

    Args:
      model: `config.model`, two towers.
      params: stacked tower parameters.
      images: `[B, H, W, 3]`.
      masks: `{layer: [tower 0's mask, tower 1's]}` in training, None in test.
    """
    norm, within, keep = model.lrn, model.within_map_norm, 1 - model.dropout.rate
    halves = [images, images]
    for name in model.layer_order:
        row, leaves = model.layers[name], params[name]
        if row.exchange == "inputs":
            both = np.concatenate(halves, -1)
            halves = [both, both]
        if name == model.layer_order[-1]:
            partial = [halves[t].reshape(len(images), -1) @ leaves["kernel"][t] for t in (0, 1)]
            return partial[0] + partial[1] + leaves["bias"][0]
        for t in (0, 1):
            kernel, bias = leaves["kernel"][t], leaves["bias"][t]
            if row.kind == "dense":
                halves[t] = halves[t].reshape(len(images), -1) @ kernel + bias
            else:
                halves[t] = conv(halves[t], kernel, row.stride, tuple(row.padding)) + bias
        for op in row.then:
            if op == "lrn":
                alpha = norm.alpha / norm.size if norm.alpha_divided_by_size else norm.alpha
                constants = (norm.size, norm.k, alpha, norm.beta)
                if norm.across_towers:
                    halves = np.split(lrn(np.concatenate(halves, -1), *constants), 2, -1)
                else:
                    halves = [lrn(x, *constants) for x in halves]
            elif op == "within_map_norm":
                alpha = within.alpha / within.size**2
                halves = [map_norm(x, within.size, within.k, alpha, within.beta) for x in halves]
            elif op == "activation":
                halves = [np.maximum(x, 0) for x in halves]
            elif op == "max_pool":
                halves = [max_pool(x, model.pool.window, model.pool.stride) for x in halves]
            elif op == "dropout":
                rescaled = model.dropout.rescaled_in_training
                if masks is None:
                    halves = [x if rescaled else x * keep for x in halves]
                else:
                    factor = 1 / keep if rescaled else 1
                    halves = [
                        x * mask * factor for x, mask in zip(halves, masks[name], strict=True)
                    ]
    raise AssertionError("the table has no classifier")


def loss(model, params, images, labels, masks=None):
    """Mean cross-entropy."""
    z = logits(model, params, images, masks)
    z = z - z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean()
