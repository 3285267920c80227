"""Encoded image files: which format the bytes are, and whether they decode to their end."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import NamedTuple

from PIL import Image

_JPEG_START = b"\xff\xd8\xff"
_JPEG_SCAN = b"\xff\xda"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_EXIF_ORIENTATION = 0x0112


class InvalidImage(ValueError):
    """The reason why image bytes cannot be used, as the second half of a sentence."""


class ImageFacts(NamedTuple):
    """What the bytes of an image say about themselves."""

    format: str  # "jpeg" or "png"
    height: int
    width: int


def inspect_image(encoded: bytes) -> ImageFacts:
    """Reads format and size from the bytes and decodes them to the end.

    A JPEG is decoded at an eighth of its size: every byte is still read and entropy-decoded, at
    half the cost.

    Args:
      encoded: the whole file.

    Raises:
      InvalidImage: neither JPEG nor PNG, truncated or otherwise broken.
    """
    image_format = _detect_format(encoded)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata does not concern the pixels
            return _decode(encoded, image_format)
    except Exception as error:  # Pillow raises whatever the broken bytes lead it to
        raise InvalidImage(f"the file is truncated or broken ({error})") from None


def _detect_format(encoded: bytes) -> str:
    if encoded.startswith(_JPEG_START):
        return "jpeg"
    if encoded.startswith(_PNG_START):
        return "png"
    if not encoded:
        raise InvalidImage("the file is empty")
    raise InvalidImage("the file is neither JPEG nor PNG, whatever its name says; convert it")


def _decode(encoded: bytes, image_format: str) -> ImageFacts:
    # Pillow fills in what is missing behind the last pixel row; TensorFlow's decoders do not.
    if image_format == "jpeg" and not _has_jpeg_end(encoded):
        raise ValueError("the end-of-image marker is missing")
    if image_format == "png":
        if _PNG_END not in encoded:
            raise ValueError("the end chunk is missing")
        with Image.open(io.BytesIO(encoded)) as image:
            image.verify()
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        image.draft(None, (1, 1))
        image.load()
    return ImageFacts(image_format, height, width)


def _has_jpeg_end(encoded: bytes) -> bool:
    # Cameras may append bytes of their own; inside a scan the end marker cannot occur.
    return encoded.endswith(_JPEG_END) or encoded.rfind(_JPEG_END) > encoded.rfind(_JPEG_SCAN)


def is_turned_by_viewers(encoded: bytes) -> bool:
    """Whether the EXIF data ask viewers to turn the image by 90 degrees, as decoders do not."""
    with contextlib.suppress(Exception), Image.open(io.BytesIO(encoded)) as image:
        return image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
    return False
