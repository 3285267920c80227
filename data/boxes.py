"""Box algebra on TensorFlow tensors, and the definition of the box convention.

A box is float32 `[y1, x1, y2, x2]` in absolute pixels of the network's input. Coordinates are
continuous: pixel i covers [i, i + 1), so a box that covers exactly the pixels 3 to 5 of a row runs
from 3.0 to 6.0, its width is `x2 - x1` and nothing is added to it. A box with no height or no width
is degenerate: it has area 0, IoU 0 with everything, and serves as padding.

Deltas `[dy, dx, dh, dw]` describe a box relative to a reference box (Girshick et al., R-CNN,
appendix C): the shift of the centre in units of the reference's height and width, and the log of
the ratio of heights and widths, each times a weight.

Axes: N, M boxes; `...` any leading axes, such as B images.
"""

from __future__ import annotations

import math

import tensorflow as tf

MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Returns areas in square pixels: float32 [..., 4] -> float32 [...], 0 for degenerate boxes."""
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    return tf.maximum(y2 - y1, 0.0) * tf.maximum(x2 - x1, 0.0)


def iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Computes the intersection over union of corresponding boxes.

    Args:
        a: float32 [..., 4].
        b: float32 [..., 4], broadcastable against `a`.

    Returns:
        float32 [...] in 0..1; 0 where either box is degenerate.
    """
    a_y1, a_x1, a_y2, a_x2 = tf.unstack(a, axis=-1)
    b_y1, b_x1, b_y2, b_x2 = tf.unstack(b, axis=-1)
    height = tf.maximum(tf.minimum(a_y2, b_y2) - tf.maximum(a_y1, b_y1), 0.0)
    width = tf.maximum(tf.minimum(a_x2, b_x2) - tf.maximum(a_x1, b_x1), 0.0)
    intersection = height * width
    union = area(a) + area(b) - intersection
    return intersection / tf.where(union > 0.0, union, 1.0)


def pairwise_iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Computes the IoU of every box of one set with every box of another.

    Args:
        a: float32 [..., N, 4].
        b: float32 [..., M, 4] with the same leading axes.

    Returns:
        float32 [..., N, M] in 0..1; 0 where either box is degenerate.
    """
    return iou(a[..., :, tf.newaxis, :], b[..., tf.newaxis, :, :])


def encode(
    boxes: tf.Tensor,
    references: tf.Tensor,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> tf.Tensor:
    """Computes the deltas that turn `references` into `boxes`; the inverse of `decode`.

    Args:
        boxes: float32 [..., 4].
        references: float32 [..., 4], anchors or RoIs.
        weights: factors of dy, dx, dh and dw.

    Returns:
        float32 [..., 4] deltas; all 0 where either box is degenerate, as padding is.
    """
    y, x, height, width = _centres_and_sizes(boxes)
    reference_y, reference_x, reference_height, reference_width = _centres_and_sizes(references)
    proper = (height > 0.0) & (width > 0.0) & (reference_height > 0.0) & (reference_width > 0.0)
    # Replacing degenerate sizes by ones avoids infinities, also in the gradients.
    height, width, reference_height, reference_width = (
        tf.where(proper, size, 1.0) for size in (height, width, reference_height, reference_width)
    )
    deltas = (
        (y - reference_y) / reference_height,
        (x - reference_x) / reference_width,
        tf.math.log(height / reference_height),
        tf.math.log(width / reference_width),
    )
    return tf.where(proper[..., tf.newaxis], tf.stack(deltas, axis=-1) * tf.constant(weights), 0.0)


def decode(
    deltas: tf.Tensor,
    references: tf.Tensor,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    max_log_scale: float = MAX_LOG_SCALE,
    clip_below: bool = False,
) -> tf.Tensor:
    """Applies `deltas` to `references`; the inverse of `encode`.

    Args:
        deltas: float32 [..., 4].
        references: float32 [..., 4], anchors or RoIs.
        weights: factors that `encode` used.
        max_log_scale: upper bound of the log scales, so that an untrained network's deltas do not
            overflow.
        clip_below: whether `-max_log_scale` also bounds the log scales from below, as in
            mmdetection.

    Returns:
        float32 [..., 4] boxes, not clipped to the image.
    """
    dy, dx, dh, dw = tf.unstack(deltas / tf.constant(weights), axis=-1)
    y, x, height, width = _centres_and_sizes(references)
    y += dy * height
    x += dx * width
    dh, dw = tf.minimum(dh, max_log_scale), tf.minimum(dw, max_log_scale)
    if clip_below:
        dh, dw = tf.maximum(dh, -max_log_scale), tf.maximum(dw, -max_log_scale)
    half_height, half_width = 0.5 * height * tf.exp(dh), 0.5 * width * tf.exp(dw)
    return tf.stack([y - half_height, x - half_width, y + half_height, x + half_width], axis=-1)


def clip(boxes: tf.Tensor, height: tf.Tensor | float, width: tf.Tensor | float) -> tf.Tensor:
    """Clips boxes to an image.

    Args:
        boxes: float32 [..., 4].
        height: image height in pixels, a number or float32 broadcastable against `boxes[..., 0]`
            (for boxes [B, N, 4], heights [B, 1]).
        width: image width in pixels, likewise.

    Returns:
        float32 [..., 4]; boxes outside become degenerate boxes on the image's border.
    """
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    y1, y2 = (tf.minimum(tf.maximum(y, 0.0), height) for y in (y1, y2))
    x1, x2 = (tf.minimum(tf.maximum(x, 0.0), width) for x in (x1, x2))
    return tf.stack([y1, x1, y2, x2], axis=-1)


def _centres_and_sizes(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Boxes [..., 4] -> centre y, centre x, height and width, each [...]."""
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    height, width = y2 - y1, x2 - x1
    return y1 + 0.5 * height, x1 + 0.5 * width, height, width
