"""Pasting masks and writing them as COCO run lengths, in graph operations.

The same rules as in `model/paste.py`, which is faster, for exported models that have to do it
themselves.

Axes: N masks, M mask side, H W image.
"""

from __future__ import annotations

import tensorflow as tf

# Characters of five bits that a run length of a whole image needs at most.
_MOST_CHARACTERS = 7


def paste_masks(
    masks: tf.Tensor, boxes: tf.Tensor, size: tf.Tensor, rule: str = "exact"
) -> tf.Tensor:
    """Pastes masks into an image.

    Args:
        masks: float32 [N, M, M], probabilities over the boxes.
        boxes: float32 [N, 4], (y1, x1, y2, x2) in pixels of the image.
        size: int32 [2], H and W.
        rule: "exact" or "integer", see `model.paste`.

    Returns:
        bool [N, H, W].
    """

    def paste(one: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        mask, box = one
        rows, columns = (
            _WEIGHTS[rule](box[axis], box[axis + 2], size[axis], masks.shape[1]) for axis in (0, 1)
        )
        pasted = tf.matmul(tf.matmul(rows, mask), columns, transpose_b=True)
        return pasted >= 0.5 if rule == "exact" else pasted > 0.5

    return tf.map_fn(paste, (masks, boxes), fn_output_signature=tf.bool)


def _exact_weights(start: tf.Tensor, stop: tf.Tensor, size: tf.Tensor, side: int) -> tf.Tensor:
    """Bilinear weights along one axis: float32 [size, M]."""
    start, stop = tf.cast(start, tf.float64), tf.cast(stop, tf.float64)
    centres = tf.cast(tf.range(size), tf.float64) + 0.5
    cells = (centres - start) / (stop - start) * side - 0.5
    distances = tf.abs(cells[:, None] - tf.range(side, dtype=tf.float64))
    weights = tf.cast(tf.maximum(1.0 - distances, 0.0), tf.float32)
    return tf.where(stop > start, weights, tf.zeros_like(weights))


def _integer_weights(start: tf.Tensor, stop: tf.Tensor, size: tf.Tensor, side: int) -> tf.Tensor:
    half = (stop - start) * 0.5 * tf.constant((side + 2) / side, tf.float32)
    centre = (stop + start) * 0.5
    low, high = tf.cast(centre - half, tf.int32), tf.cast(centre + half, tf.int32)
    centres = tf.cast(tf.range(size) - low, tf.float32) + 0.5
    scale = tf.cast((side + 2) / tf.maximum(high - low + 1, 1), tf.float32)
    distances = tf.abs((centres * scale - 0.5)[:, None] - tf.range(1, side + 1, dtype=tf.float32))
    within = (tf.range(size) >= low) & (tf.range(size) <= high) & (stop >= start)
    return tf.where(within[:, None], tf.maximum(1.0 - distances, 0.0), 0.0)


_WEIGHTS = {"exact": _exact_weights, "integer": _integer_weights}


def encode_masks(masks: tf.Tensor) -> tf.Tensor:
    """COCO's compressed run lengths: bool [N, H, W] -> string [N], each the `counts` of an RLE."""
    return tf.map_fn(_encode_mask, masks, fn_output_signature=tf.string)


def _encode_mask(mask: tf.Tensor) -> tf.Tensor:
    column_by_column = tf.reshape(tf.transpose(mask), [-1])
    before = tf.concat([[False], column_by_column[:-1]], axis=0)
    starts = tf.where(column_by_column != before)[:, 0]
    bounds = tf.concat([[0], starts, [tf.size(mask, tf.int64)]], axis=0)
    counts = bounds[1:] - bounds[:-1]
    # From the fourth on, each is written as its difference from the one before the last.
    known = tf.concat([tf.zeros_like(counts[:3]), counts[1:-2]], axis=0)[: tf.size(counts)]
    return _write_numbers(counts - known)


def _write_numbers(numbers: tf.Tensor) -> tf.Tensor:
    """Numbers of five bits a character, the lowest first: int64 [R] -> string scalar."""
    shifts = tf.range(_MOST_CHARACTERS, dtype=tf.int64) * 5
    bits = tf.bitwise.bitwise_and(
        tf.bitwise.right_shift(numbers[:, None], shifts), tf.constant(31, tf.int64)
    )
    rest = tf.bitwise.right_shift(numbers[:, None], shifts + 5)
    # A number ends where only its sign is left, which the highest bit of a character tells.
    goes_on = rest != tf.where(bits >= 16, tf.constant(-1, tf.int64), tf.constant(0, tf.int64))
    wanted = tf.math.cumprod(tf.cast(goes_on, tf.int32), axis=1, exclusive=True) > 0
    characters = bits + tf.where(goes_on, tf.constant(32, tf.int64), 0) + 48
    written = tf.boolean_mask(characters, wanted)
    return tf.strings.unicode_encode(tf.cast(written, tf.int32), "UTF-8")
