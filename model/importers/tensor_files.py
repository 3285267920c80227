"""Reads other programs' weight files into NumPy arrays without running any code they contain.

It reads PyTorch's checkpoints (the zip format and the older one), pickles of NumPy arrays as
published by Detectron and Detectron2, safetensors, Keras weights in HDF5, and .npz archives. The
format is recognised by the content, not by the name. A pickle may name any object of any program.
Unknown ones become inert stubs: they are ignored next to the weights and refused among them. A file
with names that only attacks need is refused as a whole (see `pickle_objects`). The memory use is
limited to a fixed multiple of the file's size.
"""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np

from data import files
from data.errors import UserError
from model.importers.hdf5_process import HDF5_MAGIC, read_hdf5_apart
from model.importers.numpy_files import array_builders, plain_numbers, read_npz
from model.importers.pickle_objects import Numbers, Stub, container_builders
from model.importers.refusals import Budget, Refusal, damaged, shown
from model.importers.safe_pickle import load_pickle
from model.importers.safetensors_files import is_safetensors, read_safetensors
from model.importers.torch_files import (
    LEGACY_MAGIC,
    is_torch_archive,
    read_legacy_torch,
    read_torch_archive,
)
from model.importers.zip_members import ZipMembers

# Keys under which a checkpoint may have its weights, in the order of the search.
_WRAPPERS = ("state_dict", "model", "blobs", "model_state_dict", "module")
_MAX_WRAPPERS = 3
_PARALLEL_PREFIX = "module."
_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer instead of the weights: run git lfs pull",
    b"<": "a web page or XML: download the weight file itself",
    b"{": "JSON: give the weight file itself",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
}
_KNOWN = (
    "a PyTorch checkpoint, a pickle of NumPy arrays, safetensors, Keras weights in HDF5 or an .npz "
    "archive"
)


def read_tensors(path: str) -> dict[str, np.ndarray]:
    """Reads all tensors of a weight file by their full names, in the file's order.

    In pickled checkpoints the weights are the dict under "state_dict", "model", "blobs",
    "model_state_dict" or "module", nested up to three levels, otherwise the outermost dict. Entries
    that are not tensors are ignored, as are Caffe2's "_momentum" blobs and optimizers; the prefix
    "module." of all names (from PyTorch's DataParallel) is removed.

    Args:
        path: the file.

    Returns:
        Contiguous arrays with the shapes and numbers of the file: floats of any width as float32;
        bool, integers and complex numbers unchanged.

    Raises:
        UserError: there is no such file, or it has an unknown format, is damaged or unsafe, or
            contains no tensors.
    """
    size = _size_of(path)
    try:
        tensors = _read_any(path, Budget(size))
        if not tensors:
            raise Refusal("it contains no tensors: give a file of weights")
        prefixed = all(name.startswith(_PARALLEL_PREFIX) for name in tensors)
        start = len(_PARALLEL_PREFIX) if prefixed else 0
        return {name[start:]: plain_numbers(array) for name, array in tensors.items()}
    except Refusal as refusal:
        raise UserError(f"{path} cannot be read as weights: {refusal}.") from refusal
    # A broken file can make the parsers raise almost any exception, and all of them mean the same
    # to the user.
    except Exception as error:
        refusal = damaged(type(error).__name__)
        raise UserError(f"{path} cannot be read as weights: {refusal}.") from error


def _size_of(path: str) -> int:
    if files.is_folder(path):
        raise UserError(f"{path} is a folder: give the weight file in it.")
    try:
        with files.open_file(path, "rb"):
            size = files.size(path)
    except FileNotFoundError:
        raise UserError(f"The file {path} does not exist: check the path of the weights.") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be opened ({error.strerror or error}): check its permissions."
        ) from None
    if not size:
        raise UserError(f"{path} is empty: download or save it again.")
    return size


