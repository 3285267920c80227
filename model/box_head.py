"""Box head: the class and the refined box of each RoI (Girshick, Fast R-CNN, section 2).

Axes: B images, R RoIs an image, N RoIs of all images, K classes with the background, P proposals,
D detections, C channels.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data import boxes as box_ops
from model.layers import OUTPUT_DTYPE, Dense, LayerList, Part, normal
from model.losses import global_sum, smooth_l1
from model.nms import suppress
from model.norms import ConvNorm
from model.proposals import Proposals
from model.roi_sampling import SampledRoIs
from model.scopes import OUTPUTS, in_scope
from model.view import View

ROI_SIZE = 7
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class BoxOutputs(NamedTuple):
    """Class logits of each RoI, and deltas for each class or, if boxes do not depend on it, one."""

    class_logits: tf.Tensor  # float32 [N, K]
    box_deltas: tf.Tensor  # float32 [N, K, 4] or [N, 1, 4]


class BoxCandidates(NamedTuple):
    """Each proposal, decoded for each class but the background."""

    boxes: tf.Tensor  # float32 [B, P, K - 1, 4], pixels of the network's input
    scores: tf.Tensor  # float32 [B, P, K - 1], 0 for empty boxes


class BoxDetections(NamedTuple):
    """Boxes by descending class score; empty slots at the end hold zeros."""

    boxes: tf.Tensor  # float32 [B, D, 4], pixels of the network's input
    classes: tf.Tensor  # int32 [B, D], 0 = empty slot
    scores: tf.Tensor  # float32 [B, D]
    valid: tf.Tensor  # bool [B, D]


class BoxHead(Part):
    """Layers of its own or the rest of a backbone, then one layer for classes and one for boxes.

    Args:
        rng: source of the initial weights.
        channels: C.
        hidden: width of the fully connected layers.
        num_classes: K.
        trunk: layers of the backbone that map [N, roi_size, roi_size, C] to [N, out_channels],
            which take the place of the convolutions and fully connected layers.
        num_convs: number of 3×3 convolutions before the fully connected layers.
        separable: whether these are `SeparableConv`s.
        num_fcs: number of fully connected layers.
        norm: normalisation after each convolution, or "none".
        class_specific: whether there are deltas for each class.
        delta_weights: what deltas are multiplied by, see `data.boxes.encode`.
        box_loss_beta: see `box_losses`.
        score_threshold, nms_iou, soft_nms_sigma, max_detections: see `choose_detections`.
        clip_below: see `data.boxes.decode`.
        dtype: Keras dtype policy.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        channels: int,
        hidden: int,
        num_classes: int,
        *,
        trunk: Part | None = None,
        num_convs: int = 0,
        separable: bool = False,
        num_fcs: int = 2,
        norm: str = "none",
        class_specific: bool = True,
        delta_weights: tuple[float, ...] = DELTA_WEIGHTS,
        box_loss_beta: float = 0.0,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        soft_nms_sigma: float = 0.0,
        max_detections: int = 100,
        clip_below: bool = False,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        kwargs = {"norm": norm, "separable": separable, "dtype": dtype}
        self.trunk, self.roi_size = trunk, trunk.roi_size if trunk else ROI_SIZE
        if trunk is not None:
            num_convs, num_fcs, hidden = 0, 0, trunk.out_channels
        self.convs = LayerList(
            [ConvNorm(rng, channels, channels, 3, **kwargs) for _ in range(num_convs)]
        )
        widths = [ROI_SIZE * ROI_SIZE * channels, *[hidden] * num_fcs]
        self.fcs = LayerList(
            [Dense(rng, *pair, dtype=dtype) for pair in itertools.pairwise(widths)]
        )
        self.classes = Dense(rng, hidden, num_classes, kernel_init=normal(0.01), dtype=OUTPUT_DTYPE)
        num_deltas = num_classes * 4 if class_specific else 4
        self.deltas = Dense(rng, hidden, num_deltas, kernel_init=normal(0.001), dtype=OUTPUT_DTYPE)
        self.delta_weights, self.box_loss_beta = delta_weights, box_loss_beta
        self.score_threshold, self.max_detections = score_threshold, max_detections
        self.nms_iou, self.soft_nms_sigma = nms_iou, soft_nms_sigma
        self.clip_below = clip_below
        self.built = True

    def call(self, features: tf.Tensor) -> BoxOutputs:
        """Classifies [N, roi_size, roi_size, C]."""
        if self.trunk is not None:
            return self._outputs(self.trunk(features))
        x = features
        for conv in self.convs:
            x = tf.nn.relu(conv(x))
        x = tf.reshape(x, [-1, int(np.prod(x.shape[1:]))])
        for fc in self.fcs:
            x = tf.nn.relu(fc(x))
        return self._outputs(x)

    @in_scope(OUTPUTS)
    def _outputs(self, x: tf.Tensor) -> BoxOutputs:
        return BoxOutputs(
            class_logits=self.classes(x),
            box_deltas=tf.reshape(self.deltas(x), [-1, self.deltas.kernel.shape[1] // 4, 4]),
        )

    def compute_losses(
        self, view: View, rois: SampledRoIs, labels: dict[str, tf.Tensor]
    ) -> tuple[SampledRoIs, dict[str, tf.Tensor]]:
        """Returns the RoIs unchanged, and `box_losses`."""
        outputs = self.classify(view, rois.boxes)
        beta, weights = self.box_loss_beta, self.delta_weights
        return rois, box_losses(outputs, rois, labels["gt_boxes"], beta, weights)

    def detect(
        self, view: View, proposals: Proposals
    ) -> tuple[BoxDetections, dict[str, tf.Tensor]]:
        """Returns the detections of `detect_boxes`."""
        found = detect_boxes(
            self.classify(view, proposals.boxes),
            proposals,
            view.image_info,
            clip_below=self.clip_below,
            delta_weights=self.delta_weights,
            static=view.static,
            **self.limits,
        )
        return found, name_outputs(found)

    def find_candidates(self, view: View, proposals: Proposals) -> BoxCandidates:
        """Does the first half of `detect`, for one of several views."""
        outputs = self.classify(view, proposals.boxes)
        return decode_candidates(
            outputs, proposals, view.image_info, self.clip_below, self.delta_weights
        )

    def choose(
        self, candidates: BoxCandidates, static: bool
    ) -> tuple[BoxDetections, dict[str, tf.Tensor]]:
        """Does the second half of `detect`, for the candidates of all views."""
        found = choose_detections(candidates, static=static, **self.limits)
        return found, name_outputs(found)

    @property
    def limits(self) -> dict[str, float]:
        """The arguments of `choose_detections` besides the candidates."""
        return {
            "score_threshold": self.score_threshold,
            "nms_iou": self.nms_iou,
            "soft_nms_sigma": self.soft_nms_sigma,
            "max_detections": self.max_detections,
        }

    def classify(self, view: View, boxes: tf.Tensor, gradient_share: float = 1.0) -> BoxOutputs:
        """Computes the outputs for boxes float32 [B, R, 4].

        `gradient_share` multiplies the gradient that flows to the map.
        """
        batch, count = boxes.shape[:2]
        image_index = tf.repeat(tf.range(batch), count)
        pooled = view.pool(tf.reshape(boxes, [-1, 4]), image_index, self.roi_size)
        if gradient_share != 1.0:
            pooled = gradient_share * pooled + tf.stop_gradient((1.0 - gradient_share) * pooled)
        return self(pooled)


def name_outputs(found: BoxDetections) -> dict[str, tf.Tensor]:
    """Returns detections under the names of `model.detector.Detector.detect`."""
    return {
        "num_detections": tf.math.count_nonzero(found.valid, axis=1, dtype=tf.int32),
        "detection_boxes": found.boxes,
        "detection_classes": found.classes,
        "box_scores": found.scores,
    }


@in_scope("losses")
def box_losses(
    outputs: BoxOutputs,
    rois: SampledRoIs,
    gt_boxes: tf.Tensor,
    box_loss_beta: float,
    delta_weights: tuple[float, ...] = DELTA_WEIGHTS,
) -> dict[str, tf.Tensor]:
    """Computes classification and box regression losses, means over all replicas' sampled RoIs.

    Args:
        outputs: of the box head, N = B R.
        rois: sampled RoIs.
        gt_boxes: float32 [B, G, 4].
        box_loss_beta: see `smooth_l1`.
        delta_weights: see `data.boxes.encode`.

    Returns:
        `class_loss` and `box_loss`.
    """
    batch, count = rois.classes.shape
    deltas = tf.reshape(outputs.box_deltas, [batch, count, -1, 4])
    matched = tf.gather(gt_boxes, rois.matches, batch_dims=1)
    targets = tf.stop_gradient(box_ops.encode(matched, rois.boxes, delta_weights))
    chosen = tf.zeros_like(rois.classes) if deltas.shape[2] == 1 else rois.classes
    of_class = tf.gather(deltas, chosen, batch_dims=2)
    error = tf.where(rois.positive[..., None], of_class - targets, 0.0)
    box_loss = tf.reduce_sum(smooth_l1(error, box_loss_beta)) / _count(rois)
    return {"class_loss": class_loss(outputs.class_logits, rois), "box_loss": box_loss}


@in_scope("losses")
def class_loss(class_logits: tf.Tensor, rois: SampledRoIs) -> tf.Tensor:
    """Computes the cross-entropy of float32 [N, K], mean over all replicas' sampled RoIs."""
    logits = tf.reshape(class_logits, [*rois.classes.shape, -1])
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(rois.classes, logits)
    return tf.reduce_sum(tf.where(rois.valid, cross_entropy, 0.0)) / _count(rois)


def _count(rois: SampledRoIs) -> tf.Tensor:
    """Counts the RoIs of all replicas, at least 1."""
    return tf.maximum(global_sum(tf.math.count_nonzero(rois.valid, dtype=tf.int32)), 1.0)


@in_scope("detections")
def detect_boxes(
    outputs: BoxOutputs,
    proposals: Proposals,
    image_info: tf.Tensor,
    *,
    clip_below: bool = False,
    delta_weights: tuple[float, ...] = DELTA_WEIGHTS,
    **limits,
) -> BoxDetections:
    """Decodes every class's box, suppresses within each class, and keeps the best over all.

    Args:
        outputs, proposals, image_info, clip_below, delta_weights: see `decode_candidates`.
        limits: the further arguments of `choose_detections`.

    Returns:
        `BoxDetections`.
    """
    candidates = decode_candidates(outputs, proposals, image_info, clip_below, delta_weights)
    return choose_detections(candidates, **limits)


def decode_candidates(
    outputs: BoxOutputs,
    proposals: Proposals,
    image_info: tf.Tensor,
    clip_below: bool,
    delta_weights: tuple[float, ...] = DELTA_WEIGHTS,
) -> BoxCandidates:
    """Decodes the box of every class and clips it to the image.

    Args:
        outputs: of the box head on the proposals, N = B P.
        proposals, image_info, clip_below, delta_weights: see `make_candidates`.

    Returns:
        `BoxCandidates`.
    """
    shape = proposals.valid.shape  # its P may be unknown
    scores = tf.nn.softmax(outputs.class_logits)
    scores = tf.reshape(scores, [*shape, scores.shape[1]])[:, :, 1:]
    deltas = tf.reshape(outputs.box_deltas, [*shape, outputs.box_deltas.shape[1], 4])
    if deltas.shape[2] > 1:
        deltas = deltas[:, :, 1:]
    return make_candidates(scores, deltas, proposals, image_info, delta_weights, clip_below)


def make_candidates(
    scores: tf.Tensor,
    deltas: tf.Tensor,
    proposals: Proposals,
    image_info: tf.Tensor,
    delta_weights: tuple[float, ...],
    clip_below: bool = False,
) -> BoxCandidates:
    """Applies deltas to proposals and clips the boxes to the image.

    Args:
        scores: float32 [B, P, K - 1], of each class but the background.
        deltas: float32 [B, P, K - 1, 4], or [B, P, 1, 4] if they do not depend on the class.
        proposals: the boxes that were classified.
        image_info: float32 [B, 5]; its first two columns are the height and width to clip to.
        delta_weights, clip_below: see `data.boxes.decode`.

    Returns:
        `BoxCandidates`.
    """
    boxes = box_ops.decode(
        deltas, proposals.boxes[:, :, None, :], delta_weights, clip_below=clip_below
    )
    boxes = box_ops.clip(boxes, image_info[:, None, None, 0], image_info[:, None, None, 1])
    # Boxes without area after clipping are not detections.
    usable = proposals.valid[..., None] & (box_ops.area(boxes) > 0)
    if deltas.shape[2] < scores.shape[2]:
        boxes = tf.repeat(boxes, scores.shape[2], axis=2)
    return BoxCandidates(boxes, tf.where(usable, scores, 0.0))


def choose_detections(
    candidates: BoxCandidates,
    *,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
    static: bool,
    soft_nms_sigma: float = 0.0,
) -> BoxDetections:
    """Chooses the best candidates over all classes, after suppression within each.

    Args:
        candidates: boxes and scores.
        score_threshold: class probability that a detection has to exceed.
        nms_iou: IoU above which the worse of two detections of a class is removed.
        max_detections: D.
        static: see `suppress`.
        soft_nms_sigma: see `suppress`; 0 means hard suppression.

    Returns:
        `BoxDetections`.
    """
    kept = suppress(
        *candidates,
        iou_threshold=nms_iou,
        score_threshold=score_threshold,
        max_output=max_detections,
        static=static,
        soft_sigma=soft_nms_sigma,
    )
    classes = tf.where(kept.valid, kept.classes + 1, 0)
    return BoxDetections(kept.boxes, classes, kept.scores, kept.valid)
