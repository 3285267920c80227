"""Translates other programs' tensors to this network's variables and accounts for each one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from model.importers.families import FAMILIES, MMDETECTION, MMDETECTION_CAFFE
from model.importers.family import TRUNK, Family, Line
from model.importers.layouts import Layout, same, swap_colours
from model.norms import BATCH_NORM_EPSILON
from model.variables import CLASSWISE_LAYERS

# First convolutions, of ResNets and EfficientNet, VGG, and AlexNet.
_COLOUR_KERNELS = (
    "backbone/stem/conv/kernel",
    "backbone/groups/0/0/conv/kernel",
    "backbone/convs/0/conv/kernel",
)
_BATCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_WEIGHT_OR_BIAS = {"weight": "kernel", "bias": "bias"}
_CHOICES = {
    "bn": _BATCH_NORM,
    "wb": _WEIGHT_OR_BIAS,
    "keras_bn": {name: name for name in _BATCH_NORM.values()},
}
_FIELD = re.compile(r"\\{(\w+)(?::(\d))?\\}")


@dataclasses.dataclass
class Translation:
    """The outcome for every tensor and every variable.

    Attributes:
        family: the program that the file comes from.
        values: value of each variable that received one, by path.
        matched: (name in the file, path) of tensors that kept their order of elements.
        reshaped: the same for tensors that were brought into another order.
        skipped: name in the file → why it was left out on purpose.
        unexpected: name in the file → why no variable takes it.
        unusable: name in the file → why the network would compute invalid numbers with it.
        missing: paths of variables that the file should contain.
        initial: paths of variables that such files never contain.
    """

    family: Family
    values: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    matched: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    reshaped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    unexpected: dict[str, str] = dataclasses.field(default_factory=dict)
    unusable: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    initial: list[str] = dataclasses.field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is unexpected or missing."""
        return not (self.unexpected or self.missing)


def recognise(names: Iterable[str], stride_in_1x1: bool) -> Family | None:
    """Finds the family whose files have such names, or None.

    Args:
        names: of all tensors of a file.
        stride_in_1x1: the network's setting, which distinguishes the two styles of mmdetection.
    """
    names = {_plain(name) for name in names}
    for family in FAMILIES:
        if family.signature in names:
            is_caffe = family is MMDETECTION and stride_in_1x1
            return MMDETECTION_CAFFE if is_caffe else family
    return None


def count_classes(tensors: Mapping[str, np.ndarray], family: Family) -> int | None:
    """Counts the classes, including the background, of a file's class logits, or returns None."""
    table = [_compile(line) for line in family.lines]
    for name, tensor in tensors.items():
        path, layout = _find(_plain(name), table)
        if path == "box_head/classes/bias":
            return layout(tensor).size
    return None


def place(name: str, family: Family) -> tuple[str, Layout] | None:
    """Finds a variable's path and layout for a tensor's name, or None if it is not in the table.

    A path that ends in `folded_bias` does not belong to a variable, see `translate`.
    """
    path, layout = _find(_plain(name), [_compile(line) for line in family.lines])
    return None if path is None else (path, layout)


