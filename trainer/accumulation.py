"""Sums of gradients over parts of a batch, kept on each replica until the update."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


class GradientSums:
    """One sum for each variable; make it under the strategy's scope and use it in a replica.

    Args:
        variables: those that the gradients belong to.
    """

    def __init__(self, variables: Sequence):
        self._sums = [
            tf.Variable(
                tf.zeros(variable.shape),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
                name="gradient_sum",
            )
            for variable in variables
        ]
        self._is_used = [False] * len(self._sums)

    def add(self, gradients: Sequence[tf.Tensor | None]) -> None:
        """Adds gradients in the order of the variables; None where a loss does not depend on it."""
        self._is_used = [gradient is not None for gradient in gradients]
        for total, gradient in zip(self._sums, gradients, strict=True):
            if gradient is not None:
                total.assign_add(gradient)

    def take(self) -> list[tf.Tensor | None]:
        """Returns the sums, None for variables without gradient, and starts again from 0."""
        taken = [
            tf.identity(total) if is_used else None
            for total, is_used in zip(self._sums, self._is_used, strict=True)
        ]
        for total, gradient in zip(self._sums, taken, strict=True):
            if gradient is not None:
                total.assign(tf.zeros_like(gradient))
        return taken
