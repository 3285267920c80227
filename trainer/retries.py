"""Going back to a checkpoint with a lower learning rate after a loss that is not finite."""

from __future__ import annotations

import sys

import tensorflow as tf

from trainer.checkpoints import Checkpoints
from trainer.exchange import Workers
from trainer.hooks import NotFinite


class Retries:
    """The `--nonfinite_retries` of a training.

    Args:
        limit: how many there may be, also over restarts of the program.
        halvings: int32 variable, how often the learning rate was halved; None if `limit` is 0.
        checkpoints: those to go back to.
        workers: all go back together; only the chief removes checkpoints.
    """

    def __init__(
        self, limit: int, halvings: tf.Variable | None, checkpoints: Checkpoints, workers: Workers
    ):
        self._limit = limit
        self._halvings = halvings
        self._checkpoints = checkpoints
        self._workers = workers
        self._failed = self._returned = -1

    @property
    def are_shared(self) -> bool:
        """Whether several workers have to notice a loss that is not finite in the same step."""
        return self._limit > 0 and self._workers.count > 1

    def prepare(self) -> None:
        """Makes sure that there is a checkpoint to go back to; for the chief."""
        if self._limit and not self._checkpoints.latest:
            self._checkpoints.save()

    def go_back(self, error: NotFinite) -> int:
        """Restores a checkpoint and halves the learning rate; returns the checkpoint's step.

        It is the latest one. A training often diverges long before its numbers overflow, so if it
        fails again soon, the checkpoints since the one that it went back to are removed with it.

        Raises:
            NotFinite: as given, if there may be no more retries.
        """
        count = 1 + (int(self._halvings.numpy()) if self._limit else 0)
        if count > self._limit:
            raise error
        failed_again_soon = error.step - self._failed <= self._failed - self._returned
        if self._returned >= 0 and failed_again_soon and self._workers.is_chief:
            self._checkpoints.remove_from(self._returned)
        latest = self._workers.gather(self._checkpoints.latest.encode())[0].decode()
        self._failed, self._returned = error.step, self._checkpoints.go_back(latest)
        self._halvings.assign(count)
        print(
            f"Warning: {error.problem}: going back to step {self._returned}, with the learning "
            f"rate times {0.5**count:g} (retry {count} of --nonfinite_retries={self._limit}).",
            file=sys.stderr,
        )
        return self._returned
