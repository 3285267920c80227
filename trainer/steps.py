"""The inner steps: the computation of one batch on the devices.

They use a model only as `(features, labels, mode, params, network) -> EstimatorSpec`. Batches are
passed as eager tensors, so each canvas has its own trace in which every shape is static. Axes: B
images of a replica, N detections.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trainer.accumulation import GradientSums
from trainer.config import Params
from trainer.optimizer import Updater

IMAGE_ID_OF_PADDING = -1
_PER_IMAGE = frozenset({"image_id", "image_info", "num_detections"})

Features = dict[str, tf.Tensor]


class StepResult(NamedTuple):
    """Scalars of one training step over all replicas, still on the device.

    With `--steps_per_call` above 1, each has an axis of the call's steps instead.

    `stops` is above 0 if the training has to stop because one of the workers was asked to.
    """

    loss: tf.Tensor
    losses: dict[str, tf.Tensor]
    metrics: dict[str, tf.Tensor]
    stops: tf.Tensor
    gradient_norm: tf.Tensor

    def fetch(self) -> list[StepResult]:
        """Returns the values of each step as floats."""
        values = [np.ravel(value.numpy()).tolist() for value in tf.nest.flatten(self)]
        return [tf.nest.pack_sequence_as(self, step) for step in zip(*values, strict=True)]


class TrainStep:
    """Forward pass, backward pass and update for one batch; or for several, in one call.

    Attributes:
        function: the graph of a call, of (features, labels, stop), without `--accumulate_steps`.
    """

    def __init__(
        self,
        model_fn: Callable,
        network,
        updater: Updater,
        strategy: tf.distribute.Strategy,
        params: Params,
    ):
        self._model_fn = model_fn
        self._network = network
        self._updater = updater
        self._strategy = strategy
        self._params = params
        self._parts = params.train.accumulate_steps
        self._steps = params.data.steps_per_call
        compiled = functools.partial(
            tf.function, autograph=False, jit_compile=params.model.jit_compile or None
        )
        self.function = compiled(self._step if self._steps == 1 else self._several_steps)
        if self._parts > 1:
            with strategy.scope():
                self._sums = GradientSums(updater.variables)
            self._accumulate, self._update = compiled(self._accumulate), compiled(self._update)

    def __call__(self, features: Features, labels: Features, stop: bool = False) -> StepResult:
        """Takes the steps of one call.

        Args:
            features, labels: each replica's own `[B, ...]`, B images a step, one step's images
                after another's.
            stop: tells all workers that this one was asked to stop.
        """
        stop = tf.constant(stop, tf.float32)
        if self._parts == 1:
            return self.function(features, labels, stop)
        parts = [
            self._accumulate(features, labels, tf.constant(index), stop)
            for index in range(self._parts)
        ]
        totals = tf.nest.map_structure(lambda *part: tf.add_n(part), *parts)
        return StepResult(**totals, gradient_norm=self._update())

    def _step(self, features: Features, labels: Features, stop: tf.Tensor) -> StepResult:
        shares, gradients = self._strategy.run(self._differentiate, args=(features, labels, stop))
        return StepResult(**self._total(shares), gradient_norm=self._apply(gradients))

    def _several_steps(self, features: Features, labels: Features, stop: tf.Tensor) -> StepResult:
        """Takes the steps in a loop of the graph; the results have an axis of steps."""

        def take_step(index: tf.Tensor) -> StepResult:
            batch = self._cut(features, labels, index, self._steps)
            return self._step(*batch, stop)

        traced = tf.function(take_step, autograph=False)
        result = traced.get_concrete_function(tf.TensorSpec([], tf.int32)).structured_outputs
        signature = tf.nest.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), result
        )
        return tf.map_fn(
            take_step, tf.range(self._steps), parallel_iterations=1, fn_output_signature=signature
        )

    def _accumulate(self, features: Features, labels: Features, index: tf.Tensor, stop: tf.Tensor):
        """Adds the gradients of a part of the batch to the sums."""

        def in_replica(*batch):
            shares, gradients = self._differentiate(*batch)
            self._sums.add(gradients)
            return shares

        part = self._cut(features, labels, index, self._parts)
        return self._total(self._strategy.run(in_replica, args=(*part, stop)))

    def _update(self) -> tf.Tensor:
        """Updates the variables by the sums."""
        return self._apply(self._strategy.run(self._sums.take))

    def _apply(self, gradients) -> tf.Tensor:
        """Updates the variables by the replicas' gradients; returns the global norm."""
        gradients, norms = self._strategy.run(self._updater.combine, args=(gradients,))
        norm = self._strategy.experimental_local_results(norms)[0]
        self._updater.apply(self._strategy, gradients, norm)
        return norm

    def _cut(self, features: Features, labels: Features, index: tf.Tensor, count: int):
        """Returns part `index` of `count` equal parts of the replicas' batches."""

        def cut(tensor: tf.Tensor) -> tf.Tensor:
            size = tensor.shape[0] // count
            begin = [index * size] + [0] * (tensor.shape.rank - 1)
            return tf.slice(tensor, begin, [size, *tensor.shape[1:]])

        return self._strategy.run(
            lambda *batch: tf.nest.map_structure(cut, batch), args=(features, labels)
        )

    def _differentiate(self, features: Features, labels: Features, stop: tf.Tensor):
        with tf.GradientTape() as tape:
            spec = self._model_fn(features, labels, "train", self._params, self._network)
            loss = self._updater.scaled(spec.loss / self._parts)
        losses = {"loss": spec.loss, "losses": dict(spec.losses)}
        shares = tf.nest.map_structure(lambda loss: loss / self._parts, losses)
        shares["metrics"] = dict(spec.metrics)
        shares["stops"] = tf.identity(stop)  # each replica its own, so that it can be summed
        return shares, self._updater.differentiate(tape, loss)

    def _total(self, shares):
        """Sums the replicas' shares of each scalar."""
        return tf.nest.map_structure(
            lambda share: self._strategy.reduce("SUM", share, axis=None), shares
        )


