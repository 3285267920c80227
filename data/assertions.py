"""Assertions in the graph of the input."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def make_assertion(condition: tf.Tensor, data: Sequence):
    """Makes an operation that fails if the condition, a bool scalar, does not hold.

    `tf.debugging.Assert` also makes a branch, whose tracing takes longer than that of the checks.

    Args:
        condition: bool [].
        data: texts and tensors for the message of the InvalidArgumentError.
    """
    assertion = tf.raw_ops.Assert(condition=condition, data=[tf.convert_to_tensor(d) for d in data])
    return assertion or tf.no_op()
