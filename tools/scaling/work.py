"""Counts the work of training and prediction for the settings of a flagfile."""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf

from data.errors import UserError
from data.input_fn import input_fn
from data.manifest import find_manifest
from model.model_fn import model_fn
from model.systems import build_network
from model.variables import named_variables
from tools.scaling.arithmetic import count_work
from trainer.config import Params
from trainer.optimizer import Updater
from trainer.steps import PredictStep, TrainStep


def count(params: Params) -> dict:
    """Traces a training step and a prediction on one canvas and counts their work.

    Args:
        params: the first of the canvases is used; the batch is `train_batch_size`, over which the
            bytes of weights are divided. The training records give the shapes of the labels.

    Returns:
        Per image: "train" {"forward", "backward"} and "predict" {"forward"}, each {part: [FLOPs,
        bytes]}; "bytes" of a "record", of the "image" and of its "labels" on the device. In total:
        "weights" by part, "trained_weights" and "checkpoint_bytes". And the "canvas", "batch_size"
        and "precision".

    Raises:
        UserError: the records cannot be read, or have no manifest.
    """
    params = _compiled_on_one_canvas(params)
    features, labels = input_fn("train", params).element_spec
    network, strategy = build_network(params), tf.distribute.get_strategy()
    updater = Updater(network, params)
    train = TrainStep(model_fn, network, updater, strategy, params).function
    predict = PredictStep(model_fn, network, strategy, params).function
    checkpoint = tf.train.Checkpoint(network=network, optimizer=updater.state())
    batch, stop = params.data.train_batch_size, tf.TensorSpec([], tf.float32)
    return {
        "canvas": params.data.canvases[0],
        "batch_size": batch,
        "precision": params.model.precision,
        "weights": _weights_by_part(network),
        "trained_weights": sum(math.prod(each.shape) for each in updater.variables),
        "checkpoint_bytes": sum(map(_bytes, named_variables(checkpoint).values())),
        "bytes": {
            "record": _record_bytes(params.data.train_file_pattern),
            "image": _bytes(features["image"]) / batch,
            "labels": sum(map(_bytes, labels.values())) / batch,
        },
        "train": _per_image(train.get_concrete_function(features, labels, stop), batch),
        "predict": _per_image(predict.get_concrete_function(features), batch),
    }


def _compiled_on_one_canvas(params: Params) -> Params:
    data = dataclasses.replace(params.data, canvases=params.data.canvases[:1], steps_per_call=1)
    model = dataclasses.replace(params.model, jit_compile=True)
    train = dataclasses.replace(params.train, mode="train", accumulate_steps=1)
    return dataclasses.replace(params, data=data, model=model, train=train)


def _per_image(function, batch: int) -> dict:
    counted = count_work(function.graph)
    return {
        direction: {part: work.per(batch) for part, work in sorted(parts.items())}
        for direction, parts in counted.items()
        if parts
    }


def _weights_by_part(network) -> dict[str, int]:
    parts = ("backbone", "fpn", "rpn_head", *network.head_names)
    return {
        part: sum(math.prod(each.shape) for each in getattr(network, part).variables)
        for part in parts
    }


def _record_bytes(pattern: str) -> float:
    manifest = find_manifest(pattern)
    if manifest is None:
        raise UserError(f"{pattern} has no manifest, which states the sizes of records.")
    return sum(shard["bytes"] for shard in manifest.shards) / manifest.num_images


def _bytes(tensor) -> int:
    return math.prod(tensor.shape) * tf.as_dtype(tensor.dtype).size
