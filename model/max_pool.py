"""Max-pooling with stride 2.

Axes: B images, H W rows and columns, C channels.
"""

from __future__ import annotations

import functools

import tensorflow as tf


def max_pool(x: tf.Tensor, size: int, *, static: bool = False) -> tf.Tensor:
    """Takes the maximum of windows of `size` × `size` cells, two apart, that lie within the map.

    Args:
        x: [B, H, W, C].
        size: side of a window.
        static: whether to use elementwise maxima, because XLA has no deterministic gradient of
            MaxPool.
    """
    return _pool_by_slices(x, size) if static else tf.nn.max_pool2d(x, size, 2, "VALID")


def _pool_by_slices(x: tf.Tensor, size: int) -> tf.Tensor:
    for axis in (1, 2):
        count = (x.shape[axis] - size) // 2 + 1
        parts = []
        for offset in range(size):
            span = [slice(None)] * 4
            span[axis] = slice(offset, offset + 2 * count - 1, 2)
            parts.append(x[tuple(span)])
        x = functools.reduce(tf.maximum, parts)
    return x
