"""MaskIoU head: predicts how well each predicted mask fits its object.

Source: Huang et al., Mask Scoring R-CNN, CVPR 2019, section 3.2 and 3.3.

Axes: N RoIs of all images, K classes with the background, M side of a mask, C channels.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from model.gather import gather_rows
from model.layers import OUTPUT_DTYPE, Conv, Dense, LayerList, Part, SeparableConv, normal
from model.losses import global_sum
from model.mask_head import HALF, MaskBranch, mask_targets, matched_masks
from model.perturbed_masks import perturb_objects
from model.roi_align import ends_in_cells
from model.scopes import OUTPUTS, in_scope
from model.view import View

# mmdetection's epsilon, in both denominators of `ratio_full_areas`.
RATIO_EPSILON = 1e-7


class MaskIoUHead(Part):
    """Four 3×3 convolutions, the last with stride 2, and three fully connected layers.

    Args:
        rng: source of the initial weights.
        channels: C.
        hidden: width of the fully connected layers.
        num_classes: K.
        mask_size: M, of the mask head.
        inputs: "mask_and_feature" as in the paper, or only "mask" or "feature".
        target_classes: whether the loss is over the class of the object ("own"), as in the paper,
            or over "all" classes, with target 0 for the others (section 4.3).
        target_area: whole-object areas by "closed" form or by "ratio", see below.
        target_threshold: see `maskiou_targets`.
        stop_gradient: whether to stop the gradient of the loss before the mask head.
        loss_weight: weight of `maskiou_loss`.
        num_perturbed: maximum number of objects an image of which a spoilt mask is judged too, see
            `model.perturbed_masks`.
        rescore: see `mask_scores`.
        separable: whether the convolutions are `SeparableConv`s.
        dtype: Keras dtype policy.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        channels: int,
        hidden: int,
        num_classes: int,
        mask_size: int,
        *,
        inputs: str = "mask_and_feature",
        target_classes: str = "own",
        target_area: str = "closed",
        target_threshold: float = 0.5,
        stop_gradient: bool = False,
        loss_weight: float = 1.0,
        num_perturbed: int = 0,
        rescore: bool = True,
        separable: bool = False,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        conv = SeparableConv if separable else Conv
        num_inputs = {"mask_and_feature": channels + 1, "mask": 1, "feature": channels}[inputs]
        self.convs = LayerList(
            [
                conv(rng, num_inputs, channels, 3, dtype=dtype),
                conv(rng, channels, channels, 3, dtype=dtype),
                conv(rng, channels, channels, 3, dtype=dtype),
                conv(rng, channels, channels, 3, stride=2, dtype=dtype),
            ]
        )
        side = mask_size // 4
        self.fcs = LayerList(
            [
                Dense(rng, side * side * channels, hidden, dtype=dtype),
                Dense(rng, hidden, hidden, dtype=dtype),
            ]
        )
        self.maskiou = Dense(rng, hidden, num_classes, kernel_init=normal(0.01), dtype=OUTPUT_DTYPE)
        self.mask_size, self.roi_size = mask_size, mask_size // 2
        self.num_perturbed = num_perturbed
        self.inputs, self.target_classes = inputs, target_classes
        self.target_area, self.target_threshold = target_area, target_threshold
        self.stop_gradient, self.loss_weight = stop_gradient, loss_weight
        self.rescore = rescore
        self.built = True

    def call(self, features: tf.Tensor, mask_logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Predicts the IoU of each mask with its object.

        Args:
            features: [N, M / 2, M / 2, C], the input of the mask head.
            mask_logits: float32 [N, M, M] of the class in `classes`, or of a refined mask, whose
                side is M times a power of 2.
            classes: int32 [N], ground truth's in training, predicted at test.

        Returns:
            maskiou_pred, float32 [N], linear (not clipped to 0..1).
        """
        predicted = self.predict_all_classes(features, mask_logits)
        return gather_rows(predicted, classes[:, None])[:, 0]

    def predict_all_classes(self, features: tf.Tensor, mask_logits: tf.Tensor) -> tf.Tensor:
        """Predicts the IoU for every class: float32 [N, K]."""
        x = self._combine(features, mask_logits)
        for conv in self.convs:
            x = tf.nn.relu(conv(x))
        x = tf.reshape(x, [-1, int(np.prod(x.shape[1:]))])
        for fc in self.fcs:
            x = tf.nn.relu(fc(x))
        return self._outputs(x)

    @in_scope(OUTPUTS)
    def _combine(self, features: tf.Tensor, mask_logits: tf.Tensor) -> tf.Tensor:
        """Appends the mask head's probabilities to the features as one more channel."""
        if self.inputs == "feature":
            return features
        masks = tf.cast(tf.sigmoid(mask_logits), features.dtype)[..., None]
        while masks.shape[1] > features.shape[1]:
            masks = _pool(masks)
        return masks if self.inputs == "mask" else tf.concat([features, masks], axis=-1)

    @in_scope(OUTPUTS)
    def _outputs(self, x: tf.Tensor) -> tf.Tensor:
        return self.maskiou(x)

    def compute_losses(
        self, view: View, branch: MaskBranch, labels: dict[str, tf.Tensor]
    ) -> tuple[MaskBranch, dict[str, tf.Tensor]]:
        """Returns the masks unchanged, and the weighted `maskiou_loss`.

        With `num_perturbed` there is also the `maskiou_perturbed_loss`, whose gradient does not
        leave the head.
        """
        # IoU is defined on sets of cells, so soft targets are thresholded here.
        cells = tf.cast(branch.targets >= HALF, tf.float32)
        targets = maskiou_targets(
            branch.logits, cells, self._full_areas(cells, branch, labels), self.target_threshold
        )
        features, logits = branch.features, branch.logits
        if self.stop_gradient:
            features, logits = tf.stop_gradient(features), tf.stop_gradient(logits)
        predicted = self.predict_all_classes(features, logits)
        own = gather_rows(predicted, branch.classes[:, None])[:, 0]
        others = None
        if self.target_classes == "all":
            is_own = tf.one_hot(branch.classes - 1, predicted.shape[1] - 1) > 0
            others = tf.where(is_own, 0.0, predicted[:, 1:])
        loss = maskiou_loss(own, targets, branch.slots.valid, others)
        losses = {"maskiou_loss": self.loss_weight * loss}
        if self.num_perturbed:
            loss = self._perturbed_loss(view, labels)
            losses["maskiou_perturbed_loss"] = self.loss_weight * loss
        return branch, losses

    def _perturbed_loss(self, view: View, labels: dict[str, tf.Tensor]) -> tf.Tensor:
        sizes, side = view.image_info[:, :2], self.mask_size
        objects = perturb_objects(labels, sizes, self.num_perturbed, side, view.static)
        boxes, masks, _ = objects.given
        cells = mask_targets(*matched_masks(labels, objects.matches), boxes, side)
        logits, gt_areas = to_logits(masks), tf.gather_nd(labels["gt_areas"], objects.matches)
        targets = maskiou_targets(logits, cells, closed_full_areas(cells, gt_areas, boxes))
        features = view.pool(boxes, objects.matches[:, 0], self.roi_size)
        predicted = self(tf.stop_gradient(features), logits, objects.classes)
        return maskiou_loss(predicted, targets, objects.valid, above=-1.0)

    def detect(self, view: View, branch: MaskBranch) -> tuple[MaskBranch, dict[str, tf.Tensor]]:
        """Returns the masks unchanged, and as outputs the predicted IoU of each and its score."""
        predicted = self(branch.features, branch.logits, branch.classes)
        mask_ious = branch.slots.put(
            tf.clip_by_value(predicted, 0.0, 1.0), *branch.found.valid.shape
        )
        scores = mask_scores(branch.found.scores, mask_ious, self.rescore)
        return branch, {"mask_ious": mask_ious, "mask_scores": scores}

    def rate(self, view: View, boxes: tf.Tensor, classes: tf.Tensor, masks: tf.Tensor) -> tf.Tensor:
        """Predicts the IoU of given masks with their objects, as `Detector.rate` does."""
        image_index = tf.repeat(tf.range(boxes.shape[0]), boxes.shape[1])
        features = view.pool(tf.reshape(boxes, [-1, 4]), image_index, self.roi_size)
        logits = to_logits(tf.reshape(masks, [-1, *masks.shape[2:]]))
        predicted = self(features, logits, tf.reshape(classes, [-1]))
        return tf.reshape(tf.clip_by_value(predicted, 0.0, 1.0), classes.shape)

    def _full_areas(
        self, cells: tf.Tensor, branch: MaskBranch, labels: dict[str, tf.Tensor]
    ) -> tf.Tensor:
        """Computes the area of each RoI's whole object in cells of its grid: float32 [N]."""
        if self.target_area == "closed":
            gt_areas = tf.gather_nd(labels["gt_areas"], branch.matches)
            return closed_full_areas(cells, gt_areas, branch.boxes)
        masks, windows = matched_masks(labels, branch.matches)
        return ratio_full_areas(cells, area_ratios(masks, windows, branch.boxes))


def mask_scores(box_scores: tf.Tensor, mask_ious: tf.Tensor, rescore: bool) -> tf.Tensor:
    """Computes mask score = class score × predicted mask IoU (Mask Scoring R-CNN, section 3.2).

    Args:
        box_scores: float32 [B, D].
        mask_ious: float32 [B, D] in 0..1.
        rescore: if false, the class score is returned, by which Mask R-CNN ranks its masks.

    Returns:
        float32 [B, D].
    """
    return box_scores * mask_ious if rescore else box_scores


def to_logits(masks: tf.Tensor) -> tf.Tensor:
    """The logits of probabilities in 0..1, of which 0 and 1 have finite ones."""
    inner = tf.clip_by_value(masks, 1e-4, 1.0 - 1e-4)
    return tf.math.log(inner) - tf.math.log(1.0 - inner)


def _pool(masks: tf.Tensor) -> tf.Tensor:
    """Applies 2×2 max-pooling with stride 2; among equal cells the first gets the gradient.

    Uses elementwise maxima, because XLA has no deterministic gradient of MaxPool.
    """
    upper = tf.maximum(masks[:, ::2, ::2], masks[:, ::2, 1::2])
    lower = tf.maximum(masks[:, 1::2, ::2], masks[:, 1::2, 1::2])
    return tf.maximum(upper, lower)


@in_scope("maskiou_targets")
def maskiou_targets(
    mask_logits: tf.Tensor,
    mask_targets: tf.Tensor,
    full_areas: tf.Tensor,
    threshold: float = 0.5,
) -> tf.Tensor:
    """Computes the IoU of each predicted mask with the WHOLE object that it belongs to.

    With p the predicted mask (probability above the threshold) and m the part of the object within
    the RoI, both on the RoI's grid, and `full` the area of the whole object in cells of that grid,

        target = Σ p·m / max(Σ p + full - Σ p·m, 1)        (section 3.2)

    so the part of the object outside the RoI lowers the target.

    Args:
        mask_logits: float32 [N, M, M] of the ground-truth class.
        mask_targets: float32 [N, M, M], 0 or 1.
        full_areas: float32 [N], see `closed_full_areas` and `ratio_full_areas`.
        threshold: minimum probability for a cell to count as predicted.

    Returns:
        float32 [N] in 0..1, without gradient.
    """
    logit = math.log(threshold / (1.0 - threshold))
    predicted = tf.cast(mask_logits > logit, tf.float32)
    intersection = tf.reduce_sum(predicted * mask_targets, axis=[1, 2])
    union = tf.maximum(tf.reduce_sum(predicted, axis=[1, 2]) + full_areas - intersection, 1.0)
    return tf.stop_gradient(tf.clip_by_value(intersection / union, 0.0, 1.0))


def closed_full_areas(mask_targets: tf.Tensor, gt_areas: tf.Tensor, rois: tf.Tensor) -> tf.Tensor:
    """Computes the area of each whole object in cells of its RoI's grid: A · M² / (w · h).

    Args:
        mask_targets: float32 [N, M, M], 0 or 1; the result is at least their area.
        gt_areas: float32 [N], mask areas A in pixels of the network's input.
        rois: float32 [N, 4].

    Returns:
        float32 [N].
    """
    sides = rois[:, 2:] - rois[:, :2]
    roi_areas = tf.maximum(sides[:, 0] * sides[:, 1], 1e-6)
    cells = float(mask_targets.shape[1] * mask_targets.shape[2])
    return tf.maximum(gt_areas * cells / roi_areas, tf.reduce_sum(mask_targets, axis=[1, 2]))


def ratio_full_areas(mask_targets: tf.Tensor, ratios: tf.Tensor) -> tf.Tensor:
    """Estimates the same area as the reference implementations do: Σ m / ratio.

    Args:
        mask_targets: float32 [N, M, M], 0 or 1.
        ratios: float32 [N], the fraction of each object inside its RoI, see `area_ratios`.

    Returns:
        float32 [N].
    """
    return tf.reduce_sum(mask_targets, axis=[1, 2]) / (ratios + RATIO_EPSILON)


@in_scope("maskiou_targets")
def area_ratios(gt_masks: tf.Tensor, gt_windows: tf.Tensor, rois: tf.Tensor) -> tf.Tensor:
    """Computes the fraction of each object inside its RoI, on whole pixels as in mmdetection.

    The RoI's edges are truncated to pixels, and its sides are at least one pixel. Pixels and mask
    cells are rectangles, so the area inside is a product of overlaps; if the cells are the pixels,
    it equals mmdetection's pixel count.

    Args:
        gt_masks: [N, M', M''], 0 or 1.
        gt_windows: float32 [N, 4], the boxes in pixels that the masks' arrays cover.
        rois: float32 [N, 4] within the image.

    Returns:
        float32 [N], at most 1.
    """
    corner = tf.maximum(tf.floor(rois[:, :2]), 0.0)
    pixels = tf.concat([corner, tf.maximum(tf.floor(rois[:, 2:]), corner + 1.0)], axis=1)
    overlaps = []
    for axis, cells in enumerate(gt_masks.shape[1:3]):
        start, stop = (end[:, None] for end in ends_in_cells(pixels, gt_windows, cells, axis))
        cell = tf.range(cells, dtype=tf.float32)
        overlap = tf.minimum(stop, cell + 1.0) - tf.maximum(start, cell)
        overlaps.append(tf.maximum(overlap, 0.0))
    masks = tf.cast(gt_masks, tf.float32)
    inside = tf.einsum("nyx,ny,nx->n", masks, *overlaps)
    return inside / (tf.reduce_sum(masks, axis=[1, 2]) + RATIO_EPSILON)


@in_scope("losses")
def maskiou_loss(
    maskiou_pred: tf.Tensor,
    targets: tf.Tensor,
    valid: tf.Tensor,
    others: tf.Tensor | None = None,
    above: float = 0.0,
) -> tf.Tensor:
    """Computes ½ (prediction - target)², mean over all replicas' RoIs with a target above 0.

    Args:
        maskiou_pred: float32 [N].
        targets: float32 [N].
        valid: bool [N], slots that hold a positive RoI.
        others: float32 [N, K], further predictions, whose targets are 0.
        above: another limit for the targets that count.

    Returns:
        float32 scalar, 0 if no target counts.
    """
    counted = valid & (targets > above)
    error = tf.square(tf.where(counted, maskiou_pred - targets, 0.0))
    if others is not None:
        error += tf.reduce_sum(tf.square(tf.where(counted[:, None], others, 0.0)), axis=1)
    count = global_sum(tf.math.count_nonzero(counted, dtype=tf.int32))
    return 0.5 * tf.reduce_sum(error) / tf.maximum(count, 1.0)
