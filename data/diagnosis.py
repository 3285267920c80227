"""Finds the records that cannot be used.

The decoders in the input's graph raise without knowing which record they were given. Once one has,
the files are read again until the record is found. With `--on_corrupt_record=skip` they are read
before the start, so that the input leaves these records out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data.decoding import decode_image
from data.errors import UserError
from data.files import open_file
from data.manifest import expand_pattern
from data.records import parse_image_id, parse_record
from data.tfrecords import Frame, join_frames, read_frames, read_stretches

_GZIP = "the file is compressed with gzip; unpack it with gunzip"


class Needs(NamedTuple):
    """What has to be usable in a record.

    Attributes:
        include_masks: whether the masks have to be.
        max_polygon_vertices: as for `data.records.parse_record`.
        exif: as for `data.decoding.decode_image`.
    """

    include_masks: bool = False
    max_polygon_vertices: int = 0
    exif: str = "apply"


class CorruptRecord(NamedTuple):
    """A record that cannot be used.

    Attributes:
        path: its file.
        number: its place in the file, from 1.
        offset: the byte at which it starts.
        reason: why it cannot be used.
        image_id: None if it cannot be read.
        has_labels: whether everything but the image and the masks can be used.
    """

    path: str
    number: int
    offset: int
    reason: str
    image_id: int | None
    has_labels: bool

    def __str__(self) -> str:
        whose = "" if self.image_id is None else f", image id {self.image_id}"
        return f"record {self.number} of {self.path} (byte {self.offset}{whose}) ({self.reason})"


def find_corrupt_records(
    path: str, frames: Sequence[Frame], needs: Needs
) -> Iterator[CorruptRecord]:
    """Parses and decodes the records of a file, and yields those that cannot be used, in order.

    Args:
        path: the file.
        frames: its frames, as `data.tfrecords.read_frames` gives them.
        needs: what has to be usable.
    """

    @tf.autograph.experimental.do_not_convert
    def use(serialized: tf.Tensor) -> tf.Tensor:
        record = parse_record(serialized, needs.include_masks, needs.max_polygon_vertices)
        return tf.size(decode_image(record, needs.exif)) + sum(
            map(tf.size, tf.nest.flatten(record))
        )

    for number, (frame, result) in enumerate(_map_sound_records(path, frames, use), start=1):
        if frame.damage:
            reason = _GZIP if number == 1 and _is_gzip(path) else frame.damage
            yield CorruptRecord(path, number, frame.start, reason, None, False)
        elif isinstance(result, tf.errors.OpError):
            yield CorruptRecord(
                path, number, frame.start, explain_error(result), *_read_labels(path, frame)
            )


def _map_sound_records(
    path: str, frames: Sequence[Frame], function: Callable
) -> Iterator[tuple[Frame, tf.Tensor | tf.errors.OpError | None]]:
    """Pairs each frame with the result of a graph function of its record, or with its error."""

    def results() -> Iterator:
        sound = [frame.start for frame in frames if not frame.damage]
        stretches = np.array(join_frames(frames, set(sound)), np.int64).reshape([-1, 2])
        records = read_stretches(path, *stretches.T)
        mapped = iter(records.map(function, tf.data.AUTOTUNE, deterministic=True))
        for _ in sound:
            try:
                yield next(mapped)
            except tf.errors.OpError as error:
                yield error

    of_sound = results()
    for frame in frames:
        yield frame, None if frame.damage else next(of_sound)


def _read_labels(path: str, frame: Frame) -> tuple[int | None, bool]:
    """Returns the image id of a record and whether its labels can be used."""
    (serialized,) = read_stretches(path, np.array([frame.start]), np.array([1]))
    try:
        image_id = int(parse_image_id(serialized))
    except tf.errors.OpError:
        return None, False
    try:
        parse_record(serialized, include_masks=False)
        return image_id, True
    except tf.errors.OpError:
        return image_id, False


def find_broken_record(
    file_pattern: str, needs: Needs, skipped: Container[tuple[str, int]] | None = None
) -> UserError | None:
    """Checks records in order until one cannot be used.

    Args:
        file_pattern: as for `data.manifest.expand_pattern`.
        needs: what has to be usable.
        skipped: paths and byte offsets of the records that the run leaves out; None if it leaves
            out none.

    Returns:
        An error to raise, which names file, byte, record and image; None if all can be used.
    """
    advice = ", or skip all such records with --on_corrupt_record=skip"
    if skipped is not None:
        advice = ", or run the same command again, which skips it if it was damaged after the start"
    for path in expand_pattern(file_pattern):
        for record in find_corrupt_records(path, list(read_frames(path)), needs):
            if (path, record.offset) not in (skipped or ()):
                return UserError(
                    f"cannot use {record}; correct it, convert the dataset again without it"
                    f"{advice}."
                )
    return None


def name_broken_record(
    error: tf.errors.OpError,
    file_pattern: str,
    include_masks: bool,
    skipped: Container[tuple[str, int]] | None = None,
) -> UserError:
    """Returns the error of `find_broken_record`, or else one with TensorFlow's own reason."""
    return find_broken_record(file_pattern, Needs(include_masks), skipped) or UserError(
        f"cannot read the records {file_pattern} ({explain_error(error)}); convert them again."
    )


def require_unique_ids(image_ids: Sequence[int], file_pattern: str) -> None:
    """Refuses records of which two have the same image id.

    Args:
        image_ids: of all records, in any order.
        file_pattern: where to look for the two.

    Raises:
        UserError: names both records.
    """
    if len(set(image_ids)) == len(image_ids):
        return
    seen: dict[int, str] = {}
    for path in expand_pattern(file_pattern):
        found = _map_sound_records(path, list(read_frames(path)), parse_image_id)
        for number, (_, image_id) in enumerate(found, start=1):
            here = f"record {number} of {path}"
            if tf.is_tensor(image_id) and seen.setdefault(int(image_id), here) != here:
                raise UserError(
                    f"{seen[int(image_id)]} and {here} have the same image id {int(image_id)}; "
                    "give every image a unique image/source_id, or a unique file name if that is "
                    "empty."
                )


def _is_gzip(path: str) -> bool:
    with open_file(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def explain_error(error: tf.errors.OpError) -> str:
    """Returns TensorFlow's message without the names of nodes and ops around it."""
    message = error.message
    if message.startswith("Graph execution error:"):  # followed by lines of source, then the reason
        message = message.partition("\n\t [[")[0].rpartition("\n\n")[2]
    message = re.sub(r"\{\{[^}]*\}\} ", "", message.partition("\n")[0])
    message = re.sub(r"^Error in user-defined function .*? Iterator::\S*: ", "", message)
    message = re.sub(r" \[Op:\w+\].*$", "", message)
    if absent := re.search(r"Feature: (\S+) \(data type: \w+\) is required but could", message):
        return f"it has no {absent[1]}"
    if message.startswith("assertion failed: "):
        return " ".join(re.findall(r"\[([^\]]*)\]", message))
    return message.rstrip(". ")
