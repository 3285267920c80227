"""Names for the parts of the graph, as shown by profilers and TensorBoard."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

# What follows a head's hidden layers. An export to 8 bits leaves it in float32, because 256 levels
# are too few for scores and boxes.
OUTPUTS = "outputs"


def in_scope(name: str) -> Callable[[Callable], Callable]:
    """Decorates a function so that its operations are named `name/…`."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def named(*args, **kwargs):
            with tf.name_scope(name):
                return function(*args, **kwargs)

        return named

    return decorate
