"""Trains, evaluates and predicts with any model function.

A model function maps `(features, labels, mode, params, network)` to an `EstimatorSpec`; the network
is any object with `variables`, `trainable_variables` and `decayed_variables`. The outer loop here
fetches batches and decides when to act; the inner steps are in `trainer/steps.py`; the actions
(log, save, evaluate) are plain callables that take the step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from data.data_service import watched
from data.errors import UserError
from data.progress import with_progress
from trainer.action import Action
from trainer.ahead import ahead
from trainer.checkpoints import Checkpoints
from trainer.cluster import ALONE, Cluster
from trainer.config import Params
from trainer.exchange import Workers
from trainer.hooks import OVERFLOWS_ENDURED, FiniteGuard, NotFinite
from trainer.optimizer import Updater
from trainer.patience import Patience
from trainer.retries import Retries
from trainer.steps import PredictStep, StepResult, TrainStep, group_batches, split_images
from trainer.stopping import Stopped, StopSignals
from trainer.train_report import TrainReport

# (mode, params, input_context, start_step), the last of which is passed in training only.
InputFn = Callable[..., tf.data.Dataset]
Prediction = dict[str, np.ndarray]


class Collector(Protocol):
    """What `Estimator.collect` passes predictions to."""

    def add(self, prediction: Mapping[str, np.ndarray]) -> None:
        """Adds the predictions of one image."""

    def dump(self) -> bytes:
        """Returns what was added."""

    def extend(self, dumped: bytes) -> None:
        """Adds what another worker's collector dumped."""


class Evaluator(Collector, Protocol):
    """A collector that measures predictions."""

    def evaluate(self) -> dict:
        """Measures the predictions added."""


class _Cut(Exception):
    """A signal requests the end of the training that this evaluation belongs to."""


