"""Reads NumPy arrays from pickles, .npz archives and raw bytes.

NumPy's own constructors trust the state in a pickle, even flags that declare bytes to be pointers.
They are not used here: an array consists of its bytes, a shape and one of the number types below.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from model.importers.pickle_objects import Numbers, Stub
from model.importers.refusals import Budget, Refusal, damaged, shown
from model.importers.zip_members import ZipMembers

_NUMBER_TYPES = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")
_MAX_AXES = 32


def array_from_bytes(
    content: bytes, dtype: np.dtype, shape: tuple[int, ...], fortran: bool, budget: Budget
) -> np.ndarray:
    """Makes an array of numbers from exactly its bytes.

    Args:
        content: the numbers, one after another.
        dtype: their type, of any byte order.
        shape: the axes' lengths.
        fortran: whether the first axis, not the last, is contiguous.
        budget: memory budget that the array is charged to.

    Returns:
        The array in native byte order; read-only if nothing had to be converted.

    Raises:
        Refusal: shape and bytes do not fit together, or the type is not numeric.
    """
    if not is_number_type(dtype):
        raise Refusal(
            f"it contains an array of {dtype} instead of numbers: save plain arrays of numbers"
        )
    if not is_shape(shape):
        raise damaged("an array with an impossible shape")
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes != len(content):
        raise damaged(f"an array should have {num_bytes} bytes but has {len(content)}")
    budget.charge(num_bytes)
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def is_number_type(dtype: np.dtype) -> bool:
    """Whether weights may be arrays of this type."""
    return bool(_NUMBER_TYPES.fullmatch(f"{dtype.kind}{dtype.itemsize}"))


def is_shape(shape: Any) -> bool:
    """Whether a value is a short tuple of non-negative lengths."""
    return (
        isinstance(shape, tuple)
        and len(shape) <= _MAX_AXES
        and all(type(length) is int and 0 <= length < 2**63 for length in shape)
    )


def plain_numbers(array: np.ndarray) -> np.ndarray:
    """Converts an array to the form that `read_tensors` returns.

    Returns:
        A contiguous copy of the same shape: float32 for floats of any width; bool, integers and
        complex numbers unchanged.
    """
    if array.dtype == bool:
        # A file may contain bytes other than 0 and 1, which are undefined as NumPy's bool.
        return np.ascontiguousarray(array).view(np.uint8).reshape(array.shape) != 0
    dtype = np.float32 if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(array, dtype, order="C")


class _PickledType(Stub):
    """A numpy.dtype of a pickle: its code and byte order, and whether it is a plain type."""

    def __init__(self, code: Any, *_: Any):
        super().__init__("numpy.dtype")
        self._code = code.lstrip("<>=|")
        self._order = code[0] if code[0] in "<>" else "="
        self._plain = True

    def set_state(self, state: Any) -> None:
        _, order, *structure = state
        self._order = order if order in ("<", ">") else "="
        self._plain = structure[:3] == [None, None, None]

    def resolve(self) -> np.dtype:
        if not self._plain or not _NUMBER_TYPES.fullmatch(self._code):
            raise Refusal(
                f"it contains an array of type {shown(self._code)} instead of numbers: save plain "
                "arrays of numbers"
            )
        return np.dtype(self._order + self._code)


class _PickledArray(Numbers):
    """A numpy.ndarray of a pickle, whose content comes in its state or in the call."""

    def __init__(self, *_: Any):
        super().__init__("numpy.ndarray")
        self._parts: tuple | None = None

    @classmethod
    def of_parts(cls, shape: Any, dtype: Any, fortran: Any, content: Any) -> _PickledArray:
        array = cls()
        array._parts = (shape, dtype, fortran, content)
        return array

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise damaged("the state of an array is invalid")
        self._parts = state[-4:]  # the first of five is the version of the format

    def to_array(self, budget: Budget) -> np.ndarray:
        if self._parts is None:
            raise damaged("an array without content")
        shape, dtype, fortran, content = self._parts
        if not isinstance(dtype, _PickledType):
            raise damaged("an array without a type")
        resolved = dtype.resolve()
        if isinstance(content, str):  # Python 2 wrote it
            content = content.encode("latin1")
        if not isinstance(content, bytes):
            raise damaged("an array without bytes")
        return array_from_bytes(content, resolved, shape, bool(fortran), budget)


def _scalar(dtype: Any, content: Any = b"") -> _PickledArray:
    return _PickledArray.of_parts((), dtype, False, content)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any = "C") -> _PickledArray:
    return _PickledArray.of_parts(shape, dtype, order == "F", content)


def array_builders() -> dict[str, Callable[..., Any]]:
    """Returns builders of NumPy's arrays, scalars and types, by their old and new full names."""
    builders = {"numpy.dtype": _PickledType}
    for core in ("numpy.core", "numpy._core"):
        builders[f"{core}.multiarray._reconstruct"] = _PickledArray
        builders[f"{core}.multiarray.scalar"] = _scalar
        builders[f"{core}.numeric._frombuffer"] = _from_buffer
    return builders


def read_npz(members: ZipMembers, budget: Budget) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz archive, by name.

    Raises:
        Refusal: a member is not an array of numbers.
    """
    names = [name for name in members.names if name.endswith(".npy")]
    return {name.removesuffix(".npy"): _read_npy(members.read(name), budget) for name in names}


def _read_npy(content: bytes, budget: Budget) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    return array_from_bytes(content[file.tell() :], dtype, shape, fortran, budget)
