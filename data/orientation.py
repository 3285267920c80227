"""EXIF orientation, read from encoded images and applied to decoded ones, in graph operations."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

_HEAD_BYTES = 1 << 16
_ORIENTATION_TAG, _SHORT = 0x0112, 3
_ENTRY_BYTES = 12
# Whether each orientation reverses rows and columns; those from 5 on swap the two first.
_REVERSALS = np.array([[o in (3, 4, 7, 8), o in (2, 3, 6, 7)] for o in range(9)])


def read_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Reads EXIF's orientation from the head of a JPEG or PNG, without decoding the image.

    It searches the first 64 KB, where cameras write EXIF data, for their name and first bytes;
    going from segment to segment would need a loop.

    Args:
        encoded: string scalar, an image file, or empty.

    Returns:
        int64 scalar, 1 to 8; 1 if there is none, or none that can be read.
    """
    head = tf.strings.substr(encoded, 0, _HEAD_BYTES)
    is_png = tf.equal(tf.strings.substr(head, 0, 4), b"\x89PNG")
    parts = tf.strings.split(head, tf.where(is_png, b"eXIf", b"Exif\0\0"), maxsplit=1)
    return _exif_orientation(tf.concat([parts[1:], [b""]], axis=0)[0])


def turn_image(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Rotates or mirrors stored pixels to what viewers show.

    Args:
        image: [h, w, c].
        orientation: int64 scalar, EXIF's; 1 and invalid values change nothing.

    Returns:
        The same type, [h, w, c], or [w, h, c] for 5 to 8.
    """

    def turned() -> tf.Tensor:
        axes = tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2])
        reversed_axes = tf.where(tf.gather(_REVERSALS, orientation))[:, 0]
        return tf.reverse(tf.transpose(image, axes), reversed_axes)

    return tf.cond((orientation >= 2) & (orientation <= 8), turned, lambda: image)


def _exif_orientation(exif: tf.Tensor) -> tf.Tensor:
    """Finds the tag's value in EXIF data, which are a TIFF file: string scalar -> int64 scalar."""
    head = tf.io.decode_raw(_cut(exif, 0, 8), tf.uint8, fixed_length=8)
    is_little = _starts(head, b"II*\0")
    directory = _number(head[4:], is_little)
    count = tf.io.decode_raw(_cut(exif, directory, 2), tf.uint8, fixed_length=2)
    entries = _cut(exif, directory + 2, _ENTRY_BYTES * _number(count, is_little))
    entries = tf.io.decode_raw(entries, tf.uint8)
    whole = tf.size(entries) // _ENTRY_BYTES
    entries = tf.reshape(entries[: whole * _ENTRY_BYTES], [whole, _ENTRY_BYTES])
    tags, types, values = (_number(entries[:, first : first + 2], is_little) for first in (0, 2, 8))
    is_sought = (tags == _ORIENTATION_TAG) & (types == _SHORT) & (values >= 1) & (values <= 8)
    is_sought &= is_little | _starts(head, b"MM\0*")
    return tf.concat([values[is_sought], [1]], axis=0)[0]


def _cut(text: tf.Tensor, start, length) -> tf.Tensor:
    """Returns a substring, shorter where the string ends."""
    start = tf.minimum(tf.cast(start, tf.int64), tf.cast(tf.strings.length(text), tf.int64))
    return tf.strings.substr(text, start, tf.cast(length, tf.int64))


def _starts(values: tf.Tensor, start: bytes) -> tf.Tensor:
    return tf.reduce_all(values[: len(start)] == tf.constant(list(start), tf.uint8))


def _number(values: tf.Tensor, is_little=False) -> tf.Tensor:
    """Decodes unsigned numbers, highest byte first or last: uint8 [..., bytes] -> int64 [...]."""
    weights = np.int64(256) ** np.arange(values.shape[-1])
    return tf.reduce_sum(
        tf.cast(values, tf.int64) * tf.where(is_little, weights, weights[::-1]), axis=-1
    )
