"""Reads image files exactly as training reads the images in records."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf

from data.decoding import decode_image
from data.diagnosis import explain_error
from data.errors import UserError
from data.files import Path, open_file
from data.images import InvalidImage, inspect_image


def read_photograph(path: Path, exif: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads the pixels of a file, uint8 [h, w, 3], oriented as by `data.decoding.decode_image`.

    Args:
        path: a JPEG or PNG file; with `size`, any format of `decode_image`.
        exif: "apply" or "ignore".
        size: h and w that annotations refer to; by default the file's own, once rotated.

    Raises:
        UserError: the file cannot be read, is not such an image, or has another size.
    """
    try:
        with open_file(path, "rb") as file:
            return decode_photograph(file.read(), exif, size)
    except (OSError, InvalidImage) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{path}: cannot be read as an image ({reason}).")


def decode_photograph(encoded: bytes, exif: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes the content of a file, as `read_photograph` does.

    Raises:
        InvalidImage: it is not such an image, or has another size.
    """
    orientation = 0  # taken from the file itself
    if size is None:
        facts = inspect_image(encoded)
        turned = exif == "apply" and facts.orientation >= 5
        size = (facts.width, facts.height) if turned else (facts.height, facts.width)
        orientation = facts.orientation
    numbers = {"image_id": 0, "height": size[0], "width": size[1], "orientation": orientation}
    record = {name: tf.constant(number, tf.int64) for name, number in numbers.items()}
    try:
        return _decoder(exif)(record | {"encoded": tf.constant(encoded)}).numpy()
    except tf.errors.OpError as error:
        raise InvalidImage(explain_error(error).partition(". Image id:")[0]) from None


@functools.cache
def _decoder(exif: str):
    """Makes one graph for all files."""
    return tf.function(functools.partial(decode_image, exif=exif), autograph=False)
