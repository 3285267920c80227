"""Converts tensors from other programs' element order to this project's.

PyTorch and Caffe store kernels as out × in × rows × columns and matrices as out × in, and flatten
features channels first; deltas are x, y, w, h there and y, x, h, w here. If the background is the
last class or has no entry, it is moved to index 0.

Axes: O outputs, I inputs, H W rows and columns, K classes with the background, A anchors a cell.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Layout = Callable[[np.ndarray], np.ndarray]

ROI_SIDE = 7
_YXHW = [1, 0, 3, 2]


def same(tensor: np.ndarray) -> np.ndarray:
    """Returns the tensor unchanged."""
    return tensor


def conv(tensor: np.ndarray) -> np.ndarray:
    """Reorders [O, I, H, W] → [H, W, I, O]; biases as they are."""
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def swap_colours(kernel: np.ndarray) -> np.ndarray:
    """Converts kernels [H, W, 3, O] from BGR to RGB input."""
    return kernel[:, :, ::-1]


def deconv(tensor: np.ndarray) -> np.ndarray:
    """Reorders [I, O, H, W] → [H, W, I, O]; biases as they are."""
    return tensor.transpose(2, 3, 0, 1) if tensor.ndim == 4 else tensor


def depthwise(tensor: np.ndarray) -> np.ndarray:
    """Reorders [C, 1, H, W] → [H, W, C, 1]."""
    return tensor.transpose(2, 3, 0, 1)


def dense(tensor: np.ndarray) -> np.ndarray:
    """Reorders [O, I] → [I, O]; biases as they are."""
    return tensor.T if tensor.ndim == 2 else tensor


def flat_dense(tensor: np.ndarray, side: int = ROI_SIDE) -> np.ndarray:
    """Reorders [O, C · side · side] on features flattened channels first → [side · side · C, O]."""
    if tensor.ndim == 1 or tensor.shape[1] % side**2:
        return dense(tensor)
    outputs = tensor.shape[0]
    cells = tensor.reshape(outputs, -1, side, side)
    return cells.transpose(2, 3, 1, 0).reshape(-1, outputs)


def anchor_deltas(tensor: np.ndarray) -> np.ndarray:
    """[A · 4, I, 1, 1] or [A · 4] with x, y, w, h innermost → [1, 1, I, A · 4] with y, x, h, w."""
    return conv(_swap_deltas(tensor))


def background_first(layout: Layout, entries: int = 1) -> Layout:
    """Converts class-wise outputs whose first class is the background; `entries` per class."""
    return _outputs(layout, entries, lambda classes: classes)


def background_last(layout: Layout, entries: int = 1) -> Layout:
    """Converts class-wise outputs whose last class is the background."""
    return _outputs(layout, entries, lambda classes: np.roll(classes, 1, axis=0))


def background_absent(layout: Layout, entries: int = 1) -> Layout:
    """Converts class-wise outputs without background, whose zeros are never read."""
    return _outputs(
        layout, entries, lambda classes: np.concatenate([np.zeros_like(classes[:1]), classes])
    )


def _outputs(layout: Layout, entries: int, arrange: Layout) -> Layout:
    def rearrange(tensor: np.ndarray) -> np.ndarray:
        if entries == 4:
            tensor = _swap_deltas(tensor)
        classes = tensor.reshape(-1, entries, *tensor.shape[1:])
        return layout(arrange(classes).reshape(-1, *tensor.shape[1:]))

    return rearrange


def _swap_deltas(tensor: np.ndarray) -> np.ndarray:
    # A length that is not a multiple of four fails here, see `translate`.
    deltas = tensor.reshape(-1, 4, *tensor.shape[1:])
    return deltas[:, _YXHW].reshape(tensor.shape)
