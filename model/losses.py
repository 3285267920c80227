"""Elementwise losses, and the sums over replicas that make their means global.

A head's loss lives with the head; what several heads share is here.
"""

from __future__ import annotations

import tensorflow as tf


def smooth_l1(error: tf.Tensor, beta: float) -> tf.Tensor:
    """Smooth L1 (Girshick, Fast R-CNN, equation 3): quadratic below `beta`, L1 where it is 0.

    Args:
        error: float32 [...], prediction minus target.
        beta: where the quadratic turns linear.

    Returns:
        float32 [...].
    """
    magnitude = tf.abs(error)
    if beta == 0:
        return magnitude
    return tf.where(magnitude < beta, 0.5 * error * error / beta, magnitude - 0.5 * beta)


def global_sum(count: tf.Tensor) -> tf.Tensor:
    """Sum over all replicas of a count by which a loss is divided, without gradient.

    Losses are sums over this replica's RoIs divided by the count of everybody's, so that the sum
    of the replicas' losses is the mean over the global batch.
    """
    count = tf.stop_gradient(tf.cast(count, tf.float32))
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return count
    return context.all_reduce(tf.distribute.ReduceOp.SUM, count)


def num_replicas() -> int:
    """Replicas that share the global batch with this one, itself included."""
    return tf.distribute.get_strategy().num_replicas_in_sync
