"""Encoded image files: what the bytes say of the picture, and whether they decode to their end."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from typing import NamedTuple

from PIL import Image

# Pictures with more pixels are decoded nowhere: Pillow's own limit, above which it suspects an
# attack on the memory.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS

_JPEG_START = b"\xff\xd8\xff"
# Within a scan's data FF stands only before 00 or as a restart marker (D0 to D7).
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_END = b"\xff\xd9"
_JPEG_MARKERS_ALONE = (b"\xff\xd8", b"\xff\x01")  # all others begin a segment with its length
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_BIT_DEPTH = 24  # where it stands in the file
_EXIF_ORIENTATION = 0x0112


class InvalidImage(ValueError):
    """The reason why image bytes cannot be used, as the second half of a sentence."""


class ImageFacts(NamedTuple):
    """What the bytes of an image say about themselves."""

    format: str  # "jpeg" or "png"
    height: int  # as stored, whatever the orientation
    width: int
    orientation: int = 1  # EXIF's, 1 to 8: how viewers turn the stored pixels
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata does not concern the pixels
            return _decode(encoded, image_format)
    except Image.DecompressionBombError:
        raise InvalidImage(
            f"the picture is too large, of more than {MAX_PIXELS} pixels; scale it down or cut it "
            "into tiles"
        ) from None
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
        has_16_bits = image_format == "png" and encoded[_PNG_BIT_DEPTH] == 16
        unused_bits = _unused_bits(image) if has_16_bits else 0
        return ImageFacts(image_format, height, width, _orientation(image), unused_bits)


def _has_jpeg_end(encoded: bytes) -> bool:
    """Walks from marker to marker; what cameras append behind the first picture is no matter."""
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
        exif.load(image.info["exif"])  # not getexif, which takes XMP's orientation as well
        if exif.get(_EXIF_ORIENTATION) in range(1, 9):
            return exif[_EXIF_ORIENTATION]
    return 1


def _unused_bits(image: Image.Image) -> int:
    """Of a picture of 16 bits; Pillow keeps them if it is gray and else the high 8 of them."""
    if image.mode.startswith("I"):
        high_byte = int(image.getextrema()[1]) >> 8
    else:
        high_byte = max(highest for _, highest in image.getextrema()[:3])
    return 8 - high_byte.bit_length()
