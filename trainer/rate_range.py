"""Learning-rate range test: the loss while the learning rate grows exponentially.

Smith, "Cyclical Learning Rates for Training Neural Networks" (WACV 2017), section 3.3. Rates
that are too low do not change the loss, good ones lower it, and if they are too high it diverges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trainer.optimizer import Schedule, Updater
from trainer.steps import TrainStep

_SMOOTHING = 0.95
_DIVERGENCE = 4.0
# The average of the first losses varies too much to read a slope from it.
_STEPS_IGNORED = 0.1


class ExponentialSchedule(Schedule):
    """Grows from `lowest` at step 0 to `highest` at the last of `steps` by a constant factor."""

    def __init__(self, lowest: float, highest: float, steps: int):
        self._lowest = lowest
        self._growth = math.log(highest / lowest) / (steps - 1)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate of update number `step` (integer scalar, from 0): float32 scalar."""
        return self._lowest * tf.exp(self._growth * tf.cast(step, tf.float32))


class Trial(NamedTuple):
    """A step of the test: its learning rate, its loss, and the smoothed loss up to it."""

    learning_rate: float
    loss: float
    smoothed: float


class Suggestion(NamedTuple):
    """Learning rates read from the smoothed loss.

    Attributes:
        steepest: where it falls fastest per factor of the rate.
        lowest_loss: where it is lowest; already too high to train with.
    """

    steepest: float
    lowest_loss: float

    @property
    def tenth(self) -> float:
        """A tenth of the rate of the lowest loss."""
        return self.lowest_loss / 10.0


def run_trials(step: TrainStep, updater: Updater, batches: Iterable) -> Iterator[Trial]:
    """Takes a training step for each batch until the smoothed loss diverges.

    The smoothed loss is an exponential average, divided by the sum of its weights. It has diverged
    if it is not finite or exceeds four times its minimum.

    Args:
        step: with the updater, whose schedule is an `ExponentialSchedule`; one step a call.
        updater: tells the learning rate of each step.
        batches: (features, labels), as many as there are steps.
    """
    average, lowest = 0.0, math.inf
    for count, (features, labels) in enumerate(batches, start=1):
        loss = step(features, labels).fetch()[0].loss
        average = _SMOOTHING * average + (1.0 - _SMOOTHING) * loss
        smoothed = average / (1.0 - _SMOOTHING**count)
        if not math.isfinite(smoothed) or smoothed > _DIVERGENCE * lowest:
            return
        lowest = min(lowest, smoothed)
        yield Trial(updater.latest_learning_rate(), loss, smoothed)


def suggest(trials: Sequence[Trial]) -> Suggestion | None:
    """Reads good learning rates from the trials; None if the loss does not fall."""
    shown = trials[math.ceil(_STEPS_IGNORED * len(trials)) :]
    smoothed = np.array([trial.smoothed for trial in shown])
    lowest = int(np.argmin(smoothed)) if shown else 0
    if lowest == 0:
        return None
    steepest = int(np.argmin(np.gradient(smoothed)[: lowest + 1]))
    return Suggestion(shown[steepest].learning_rate, shown[lowest].learning_rate)
