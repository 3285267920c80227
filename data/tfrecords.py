"""The TFRecord format: each record is framed by its length and two 4-byte checksums."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Container, Iterable, Iterator
from typing import IO, NamedTuple

import google_crc32c

from data.errors import UserError
from data.files import open_file, whole_file
from data.files import size as file_size

# Bytes of a record's frame before its data and after it.
_HEAD, _TAIL = 12, 4
_BLOCK = 1 << 20
_ZEROS = bytes(4)


class Shard(NamedTuple):
    """Describes what was written to a shard."""

    num_records: int
    num_bytes: int
    sha256: str


class Frame(NamedTuple):
    """The bytes of one record in a file, or of a part of the file that holds no readable record."""

    start: int
    end: int
    damage: str  # what is wrong with it; "" if it agrees with its checksums


class Stretch(NamedTuple):
    """Consecutive records of a file."""

    start: int  # byte offset
    num_records: int


def write_shard(path: str, records: Iterable[bytes], writer: str = "") -> Shard:
    """Writes a TFRecord file that appears under its name only once it is complete.

    Args:
        path, writer: as for `data.files.whole_file`.
        records: serialised examples.

    Raises:
        OSError: the file cannot be written.
    """
    digest = hashlib.sha256()
    num_records = num_bytes = 0
    with whole_file(path, "wb", writer) as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            for part in (length, _masked_crc(length), record, _masked_crc(record)):
                file.write(part)
                digest.update(part)
                num_bytes += len(part)
            num_records += 1
    return Shard(num_records, num_bytes, digest.hexdigest())


def record_ends(path: str) -> Iterator[int]:
    """Yields the byte offset at which each record of a file ends.

    Raises:
        UserError: the file ends within a record.
    """
    size = file_size(path)
    end = 0
    with open_file(path, "rb") as file:
        while end < size:
            file.seek(start := end)
            end += _HEAD + int.from_bytes(file.read(8), "little") + _TAIL
            if end > size:
                raise UserError(
                    f"{path} is truncated in the record at byte {start}, or it is not an "
                    "uncompressed TFRecord file; convert the dataset again."
                )
            yield end


def read_frames(path: str) -> Iterator[Frame]:
    """Yields the frames of a file in order, and compares them with their checksums.

    If the length of a record is damaged, the next record is searched for byte by byte. What lies
    before it is one frame, however many records it once was.

    Raises:
        OSError: the file cannot be read.
    """
    size, start = file_size(path), 0
    with open_file(path, "rb") as file:
        while start < size:
            end = _frame_end(file, start)
            damage = ""
            if not end:
                end = _find_frame(file, start + 1, size)
                damage = "its length does not agree with its checksum"
            elif end > size:
                end, damage = size, "the file ends within it"
            elif not _has_sound_data(file, start, end):
                damage = "its data do not agree with their checksum"
            yield Frame(start, end, damage)
            start = end


def join_frames(frames: Iterable[Frame], starts: Container[int]) -> tuple[Stretch, ...]:
    """Joins the frames with given starts to stretches.

    Args:
        frames: all of a file.
        starts: byte offsets of those to join.
    """
    stretches: list[Stretch] = []
    continues = False
    for frame in frames:
        if frame.start in starts and continues:
            stretches[-1] = Stretch(stretches[-1].start, stretches[-1].num_records + 1)
        elif frame.start in starts:
            stretches.append(Stretch(frame.start, 1))
        continues = frame.start in starts
    return tuple(stretches)


def read_stretches(path, starts, counts):
    """Makes the dataset of the serialised records of a file's stretches, one after another.

    Args:
        path: string scalar.
        starts, counts: int64 [n], byte offsets and numbers of records.
    """
    import tensorflow as tf

    def read(start, count):
        # tf.data.TFRecordDataset has no offset.
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=[path], compression_type="", buffer_size=_BLOCK, byte_offsets=[start]
        )
        records = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
        return records.take(count)

    # Outside of a function, TensorFlow would lose the offset in copying the dataset's graph.
    return tf.data.Dataset.from_tensor_slices((starts, counts)).flat_map(read)


def _frame_end(file: IO, start: int) -> int:
    """Computes where the record at `start` should end; 0 if its length is damaged."""
    file.seek(start)
    head = file.read(_HEAD)
    if len(head) < _HEAD or head[8:] != _masked_crc(head[:8]):
        return 0
    return start + _HEAD + int.from_bytes(head[:8], "little") + _TAIL


def _has_sound_data(file: IO, start: int, end: int) -> bool:
    file.seek(start + _HEAD)
    data = file.read(end - start - _HEAD)
    return data[-_TAIL:] == _masked_crc(data[:-_TAIL])


def _find_frame(file: IO, start: int, size: int) -> int:
    """Finds the next byte offset at which a sound record starts; `size` if there is none."""
    for block_start in range(start, size, _BLOCK):
        file.seek(block_start)
        block = file.read(_BLOCK + _HEAD)
        # Records are shorter than 4 GiB, so the second half of their length is zero.
        place = block.find(_ZEROS, 4)
        while place >= 0:
            offset = block_start + place - 4
            end = _frame_end(file, offset)
            if offset < end <= size and _has_sound_data(file, offset, end):
                return offset
            place = block.find(_ZEROS, place + 1)
    return size


def _masked_crc(data: bytes) -> bytes:
    """Computes the CRC32C of the data, rotated and offset as the TFRecord format requires."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
