"""What the workers of a cluster tell each other outside the training steps.

Every worker has to make the same calls in the same order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from data.errors import UserError
from trainer.cluster import Cluster

_WORD = 8


class Workers:
    """The workers of a cluster, as this process sees them.

    Attributes:
        count: number of workers.
        index: number of this one; the chief has 0.
        is_chief: whether this one writes the files.
        replicas: number of replicas of this one.
    """

    def __init__(self, strategy: tf.distribute.Strategy, cluster: Cluster):
        self.count = cluster.num_workers
        self.index = cluster.index
        self.is_chief = cluster.is_chief
        self.replicas = strategy.num_replicas_in_sync // self.count
        self._strategy = strategy

    def gather(self, content: bytes) -> list[bytes]:
        """Gives every worker the contents of all, in the order of the workers.

        It waits until all workers have called it.
        """
        if self.count == 1:
            return [content]
        lengths = self._gather(np.array([len(content)], np.int64))
        words = self._gather(np.frombuffer(_pad(content), np.int64))
        starts = np.cumsum([_num_words(length) for length in lengths])[:-1]
        parts = np.split(words, starts)
        return [
            part.tobytes()[:length]
            for part, length in zip(parts[:: self.replicas], lengths[:: self.replicas], strict=True)
        ]

    def wait(self) -> None:
        """Waits until every worker has called it."""
        self.gather(b"")

    def require_agreement(self, facts: Mapping[str, object]) -> None:
        """Compares facts that must be the same on all workers.

        Args:
            facts: by a description, such as "their flags".

        Raises:
            UserError: on every worker, if some differ; it names the first such fact and worker.
        """
        own = {
            name: hashlib.sha256(repr(fact).encode()).hexdigest() for name, fact in facts.items()
        }
        first, *others = map(json.loads, self.gather(json.dumps(own).encode()))
        for worker, other in enumerate(others, 1):
            for name in facts:
                if other[name] != first[name]:
                    raise UserError(
                        f"Worker {worker} and the chief differ in {name}: all workers need the "
                        "same command and must see the same files, for example on gs://."
                    )

    def _gather(self, array: np.ndarray) -> np.ndarray:
        """Concatenates an array of each worker's first replica, int64 [N], where N may differ.

        The other replicas contribute a zero each.
        """

        def part(context) -> tf.Tensor:
            is_first = context.replica_id_in_sync_group % self.replicas == 0
            return tf.constant(array if is_first else [0], tf.int64)

        values = self._strategy.experimental_distribute_values_from_function(part)
        return self._strategy.gather(values, axis=0).numpy()


def _num_words(length: int) -> int:
    # One at least: TensorFlow 2.21 crashes when it gathers an empty tensor.
    return length // _WORD + 1


def _pad(content: bytes) -> bytes:
    """Fills up words of 8 bytes, because collectives have no kernel for single ones."""
    return content + bytes(_WORD * _num_words(len(content)) - len(content))
