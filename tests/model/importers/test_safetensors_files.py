"""Safetensors files by hand; test_tensor_files reads one that the library wrote."""

import json
import random

import numpy as np
import pytest

from data.errors import UserError
from model.importers.tensor_files import read_tensors


def read(tmp_path, header, numbers):
    """Reads a file of a header, an object or its JSON, and what follows it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    return read_tensors(str(path))


def entry(first, last, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def test_tensors_stand_where_the_header_says(tmp_path):
    header = {"b": entry(8, 16), "__metadata__": {"format": "pt"}, "a": entry(0, 8, (1, 2))}
    found = read(tmp_path, header, np.float32([1, 2, 3, 4]).tobytes())
    assert list(found) == ["b", "a"]
    np.testing.assert_array_equal(found["b"], np.float32([3, 4]), strict=True)
    np.testing.assert_array_equal(found["a"], np.float32([[1, 2]]), strict=True)


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    bits = np.uint16([0x3F80, 0xC000, 0x7F80, 0x0001])
    found = read(tmp_path, {"a": entry(0, 8, (4,), "BF16")}, bits.tobytes())
    np.testing.assert_array_equal(found["a"], np.float32([1, -2, np.inf, 2.0**-133]))


def test_a_length_that_looks_like_a_zip_archive_deceives_nobody(tmp_path):
    text = json.dumps({"a": entry(0, 8)}).encode().ljust(0x4B50)
    assert len(text).to_bytes(8, "little").startswith(b"PK")
    assert read(tmp_path, text, bytes(8))["a"].shape == (2,)


def test_names_of_data_parallel_lose_their_prefix(tmp_path):
    assert list(read(tmp_path, {"module.a": entry(0, 8)}, bytes(8))) == ["a"]


@pytest.mark.parametrize(
    "header, sentence",
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "not contiguous"),
        ({"a": entry(0, 4, (1,)), "b": entry(8, 16)}, "not contiguous"),
        ({"a": entry(0, 8)}, "have 8 bytes, but the file has 16"),
        ({"a": entry(0, 8), "b": entry(8, 24, (4,))}, "have 24 bytes, but the file has 16"),
        ({"a": entry(0, 16, (2**62,))}, "an array should have"),
        ({"a": entry(0, 16, (-1,))}, "impossible shape or position"),
        ({"a": entry(0, 16, (4.0,))}, "impossible shape or position"),
        ({"a": entry(0, 16, (True,))}, "impossible shape or position"),
        ({"a": entry(16, 0)}, "impossible shape or position"),
        (
            {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0]}},
            "impossible shape or position",
        ),
        (
            {"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}},
            "impossible shape or position",
        ),
        ({"a": entry(0, 16, (16,), "F8_E4M3")}, "of type 'F8_E4M3', which is not supported"),
        ({"a": entry(0, 16, (4,), ["F32"])}, "damaged or truncated"),
        ({"a": [0, 16]}, "does not describe a tensor"),
        ({"a": {"dtype": "F32", "shape": [4]}}, "does not describe a tensor"),
        (b'{"a": 1, "a": 2}', "a name twice"),
        (b'{"a": ', "damaged or truncated"),
        (b'{"a": "\xff"}', "damaged or truncated"),
        (b'{"a": ' + b"[" * 100_000, "damaged or truncated"),
        (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}", "damaged or truncated"),
    ],
)
def test_what_is_refused(tmp_path, header, sentence):
    with pytest.raises(UserError, match="cannot be read as weights") as caught:
        read(tmp_path, header, bytes(16))
    assert sentence in str(caught.value)


def test_files_with_wrong_bytes_are_read_or_refused(repository, tmp_path):
    content = (repository / "tests" / "fixtures" / "numpy.safetensors").read_bytes()
    draw = random.Random(0)
    for _ in range(400):
        changed = bytearray(
            content[: draw.randrange(1, len(content)) if draw.random() < 0.2 else None]
        )
        for _ in range(draw.randrange(4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path = tmp_path / "changed"
        path.write_bytes(bytes(changed))
        try:
            found = read_tensors(str(path))
        except UserError as error:
            found = str(error)
        assert found
