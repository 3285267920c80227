"""Reads safetensors files: a length, a JSON header with each tensor's position, and the numbers.

Source: "Format" in the documentation of huggingface/safetensors. As specified there, the tensors
have to fill the rest of the file without gaps, so that every byte is read exactly once.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from model.importers.numpy_files import array_from_bytes, is_shape
from model.importers.refusals import Budget, Refusal, damaged, shown

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_NUMBER_TYPES = {
    "BOOL": "b1", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
    "BF16": "<u2",  # the upper half of a float32
}  # fmt: skip


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes starts with the length of a header that fits into it."""
    return head[_LENGTH_BYTES:].startswith(b"{") and _header_end(head) <= size


def read_safetensors(content: bytes, budget: Budget) -> dict[str, np.ndarray]:
    """Reads the tensors of a safetensors file by name, in the header's order.

    Raises:
        Refusal: the header is invalid, the tensors are not contiguous, or one is of an unknown
            type.
        ValueError: the header is not JSON.
    """
    start = _header_end(content)
    header = json.loads(content[_LENGTH_BYTES:start], object_pairs_hook=_without_repetition)
    header.pop(_METADATA, None)
    spans = {name: _span(name, entry) for name, entry in header.items()}
    end = 0
    for first, last in sorted(spans.values()):
        if first != end:
            raise damaged("its tensors are not contiguous")
        end = last
    if end != len(content) - start:
        raise damaged(f"its tensors have {end} bytes, but the file has {len(content) - start}")
    return {
        name: _array(entry, content[start + spans[name][0] : start + spans[name][1]], budget)
        for name, entry in header.items()
    }


def _header_end(content: bytes) -> int:
    return _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise damaged("its header contains a name twice")
    return found


def _span(name: str, entry: Any) -> tuple[int, int]:
    """Returns first and last byte of a tensor, counted from the end of the header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged(f"the header's entry {shown(name)} does not describe a tensor")
    if entry["dtype"] not in _NUMBER_TYPES:
        raise Refusal(
            f"its tensor {shown(name)} is of type {shown(entry['dtype'])}, which is not "
            "supported: save its tensors as float32"
        )
    shape, span = entry["shape"], entry["data_offsets"]
    lists = isinstance(shape, list) and isinstance(span, list)
    if not lists or not is_shape((*shape, *span)) or len(span) != 2 or span[0] > span[1]:
        raise damaged(f"the tensor {shown(name)} has an impossible shape or position")
    return span[0], span[1]


def _array(entry: dict[str, Any], content: bytes, budget: Budget) -> np.ndarray:
    dtype = np.dtype(_NUMBER_TYPES[entry["dtype"]])
    array = array_from_bytes(content, dtype, tuple(entry["shape"]), False, budget)
    if entry["dtype"] == "BF16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array
