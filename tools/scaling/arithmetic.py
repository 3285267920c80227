"""Counts the work of a graph from the shapes of its convolutions and matrix products.

A multiplication and an addition count as two operations. Those with the zeros of padding count too.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tools.profile_steps import part_of

_BACKWARD = "gradient_tape/"


class Work(NamedTuple):
    """Operations, and bytes of the inputs and outputs of the convolutions and matrix products."""

    flops: float
    bytes: float

    def plus(self, other: Work) -> Work:
        """Adds the work of `other`."""
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def per(self, images: int) -> Work:
        """Divides the work of a batch among its images."""
        return Work(self.flops / images, self.bytes / images)


def count_work(graph: tf.Graph) -> dict[str, dict[str, Work]]:
    """Counts the work of a graph by part of the network.

    Args:
        graph: one with static shapes.

    Returns:
        {"forward": {part: work}, "backward": {part: work}}, parts as `part_of` names them.

    Raises:
        ValueError: a shape is not static, or a function that the graph calls has convolutions or
            matrix products: how often it is called is unknown.
    """
    inner = (node for called in graph.as_graph_def().library.function for node in called.node_def)
    if hidden := sorted({node.op for node in inner if node.op in _COUNTS}):
        raise ValueError(f"{', '.join(hidden)} in a function that the graph calls.")
    sums: dict = {key: collections.defaultdict(lambda: Work(0, 0)) for key in _DIRECTIONS}
    for op in graph.get_operations():
        if count := _COUNTS.get(op.type):
            parts = sums["backward" if op.name.startswith(_BACKWARD) else "forward"]
            moved = sum(_size(each) * each.dtype.size for each in (*op.inputs, *op.outputs))
            part = part_of(op.name)
            parts[part] = parts[part].plus(Work(2 * count(op), moved))
    return {direction: dict(parts) for direction, parts in sums.items()}


def _size(tensor: tf.Tensor) -> int:
    if not tensor.shape.is_fully_defined():
        raise ValueError(f"{tensor.name} has the shape {tensor.shape}, which is not static.")
    return math.prod(tensor.shape)


def _convolution(filters: int, dims: int = 3) -> Callable[[tf.Operation], int]:
    """Returns a count of the multiplications of a convolution or of one of its gradients.

    Args:
        filters: index of the filters among inputs and outputs; the tensor at index 2 is the
            convolution's output, or its gradient: [B, H, W, channels].
        dims: how many axes of the filters contribute to one number of the output.
    """

    def count(op: tf.Operation) -> int:
        tensors = [*op.inputs, *op.outputs]
        return _size(tensors[2]) * math.prod(tensors[filters].shape[:dims])

    return count


def _product(transposed: str) -> Callable[[tf.Operation], int]:
    def count(op: tf.Operation) -> int:
        return _size(op.outputs[0]) * op.inputs[0].shape[-2 if op.get_attr(transposed) else -1]

    return count


def _einsum(op: tf.Operation) -> int:
    terms = op.get_attr("equation").decode().split("->")[0].split(",")
    sides: dict[str, int] = {}
    for term, tensor in zip(terms, op.inputs, strict=True):
        sides |= dict(zip(term, tensor.shape, strict=True))
    return math.prod(sides.values())


_DIRECTIONS = ("forward", "backward")
_COUNTS: dict[str, Callable[[tf.Operation], int]] = {
    "Conv2D": _convolution(filters=1),
    "Conv2DBackpropInput": _convolution(filters=1),
    "Conv2DBackpropFilter": _convolution(filters=3),
    "DepthwiseConv2dNative": _convolution(filters=1, dims=2),
    "DepthwiseConv2dNativeBackpropInput": _convolution(filters=1, dims=2),
    "DepthwiseConv2dNativeBackpropFilter": _convolution(filters=3, dims=2),
    "MatMul": _product("transpose_a"),
    "BatchMatMulV2": _product("adj_x"),
    "Einsum": _einsum,
}
