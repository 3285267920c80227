"""The report of a training: train.jsonl, the progress line and TensorBoard."""

from __future__ import annotations

import os

from trainer.config import Params
from trainer.hooks import Progress, Stopwatch, Summaries, TrainLog
from trainer.optimizer import Updater
from trainer.peak_memory import read_peak_memory
from trainer.steps import StepResult


class TrainReport:
    """Writes a logged step to train.jsonl, the progress line and TensorBoard.

    Attributes:
        result: the scalars of the latest call's steps.
        stopwatch: times the steps since the latest report.
    """

    def __init__(self, params: Params, updater: Updater):
        self.result: StepResult | None = None
        data = params.data
        self.stopwatch = Stopwatch(data.train_batch_size, data.steps_per_call)
        self._model_dir = params.train.model_dir
        self._updater = updater
        self._progress = Progress(params.train.train_steps)
        self._summaries = Summaries(os.path.join(self._model_dir, "summaries", "train"))

    def open(self, start: int) -> None:
        """Opens train.jsonl for the steps after `start`; call it before `write`."""
        self._log = TrainLog(self._model_dir, start)

    def write(self, step: int) -> None:
        """Reports the latest step's own values, not averages, so that reruns are comparable."""
        timing = self.stopwatch.report()
        steps_per_second = timing.pop("steps_per_second")
        result = self.result.fetch()[-1]
        scalars = {
            "loss": result.loss,
            **result.losses,
            "learning_rate": self._updater.latest_learning_rate(),
            **timing,
            "gradient_norm": result.gradient_norm,
            **result.metrics,
        }
        if memory := read_peak_memory():
            scalars["peak_memory_gb"] = memory
        record = {"step": step, **scalars}
        self._log.write(record)
        self._progress.write(record, list(result.losses), steps_per_second)
        self._summaries.write_scalars(step, scalars)
        self.stopwatch.restart()
