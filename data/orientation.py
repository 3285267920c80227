"""EXIF orientation, read from encoded images and applied to decoded ones, in graph operations.

Axes: E entries of a directory of EXIF tags.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

_PNG_START = b"\x89PNG\r\n\x1a\n"
_ORIENTATION_TAG, _SHORT = 0x0112, 3
_ENTRY_BYTES = 12
# For each orientation whether it reverses the rows and the columns, after swapping the two from 5.
_REVERSALS = np.array([[o in (3, 4, 7, 8), o in (2, 3, 6, 7)] for o in range(9)])


def read_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """EXIF's orientation from the segments of a JPEG or the chunks of a PNG, without decoding it.

    Args:
        encoded: string scalar, an image file.

    Returns:
        int64 scalar, 1 to 8; 1 where there is none, or none that can be read.
    """
    is_jpeg = tf.equal(tf.strings.substr(encoded, 0, 2), b"\xff\xd8")
    is_png = tf.equal(tf.strings.substr(encoded, 0, len(_PNG_START)), _PNG_START)
    exif = tf.case(
        [(is_jpeg, lambda: _jpeg_exif(encoded)), (is_png, lambda: _png_exif(encoded))],
        default=lambda: tf.constant(b""),
    )
    has_exif = tf.strings.length(exif) > 0
    return tf.cond(has_exif, lambda: _exif_orientation(exif), lambda: tf.constant(1, tf.int64))


def turn_image(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns stored pixels to what viewers show.

    Args:
        image: [h, w, c].
        orientation: int64 scalar, EXIF's; 1 and whatever is none of the eight change nothing.

    Returns:
        The same type, [h, w, c], or [w, h, c] for 5 to 8.
    """

    def turned() -> tf.Tensor:
        axes = tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2])
        reversed_axes = tf.where(tf.gather(_REVERSALS, orientation))[:, 0]
        return tf.reverse(tf.transpose(image, axes), reversed_axes)

    return tf.cond((orientation >= 2) & (orientation <= 8), turned, lambda: image)


def _jpeg_exif(encoded: tf.Tensor) -> tf.Tensor:
    """The content of the first EXIF segment in front of the pixels; empty if there is none."""

    def is_exif(head: tf.Tensor) -> tf.Tensor:
        return _starts(head, b"\xff\xe1") & _starts(head[4:], b"Exif\0\0")

    def is_last(head: tf.Tensor) -> tf.Tensor:
        return (head[0] != 0xFF) | _starts(head, b"\xff\xda") | _starts(head, b"\xff\xd9")

    def size(head: tf.Tensor) -> tf.Tensor:
        # A marker may be preceded by bytes that fill.
        return tf.where(_starts(head, b"\xff\xff"), np.int64(1), 2 + _number(head[2:4]))

    return _find_part(encoded, 2, 10, is_exif, is_last, size)


def _png_exif(encoded: tf.Tensor) -> tf.Tensor:
    """The content of the EXIF chunk, which may stand behind the pixels; empty if there is none."""
    return _find_part(
        encoded,
        start=len(_PNG_START),
        head_bytes=8,
        is_sought=lambda head: _starts(head[4:], b"eXIf"),
        is_last=lambda head: _starts(head[4:], b"IEND") | (head[4] == 0),
        size=lambda head: 12 + _number(head[:4]),
    )


def _find_part(
    encoded: tf.Tensor,
    start: int,
    head_bytes: int,
    is_sought: Callable,
    is_last: Callable,
    size: Callable,
) -> tf.Tensor:
    """Goes from part to part of a file, by what the head of each (uint8 [head_bytes]) tells.

    Returns:
        string scalar, what follows the head of the part sought; empty if the last part is reached.
    """

    def head_at(position: tf.Tensor) -> tf.Tensor:
        return tf.io.decode_raw(
            _cut(encoded, position, head_bytes), tf.uint8, fixed_length=head_bytes
        )

    def goes_on(_: tf.Tensor, head: tf.Tensor) -> tf.Tensor:
        return ~is_sought(head) & ~is_last(head)

    def step(position: tf.Tensor, head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        position += size(head)
        return position, head_at(position)

    first = tf.constant(start, tf.int64)
    position, head = tf.while_loop(goes_on, step, (first, head_at(first)), parallel_iterations=1)
    length = tf.where(is_sought(head), size(head) - head_bytes, 0)
    return _cut(encoded, position + head_bytes, length)


def _exif_orientation(exif: tf.Tensor) -> tf.Tensor:
    """The tag's value in a TIFF file, as EXIF data are one: string scalar -> int64 scalar."""
    head = tf.io.decode_raw(_cut(exif, 0, 8), tf.uint8, fixed_length=8)
    is_little = _starts(head, b"II")
    directory = _number(head[4:], is_little)
    count = tf.io.decode_raw(_cut(exif, directory, 2), tf.uint8, fixed_length=2)
    entries = _cut(exif, directory + 2, _ENTRY_BYTES * _number(count, is_little))
    entries = tf.io.decode_raw(entries, tf.uint8)
    whole = tf.size(entries) // _ENTRY_BYTES
    entries = tf.reshape(entries[: whole * _ENTRY_BYTES], [whole, _ENTRY_BYTES])
    tags, types, values = (_number(entries[:, first : first + 2], is_little) for first in (0, 2, 8))
    is_sought = (tags == _ORIENTATION_TAG) & (types == _SHORT) & (values >= 1) & (values <= 8)
    return tf.concat([values[is_sought], [1]], axis=0)[0]


def _cut(text: tf.Tensor, start, length) -> tf.Tensor:
    """A substring, or what there is of it."""
    start = tf.minimum(tf.cast(start, tf.int64), tf.cast(tf.strings.length(text), tf.int64))
    return tf.strings.substr(text, start, tf.cast(length, tf.int64))


def _starts(values: tf.Tensor, start: bytes) -> tf.Tensor:
    return tf.reduce_all(values[: len(start)] == tf.constant(list(start), tf.uint8))


def _number(values: tf.Tensor, is_little=False) -> tf.Tensor:
    """Unsigned numbers, the highest byte first or last: uint8 [..., bytes] -> int64 [...]."""
    weights = np.int64(256) ** np.arange(values.shape[-1])
    return tf.reduce_sum(
        tf.cast(values, tf.int64) * tf.where(is_little, weights, weights[::-1]), axis=-1
    )
