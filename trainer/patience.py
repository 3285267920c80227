"""The early end of a training whose AP does not become better."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from trainer.checkpoints import Checkpoints
from trainer.config import TrainConfig
from trainer.exchange import Workers


class _Exhausted(Exception):
    """The AP has not become better for `--patience` evaluations."""


class Patience:
    """The `--patience` of a training.

    Args:
        config: settings.
        checkpoints: they know the step of the best evaluation.
        workers: all stop at the same step.
    """

    def __init__(self, config: TrainConfig, checkpoints: Checkpoints, workers: Workers):
        self._config = config
        self._checkpoints = checkpoints
        self._workers = workers

    def was_at_its_end(self) -> bool:
        """Whether an earlier run stopped for this reason at the current step; if so, says it."""
        is_over = self._checkpoints.is_evaluated() and self._is_exhausted()
        if is_over:
            print(f"{self._explain()} Raise --patience to continue.")
        return is_over

    def judging(self, evaluate: Callable[[int], None]) -> Callable[[int], None]:
        """Wraps an evaluation so that it may end the training, on all workers."""

        def evaluate_and_judge(step: int) -> None:
            evaluate(step)
            is_over = self._workers.is_chief and self._is_exhausted()
            judgements = self._workers.gather(b"over" if is_over else b"")
            if judgements[0] and step < self._config.train_steps:
                raise _Exhausted

        return evaluate_and_judge

    @contextlib.contextmanager
    def ends_training(self) -> Iterator[None]:
        """Within it, training ends where an evaluation decides so, and is saved."""
        try:
            yield
        except _Exhausted:
            if self._workers.is_chief:
                self._checkpoints.save()
            print(self._explain(), flush=True)

    def _is_exhausted(self) -> bool:
        limit = self._config.patience * self._config.eval_every_steps
        return 0 < limit <= self._checkpoints.steps_since_best()

    def _explain(self) -> str:
        step = int(self._checkpoints.step.numpy())
        return (
            f"Training ends at step {step}: for --patience={self._config.patience} evaluations, AP "
            f"has not become better than at step {step - self._checkpoints.steps_since_best()}."
        )
