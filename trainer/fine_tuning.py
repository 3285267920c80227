"""Starts a fresh run from the weights of a model with other classes or other heads.

The heads' last layers have outputs for every class. Those of classes with the same name in both
models are copied, whatever their labels; the others keep their initial values. So do heads that the
other model does not have, such as the MaskIoU head if it is a Mask R-CNN.

Axes: K classes with the background, S values per class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from model.variables import CLASSWISE_LAYERS, named_variables
from trainer import categories
from trainer.categories import Category
from trainer.checkpoint_files import (
    check_fit,
    find_checkpoint,
    load_network,
    read_shapes,
    read_variable,
)
from trainer.run_record import folder_of

_BACKGROUND = 0
# Variables with one value for each class.
_CLASS_COUNTS = [f"network/{layer}/bias" for layer, size in CLASSWISE_LAYERS.items() if size == 1]


def load_by_class(network, path: str, own: Sequence[Category]) -> None:
    """Loads a checkpoint's weights into a network that may have other classes and heads.

    Args:
        network: receives the weights.
        path: a checkpoint, or a folder with checkpoints, whose latest is used. If there is no
            categories.json next to it, its classes have to be the same.
        own: the network's categories.

    Raises:
        UserError: there is no checkpoint, or it differs in more than its classes and heads.
    """
    theirs = categories.load_categories(folder_of(path)) or list(own)
    checkpoint = find_checkpoint(path)
    variables, found = _variables(network), read_shapes(checkpoint)
    ours, others = _parts(variables), _parts(found)
    same_classes = [c["name"] for c in theirs] == [c["name"] for c in own]
    if same_classes and ours == others:
        load_network(network, checkpoint)
        return
    pairs = [
        (entry, known)
        for entry, known in categories.pair_by_name(own, theirs)
        if known and known["name"] == entry["name"]
    ]
    labels = {own["label"]: c["label"] for own, c in pairs}
    # Without the backbone, it would be a checkpoint of something else.
    _carry_over(variables, found, checkpoint, labels, ours & others | {"backbone"})
    if not same_classes:
        print(_describe(path, pairs, own, theirs), flush=True)
    for part in sorted(ours - others):
        print(f"{path} has no {part}; it keeps its initial values.", flush=True)
    for part in sorted(others - ours):
        print(f"The {part} of {path} is not used.", flush=True)


def _variables(network) -> dict[str, tf.Variable]:
    variables = named_variables(tf.train.Checkpoint(network=network))
    variables.pop("save_counter", None)
    return variables


def _parts(names: Iterable[str]) -> set[str]:
    """The parts of a network that have variables."""
    return {name.split("/")[1] for name in names if name.startswith("network/")}


def _carry_over(
    variables: Mapping[str, tf.Variable],
    found: Mapping[str, list[int]],
    path: str,
    kept: Mapping[int, int],
    parts: Collection[str],
) -> None:
    """Assigns the weights of some parts.

    Args:
        variables: the network's by name.
        found: shapes in the checkpoint by name.
        path: the checkpoint.
        kept: of the outputs for classes, own label to theirs.
        parts: the parts.
    """
    variables, found = (
        {name: value for name, value in each.items() if _parts([name]) & set(parts)}
        for each in (variables, found)
    )
    wanted = {name: list(variable.shape) for name, variable in variables.items()}
    num_classes = next((found[name][0] for name in _CLASS_COUNTS if name in found), 0)
    comparable = dict(found)
    for name in wanted.keys() & found.keys():
        size = _values_of_class(name)
        if size and found[name][-1:] == [size * num_classes]:
            comparable[name] = [*found[name][:-1], wanted[name][-1]]
    check_fit(wanted, comparable, path)
    labels = {_BACKGROUND: _BACKGROUND, **kept}
    for name in wanted:
        value = read_variable(path, name)
        if size := _values_of_class(name):
            value = _replace_classes(variables[name].numpy(), value, size, labels)
        variables[name].assign(value)


def _values_of_class(name: str) -> int:
    """Returns S of a variable with outputs for every class; 0 for any other."""
    layer = name.removeprefix("network/").rpartition("/")[0]
    return CLASSWISE_LAYERS.get(layer, 0)


def _replace_classes(
    initial: np.ndarray, theirs: np.ndarray, size: int, labels: dict[int, int]
) -> np.ndarray:
    """Replaces values of some labels in [..., K S] by those of an array with another K."""
    result = initial.reshape(*initial.shape[:-1], -1, size).copy()
    source = theirs.reshape(*theirs.shape[:-1], -1, size)
    for own, their in labels.items():
        result[..., own, :] = source[..., their, :]
    return result.reshape(initial.shape)


def _describe(path: str, pairs: list, own: Sequence[Category], theirs: Sequence[Category]) -> str:
    kept = {entry["label"] for entry, _ in pairs}
    used = {known["label"] for _, known in pairs}
    parts = {
        "kept for": [entry for entry in own if entry["label"] in kept],
        "initialised for": [entry for entry in own if entry["label"] not in kept],
        "dropped for": [entry for entry in theirs if entry["label"] not in used],
    }
    said = [f"{what} {categories.list_names(which)}" for what, which in parts.items() if which]
    matched = categories.describe_pairs(pairs)
    return (
        f"{matched}\n" if matched else ""
    ) + f"The heads' outputs in {path} are {', '.join(said)}."