def _read_any(path: str, budget: Budget) -> dict[str, np.ndarray]:
    with files.open_file(path, "rb") as file:
        head = file.read(512)
    # Before the other formats, because the length at its start may look like any of them.
    if is_safetensors(head, files.size(path)):
        return read_safetensors(_content_of(path), budget)
    if head.startswith(b"PK"):
        return _read_zip(path, budget)
    if head.startswith(HDF5_MAGIC):
        with files.local_copy(path) as local_path:
            return read_hdf5_apart(local_path)
    _refuse_foreign(head)
    content = _content_of(path)
    if LEGACY_MAGIC in head[:32]:
        return _arrays_of(read_legacy_torch(content, budget), budget)
    builders = {**container_builders(budget), **array_builders()}
    return _arrays_of(load_pickle(content, 0, builders)[0], budget)


def _content_of(path: str) -> bytes:
    with files.open_file(path, "rb") as file:
        return file.read()


def _read_zip(path: str, budget: Budget) -> dict[str, np.ndarray]:
    with files.open_file(path, "rb") as file, zipfile.ZipFile(file) as archive:
        members = ZipMembers(archive, budget)
        if is_torch_archive(members):
            return _arrays_of(read_torch_archive(members, budget), budget)
        if "model.weights.h5" in members.names:
            raise Refusal("it is a .keras archive: unzip it and give its model.weights.h5")
        if not any(name.endswith(".npy") for name in members.names):
            raise Refusal(f"it is a zip archive without weights: give {_KNOWN}")
        return read_npz(members, budget)


def _refuse_foreign(head: bytes) -> None:
    for start, explanation in _FOREIGN.items():
        if head.startswith(start):
            raise Refusal(f"it is {explanation}")
    if head[257:262] == b"ustar":
        raise Refusal(
            "it is a tar archive: unpack it; if PyTorch 0.1 wrote it, load it with PyTorch and "
            "save it with a newer version"
        )
    if head[8:9] == b"{":
        raise damaged("the safetensors file ends within its header")
    # Pickles of protocols 0 and 1 begin with their dict or with a name.
    if head[:1] not in (b"\x80", b"(", b"}", b"]", b"c"):
        raise Refusal(f"its format is unknown: give {_KNOWN}")


def _arrays_of(content: Any, budget: Budget) -> dict[str, np.ndarray]:
    """Finds the arrays of the weights in the content of a pickle."""
    if isinstance(content, Stub):
        raise Refusal(_whole_object(content))
    weights = _find_weights(content, 0) if isinstance(content, dict) else {}
    for name, value in weights.items():
        if not isinstance(value, Numbers):
            raise Refusal(
                f"its weight {shown(name)} is an object of {shown(value.name)}, not a plain "
                "tensor: save plain tensors of floats or integers"
            )
    return {name: value.to_array(budget) for name, value in weights.items()}


def _find_weights(content: dict, depth: int) -> dict[str, Stub]:
    """Returns tensors and stubs of the innermost dict of weights; empty if it has no tensors."""
    whole_objects = []
    for wrapper in _WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, dict) and depth < _MAX_WRAPPERS:
            weights = _find_weights(inner, depth + 1)
            if wrapper == "blobs":
                weights = {k: v for k, v in weights.items() if not k.endswith("_momentum")}
            if weights:
                return weights
        elif isinstance(inner, Stub) and not isinstance(inner, Numbers):
            whole_objects.append(inner)
    weights = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Stub)}
    if any(_is_tensor(value) for value in weights.values()):
        return weights
    if whole_objects:
        raise Refusal(_whole_object(whole_objects[0]))
    return {}


def _is_tensor(value: Stub) -> bool:
    # Quantised and sparse tensors are tensors too, but cannot be read.
    return isinstance(value, Numbers) or value.name.startswith("torch._utils._rebuild")


def _whole_object(stub: Stub) -> str:
    if isinstance(stub, Numbers):
        return "it contains a single array without a name: save a dict of arrays"
    return (
        f"it contains an object of {shown(stub.name)}, not a dict of weights: save the module's "
        "state_dict()"
    )
