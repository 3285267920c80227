"""Box head: the class and the refined box of each RoI (Girshick, Fast R-CNN, section 2).

Axes: B images, R RoIs an image, N RoIs of all images, K classes with the background, C channels.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from data import boxes as box_ops
from model.layers import OUTPUT_DTYPE, ConvNorm, Dense, LayerList, normal
from model.losses import global_sum, smooth_l1
from model.roi_sampling import SampledRoIs
from model.scopes import in_scope

ROI_SIZE = 7
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class BoxOutputs(NamedTuple):
    """Class logits and class-specific deltas of each RoI."""

    class_logits: tf.Tensor  # float32 [N, K]
    box_deltas: tf.Tensor  # float32 [N, K, 4]


class BoxHead(keras.layers.Layer):
    """Fully connected layers, two in the paper, then one for the classes and one for the boxes.

    Args:
        rng: source of the initial weights.
        channels: C.
        hidden: width of the fully connected layers.
        num_classes: K.
        num_convs: 3×3 convolutions before them.
        num_fcs: how many they are.
        norm: normalisation after each convolution, or "none".
        dtype: Keras dtype policy.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        channels: int,
        hidden: int,
        num_classes: int,
        *,
        num_convs: int = 0,
        num_fcs: int = 2,
        norm: str = "none",
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        kwargs = {"norm": norm, "dtype": dtype}
        self.convs = LayerList(
            [ConvNorm(rng, channels, channels, 3, **kwargs) for _ in range(num_convs)]
        )
        widths = [ROI_SIZE * ROI_SIZE * channels, *[hidden] * num_fcs]
        self.fcs = LayerList(
            [Dense(rng, *pair, dtype=dtype) for pair in itertools.pairwise(widths)]
        )
        self.classes = Dense(rng, hidden, num_classes, kernel_init=normal(0.01), dtype=OUTPUT_DTYPE)
        self.deltas = Dense(
            rng, hidden, num_classes * 4, kernel_init=normal(0.001), dtype=OUTPUT_DTYPE
        )
        self.num_classes = num_classes
        self.built = True

    def call(self, features: tf.Tensor) -> BoxOutputs:
        """Classifies [N, 7, 7, C]."""
        x = features
        for conv in self.convs:
            x = tf.nn.relu(conv(x))
        x = tf.reshape(x, [-1, int(np.prod(x.shape[1:]))])
        for fc in self.fcs:
            x = tf.nn.relu(fc(x))
        return BoxOutputs(
            class_logits=self.classes(x),
            box_deltas=tf.reshape(self.deltas(x), [-1, self.num_classes, 4]),
        )


@in_scope("losses")
def box_losses(
    outputs: BoxOutputs, rois: SampledRoIs, gt_boxes: tf.Tensor, box_loss_beta: float
) -> dict[str, tf.Tensor]:
    """Classification and box regression losses, means over the sampled RoIs of all replicas.

    Args:
        outputs: of the box head, N = B R.
        rois: sampled RoIs.
        gt_boxes: float32 [B, G, 4].
        box_loss_beta: see `smooth_l1`.

    Returns:
        `class_loss` and `box_loss`.
    """
    batch, count = rois.classes.shape
    logits = tf.reshape(outputs.class_logits, [batch, count, -1])
    deltas = tf.reshape(outputs.box_deltas, [batch, count, -1, 4])
    num_rois = tf.maximum(global_sum(tf.math.count_nonzero(rois.valid, dtype=tf.int32)), 1.0)

    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(rois.classes, logits)
    class_loss = tf.reduce_sum(tf.where(rois.valid, cross_entropy, 0.0)) / num_rois

    matched = tf.gather(gt_boxes, rois.matches, batch_dims=1)
    targets = tf.stop_gradient(box_ops.encode(matched, rois.boxes, DELTA_WEIGHTS))
    of_class = tf.gather(deltas, rois.classes, batch_dims=2)
    error = tf.where(rois.positive[..., None], of_class - targets, 0.0)
    box_loss = tf.reduce_sum(smooth_l1(error, box_loss_beta)) / num_rois
    return {"class_loss": class_loss, "box_loss": box_loss}
