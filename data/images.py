"""Inspects encoded image files and checks that they decode to their end."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

# Images with more pixels are never decoded. It is Pillow's limit, above which it suspects an attack
# on the memory.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS

_JPEG_START = b"\xff\xd8\xff"
# Within a scan's data, FF occurs only before 00 or in a restart marker (D0 to D7).
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_END = b"\xff\xd9"
_JPEG_MARKERS_ALONE = (b"\xff\xd8", b"\xff\x01")  # all others begin a segment with its length
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_BIT_DEPTH = 24  # position in the file
_EXIF_ORIENTATION = 0x0112


class InvalidImage(ValueError):
    """The reason why image bytes cannot be used, as the second half of a sentence."""


class ImageFacts(NamedTuple):
    """The facts that an image's bytes state."""

    format: str  # "jpeg" or "png"
    height: int  # as stored, before any rotation
    width: int
    orientation: int = 1  # EXIF's, 1 to 8: how viewers rotate the stored pixels
    unused_bits: int = 0  # high bits that are 0 in all pixels of a PNG of 16 bits


def inspect_image(encoded: bytes) -> ImageFacts:
    """Reads format, size and orientation from the bytes and decodes them to the end.

    A JPEG is decoded at an eighth of its size: every byte is still read and entropy-decoded, at
    half the cost.

    Args:
        encoded: the whole file.

    Raises:
        InvalidImage: neither JPEG nor PNG, too large, truncated or otherwise broken.
    """
    image_format = _detect_format(encoded)
    with _invalid_if_broken():
        return _decode(encoded, image_format)


def stated_size(encoded: bytes) -> tuple[int, int]:
    """Reads height and width, as stored, from the header alone.

    Args:
        encoded: the whole file.

    Raises:
        InvalidImage: neither JPEG nor PNG, too large, or with a broken header.
    """
    _detect_format(encoded)
    with _invalid_if_broken(), Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
        width, height = image.size
        return height, width


@contextlib.contextmanager
def _invalid_if_broken() -> Iterator[None]:
    """Turns every error of Pillow into an InvalidImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # faulty metadata does not affect the pixels
            yield
    except Image.DecompressionBombError:
        raise InvalidImage(
            f"the image is too large: it has more than {MAX_PIXELS} pixels; scale it down or cut "
            "it into tiles"
        ) from None
    except UnidentifiedImageError:  # its message names an object in memory
        raise InvalidImage("the file is truncated or broken") from None
    except Exception as error:  # Pillow raises many kinds of errors for broken bytes
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
    # Pillow tolerates a file that ends after the last pixel row; TensorFlow's decoders do not.
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
        has_16_bits = image_format == "png" and encoded[_PNG_BIT_DEPTH] == 16
        unused_bits = _unused_bits(image) if has_16_bits else 0
        return ImageFacts(image_format, height, width, _orientation(image), unused_bits)


def _has_jpeg_end(encoded: bytes) -> bool:
    """Walks from marker to marker; data that cameras append to the first image is ignored."""
    position = 0
    while marker := _JPEG_MARKER.search(encoded, position):
        if marker[0] == _JPEG_END:
            return True
        position = marker.end()
        if marker[0] not in _JPEG_MARKERS_ALONE:
            position += int.from_bytes(encoded[position : position + 2], "big")
    return False


def _orientation(image: Image.Image) -> int:
    with contextlib.suppress(Exception):
        exif = Image.Exif()
        exif.load(image.info["exif"])  # not getexif, which also reads XMP's orientation
        if exif.get(_EXIF_ORIENTATION) in range(1, 9):
            return exif[_EXIF_ORIENTATION]
    return 1


def _unused_bits(image: Image.Image) -> int:
    """Counts them in a 16-bit image; Pillow keeps 16 bits if it is gray, else the high 8."""
    if image.mode.startswith("I"):
        high_byte = int(image.getextrema()[1]) >> 8
    else:
        high_byte = max(highest for _, highest in image.getextrema()[:3])
    return 8 - high_byte.bit_length()
