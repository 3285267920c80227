"""Weight files of other programs, read into NumPy arrays without running what they contain.

Read are PyTorch's checkpoints (its zip format and the older one), pickles of NumPy arrays as
Detectron and Detectron2 publish them, safetensors, Keras weights in HDF5, and .npz archives. What a
file is decides its content, not its name. A pickle may name any object of any program: unknown ones
become inert stubs, which are ignored beside the weights and refused among them, and a file that
names what only an attack needs is refused as a whole (see `pickle_objects`). A file takes no more
memory than a fixed multiple of its size.
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

# Under which a checkpoint keeps its weights, in the order in which they are looked for.
_WRAPPERS = ("state_dict", "model", "blobs", "model_state_dict", "module")
_MAX_WRAPPERS = 3
_PARALLEL_PREFIX = "module."
_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer in place of the weights: run git lfs pull",
    b"<": "a web page or XML: download the weights themselves",
    b"{": "JSON: give the file of the weights themselves",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
}
_KNOWN = (
    "a PyTorch checkpoint, a pickle of NumPy arrays, safetensors, Keras weights in HDF5 or an .npz "
    "archive"
)


def read_tensors(path: str) -> dict[str, np.ndarray]:
    """All tensors of a weight file by their full names, in the file's order.

    In pickled checkpoints the weights are the dict under "state_dict", "model", "blobs",
    "model_state_dict" or "module", through up to three of them, else the outermost dict. Entries
    that are no tensors are left out, as are Caffe2's "_momentum" blobs and optimizers; "module."
    in front of all names (PyTorch's DataParallel) is removed.

    Args:
        path: the file.

    Returns:
        Contiguous arrays of shapes and numbers as in the file: floats of any width as float32;
        bool, integers and complex numbers as they are.

    Raises:
        UserError: there is no such file, or it is of another format, damaged or unsafe, or holds
            no tensors.
    """
    size = _size_of(path)
    try:
        tensors = _read_any(path, Budget(size))
        if not tensors:
            raise Refusal("it holds no tensors: give a file of weights")
        prefixed = all(name.startswith(_PARALLEL_PREFIX) for name in tensors)
        start = len(_PARALLEL_PREFIX) if prefixed else 0
        return {name[start:]: plain_numbers(array) for name, array in tensors.items()}
    except Refusal as refusal:
        raise UserError(f"{path} cannot be read as weights: {refusal}.") from refusal
    # Below lie four parsers of other people's formats; a broken file can make each of them raise
    # almost anything, and to the user it all means the same.
    except Exception as error:
        refusal = damaged(type(error).__name__)
        raise UserError(f"{path} cannot be read as weights: {refusal}.") from error


def _size_of(path: str) -> int:
    if files.is_folder(path):
        raise UserError(f"{path} is a folder: name the file of the weights in it.")
    try:
        with files.open_file(path, "rb"):
            size = files.size(path)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}: check the path of the weights.") from None
    except OSError as error:
        raise UserError(
            f"{path} may not be read ({error.strerror or error}): change its permissions."
        ) from None
    if not size:
        raise UserError(f"{path} is empty: download or save it again.")
    return size


def _read_any(path: str, budget: Budget) -> dict[str, np.ndarray]:
    with files.open_file(path, "rb") as file:
        head = file.read(512)
    # Before the others, as the length at its head may look like any of them.
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
            "it is a tar archive: unpack it, or if PyTorch 0.1 wrote it, load it there and save it "
            "with a newer one"
        )
    if head[8:9] == b"{":
        raise damaged("a safetensors file ends within its header")
    # Pickles of protocols 0 and 1 begin with the dict that they hold, or with a name.
    if head[:1] not in (b"\x80", b"(", b"}", b"]", b"c"):
        raise Refusal(f"its format is unknown: give {_KNOWN}")


def _arrays_of(content: Any, budget: Budget) -> dict[str, np.ndarray]:
    """The arrays of the weights inside what a pickle holds."""
    if isinstance(content, Stub):
        raise Refusal(_whole_object(content))
    weights = _find_weights(content, 0) if isinstance(content, dict) else {}
    for name, value in weights.items():
        if not isinstance(value, Numbers):
            raise Refusal(
                f"its weight {shown(name)} is an object of {shown(value.name)}, no plain tensor: "
                "save plain tensors of floats or integers"
            )
    return {name: value.to_array(budget) for name, value in weights.items()}


def _find_weights(content: dict, depth: int) -> dict[str, Stub]:
    """Tensors and unknown objects of the innermost dict of weights, empty without a tensor."""
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
    # Quantised and sparse tensors are tensors, if none that can be read.
    return isinstance(value, Numbers) or value.name.startswith("torch._utils._rebuild")


def _whole_object(stub: Stub) -> str:
    if isinstance(stub, Numbers):
        return "it holds a single array without a name: save a dict of arrays"
    return (
        f"in place of a dict of weights it holds an object of {shown(stub.name)}: save the "
        "module's state_dict() instead"
    )
