"""Selects the RoIs of the mask branch: all that are wanted, or a fixed number of slots.

Axes: B images, R RoIs an image, N RoIs of all images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Slots(NamedTuple):
    """The RoIs of the mask branch, selected from [B, R] ones."""

    index: tf.Tensor  # int32 [N, 2]: image and position
    valid: tf.Tensor  # bool [N], slots that hold a wanted RoI

    def take(self, values: tf.Tensor) -> tf.Tensor:
        """Gathers [B, R, …] → [N, …]."""
        return tf.gather_nd(values, self.index)

    def put(self, values: tf.Tensor, batch: int, count: int) -> tf.Tensor:
        """Scatters [N, …] → [batch, count, …], zeros for RoIs that are not wanted."""
        keep = tf.reshape(self.valid, [-1] + [1] * (values.shape.rank - 1))
        values = tf.where(keep, values, tf.zeros_like(values))
        return tf.scatter_nd(self.index, values, [batch, count, *values.shape[1:]])

    @property
    def image(self) -> tf.Tensor:
        """The image of each RoI, int32 [N]."""
        return self.index[:, 0]


def choose_slots(wanted: tf.Tensor, most: int, static: bool) -> Slots:
    """Chooses slots for the wanted RoIs, which come first in their image.

    Args:
        wanted: bool [B, R].
        most: maximum number of wanted RoIs per image.
        static: one slot for each of the first `most` RoIs, wanted or not. Otherwise one slot for
            each wanted RoI; if there are none, an invalid one, because oneDNN's convolutions give
            an empty batch the wrong shape.
    """
    if static:
        batch = wanted.shape[0]
        index = np.stack(np.meshgrid(np.arange(batch), np.arange(most), indexing="ij"), -1)
        index = tf.constant(index.reshape(-1, 2), tf.int32)
        return Slots(index, tf.gather_nd(wanted, index))
    wanted = wanted[:, :most]
    spare = np.zeros(wanted.shape, bool)
    spare[0, 0] = True
    taken = wanted | (spare & ~tf.reduce_any(wanted))
    index = tf.cast(tf.where(taken), tf.int32)
    return Slots(index, tf.gather_nd(wanted, index))
