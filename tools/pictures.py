"""Reads images and the frames of videos, one after another.

OpenCV decodes videos. It is imported only if there is a video, so that images do not need OpenCV.

Axes: h w rows and columns of an image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data import files
from data.errors import UserError

_PHOTOGRAPHS = (".jpg", ".jpeg", ".png")
_VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
# Minimum fraction of the declared frames; some videos estimate their number from the duration.
_COMPLETE = 0.98


class Picture(NamedTuple):
    """An image file or a frame of a video.

    Attributes:
        path: path of its file.
        frame: its number in a video, from 0 on; None for an image file.
        pixels: uint8 [h, w, 3], RGB.
    """

    path: str
    frame: int | None
    pixels: np.ndarray


def is_video(path: str) -> bool:
    """Whether a file name has the extension of a video."""
    return path.lower().endswith(_VIDEOS)


def find_pictures(patterns: Sequence[str]) -> list[str]:
    """Finds the files that names, folders and glob patterns match, each once, in order.

    Raises:
        UserError: one of them matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        paths = [path for match in files.glob(pattern) for path in _list_pictures(match)]
        if not paths:
            raise UserError(f"--input={pattern}: no JPEG, PNG or video files found.")
        found |= dict.fromkeys(paths)
    return list(found)


def read_pictures(
    paths: Sequence[str],
    read: Callable[[str], np.ndarray],
    refuse: Callable[[UserError], None],
) -> Iterator[Picture]:
    """Yields the images of all files; one that cannot be read is reported and skipped.

    Args:
        paths: image and video files.
        read: returns the pixels of an image file, or raises a UserError.
        refuse: called with the error of each file that cannot be read completely.
    """
    for path in paths:
        try:
            if is_video(path):
                for number, pixels in enumerate(read_frames(path)):
                    yield Picture(path, number, pixels)
            else:
                yield Picture(path, None, read(path))
        except UserError as error:
            refuse(error)


def read_frames(path: str) -> Iterator[np.ndarray]:
    """Yields the frames of a video, upright: uint8 [h, w, 3] in RGB.

    Raises:
        UserError: OpenCV is not installed; the file cannot be opened as a video, or ends early,
            which is detected after its last frame.
    """
    try:
        import cv2
    except ImportError:
        raise UserError(
            f"{path}: OpenCV is needed to read videos; pip install opencv-contrib-python-headless."
        ) from None
    try:
        with files.local_copy(path) as local:
            yield from _decode(cv2.VideoCapture(local), path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}.") from None


def _decode(video, path: str) -> Iterator[np.ndarray]:
    import cv2

    promised, count = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0
    try:
        while True:
            decoded, frame = video.read()
            if not decoded:
                break
            count += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        video.release()
    if not count:
        raise UserError(f"{path}: cannot be read as a video.")
    if count < _COMPLETE * promised:
        raise UserError(f"{path}: only {count} of its {promised} frames can be read.")


def _list_pictures(path: str) -> list[str]:
    if not files.is_folder(path):
        return [path]
    names = files.list_folder(path)
    return [
        os.path.join(path, name)
        for name in names
        if name.lower().endswith(_PHOTOGRAPHS) or is_video(name)
    ]
