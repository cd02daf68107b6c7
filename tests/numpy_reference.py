"""The towers of the network by hand, in NumPy float64, from the configuration's table alone.

Written from the paper, `layers-145.cfg` as the reference describes it, and Caffe's prototxt:
explicit parts that concatenate where the table says they exchange. Slow and plain on purpose.
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


def local(x, kernel, size, padding):
    """A kernel of its own at every position; the channels of a patch one after the other."""
    x = np.pad(x, ((0, 0), padding, padding, (0, 0)))
    out = np.zeros((len(x), *kernel.shape[:2], kernel.shape[3]))
    for i, j in np.ndindex(out.shape[1:3]):
        patch = x[:, i : i + size, j : j + size].transpose(0, 3, 1, 2)
        out[:, i, j] = patch.reshape(len(x), -1) @ kernel[i, j]
    return out


def pool(x, window, stride, reduce):
    """Windows that start inside the map; the last may hang over its edge."""
    starts = range(0, max(x.shape[1] - window, 0) + stride, stride)
    starts = [s for s in starts if s == 0 or s - stride + window < x.shape[1]]
    rows = [reduce(x[:, s : s + window], 1) for s in starts]
    x = np.stack(rows, 1)
    return np.stack([reduce(x[:, :, s : s + window], 2) for s in starts], 2)


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
      model: `config.model`.
      params: stacked tower parameters.
      images: `[B, H, W, 3]`.
      masks: `{layer: [the mask of each tower]}` in training, None at test time.
    """
    norm, within, keep = model.lrn, model.within_map_norm, 1 - model.dropout.rate
    towers = range(model.towers)
    parts = [images for _ in towers]
    for i, name in enumerate(model.layer_order):
        row, leaves = model.layers[name], params[name]
        if row.exchange == "inputs" and i:
            parts = [np.concatenate(parts, -1) for _ in towers]
        if name == model.layer_order[-1]:
            flat = [x.reshape(len(images), -1) for x in parts]
            return sum(flat[t] @ leaves["kernel"][t] for t in towers) + leaves["bias"][0]
        for t in towers:
            kernel, bias = leaves["kernel"][t], leaves["bias"][t]
            if row.kind == "dense":
                parts[t] = parts[t].reshape(len(images), -1) @ kernel + bias
            elif row.kind == "local":
                parts[t] = local(parts[t], kernel, row.kernel, tuple(row.padding)) + bias
            else:
                parts[t] = conv(parts[t], kernel, row.stride, tuple(row.padding)) + bias
        for op in row.then:
            if op == "lrn":
                alpha = norm.alpha / norm.size if norm.alpha_divided_by_size else norm.alpha
                constants = (norm.size, norm.k, alpha, norm.beta)
                if norm.across_towers:
                    whole = lrn(np.concatenate(parts, -1), *constants)
                    parts = np.split(whole, model.towers, -1)
                else:
                    parts = [lrn(x, *constants) for x in parts]
            elif op == "within_map_norm":
                squares = within.size**2 if within.alpha_divided_by_size else 1
                alpha = within.alpha / squares
                parts = [map_norm(x, within.size, within.k, alpha, within.beta) for x in parts]
            elif op == "activation":
                parts = [np.maximum(x, 0) for x in parts]
            elif op in ("max_pool", "avg_pool"):
                reduce = np.max if op == "max_pool" else np.mean
                parts = [pool(x, model.pool.window, model.pool.stride, reduce) for x in parts]
            elif op == "dropout":
                rescaled = model.dropout.rescaled_in_training
                if masks is None:
                    parts = [x if rescaled else x * keep for x in parts]
                else:
                    factor = 1 / keep if rescaled else 1
                    parts = [x * mask * factor for x, mask in zip(parts, masks[name], strict=True)]
    raise AssertionError("the table has no classifier")


def loss(model, params, images, labels, masks=None):
    """Mean cross-entropy."""
    z = logits(model, params, images, masks)
    z = z - z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean()
