"""The names of a network's variables, as checkpoints spell them."""

from __future__ import annotations

from collections import deque

import keras
import tensorflow as tf

# Layers with outputs for every class, and the number of values per class.
CLASSWISE_LAYERS = {
    "box_head/classes": 1,
    "box_head/stages/0/classes": 1,
    "box_head/stages/1/classes": 1,
    "box_head/stages/2/classes": 1,
    "box_head/deltas": 4,
    "mask_head/logits": 1,
    "point_head/logits": 1,
    "maskiou_head/maskiou": 1,
}


def named_variables(root) -> dict[str, tf.Variable]:
    """Finds all variables below a trackable object (a layer, a `tf.train.Checkpoint`, …).

    Returns:
        The variables by their paths of attribute names, such as
        `backbone/stages/0/1/conv2/conv/kernel`.
    """
    view = tf.train.TrackableView(root)
    found: dict[str, tf.Variable] = {}
    seen = {id(root)}
    queue = deque([(root, "")])
    # Breadth first, as checkpoints are written: each variable is saved under its shortest path.
    while queue:
        parent, prefix = queue.popleft()
        for name, child in view.children(parent).items():
            if id(child) in seen:
                continue
            seen.add(id(child))
            path = prefix + _escape(name)
            if hasattr(child, "shape") and hasattr(child, "assign"):
                found[path] = child
            else:
                queue.append((child, path + "/"))
    return found


def native(variable) -> tf.Variable:
    """Returns the TensorFlow variable inside a Keras variable, or the variable itself."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _escape(name: str) -> str:
    """Escapes a local name as checkpoint files do."""
    return name.replace(".", "..").replace("/", ".S")
