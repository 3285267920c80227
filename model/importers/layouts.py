"""From the order of other programs' tensors to this project's.

PyTorch and Caffe keep kernels out × in × rows × columns, matrices out × in, and flatten features
channels first; deltas are x, y, w, h there and y, x, h, w here. Where they have the background as
their last class, or no entry for it, it moves to index 0.

Axes: O outputs, I inputs, H W rows and columns, K classes with the background, A anchors a cell.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Layout = Callable[[np.ndarray], np.ndarray]

ROI_SIDE = 7
_YXHW = [1, 0, 3, 2]


def same(tensor: np.ndarray) -> np.ndarray:
    """Leaves a tensor as it is."""
    return tensor


def conv(tensor: np.ndarray) -> np.ndarray:
    """[O, I, H, W] → [H, W, I, O]; biases as they are."""
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def swap_colours(kernel: np.ndarray) -> np.ndarray:
    """[H, W, 3, O] for blue, green, red → the same for red, green, blue."""
    return kernel[:, :, ::-1]


def deconv(tensor: np.ndarray) -> np.ndarray:
    """[I, O, H, W] → [H, W, I, O]; biases as they are."""
    return tensor.transpose(2, 3, 0, 1) if tensor.ndim == 4 else tensor


def depthwise(tensor: np.ndarray) -> np.ndarray:
    """[C, 1, H, W] → [H, W, C, 1]."""
    return tensor.transpose(2, 3, 0, 1)


def dense(tensor: np.ndarray) -> np.ndarray:
    """[O, I] → [I, O]; biases as they are."""
    return tensor.T if tensor.ndim == 2 else tensor


def flat_dense(tensor: np.ndarray) -> np.ndarray:
    """[O, C · 7 · 7] on features flattened channels first → [7 · 7 · C, O]."""
    if tensor.ndim == 1 or tensor.shape[1] % ROI_SIDE**2:
        return dense(tensor)
    outputs = tensor.shape[0]
    cells = tensor.reshape(outputs, -1, ROI_SIDE, ROI_SIDE)
    return cells.transpose(2, 3, 1, 0).reshape(-1, outputs)


def anchor_deltas(tensor: np.ndarray) -> np.ndarray:
    """[A · 4, I, 1, 1] or [A · 4] with x, y, w, h innermost → [1, 1, I, A · 4] with y, x, h, w."""
    return conv(_swap_deltas(tensor))


def background_first(layout: Layout, entries: int = 1) -> Layout:
    """Class-wise outputs whose first class is the background already; `entries` a class."""
    return _outputs(layout, entries, lambda classes: classes)


def background_last(layout: Layout, entries: int = 1) -> Layout:
    """Class-wise outputs whose last class is the background."""
    return _outputs(layout, entries, lambda classes: np.roll(classes, 1, axis=0))


def background_absent(layout: Layout, entries: int = 1) -> Layout:
    """Class-wise outputs of the foreground alone; nothing reads the background's zeros."""
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
    # A length that is no multiple of four fails here, see `translate`.
    deltas = tensor.reshape(-1, 4, *tensor.shape[1:])
    return deltas[:, _YXHW].reshape(tensor.shape)
