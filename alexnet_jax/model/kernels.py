"""What kernels of the first layer show by themselves."""

import numpy as np


def colour_share(kernels_TxHxWx3xN: np.ndarray) -> np.ndarray:
    """The share of colour in each kernel, `[towers, kernels]`, from 0 (grey) to 1.

    It is the share of the sum of squares that remains after the mean over R, G and B is subtracted
    from each pixel. Section 6.1 of the paper: one tower's kernels are largely colour-agnostic, the
    other's colour-specific.
    """
    grey = kernels_TxHxWx3xN.mean(3, keepdims=True)
    whole = np.square(kernels_TxHxWx3xN).sum((1, 2, 3))
    colour = np.square(kernels_TxHxWx3xN - grey).sum((1, 2, 3))
    return colour / np.maximum(whole, np.finfo(np.float32).tiny)
