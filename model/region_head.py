"""R-CNN's head: linear SVMs and box regressions on the features of each region.

Source: Girshick et al., CVPR 2014, section 2 and appendices B and C. The network is trained under
softmax; then a linear SVM for each class and a box regression for each class are fitted to its
features, and take the place of the softmax.

Axes: B images, R regions an image, N regions of all images, K classes with the background, D
channels of the trunk, P numbers of a region's pooled features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from model.box_head import (
    BoxDetections,
    choose_detections,
    class_loss,
    make_candidates,
    name_outputs,
)
from model.layers import OUTPUT_DTYPE, Dense, Parameterised, Part, normal
from model.proposals import Proposals
from model.roi_sampling import SampledRoIs
from model.view import View


class RegionFeatures(NamedTuple):
    """What SVMs and box regressions see of each region."""

    vectors: tf.Tensor  # [N, D], of the trunk
    pooled: tf.Tensor  # [N, P], before the trunk


class Fitted(Parameterised):
    """When the SVMs and regressions were fitted; until then, softmax classifies.

    Attributes:
        steps: number of training steps of the features that they were fitted to; 0 if they are not.
    """

    def __init__(self):
        super().__init__("float32")
        self.steps = self._variable("steps", np.zeros([], np.float32), trainable=False)


class RegionHead(Part):
    """The trunk of a backbone, softmax for its training, SVMs and box regressions for detection.

    Args:
        rng: source of the initial weights.
        trunk: maps [N, roi_size, roi_size, C] to [N, D].
        channels: C.
        num_classes: K.
        limits: the arguments of `model.box_head.choose_detections` besides the candidates.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        trunk: Part,
        channels: int,
        num_classes: int,
        limits: dict[str, float],
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        self.trunk, self.limits = trunk, limits
        out, pooled = trunk.out_channels, trunk.roi_size**2 * channels
        self.classes = Dense(rng, out, num_classes, kernel_init=normal(0.01), dtype=OUTPUT_DTYPE)
        kwargs = {"kernel_init": normal(0.0), "dtype": OUTPUT_DTYPE}
        self.svms = Dense(rng, out, num_classes - 1, **kwargs)
        self.regressions = Dense(rng, pooled, (num_classes - 1) * 4, **kwargs)
        self.svms.trainable = self.regressions.trainable = False
        self.fitted = Fitted()
        self.built = True

    def compute_features(self, view: View, boxes: tf.Tensor) -> RegionFeatures:
        """Computes the features of boxes float32 [B, R, 4], N = B R."""
        batch, count = boxes.shape[:2]
        image_index = tf.repeat(tf.range(batch), count)
        pooled = view.pool(tf.reshape(boxes, [-1, 4]), image_index, self.trunk.roi_size)
        flat = tf.reshape(pooled, [-1, int(np.prod(pooled.shape[1:]))])
        return RegionFeatures(self.trunk(pooled), flat)

    def compute_losses(
        self, view: View, rois: SampledRoIs, labels: dict[str, tf.Tensor]
    ) -> tuple[SampledRoIs, dict[str, tf.Tensor]]:
        """Returns the RoIs unchanged, and `class_loss`, the mean over all replicas' regions."""
        logits = self.classes(self.compute_features(view, rois.boxes).vectors)
        return rois, {"class_loss": class_loss(logits, rois)}

    def detect(
        self, view: View, proposals: Proposals
    ) -> tuple[BoxDetections, dict[str, tf.Tensor]]:
        """Returns the best detections of all classes, with softmax probabilities as scores.

        Once SVMs are fitted, the scores are the sigmoids of theirs, which keep their order, and the
        boxes those of the regressions.
        """
        shape = list(proposals.boxes.shape[:2])
        vectors, pooled = self.compute_features(view, proposals.boxes)
        fitted = self.fitted.steps > 0
        probabilities = tf.nn.softmax(self.classes(vectors))[:, 1:]
        scores = tf.where(fitted, tf.sigmoid(self.svms(vectors)), probabilities)
        deltas = self.regressions(tf.cast(pooled, tf.float32))
        candidates = make_candidates(
            tf.reshape(scores, [*shape, scores.shape[1]]),
            tf.reshape(deltas, [*shape, scores.shape[1], 4]),
            proposals,
            view.image_info,
            delta_weights=(1.0, 1.0, 1.0, 1.0),
        )
        found = choose_detections(candidates, static=view.static, **self.limits)
        return found, name_outputs(found)
