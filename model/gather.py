"""Gathers along the second axis."""

from __future__ import annotations

import tensorflow as tf


def gather_rows(values: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Does `tf.gather(values, indices, batch_dims=1)` as one gather without batches.

    OpenVINO 2026.4 reads outside its memory in the batched form.

    Args:
        values: [B, A, …].
        indices: int32 [B, N], 0 to A - 1.

    Returns:
        [B, N, …].
    """
    count = values.shape[1]
    first = tf.range(tf.shape(indices)[0]) * count
    flat = tf.reshape(values, tf.concat([[-1], tf.shape(values)[2:]], 0))
    return tf.gather(flat, indices + first[:, None])
