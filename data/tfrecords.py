"""The TFRecord format: each record is framed by its length and two 4-byte checksums."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import google_crc32c

from data.errors import UserError
from data.files import open_file, whole_file
from data.files import size as file_size


class Shard(NamedTuple):
    """Describes what was written to a shard."""

    num_records: int
    num_bytes: int
    sha256: str


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
            file.seek(end)
            end += 16 + int.from_bytes(file.read(8), "little")
            if end > size:
                raise UserError(
                    f"{path} is truncated or not an uncompressed TFRecord file; convert the "
                    "dataset again."
                )
            yield end


def _masked_crc(data: bytes) -> bytes:
    """Computes the CRC32C of the data, rotated and offset as the TFRecord format requires."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
