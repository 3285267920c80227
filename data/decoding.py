"""Decodes image files to the pixels that annotations refer to, in graph operations."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from data.assertions import make_assertion
from data.images import MAX_PIXELS
from data.orientation import read_orientation, turn_image

# First bytes of the encodings that TensorFlow can decode: JPEG, PNG, GIF, BMP, WebP.
_SIGNATURES = (b"\xff\xd8", b"\x89P", b"GI", b"BM", b"RI")
_PNG_BIT_DEPTH = 24


def decode_image(record: dict[str, tf.Tensor], exif: str = "apply") -> tf.Tensor:
    """Decodes any common encoding, gray and transparent images included.

    A 16-bit PNG is reduced to the highest 8 bits that the image uses, so that data of 10 or 12 bits
    keep their contrast: all values are divided by one power of two.

    Args:
        record: as `data.records.parse_record` gives it; encoded, image_id, height, width and
            orientation are read.
        exif: "apply" rotates the pixels by the record's orientation or, if it has none, by the
            image file's own. The latter is not used if the record states the size of the stored
            pixels and not of the rotated ones. "ignore" leaves the pixels as stored.

    Returns:
        uint8 [h, w, 3], in the original size.

    Raises:
        tf.errors.InvalidArgumentError: when evaluated on a file that is not such an image, is
            truncated or too large, or has another size than the record states.
    """
    encoded, image_id = record["encoded"], record["image_id"]
    told = tf.stack([record["height"], record["width"]])
    orientation = record["orientation"] if exif == "apply" else tf.constant(1, tf.int64)
    signature = tf.strings.substr(encoded, 0, 2)
    known = tf.reduce_any(signature == _SIGNATURES)
    reason = tf.where(
        known,
        f"its image is too large: it has more than {MAX_PIXELS} pixels. Image id:",
        "it does not contain a JPEG, PNG, GIF, BMP or WebP image. Image id:",
    )
    usable = known & (tf.reduce_prod(told) <= MAX_PIXELS)
    with tf.control_dependencies([make_assertion(usable, [reason, image_id])]):
        image = tf.cond(
            (signature == b"\x89P") | (orientation != 1),
            lambda: _decode_and_turn(encoded, orientation, told),
            lambda: _decode_8_bits(encoded),
        )
    image = tf.ensure_shape(image, [None, None, 3])
    as_stored = "" if exif == "apply" else " as stored (--exif=ignore)"
    message = f"the size it states differs from the size of its image{as_stored}. Image id:"
    check = make_assertion(
        tf.reduce_all(tf.shape(image, tf.int64)[:2] == told),
        [message, image_id, "size told:", told],
    )
    with tf.control_dependencies([check]):
        return tf.identity(image)


def _decode_8_bits(encoded: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


# Without inlining, its operations cost nothing where they are not needed; most images are JPEGs
# that are not rotated.
@tf.function(autograph=False, experimental_attributes={"_noinline": True})
def _decode_and_turn(encoded: tf.Tensor, orientation: tf.Tensor, told: tf.Tensor) -> tf.Tensor:
    """Decodes the pixels as their annotator saw them; orientation 0 means the file's own."""
    size = _PNG_BIT_DEPTH + 1
    head = tf.io.decode_raw(tf.strings.substr(encoded, 0, size), tf.uint8, fixed_length=size)
    image = tf.cond(
        (head[0] == 0x89) & (head[_PNG_BIT_DEPTH] == 16),
        lambda: _highest_used_bits(tf.io.decode_png(encoded, channels=3, dtype=tf.uint16)),
        lambda: _decode_8_bits(encoded),
    )
    in_file = read_orientation(encoded)
    saw_stored = tf.reduce_all(tf.shape(image, tf.int64)[:2] == told) & (told[0] != told[1])
    in_file = tf.where(saw_stored & (in_file >= 5), np.int64(1), in_file)
    return turn_image(image, tf.where(orientation > 0, orientation, in_file))


def _highest_used_bits(image: tf.Tensor) -> tf.Tensor:
    """Keeps the highest 8 bits of those that the largest value has: uint16 to uint8, any shape."""
    largest = tf.cast(tf.reduce_max(image), tf.int32)
    unneeded_bits = tf.reduce_sum(tf.cast(largest >= 2 ** np.arange(8, 16), tf.int32))
    return tf.cast(tf.bitwise.right_shift(image, tf.cast(unneeded_bits, tf.uint16)), tf.uint8)


def decode_file(encoded: tf.Tensor, exif: str = "apply") -> tf.Tensor:
    """Pixels of an image file of which nothing is known but itself, as `decode_image` has them.

    Args:
        encoded: string scalar.
        exif: "apply" turns the pixels as the file says, "ignore" does not.

    Returns:
        uint8 [h, w, 3].

    Raises:
        tf.errors.InvalidArgumentError: when evaluated on what is no such image.
    """
    orientation = tf.constant(0 if exif == "apply" else 1, tf.int64)
    image = _decode_and_turn(encoded, orientation, tf.zeros([2], tf.int64))
    return tf.ensure_shape(image, [None, None, 3])
