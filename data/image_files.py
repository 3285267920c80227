"""Reads the image files that a COCO file lists and checks them against it."""

from __future__ import annotations

import contextlib
import os
import urllib.parse

from data import files
from data.coco import CocoImage
from data.images import ImageFacts, InvalidImage, inspect_image


def image_state(image_dir: str, image: CocoImage) -> tuple[int, ...] | None:
    """Returns numbers that change with the file, as `data.files.state`; None if it is missing."""
    try:
        return files.state(os.path.join(image_dir, image.file_name))
    except (OSError, ValueError):
        return None


def read_image(image_dir: str, image: CocoImage) -> tuple[bytes, ImageFacts, int]:
    """Reads an image's bytes, its facts, and the orientation in which its annotator saw it.

    Annotation tools either apply the EXIF orientation or show the stored pixels; if the two differ
    in size, the size in the JSON shows which.

    Raises:
        InvalidImage: the image cannot be read, or does not agree with the JSON.
    """
    path = os.path.join(image_dir, image.file_name)
    try:
        with files.open_file(path, "rb") as file:
            encoded = file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = _hint_at_name(image_dir, image)
        raise InvalidImage(f"cannot read {path!r}: {reason}{hint}") from None
    facts = inspect_image(encoded)
    stored, told = (facts.height, facts.width), (image.height, image.width)
    if told == (stored if facts.orientation < 5 else stored[::-1]):
        return encoded, facts, facts.orientation
    if told == stored:
        return encoded, facts, 1
    raise InvalidImage(
        f"the file has {facts.width}x{facts.height} pixels, but the JSON says "
        f"{image.width}x{image.height}"
    )


def _hint_at_name(image_dir: str, image: CocoImage) -> str:
    """Names the existing file if the JSON spells its name as Windows or a URL would."""
    name = image.file_name.replace("\\", "/")
    for other in (name, urllib.parse.unquote(image.file_name), urllib.parse.unquote(name)):
        with contextlib.suppress(OSError, ValueError):
            if other != image.file_name and files.exists(os.path.join(image_dir, other)):
                return f"; {other!r} exists, so correct the name in the JSON"
    return ""
