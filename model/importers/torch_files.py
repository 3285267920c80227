"""Reads PyTorch's checkpoints without PyTorch: the zip format since 1.6 and the older one.

Both hold a pickle in which a tensor is a call of `torch._utils._rebuild_tensor_v2` with a storage,
an offset, a shape and strides; the storages, runs of numbers of one type, are stored outside of it.
In the zip format each is a member `<name>/data/<key>`. In the older one five pickles follow each
other (magic number, version, system, content, keys of the storages), then for each key the number
of elements as int64 and the elements. Offsets and strides count elements.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from model.importers.numpy_files import array_builders, is_shape
from model.importers.pickle_objects import Global, Numbers, Stub, container_builders
from model.importers.refusals import Budget, Refusal, damaged, shown
from model.importers.safe_pickle import load_pickle
from model.importers.zip_members import ZipMembers

# The pickle instruction that pushes the magic number 0x1950a86a20f9469cfc6c on the stack.
LEGACY_MAGIC = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_LEGACY_VERSION = 1001

_TYPES = {
    "float16": "f2", "float32": "f4", "float64": "f8", "bfloat16": "bfloat16", "bool": "b1",
    "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8",
    "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8",
    "complex64": "c8", "complex128": "c16",
}  # fmt: skip
_STORAGE_TYPES = {
    "HalfStorage": "f2", "FloatStorage": "f4", "DoubleStorage": "f8",
    "BFloat16Storage": "bfloat16", "BoolStorage": "b1", "CharStorage": "i1", "ShortStorage": "i2",
    "IntStorage": "i4", "LongStorage": "i8", "ByteStorage": "u1",
    "ComplexFloatStorage": "c8", "ComplexDoubleStorage": "c16",
# These two count bytes; the tensor states their type.
    "UntypedStorage": "u1", "_UntypedStorage": "u1", "TypedStorage": "u1",
# Quantised numbers are refused as weights, but may occur between other storages.
    "QInt8Storage": "i1", "QUInt8Storage": "u1", "QInt32Storage": "i4",
}  # fmt: skip


def _element_bytes(type_code: str) -> int:
    return 2 if type_code == "bfloat16" else np.dtype(type_code).itemsize


@dataclass(frozen=True)
class _Storage:
    """A run of `length` elements, from element `start`, of the storage with a `key`."""

    key: str
    type_code: str
    length: int
    read: Callable[[str], bytes]
    order: str = "<"
    start: int = 0

    def elements(self, type_code: str) -> np.ndarray:
        """Returns the run as a flat array; bfloat16 as the uint16 [length] of its bits."""
        size = _element_bytes(self.type_code)
        content = self.read(self.key)
        first, last = self.start * size, (self.start + self.length) * size
        if last > len(content):
            raise damaged(f"storage {shown(self.key)} has {len(content)} bytes, not {last}")
        width = _element_bytes(type_code)
        dtype = np.dtype("u2" if type_code == "bfloat16" else type_code).newbyteorder(self.order)
        return np.frombuffer(content, dtype, (last - first) // width, first)


class _Tensor(Numbers):
    """A tensor of a pickle, whose numbers are read only if it is used."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, type_code: str):
        super().__init__("torch.Tensor")
        if not isinstance(storage, _Storage):
            raise damaged("a tensor has no storage")
        if not (is_shape(shape) and is_shape(strides) and is_shape((offset,))):
            raise damaged("a tensor has an impossible shape, strides or offset")
        if len(shape) != len(strides):
            raise damaged("a tensor has different numbers of axes and strides")
        self._storage, self._type = storage, type_code
        self._offset, self._shape, self._strides = offset, shape, strides

    def to_array(self, budget: Budget) -> np.ndarray:
        count = math.prod(self._shape)
        budget.charge(count * max(4, _element_bytes(self._type)))
        if not count:
            return np.zeros(self._shape, "f4" if self._type == "bfloat16" else self._type)
        elements = self._storage.elements(self._type)
        last = self._offset + sum(
            (length - 1) * stride for length, stride in zip(self._shape, self._strides, strict=True)
        )
        if last >= len(elements):
            raise damaged(f"a tensor uses element {last} of a storage of {len(elements)} elements")
        # It lies inside the storage, as just checked; strides of axes of length 1 are arbitrary.
        steps = [
            stride * elements.itemsize if length > 1 else 0
            for length, stride in zip(self._shape, self._strides, strict=True)
        ]
        view = np.lib.stride_tricks.as_strided(
            elements[self._offset :], self._shape, steps, writeable=False
        )
        if self._type == "bfloat16":  # the upper half of a float32
            return (view.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return view


def _build_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides, getattr(storage, "type_code", ""))


def _build_typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *more: Any
) -> Numbers | Stub:
    dtype = more[2]  # after its requires_grad and its hooks
    type_code = _TYPES.get(getattr(dtype, "name", "").removeprefix("torch."))
    if type_code is None:
        return Stub(getattr(dtype, "name", "torch.dtype"))
    return _Tensor(storage, offset, shape, strides, type_code)


def _build_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _builders(budget: Budget) -> dict[str, Callable[..., Any]]:
    def build_size(lengths: Any = ()) -> tuple:
        budget.charge(64 + 8 * len(lengths))
        return tuple(lengths)

    builders = {**container_builders(budget), **array_builders(), "torch.Size": build_size}
    builders["torch._utils._rebuild_tensor"] = _build_tensor
    builders["torch._utils._rebuild_tensor_v2"] = _build_tensor
    builders["torch._utils._rebuild_tensor_v3"] = _build_typed_tensor
    builders["torch._utils._rebuild_parameter"] = _build_parameter
    builders["torch._utils._rebuild_parameter_with_state"] = _build_parameter

    def build_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        # A tensor with attributes, or of a subclass: the call that makes it is passed as arguments.
        name = function.name
        is_tensor = name.startswith("torch._utils.") and name in builders
        return builders[name](*arguments) if is_tensor else Stub(kind.name)

    builders["torch._tensor._rebuild_from_type_v2"] = build_from_type
    return builders


