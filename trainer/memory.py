"""Memory that a training step needs, estimated from its graph.

Every tensor of the graph has a size and a lifetime: from the operation that makes it to the last
one that reads it. The estimate is the largest sum of the sizes of tensors that live at the same
time, if the operations run in the order in which they were traced: forward, backward, update.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf

# Operations whose outputs are the memory of their inputs.
_VIEWS = frozenset(
    {"ExpandDims", "Identity", "IdentityN", "PreventGradient", "Reshape", "Squeeze", "StopGradient"}
)
# Operations that write their output over an input of the same size that nothing else reads.
_IN_PLACE = frozenset(
    {
        *("Add", "AddN", "AddV2", "BiasAdd", "Cast", "Exp", "Maximum", "Minimum", "Mul", "Neg"),
        *("RealDiv", "Relu", "ReluGrad", "SelectV2", "Sigmoid", "SigmoidGrad", "Softmax", "Sub"),
    }
)
_WITHOUT_MEMORY = frozenset({tf.resource, tf.variant, tf.string})


@dataclasses.dataclass
class Buffer:
    """A piece of memory during a step.

    Attributes:
        size: bytes.
        first, last: numbers of the operations that make it and that read it last.
        inputs: buffers of the same size that it can be written over, if `first` is the last
            operation to read them.
    """

    size: int
    first: int
    last: int
    inputs: Sequence[Buffer] = ()

    @property
    def is_in_place(self) -> bool:
        """Whether it is written over one of its inputs."""
        return any(buffer.last == self.first for buffer in self.inputs)


def peak(buffers: Iterable[Buffer]) -> int:
    """Returns the largest number of bytes that live at the same time."""
    changes: dict[tuple[int, bool], int] = {}
    for buffer in buffers:
        # An operation's outputs are made before its inputs are freed.
        for moment, size in (
            ((buffer.first, False), buffer.size),
            ((buffer.last, True), -buffer.size),
        ):
            changes[moment] = changes.get(moment, 0) + size
        if buffer.is_in_place:
            changes[buffer.first, False] -= buffer.size
            changes[buffer.first, True] += buffer.size
    live = most = 0
    for moment in sorted(changes):
        live += changes[moment]
        most = max(most, live)
    return most


def find_buffers(graph) -> list[Buffer]:
    """Lists the buffers of a step's graph, a `FuncGraph`, without its variables.

    Shapes that depend on the data have their largest possible size; loops count only what they
    return.
    """
    operations, shapes = graph.get_operations(), _bounded_shapes(graph)
    buffers: dict[str, Buffer | None] = {}
    for number, operation in enumerate(operations):
        inputs = [buffers.get(tensor.name) for tensor in operation.inputs]
        for buffer in filter(None, inputs):
            buffer.last = number
        for place, tensor in enumerate(operation.outputs):
            if operation.type in _VIEWS:
                buffers[tensor.name] = inputs[place]
            elif operation.type == "ReadVariableOp" or tensor.dtype in _WITHOUT_MEMORY:
                buffers[tensor.name] = None
            else:
                size = _count_bytes(tensor.dtype, shapes[tensor.name])
                same = [buffer for buffer in inputs if buffer and buffer.size == size]
                over = same if operation.type in _IN_PLACE else ()
                buffers[tensor.name] = Buffer(size, number, number, over)
    lasting = [*graph.outputs, *graph.inputs]
    lasting += [tensor for op in operations if op.type == "Const" for tensor in op.outputs]
    for tensor in lasting:
        if buffer := buffers.get(tensor.name):
            buffer.last = len(operations)
    unique = {id(buffer): buffer for buffer in buffers.values() if buffer}
    return list(unique.values())


def count_variables(variables: Iterable) -> int:
    """Returns the bytes of variables."""
    return sum(_count_bytes(tf.as_dtype(each.dtype), each.shape) for each in variables)


def _count_bytes(dtype: tf.DType, shape) -> int:
    shape = tf.TensorShape(shape)
    return math.prod(size or 0 for size in shape) * dtype.size if shape.rank is not None else 0


def _bounded_shapes(graph) -> dict[str, tf.TensorShape]:
    """Returns the shapes of all tensors, those that depend on the data as large as they can be."""
    definition = graph.as_graph_def()
    # Without its variables, a copied graph does not know their shapes.
    given = {
        tensor.name: (tensor.dtype, tensor.shape)
        for operation in graph.get_operations()
        if operation.type == "ReadVariableOp"
        for tensor in operation.outputs
    }
    while True:
        copy = tf.Graph()
        with copy.as_default():
            known = {
                name: tf.compat.v1.placeholder(dtype, shape)
                for name, (dtype, shape) in given.items()
            }
            tf.graph_util.import_graph_def(definition, input_map=known, name="")
        more = {
            tensor.name: (tensor.dtype, shape)
            for operation in copy.get_operations()
            for tensor, shape in _bound(operation)
            if tensor.name not in given
        }
        if not more:
            break
        given |= more
    shapes = {t.name: t.shape for operation in copy.get_operations() for t in operation.outputs}
    return shapes | {name: shape for name, (_, shape) in given.items()}


def _bound(operation: tf.Operation) -> Iterator[tuple[tf.Tensor, tf.TensorShape]]:
    """Yields outputs of an operation whose shapes depend on its data, with the largest shapes.

    The parts of a partition have equal shares, because all of them together count.
    """
    inputs, outputs = operation.inputs, operation.outputs
    if operation.type in ("DynamicPartition", "Where"):
        count = inputs[-1].shape.num_elements()
        parts = [tensor.shape for tensor in outputs]
    elif operation.type == "DynamicStitch" and outputs[0].dtype.is_floating:
        # Gradients stitch integers too, shapes of which some places are written twice.
        half = len(inputs) // 2
        counts = [indices.shape.num_elements() for indices in inputs[:half]]
        count = None if None in counts else sum(counts)
        parts = [inputs[-1].shape[inputs[half - 1].shape.rank - 1 :]] if count else []
    else:
        return
    if count is not None:
        for tensor, shape in zip(outputs, parts, strict=True):
            yield tensor, tf.TensorShape([math.ceil(count / len(outputs)), *shape[1:]])
