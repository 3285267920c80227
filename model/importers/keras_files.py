"""Keras weights in HDF5: the layout of Keras 2 by layers, and that of Keras 3 by paths.

Keras 2 (`.h5`, also `model.save` there and in Keras 3) lists the names of the layers and, in each
layer's group, those of its weights, in attributes; Keras 3 (`.weights.h5`) has only groups. HDF5
files may point to other files of the machine (external links, external storage, virtual
datasets); Keras writes none of these, and none is followed.

`hdf5_process` runs this file as a program, with the path of a weight file.
"""

from __future__ import annotations

import json
import os
import sys
from typing import BinaryIO

import h5py
import numpy as np

from model.importers.numpy_files import is_number_type
from model.importers.refusals import Budget, Refusal, damaged, shown

_MAX_DEPTH = 32
_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
_OPTIMIZERS = ("optimizer", "optimizer_weights")


def read_hdf5(path: str, budget: Budget) -> dict[str, np.ndarray]:
    """Reads the weights of an HDF5 file, without those of its optimizer.

    Returns:
        Arrays by the names in the attributes `weight_names`, in that order; if there are no such
        attributes, by the paths of the datasets.

    Raises:
        Refusal: the file refers to other files, or contains something that is not an array of
            numbers.
    """
    with h5py.File(path, "r") as file:
        root = _child(file, "model_weights") if "model_weights" in file else file
        layers = _names(root, "layer_names")
        if layers is None:
            return _read_paths(root, budget)
        return _read_layers(root, layers, budget)


def _read_layers(root: h5py.Group, layers: list[str], budget: Budget) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    if "top_level_model_weights" in root:
        layers = [*layers, "top_level_model_weights"]
    for layer in layers:
        group = _child(root, layer)
        for name in _names(group, "weight_names") or []:
            if name in arrays:
                raise damaged(f"two weights have the name {shown(name)}")
            dataset = group
            for part in name.split("/"):
                dataset = _child(dataset, part)
            arrays[name] = _read_dataset(dataset, name, budget)
    return arrays


def _read_paths(root: h5py.Group, budget: Budget) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    seen = set()

    def visit(group: h5py.Group, path: str, depth: int) -> None:
        # A group may contain itself.
        if group.id in seen or depth > _MAX_DEPTH:
            raise damaged(f"group {shown(path)} contains itself or is nested too deeply")
        seen.add(group.id)
        for name in group:
            if depth == 0 and name in _OPTIMIZERS:
                continue
            child = _child(group, name)
            if isinstance(child, h5py.Group):
                visit(child, f"{path}{name}/", depth + 1)
            else:
                arrays[path + name] = _read_dataset(child, path + name, budget)

    visit(root, "", 0)
    return arrays


def _child(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Returns a group or dataset of this file itself, by a name without slashes."""
    if not isinstance(group, h5py.Group) or "/" in name or name in ("", ".", ".."):
        raise damaged(f"{shown(name)} is not a valid name")
    link = group.get(name, getlink=True)
    if link is None:
        raise damaged(f"{shown(name)} is listed but missing")
    if not isinstance(link, h5py.HardLink):
        raise Refusal(
            f"its entry {shown(name)} is a link, which weight files never contain: the file is "
            "unsafe, get the weights from another source"
        )
    return group[name]


def _names(group: h5py.Group, attribute: str) -> list[str] | None:
    """Reads the strings of an attribute, which Keras splits into numbered ones if it is long."""
    if not isinstance(group, h5py.Group):
        raise damaged(f"{attribute} belongs to an object that is not a group")
    if attribute in group.attrs:
        return _texts(group.attrs[attribute])
    names: list[str] = []
    index = 0
    while f"{attribute}{index}" in group.attrs:
        names += _texts(group.attrs[f"{attribute}{index}"])
        index += 1
    return names if index else None


def _texts(values) -> list[str]:
    # An empty list was saved as an array of floats.
    texts = [value.decode() if isinstance(value, bytes) else value for value in values]
    if not all(isinstance(text, str) for text in texts):
        raise damaged("a list of names contains other objects")
    return texts


def _read_dataset(dataset: h5py.Dataset, name: str, budget: Budget) -> np.ndarray:
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise damaged(f"{shown(name)} is not an array")
    if not is_number_type(dataset.dtype):
        raise Refusal(
            f"its entry {shown(name)} does not contain numbers: save only arrays of numbers"
        )
    creation = dataset.id.get_create_plist()
    if creation.get_external_count() or dataset.is_virtual:
        raise Refusal(
            f"the numbers of {shown(name)} are stored in another file, which weight files never "
            "do: the file is unsafe, get the weights from another source"
        )
    filters = [creation.get_filter(index)[0] for index in range(creation.get_nfilters())]
    if not set(filters) <= set(_FILTERS):
        raise Refusal(f"its entry {shown(name)} uses an unsupported compression: save it again")
    budget.charge(dataset.nbytes)
    budget.charge(int(np.prod(dataset.chunks or (), dtype=object)) * dataset.dtype.itemsize)
    if dataset.nbytes and not dataset.id.get_storage_size():
        raise damaged(f"{shown(name)} was never written")
    return np.asarray(dataset[()])


def answer_with(path: str, output: BinaryIO) -> None:
    """Writes a line of JSON, then the arrays of an HDF5 file in .npy format.

    The line is {"names": [...]}, or {"refusal": "..."} without arrays if the file is refused.
    """
    try:
        arrays = read_hdf5(path, Budget(os.path.getsize(path)))
    except Refusal as refusal:
        output.write(json.dumps({"refusal": str(refusal)}).encode() + b"\n")
        return
    output.write(json.dumps({"names": list(arrays)}).encode() + b"\n")
    for array in arrays.values():
        np.lib.format.write_array(output, array, allow_pickle=False)


if __name__ == "__main__":
    answer_with(sys.argv[1], sys.stdout.buffer)
