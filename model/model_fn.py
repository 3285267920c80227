"""The network as an Estimator-style model function."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from model.detector import Detector
from model.systems import build_network

TRAIN, EVAL, PREDICT = "train", "eval", "predict"


class EstimatorSpec(NamedTuple):
    """The result of a call of the model function.

    Attributes:
        mode: `TRAIN`, `EVAL` or `PREDICT`.
        loss: in training, this replica's share of the global loss, a float32 scalar; the sum over
            replicas is the loss of the global batch.
        losses: the parts of `loss` by name, with the same convention.
        metrics: further float32 scalars to log, to be summed over replicas.
        predictions: in the other modes, the detections of each image, see `Detector.detect`, with
            `image_id` and `image_info`.
        network: the layers that were used.
    """

    mode: str
    loss: tf.Tensor | None
    losses: dict[str, tf.Tensor]
    metrics: dict[str, tf.Tensor]
    predictions: dict[str, tf.Tensor] | None
    network: Detector


def model_fn(
    features: dict[str, tf.Tensor],
    labels: dict[str, tf.Tensor] | None,
    mode: str,
    params,
    network: Detector | None = None,
) -> EstimatorSpec:
    """Computes the losses or the predictions of one batch.

    Args:
        features: `image` uint8 [B, H, W, 3], `image_id` int64 [B], `image_info` float32 [B, 5]
            (valid height, valid width, scale, original height, original width).
        labels: as from `data.input_fn` in training; None in the other modes.
        mode: `TRAIN`, `EVAL` or `PREDICT`.
        params: `trainer.config.Params`, of which `model` and `static_shapes` are read.
        network: the layers to use; built from `params` when None.

    Returns:
        An `EstimatorSpec`.

    Raises:
        ValueError: `mode` is unknown.
    """
    network = network or build_network(params)
    static = params.static_shapes
    if mode == TRAIN:
        losses, metrics = network.compute_losses(features, labels, static)
        return EstimatorSpec(mode, tf.add_n(list(losses.values())), losses, metrics, None, network)
    if mode not in (EVAL, PREDICT):
        raise ValueError(f"mode={mode}: expected {TRAIN}, {EVAL} or {PREDICT}.")
    predictions = network.detect(features, static)
    predictions |= {key: features[key] for key in ("image_id", "image_info")}
    return EstimatorSpec(mode, None, {}, {}, predictions, network)
