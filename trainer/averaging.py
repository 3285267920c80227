"""Exponential moving average of a network's weights, for evaluation and export.

Averages over the last steps often find better than the weights of any one step (Polyak and
Juditsky, 1992). In a checkpoint the averages are the `network`, so that whoever reads weights gets
them; the weights that training continues with are `unaveraged`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from model.variables import named_variables, native


class WeightAverage:
    """The averages of all variables of a network; make it under the strategy's scope.

    At update t (from 0) an average moves by 1 - min(decay, (1 + t) / (10 + t)) towards its
    variable, as in `tf.train.ExponentialMovingAverage`, so that the first weights soon lose their
    influence.

    Args:
        network: has `variables`.
        decay: the largest share of an average that remains after an update.

    Attributes:
        tree: trackable object with the averages under the network's names.
    """

    def __init__(self, network, decay: float):
        self.tree = tf.Module()
        self._decay = decay
        self._pairs = []
        for path, variable in named_variables(network).items():
            average = tf.Variable(variable.numpy(), trainable=False)
            _place(self.tree, path.split("/"), average)
            self._pairs.append((average, variable))

    def start(self) -> None:
        """Makes the averages equal to the variables."""
        for average, variable in self._pairs:
            average.assign(variable)

    def update(self, strategy: tf.distribute.Strategy, step: tf.Tensor) -> None:
        """Moves the averages after update number `step`; call it outside the replicas."""
        step = tf.cast(step, tf.float32)
        share = 1.0 - tf.minimum(self._decay, (1.0 + step) / (10.0 + step))

        def move(average: tf.Variable, variable: tf.Variable, share: tf.Tensor) -> None:
            average.assign_sub(share * (average - variable))

        for average, variable in self._pairs:
            # A tensor would be copied from the first device to the others.
            strategy.extended.update(average, move, args=(native(variable), share))

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Exchanges the network's variables and their averages for as long as it lasts."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for average, variable in self._pairs:
            value = variable.numpy()
            variable.assign(average)
            average.assign(value)


def _place(tree: tf.Module, path: list[str], variable: tf.Variable) -> None:
    """Makes a variable an attribute of the innermost of nested modules."""
    *outer, last = path
    for name in outer:
        if not hasattr(tree, name):
            setattr(tree, name, tf.Module())
        tree = getattr(tree, name)
    setattr(tree, last, variable)