class PredictStep:
    """Prediction for a group of batches, one batch for each replica.

    Attributes:
        function: the graph, of features.
    """

    def __init__(
        self, model_fn: Callable, network, strategy: tf.distribute.Strategy, params: Params
    ):
        self._model_fn = model_fn
        self._network = network
        self._strategy = strategy
        self._params = params
        self.function = tf.function(
            self._step, autograph=False, jit_compile=params.model.jit_compile or None
        )

    def __call__(self, group: list[Features]) -> list[dict[str, np.ndarray]]:
        """Computes the predictions of each batch of the group, in its order.

        The group has a batch for each replica of this process. Other workers are not involved.
        """
        if len(group) == 1:
            features = group[0]
        else:
            features = self._strategy.experimental_distribute_values_from_function(
                lambda context: group[context.replica_id_in_sync_group % len(group)]
            )
        results = self.function(features)
        local = {
            name: self._strategy.experimental_local_results(value)
            for name, value in results.items()
        }
        return [
            {name: values[replica].numpy() for name, values in local.items()}
            for replica in range(len(group))
        ]

    def _step(self, features: Features) -> dict[str, tf.Tensor]:
        return self._strategy.run(self._predict, args=(features,))

    def _predict(self, features: Features) -> dict[str, tf.Tensor]:
        spec = self._model_fn(features, None, "predict", self._params, self._network)
        return dict(spec.predictions)


def group_batches(batches: Iterable[Features], size: int) -> Iterator[list[Features]]:
    """Groups `size` batches of equal shapes, one for each replica.

    Batches wait until there are enough of the same shapes, so that there are as many traces as
    canvases instead of one for each combination. At the end, incomplete groups are filled up with
    copies whose image ids mark them as padding.
    """
    waiting: dict[tuple, list[Features]] = defaultdict(list)
    for batch in batches:
        key = tuple((name, tuple(value.shape)) for name, value in sorted(batch.items()))
        waiting[key].append(batch)
        if len(waiting[key]) == size:
            yield waiting.pop(key)
    for group in waiting.values():
        padding = dict(group[0])
        padding["image_id"] = tf.fill(tf.shape(padding["image_id"]), _padding_id(padding))
        yield group + [padding] * (size - len(group))


def split_images(
    features: Features, predictions: dict[str, np.ndarray], with_images: bool = False
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the predictions of each image of a batch, padding entries left out.

    Args:
        features: `image` uint8 [B, H, W, 3] is read if `with_images`.
        predictions: `image_id` [B], `image_info` [B, 5], `num_detections` [B] and arrays [B, N,
            ...], which are cut to the image's number of detections.
        with_images: whether to add `image`, uint8 [valid height, valid width, 3].
    """
    for index, image_id in enumerate(predictions["image_id"]):
        if image_id == IMAGE_ID_OF_PADDING:
            continue
        count = int(predictions["num_detections"][index])
        image = {
            name: value[index] if name in _PER_IMAGE else value[index][:count]
            for name, value in predictions.items()
        }
        if with_images:
            height, width = (round(float(side)) for side in image["image_info"][:2])
            image["image"] = features["image"][index, :height, :width].numpy()
        yield image


def _padding_id(features: Features) -> tf.Tensor:
    return tf.constant(IMAGE_ID_OF_PADDING, features["image_id"].dtype)