class Estimator:
    """Trains, evaluates and predicts with one network in one model_dir.

    Args:
        model_fn: `(features, labels, mode, params, network) -> EstimatorSpec`; in training its loss
            is the replica's share of the global loss.
        network: has `variables`, `trainable_variables` and `decayed_variables`; made under the
            strategy's scope.
        params: settings; those of `params.data` and `params.model` are only passed on, except for
            batch sizes, precision and jit_compile.
        strategy: distributes batches over replicas.
        cluster: this process's place among the workers; only the chief writes files.
    """

    def __init__(
        self,
        model_fn: Callable,
        network,
        params: Params,
        strategy: tf.distribute.Strategy,
        cluster: Cluster = ALONE,
    ):
        self._params = params
        self._network = network
        self._strategy = strategy
        self._workers = Workers(strategy, cluster)
        with strategy.scope():
            step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
            self._updater = Updater(network, params)
        self.checkpoints = Checkpoints(
            params.train.model_dir, network, self._updater, step, params.train.keep_checkpoints
        )
        self._retries = Retries(
            params.train.nonfinite_retries, self._updater.halvings, self.checkpoints, self._workers
        )
        self._patience = Patience(params.train, self.checkpoints, self._workers)
        self._signals = StopSignals()  # those of the current training
        self._train_step = TrainStep(model_fn, network, self._updater, strategy, params)
        self._predict_step = PredictStep(model_fn, network, strategy, params)

    @property
    def network(self):
        """The network that is trained."""
        return self._network

    @property
    def strategy(self) -> tf.distribute.Strategy:
        """The strategy that distributes batches over replicas."""
        return self._strategy

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the files."""
        return self._workers.is_chief

    @property
    def step(self) -> int:
        """Number of training steps taken."""
        return int(self.checkpoints.step.numpy())

    def train(
        self,
        input_fn: InputFn,
        evaluate: Callable[[int], None] | None = None,
        begin: Callable[[int], None] = lambda step: None,
        load: Callable[[object, str], None] | None = None,
    ) -> int:
        """Trains up to `--train_steps`, continuing from the model_dir's latest checkpoint.

        Args:
            input_fn: `(mode, params, input_context, start_step)` to an endless dataset of
                (features, labels) that starts with the batch of the step after `start_step`.
            evaluate: called with the step after every `--eval_every_steps` steps and after the
                last; also for the step that a run continues from, if it was due there and did not
                finish.
            begin: called by the chief with the number of steps so far, once a checkpoint fits and
                there is something to train.
            load: as for `Checkpoints.resume`.

        Returns:
            The number of steps taken; 0 if the run was already complete.

        Raises:
            UserError: a loss or gradient is not finite (after the last of `--nonfinite_retries`),
                the input ends, a checkpoint does not fit, or the workers have different settings or
                checkpoints.
            Stopped: requested by Ctrl-C, SIGTERM or SIGHUP, of any worker; the steps taken are
                saved.
        """
        config = self._params.train
        if self.is_chief:
            self.checkpoints.remove_unfinished()
        start = self.checkpoints.resume(config.init_checkpoint, load)
        self._require_agreement(start)
        if start >= config.train_steps:
            print(
                f"{config.model_dir} has {start} steps of --train_steps={config.train_steps}: "
                "nothing is left to train; raise --train_steps to continue."
            )
            return 0
        if evaluate is not None and self._patience.was_at_its_end():
            return 0
        report = TrainReport(self._params, self._updater)
        untimed = report.stopwatch.untimed
        actions = []
        if self.is_chief:
            begin(start)
            report.open(start)
            self._retries.prepare()
            save = untimed(lambda step: self.checkpoints.save())
            actions += [
                Action(report.write, config.log_every_steps),
                Action(save, config.save_every_steps, config.save_every_minutes),
            ]
        with StopSignals() as self._signals, self._patience.ends_training():
            if evaluate is not None:
                judged = self._patience.judging(evaluate)
                evaluation = Action(untimed(judged), config.eval_every_steps)
                actions.append(evaluation)
                if self._lacks_evaluation(evaluation):
                    self._run_unless_stopped([evaluation], start)
            self._run_to_the_end(input_fn, start, report, actions)
        return self.step - start

    def load(self) -> int:
        """Loads the weights to evaluate or predict with, and returns the step of their checkpoint.

        Raises:
            UserError: neither the model_dir nor `--init_checkpoint` has a checkpoint.
        """
        return self.checkpoints.load_for_evaluation(self._params.train.init_checkpoint)

    def evaluate(
        self, input_fn: InputFn, evaluator: Evaluator, num_images: int | None = None
    ) -> dict:
        """Passes the predictions of all images to the evaluator; returns its metrics, and the step.

        All workers of a cluster call it; those that are not the chief return an empty dict.
        `num_images` is the number of images, for the progress output.
        """
        self.collect(input_fn, evaluator, "eval", "Evaluating", num_images)
        return {"step": self.step, **evaluator.evaluate()} if self.is_chief else {}

    def collect(
        self,
        input_fn: InputFn,
        collector: Collector,
        mode: str,
        what: str,
        num_images: int | None = None,
    ) -> None:
        """Passes the predictions of all images to the chief's collector.

        Every worker predicts its share of the images.

        Args:
            input_fn, mode: as for `predict`.
            collector: this worker's.
            what: what is being done, for the progress output.
            num_images: number of all images, for the progress output.
        """
        predictions = self.predict(input_fn, mode)
        if self.is_chief:
            total = num_images if self._workers.count == 1 else None
            predictions = with_progress(predictions, what, total)
        for prediction in predictions:
            collector.add(prediction)
        shares = self._workers.gather(b"" if self.is_chief else collector.dump())
        if self.is_chief:
            for dumped in shares[1:]:
                collector.extend(dumped)

    def predict(
        self, input_fn: InputFn, mode: str = "predict", num_images_shown: int = 0
    ) -> Iterator[Prediction]:
        """Yields the predictions of this worker's images, padding left out, in no particular order.

        Args:
            input_fn: `(mode, params, input_context)` to a finite dataset of features.
            mode: "predict" or "eval", for `input_fn`.
            num_images_shown: if set, only this many predictions are made, and they also have
                `image`, uint8 [valid height, valid width, 3].

        Yields:
            NumPy arrays by name: image_id [], image_info [5], num_detections [], and N detections'
            detection_boxes [N, 4], detection_classes [N] and so on.
        """
        workers = self._workers
        context = tf.distribute.InputContext(
            workers.count, workers.index, self._strategy.num_replicas_in_sync
        )
        shown = 0
        batches = watched(input_fn(mode, self._params, context), self._params.data.data_service)
        groups = group_batches(batches, workers.replicas)
        with self._updater.averaged_weights():
            # The devices then do not wait for the use of a prediction, such as pasting its masks.
            for group, results in ahead((group, self._predict_step(group)) for group in groups):
                # Workers cannot stop alone, because the others would wait for their predictions.
                if self._signals.requested and workers.count == 1:
                    raise _Cut
                for features, predictions in zip(group, results, strict=True):
                    for image in split_images(features, predictions, num_images_shown > 0):
                        yield image
                        shown += 1
                        if shown == num_images_shown:
                            return

    def wait_for_all(self) -> None:
        """Waits until every worker has come here; a worker that leaves early is taken for dead."""
        self._workers.wait()

    def _run_to_the_end(
        self, input_fn: InputFn, start: int, report: TrainReport, actions: Sequence[Action]
    ) -> None:
        """Runs all steps, some of them again after a loss that is not finite."""
        while True:
            try:
                self._run_steps(self._read_batches(input_fn, start), start, report, actions)
                return
            except NotFinite as error:
                start = self._retries.go_back(error)
            if self.is_chief:
                report.open(start)

    def _read_batches(self, input_fn: InputFn, start: int) -> Iterator:
        """Returns the endless batches from the step after `start` on."""
        batches = self._strategy.distribute_datasets_from_function(
            lambda context: input_fn("train", self._params, context, start)
        )
        return watched(batches, self._params.data.data_service)

    def _run_steps(
        self,
        batches: Iterator,
        start: int,
        report: TrainReport,
        actions: Sequence[Action],
    ) -> None:
        """Runs the outer loop: fetches batches, takes steps, and acts at the right steps.

        Each call of the devices takes `--steps_per_call` steps, and `step` is the last of them.
        """
        last, count = self._params.train.train_steps, self._params.data.steps_per_call
        guard = FiniteGuard(self._strategy, OVERFLOWS_ENDURED if self._updater.loss_scale else 0)
        report.stopwatch.restart()
        for step in range(start + count, last + 1, count):
            fetched = time.perf_counter()
            features, labels = _next_batch(batches, step)
            report.stopwatch.count(time.perf_counter() - fetched)
            previous = report.result
            report.result = self._train_step(features, labels, bool(self._signals.requested))
            self.checkpoints.step.assign(step)
            guard.keep(step - count + 1, report.result, features["image_id"])
            due = [action for action in actions if action.is_due(step, last, count)]
            if due or self._retries.are_shared or self._agreed_request(previous):
                guard.check()
            self._run_unless_stopped(due, step, previous)

    def _agreed_request(self, previous: StepResult | None) -> str:
        """Returns what asks the training to stop, the same on all workers; "" if nothing does.

        Args:
            previous: result of the step before the latest. Reading the latest one's would make the
                program wait for it.
        """
        if self._workers.count == 1:
            return self._signals.requested
        if previous is None or not np.any(previous.stops):
            return ""
        return self._signals.requested or "another worker"

    def _run_unless_stopped(
        self, actions: Sequence[Action], step: int, previous: StepResult | None = None
    ) -> None:
        """Acts after a step; if `_agreed_request` says so by then, saves everything and stops.

        Raises:
            Stopped: the message names the step that was saved.
        """
        with contextlib.suppress(_Cut):
            for action in actions:
                action.run(step)
        if request := self._agreed_request(previous):
            saved = self.checkpoints.save() if self.is_chief else "the chief's checkpoint"
            self._workers.wait()  # No worker leaves before it is saved.
            raise Stopped(
                f"Stopped by {request} after step {step}, which is saved in {saved}; run the same "
                "command again to continue from there."
            )

    def _require_agreement(self, start: int) -> None:
        """Refuses workers that would train different things together, and half a call."""
        facts = {
            f"the checkpoint in --model_dir={self._params.train.model_dir}": start,
            "their flags": self._params,
        }
        self._workers.require_agreement(facts)
        if start % (count := self._params.data.steps_per_call):
            raise UserError(
                f"--steps_per_call={count}: {start} steps of this run are taken, so give a number "
                f"that divides {start}, such as 1."
            )

    def _lacks_evaluation(self, evaluation: Action) -> bool:
        """Whether an evaluation was due at the restored step but was interrupted."""
        count = self._params.data.steps_per_call
        is_due = evaluation.is_due(self.step, self._params.train.train_steps, count)
        return self.step > 0 and is_due and not self.checkpoints.is_evaluated()


def _next_batch(batches: Iterator, step: int) -> tuple:
    try:
        return next(batches)
    except StopIteration:
        raise UserError(
            f"The training input ended before step {step}: --train_file_pattern has no images to "
            "train on, or fewer than one batch."
        ) from None
