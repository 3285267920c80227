"""A tiny network, model function and input that keep the contracts of the real ones.

The picture's mean colour goes through two dense layers; the target is a number.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from data.config import DataConfig
from model.config import ModelConfig
from trainer.config import Params, TrainConfig


class ToySpec(NamedTuple):
    mode: str
    loss: Any = None
    losses: Any = None
    metrics: Any = None
    predictions: Any = None
    network: Any = None


class ToyNetwork(tf.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        initializer = keras.initializers.GlorotUniform(seed=7)
        self.hidden = keras.layers.Dense(width, "tanh", kernel_initializer=initializer)
        self.hidden.build((None, 3))
        self.out = keras.layers.Dense(1, kernel_initializer=initializer)
        self.out.build((None, width))

    @property
    def variables(self):
        return self.hidden.variables + self.out.variables

    @property
    def trainable_variables(self):
        return self.variables

    @property
    def decayed_variables(self):
        return [self.hidden.kernel, self.out.kernel]

    def __call__(self, image):
        colour = tf.reduce_mean(tf.cast(image, tf.float32) / 255.0, axis=[1, 2])
        return self.out(self.hidden(colour))[:, 0]


def build_network(params: Params) -> ToyNetwork:
    return ToyNetwork()


def toy_model_fn(features, labels, mode, params, network) -> ToySpec:
    value = network(features["image"])
    if mode == "train":
        error = tf.square(value - labels["target"])
        loss = tf.reduce_mean(error) / tf.distribute.get_strategy().num_replicas_in_sync
        return ToySpec(mode, loss, {"half_loss": loss / 2}, {"seen": tf.reduce_sum(error * 0 + 1)})
    batch = tf.shape(features["image"])[0]
    detections = tf.reshape(tf.range(batch * 3, dtype=tf.float32), [batch, 3])
    ids = features["image_id"]
    height, width = features["image"].shape[1:3]
    return ToySpec(
        mode,
        predictions={
            "image_id": ids,
            "image_info": tf.tile([[height, width, 1.0, height, width]], [batch, 1]),
            "num_detections": tf.cast(ids % 4, tf.int32),
            "detection_boxes": tf.tile([[[1.0, 2.0, 3.0, 5.0]]], [batch, 3, 1]),
            "detection_classes": tf.ones([batch, 3], tf.int32),
            "box_scores": 1.0 / (1.0 + detections),
            "value": value[:, None] + tf.zeros([batch, 3]),
        },
    )


def toy_images(count: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (count, height, width, 3)).astype(np.uint8)


def make_train_input_fn(targets: list[float]):
    """Repeats images 1, 2, ... with these targets, in order."""

    def input_fn(mode, params, context=None, start_step=0):
        count = len(targets)
        features = {"image": toy_images(count), "image_id": np.arange(1, count + 1)}
        labels = {"target": np.array(targets, np.float32)}
        size = params.data.train_batch_size
        dataset = tf.data.Dataset.from_tensor_slices((features, labels)).repeat()
        dataset = dataset.skip(start_step * size)
        size = context.get_per_replica_batch_size(size) if context else size
        return dataset.batch(size * params.data.steps_per_call, drop_remainder=True)

    return input_fn


def eval_input_fn(mode, params, context=None):
    """Seven images of two shapes in batches of two; the last batch of a shape is padded."""
    batches = []
    for height, ids in ((4, [1, 2]), (8, [3, 4]), (4, [5, 6]), (8, [7, -1])):
        image = np.zeros((2, height, 6, 3), np.uint8) + np.array(ids).reshape(2, 1, 1, 1) % 256
        batches.append({"image": image.astype(np.uint8), "image_id": np.array(ids, np.int64)})

    def by_index(index):
        branches = [lambda b=b: b["image"] for b in batches]
        image = tf.switch_case(tf.cast(index, tf.int32), branches)
        ids = tf.constant(np.stack([b["image_id"] for b in batches]))
        return {"image": image, "image_id": ids[index]}

    return tf.data.Dataset.range(len(batches)).map(by_index)


def toy_params(model_dir, **changes) -> Params:
    """Small settings; keyword arguments go to whichever dataclass has the field."""
    settings = {
        "train_batch_size": 4,
        "eval_batch_size": 4,
        "train_steps": 6,
        "log_every_steps": 2,
        "save_every_steps": 3,
        "warmup_steps": 2,
        "learning_rate": 0.05,
        "weight_decay": 0.01,
        "num_eval_images_shown": 0,
        "model_dir": str(model_dir),
        "num_classes": 2,
        **changes,
    }
    rooms = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig}
    parts = {}
    for room, config in rooms.items():
        names = {field.name for field in dataclasses.fields(config)} & settings.keys()
        parts[room] = config(**{name: settings[name] for name in names})
    return Params(**parts)


def weights_of(network) -> list[np.ndarray]:
    return [variable.numpy() for variable in network.variables]
