"""From an encoded image file to the pixels that annotations refer to, in graph operations."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from data.images import MAX_PIXELS
from data.orientation import read_orientation, turn_image

# What the encodings that TensorFlow can decode begin with: JPEG, PNG, GIF, BMP, WebP.
_SIGNATURES = (b"\xff\xd8", b"\x89P", b"GI", b"BM", b"RI")
_PNG_BIT_DEPTH = 24


def decode_image(record: dict[str, tf.Tensor], exif: str = "apply") -> tf.Tensor:
    """Pixels of any common encoding, gray and transparent ones too.

    Of a PNG of 16 bits they are the highest 8 bits that the picture uses, so that data of 10 or 12
    bits keep their contrast: all values are divided by one power of two.

    Args:
        record: as `data.records.parse_record` gives it; encoded, image_id, height, width and
            orientation are read.
        exif: "apply" turns the pixels as the record's orientation says or, where it says none,
            the image file's own. The latter does not count if the record tells the size of the
            stored pixels and not of the turned ones. "ignore" leaves the pixels as stored.

    Returns:
        uint8 [h, w, 3], in the original size.

    Raises:
        tf.errors.InvalidArgumentError: when evaluated on what is no such image, is cut short, is
            too large, or has another size than the record tells.
    """
    encoded, image_id = record["encoded"], record["image_id"]
    told = tf.stack([record["height"], record["width"]])
    known = tf.reduce_any(tf.strings.substr(encoded, 0, 2) == _SIGNATURES)
    checks = [
        tf.debugging.Assert(
            known, ["it holds no JPEG, PNG, GIF, BMP or WebP image. Image id:", image_id]
        ),
        tf.debugging.Assert(
            tf.reduce_prod(told) <= MAX_PIXELS,
            [f"its image is too large, of more than {MAX_PIXELS} pixels. Image id:", image_id],
        ),
    ]
    with tf.control_dependencies(checks):
        image = _decode(encoded)
    message = "it tells another size than its image has"
    if exif == "apply":
        image = turn_image(image, _orientation(record, tf.shape(image, tf.int64)[:2], told))
    else:
        message += " as stored (--exif=ignore)"
    image = tf.ensure_shape(image, [None, None, 3])
    check = tf.debugging.Assert(
        tf.reduce_all(tf.shape(image, tf.int64)[:2] == told),
        [f"{message}. Image id:", image_id, "size told:", told],
    )
    with tf.control_dependencies([check]):
        return tf.identity(image)


def _decode(encoded: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 3], as stored."""
    size = _PNG_BIT_DEPTH + 1
    head = tf.io.decode_raw(tf.strings.substr(encoded, 0, size), tf.uint8, fixed_length=size)
    return tf.cond(
        (head[0] == 0x89) & (head[_PNG_BIT_DEPTH] == 16),
        lambda: _highest_used_bits(tf.io.decode_png(encoded, channels=3, dtype=tf.uint16)),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )


def _highest_used_bits(image: tf.Tensor) -> tf.Tensor:
    """The highest 8 bits of those that the largest value has: uint16 to uint8, of any shape."""
    largest = tf.cast(tf.reduce_max(image), tf.int32)
    unneeded_bits = tf.reduce_sum(tf.cast(largest >= 2 ** np.arange(8, 16), tf.int32))
    return tf.cast(tf.bitwise.right_shift(image, tf.cast(unneeded_bits, tf.uint16)), tf.uint8)


def _orientation(record: dict[str, tf.Tensor], stored: tf.Tensor, told: tf.Tensor) -> tf.Tensor:
    """How the stored pixels are to be turned: int64 scalar."""

    def from_header() -> tf.Tensor:
        orientation = read_orientation(record["encoded"])
        saw_stored = tf.reduce_all(stored == told) & (told[0] != told[1])
        return tf.where((orientation >= 5) & saw_stored, np.int64(1), orientation)

    return tf.cond(record["orientation"] > 0, lambda: record["orientation"], from_header)