def translate(
    tensors: Mapping[str, np.ndarray],
    family: Family,
    shapes: Mapping[str, tuple[int, ...]],
    keep_classes: Sequence[int] = (),
) -> Translation:
    """Finds a variable for each tensor and a tensor for each variable.

    If a convolution has a norm here but a bias in the file, the bias is moved into the norm: it is
    subtracted from the moving mean, or, if batch norm was folded into the convolution, becomes the
    offset of a norm that does nothing else. Other programs' epsilons are absorbed by the scales.

    Args:
        tensors: of the file, by name.
        family: whose names they are.
        shapes: of this network's variables, by path.
        keep_classes: the file's classes, counted from 1 after the background, that become classes
            1, 2, … here; all of them if it is empty.
    """
    result = Translation(family)
    table = [_compile(line) for line in family.lines]
    ignored = [_compile((name, "", same)) for name in family.ignored]
    moved = {old: new for old, new in family.trunk.items() if not _has(shapes, old)}
    folded: dict[str, tuple[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        if any(pattern.fullmatch(_plain(name)) for pattern, *_ in ignored):
            result.skipped[name] = "not part of the network"
            continue
        path, layout = _find(_plain(name), table)
        path = _move(path, moved)
        if path is None:
            result.unexpected[name] = "no such layer here"
        elif path.startswith(TRUNK) and not _has(shapes, TRUNK):
            result.skipped[name] = "not part of the network"
        elif path.endswith("/folded_bias"):
            folded[path.removesuffix("conv/folded_bias")] = (name, tensor)
        else:
            try:
                value = _arrange(tensor, path, layout, family, keep_classes)
            except (ValueError, IndexError):
                result.unexpected[name] = f"{list(tensor.shape)} is not a shape of such a layer"
                continue
            _assign(result, name, tensor, value, path, shapes)
    _find_unusable(result)
    _adapt_epsilon(result)
    _complete_norms(result, folded, shapes)
    for path in shapes:
        if path not in result.values:
            expected = path.startswith(family.scope)
            (result.missing if expected else result.initial).append(path)
    return result


def _arrange(tensor, path, layout, family, classes: Sequence[int]) -> np.ndarray:
    """Reorders a tensor and keeps the background and `classes` of class-wise outputs.

    Raises:
        ValueError: its shape does not fit such a layer.
        IndexError: it lacks outputs for some of the classes, as class-agnostic boxes do.
    """
    value = layout(tensor)
    if path in _COLOUR_KERNELS and family.channel_order == "bgr":
        return swap_colours(value)
    entries = CLASSWISE_LAYERS.get(path.rpartition("/")[0])
    if not classes or entries is None:
        return value
    by_class = value.reshape(*value.shape[:-1], -1, entries)
    return by_class[..., [0, *classes], :].reshape(*value.shape[:-1], -1)


def _assign(result, name, tensor, value, path, shapes) -> None:
    norm, is_norm, _ = path.partition("norm/")
    if is_norm and f"{norm}norm/moving_mean" not in shapes:
        result.unexpected[name] = "it belongs to a batch norm, but there is none here"
    elif path not in shapes:
        result.unexpected[name] = "no such layer here"
    elif tuple(shapes[path]) != value.shape:
        result.unexpected[name] = (
            f"{path} has shape {list(shapes[path])} here and {list(value.shape)} in the file"
        )
    else:
        kept = tensor.shape == value.shape and np.array_equal(tensor, value)
        (result.matched if kept else result.reshaped).append((name, path))
        result.values[path] = np.ascontiguousarray(value, np.float32)


def _complete_norms(result: Translation, folded, shapes) -> None:
    """Completes norms with the values that folded files lack, and moves biases into norms."""
    values = result.values
    for layer, (name, bias) in folded.items():
        norm = layer + "norm/"
        if layer + "conv/kernel" not in values:
            result.skipped[name] = "the kernel that it belongs to is missing"
        elif shapes.get(norm + "moving_mean") != bias.shape:
            result.unexpected[name] = "no such layer here, or no batch norm to absorb it"
        elif norm + "moving_mean" in values:
            values[norm + "moving_mean"] = values[norm + "moving_mean"] - bias
            result.reshaped.append((name, norm + "moving_mean"))
        else:
            values[norm + "gamma"], values[norm + "beta"] = np.ones_like(bias), bias
            _neutralise(result, norm)
            result.reshaped.append((name, norm + "beta"))
    if result.family.folded_statistics:
        for path in [path for path in values if path.endswith("norm/gamma")]:
            _neutralise(result, path.removesuffix("gamma"))


def _neutralise(result: Translation, norm: str) -> None:
    """Sets a norm's statistics so that they neither shift nor scale."""
    gamma = result.values[norm + "gamma"]
    result.values[norm + "moving_mean"] = np.zeros_like(gamma)
    result.values[norm + "moving_variance"] = np.ones_like(gamma) - np.float32(BATCH_NORM_EPSILON)


def _find_unusable(result: Translation) -> None:
    """Records the tensors with which the network would compute invalid numbers."""
    epsilon = result.family.batch_norm_epsilon
    for name, path in (*result.matched, *result.reshaped):
        value = result.values[path]
        if not np.isfinite(value).all():
            result.unusable[name] = "it has numbers that are not finite in float32"
        elif path.endswith("norm/moving_variance") and (np.float64(value) + epsilon <= 0).any():
            result.unusable[name] = (
                f"its smallest variance is {value.min():g}, and the epsilon added to it is "
                f"{epsilon:g}"
            )


def _adapt_epsilon(result: Translation) -> None:
    """Adapts gamma to another epsilon; adapting the variance could make it negative."""
    values, epsilon = result.values, result.family.batch_norm_epsilon
    for path in [path for path in values if path.endswith("norm/gamma")]:
        variance = values.get(path.removesuffix("gamma") + "moving_variance")
        if variance is not None and epsilon != BATCH_NORM_EPSILON:
            variance = np.float64(variance)
            with np.errstate(divide="ignore", invalid="ignore"):
                factor = np.sqrt((variance + BATCH_NORM_EPSILON) / (variance + epsilon))
                values[path] = np.float32(values[path] * factor)


def _has(shapes: Mapping[str, Sequence[int]], prefix: str) -> bool:
    return any(path.startswith(prefix) for path in shapes)


def _move(path: str | None, prefixes: Mapping[str, str]) -> str | None:
    """Replaces the prefix of a path if it is one of `prefixes`."""
    for old, new in prefixes.items():
        if path is not None and path.startswith(old):
            return new + path.removeprefix(old)
    return path


def _plain(name: str) -> str:
    """Removes the output number from Keras' names."""
    return name.removesuffix(":0")


def _compile(line: Line):
    """Compiles a table's line to (pattern of the name, path, first numbers, layout)."""
    name, path, layout = line
    starts: dict[str, int] = {}

    def group(match: re.Match) -> str:
        field, start = match.groups()
        if field == "path":
            return "(?P<path>.+)"
        if field in _CHOICES:
            return f"(?P<{field}>{'|'.join(_CHOICES[field])})"
        starts[field] = int(start or 0)
        return rf"(?P<{field}>\d+)"

    return re.compile(_FIELD.sub(group, re.escape(name))), path, starts, layout


def _find(name: str, table):
    """Finds the path and the layout for a name; (None, None) if no line matches."""
    for pattern, path, starts, layout in table:
        match = pattern.fullmatch(name)
        if match:
            fields = {
                field: _value(field, text, starts) for field, text in match.groupdict().items()
            }
            return path.format(**fields), layout
    return None, None


def _value(field: str, text: str, starts: dict[str, int]) -> str | int:
    """Converts a field of a name to its value in the path."""
    if field in _CHOICES:
        return _CHOICES[field][text]
    return int(text) - starts[field] if field in starts else text