def is_torch_archive(members: ZipMembers) -> bool:
    """Whether a zip archive has the layout of a PyTorch checkpoint."""
    root = _root(members)
    return f"{root}/data.pkl" in members.names or f"{root}/constants.pkl" in members.names


def read_torch_archive(members: ZipMembers, budget: Budget) -> Any:
    """Reads a checkpoint in the zip format, its tensors as `Numbers`.

    Raises:
        Refusal: it is a TorchScript program, or unsafe or damaged.
    """
    root = _root(members)
    if any(name.startswith((f"{root}/code/", f"{root}/constants.pkl")) for name in members.names):
        raise Refusal(
            "it is a TorchScript program, not a checkpoint: save the state_dict of the module "
            "with torch.save"
        )
    order = _byte_order(members, root)
    read = _Cache(lambda key: members.read(f"{root}/data/{key}"))

    def persistent_load(persistent_id: Any) -> _Storage:
        storage, view = _storage_of(persistent_id, read)
        if view is not None:
            raise damaged("the zip format does not support views of storages")
        return replace(storage, order=order)

    content = members.read(f"{root}/data.pkl")
    return load_pickle(content, 0, _builders(budget), persistent_load)[0]


def read_legacy_torch(content: bytes, budget: Budget) -> Any:
    """Reads a checkpoint in the format before PyTorch 1.6, its tensors as `Numbers`.

    Raises:
        Refusal: it is unsafe or damaged, or has an unknown version.
    """
    builders = _builders(budget)
    stored: dict[str, bytes] = {}
    types: dict[str, str] = {}
    lengths: dict[str, int] = {}

    def persistent_load(persistent_id: Any) -> Any:
        if isinstance(persistent_id, tuple) and persistent_id[:1] == ("module",):
            return persistent_id[
                1
            ]  # the class of a module that was saved as a whole, with its source
        storage, view = _storage_of(persistent_id, stored.__getitem__)
        if types.setdefault(storage.key, storage.type_code) != storage.type_code:
            raise damaged(f"storage {shown(storage.key)} has two types")
        lengths[storage.key] = storage.length
        return storage if view is None else _view_of(storage, view)

    _, position = load_pickle(content, 0, {})
    version, position = load_pickle(content, position, {})
    if version != _LEGACY_VERSION:
        raise damaged(f"version {shown(version)} of PyTorch's old format does not exist")
    _, position = load_pickle(content, position, {})
    loaded, position = load_pickle(content, position, builders, persistent_load)
    keys, position = load_pickle(content, position, {})
    if not isinstance(keys, list) or set(keys) != types.keys() or len(keys) != len(types):
        raise damaged("the list of storages does not match the tensors")
    for key in keys:
        size = lengths[key] * _element_bytes(types[key])
        if content[position : position + 8] != struct.pack("<q", lengths[key]):
            raise damaged(f"storage {shown(key)} is not at its position")
        stored[key] = content[position + 8 : position + 8 + size]
        if len(stored[key]) != size:
            raise damaged(f"storage {shown(key)} should have {size} bytes")
        position += 8 + size
    return loaded


class _Cache:
    """Calls a function once for each key, because tensors may share a storage."""

    def __init__(self, function: Callable[[str], bytes]):
        self._function = function
        self._results: dict[str, bytes] = {}

    def __call__(self, key: str) -> bytes:
        if key not in self._results:
            self._results[key] = self._function(key)
        return self._results[key]


def _root(members: ZipMembers) -> str:
    return members.names[0].split("/")[0] if members.names else ""


def _byte_order(members: ZipMembers, root: str) -> str:
    name = f"{root}/byteorder"
    order = members.read(name) if name in members.names else b"little"
    if order not in (b"little", b"big"):
        raise damaged(f"the byte order {shown(order)} does not exist")
    return "<" if order == b"little" else ">"


def _storage_of(persistent_id: Any, read: Callable[[str], bytes]) -> tuple[_Storage, Any]:
    """Returns the storage of a persistent id, and the view of it in old files, otherwise None."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6):
        raise damaged("a reference to an object that is not a storage")
    kind, storage_type, key, _, length, *view = persistent_id
    if kind != "storage" or not isinstance(storage_type, Global) or not isinstance(key, str):
        raise damaged("a reference to an object that is not a storage")
    type_code = _STORAGE_TYPES.get(storage_type.name.split(".")[-1])
    if type_code is None or not storage_type.name.startswith("torch."):
        raise Refusal(
            f"it contains a storage of type {shown(storage_type.name)}, which is not supported: "
            "save its tensors as float32"
        )
    if not is_shape((length,)):
        raise damaged(f"storage {shown(key)} has an impossible length")
    return _Storage(key, type_code, length, read), view[0] if view else None


def _view_of(storage: _Storage, view: Any) -> _Storage:
    """Returns a part of a storage, given as in PyTorch 0.x files: key, first element, length."""
    if not isinstance(view, tuple) or len(view) != 3 or not is_shape(view[1:]):
        raise damaged("an invalid view of a storage")
    _, start, length = view
    return replace(storage, start=start, length=length)
