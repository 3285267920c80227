"""Elementwise losses, and sums over replicas for global means.

Each head's file contains its loss; this file contains what several heads share.
"""

from __future__ import annotations

import tensorflow as tf


def smooth_l1(error: tf.Tensor, beta: float) -> tf.Tensor:
    """Computes smooth L1 (Girshick, Fast R-CNN, equation 3): quadratic below `beta`, L1 if it is 0.

    Args:
        error: float32 [...], prediction minus target.
        beta: the absolute error from which it is linear.

    Returns:
        float32 [...].
    """
    magnitude = tf.abs(error)
    if beta == 0:
        return magnitude
    return tf.where(magnitude < beta, 0.5 * error * error / beta, magnitude - 0.5 * beta)


def global_sum(count: tf.Tensor) -> tf.Tensor:
    """Sums a count, by which a loss is divided, over all replicas, without gradient.

    A loss is the sum over this replica's RoIs divided by the count of all replicas', so that the
    sum of the replicas' losses is the mean over the global batch.
    """
    count = tf.stop_gradient(tf.cast(count, tf.float32))
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return count
    return context.all_reduce(tf.distribute.ReduceOp.SUM, count)


def num_replicas() -> int:
    """Number of replicas that share the global batch, including this one."""
    return tf.distribute.get_strategy().num_replicas_in_sync
