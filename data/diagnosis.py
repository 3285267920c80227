"""Finds the record that stopped the input pipeline, which TensorFlow's message does not name.

The decoders in the graph raise without knowing which record they were given. Once one has, the
files are read again until the record is found.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import tensorflow as tf

from data.decoding import decode_image
from data.errors import UserError
from data.files import open_file
from data.manifest import expand_pattern
from data.records import parse_image_id, parse_record

_GZIP = "the file is compressed with gzip; unpack it with gunzip"


def find_broken_record(
    file_pattern: str, include_masks: bool, max_polygon_vertices: int = 0, exif: str = "apply"
) -> UserError | None:
    """Parses and decodes records in order until one fails.

    Args:
        file_pattern: as for `data.manifest.expand_pattern`.
        include_masks: whether the masks have to be usable too.
        max_polygon_vertices: as for `data.records.parse_record`.
        exif: as for `data.decoding.decode_image`.

    Returns:
        An error to raise, which names file, record and image; None if all records are valid.
    """

    @tf.autograph.experimental.do_not_convert
    def use(serialized: tf.Tensor) -> tf.Tensor:
        record = parse_record(serialized, include_masks, max_polygon_vertices)
        return tf.size(decode_image(record, exif)) + sum(map(tf.size, tf.nest.flatten(record)))

    for path in expand_pattern(file_pattern):
        used = tf.data.TFRecordDataset(path).map(use, tf.data.AUTOTUNE, deterministic=True)
        number = 1
        try:
            for _ in used:
                number += 1
        except tf.errors.OpError as error:
            reason = _GZIP if _is_gzip(path) else explain_error(error)
            return UserError(
                f"cannot use record {number} of {path}{_whose(path, number)} "
                f"({reason}); correct it, or convert the dataset again without it."
            )
    return None


def name_broken_record(
    error: tf.errors.OpError, file_pattern: str, include_masks: bool
) -> UserError:
    """Returns the error of `find_broken_record`, or else one with TensorFlow's own reason."""
    return find_broken_record(file_pattern, include_masks) or UserError(
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
        ids = tf.data.TFRecordDataset(path).map(parse_image_id, tf.data.AUTOTUNE)
        for number, image_id in enumerate(map(int, ids.as_numpy_iterator()), start=1):
            here = f"record {number} of {path}"
            if seen.setdefault(image_id, here) != here:
                raise UserError(
                    f"{seen[image_id]} and {here} have the same image id {image_id}; give every "
                    "image a unique image/source_id, or a unique file name if that is empty."
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


def _whose(path: str, number: int) -> str:
    """Names the image if the record can be read at all."""
    try:
        serialized = next(iter(tf.data.TFRecordDataset(path).skip(number - 1)))
        return f" (image id {int(parse_image_id(serialized))})"
    except (tf.errors.OpError, StopIteration):
        return ""
