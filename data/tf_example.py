"""Serialises tf.train.Example without TensorFlow or protobuf.

The message is simple enough, and so the bytes depend neither on TensorFlow nor on the installed
protobuf release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Up to this many numbers, encoding them one by one is faster than NumPy.
_FEW = 40


def serialize_example(features: Mapping[str, bytes]) -> bytes:
    """Serialises a tf.train.Example of serialised features, in order of key."""
    entries = (
        _delimited(1, _delimited(1, key.encode()) + _delimited(2, feature))
        for key, feature in sorted(features.items())
    )
    return _delimited(1, b"".join(entries))


def bytes_feature(*values: bytes) -> bytes:
    """Serialises a tf.train.Feature of byte strings."""
    return _delimited(1, b"".join(_delimited(1, value) for value in values))


def float_feature(values: Sequence[float]) -> bytes:
    """Serialises a tf.train.Feature of float32 numbers."""
    return _delimited(2, _delimited(1, np.asarray(values, "<f4").tobytes()))


def int64_feature(values: Sequence[int]) -> bytes:
    """Serialises a tf.train.Feature of integers."""
    return _delimited(3, _delimited(1, _varints(values)))


def _varint(number: int) -> bytes:
    """Encodes a protobuf varint: seven bits per byte, the lowest first."""
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _varints(values: Sequence[int]) -> bytes:
    """Encodes many varints at once; negative numbers as 64-bit two's complement."""
    if len(values) < _FEW:
        return b"".join(_varint(int(value) & (2**64 - 1)) for value in values)
    numbers = np.asarray(values, np.int64).astype(np.uint64)[:, None]
    position = np.arange(10)
    groups = (numbers >> (7 * position).astype(np.uint64)) & np.uint64(127)
    last = np.max(np.where(groups > 0, position, 0), axis=1, keepdims=True)
    groups[position < last] |= np.uint64(128)
    return groups[position <= last].astype(np.uint8).tobytes()


def _delimited(field_number: int, payload: bytes) -> bytes:
    key, length = field_number << 3 | 2, len(payload)
    head = bytes((key, length)) if length < 128 else bytes((key,)) + _varint(length)
    return head + payload
