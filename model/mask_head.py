"""Mask head: a 28×28 mask of each positive RoI (He et al., Mask R-CNN, ICCV 2017, section 3).

Axes: N RoIs of all images, K classes with the background, M side of a mask, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from model.box_head import BoxDetections
from model.layers import OUTPUT_DTYPE, Conv, ConvTranspose, LayerList, Part, interleave, normal
from model.losses import global_sum
from model.norms import ConvNorm
from model.polygon_masks import polygon_targets
from model.roi_align import ends_in_cells, sample_weights
from model.roi_sampling import SampledRoIs
from model.scopes import OUTPUTS, in_scope
from model.slots import Slots, choose_slots
from model.view import View

NUM_CONVS = 4
# Values that are below a half only by rounding count as a half, because rounding differs between
# eager execution, graphs and XLA, and a RoI equal to its object's box halves many cells exactly.
HALF = 0.5 - 1e-6

Tensors = dict[str, tf.Tensor]


class MaskBranch(NamedTuple):
    """Output of the mask head for a head that judges its masks.

    Attributes:
        found: the detections, at test.
        slots: selects the N RoIs from those of the images.
        boxes: float32 [N, 4].
        classes: int32 [N], ground truth's in training, predicted at test.
        features: [N, M / 2, M / 2, C], the input of the mask head.
        logits: float32 [N, M, M]; after a point head of a multiple of this side.
        matches: int32 [N, 2], image and ground truth of each RoI, in training.
        targets: float32 of the logits' shape, in training.
    """

    found: BoxDetections | None
    slots: Slots
    boxes: tf.Tensor
    classes: tf.Tensor
    features: tf.Tensor
    logits: tf.Tensor
    matches: tf.Tensor | None = None
    targets: tf.Tensor | None = None


class MaskHead(Part):
    """Four 3×3 convolutions, a 2×2 deconvolution, and one 1×1 filter for each class.

    Args:
        rng: source of the initial weights.
        channels: C.
        num_classes: K.
        mask_size: M.
        max_rois: maximum number of positive RoIs per image in training.
        target: rule of the targets, see `matched_targets`.
        norm: normalisation after each 3×3 convolution, or "none".
        separable: whether the 3×3 convolutions are `SeparableConv`s.
        dtype: Keras dtype policy.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        channels: int,
        num_classes: int,
        *,
        mask_size: int = 28,
        max_rois: int = 128,
        target: str = "bitmap",
        norm: str = "none",
        separable: bool = False,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        kwargs = {"norm": norm, "separable": separable, "dtype": dtype}
        self.convs = LayerList(
            [ConvNorm(rng, channels, channels, 3, **kwargs) for _ in range(NUM_CONVS)]
        )
        self.deconv = ConvTranspose(rng, channels, channels, dtype=dtype)
        self.logits = Conv(
            rng, channels, num_classes, 1, kernel_init=normal(0.001), dtype=OUTPUT_DTYPE
        )
        self.mask_size, self.max_rois, self.target = mask_size, max_rois, target
        self.built = True

    def call(self, features: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Predicts each RoI's mask for one class.

        Only the filter of that class is applied, because the other classes' masks are not used.

        Args:
            features: [N, M / 2, M / 2, C].
            classes: int32 [N].

        Returns:
            mask_logits, float32 [N, M, M].
        """
        x = features
        for conv in self.convs:
            x = tf.nn.relu(conv(x))
        logits = self._outputs(tf.nn.relu(self.deconv(x)), classes)
        return interleave(logits, *x.shape[1:3])

    @in_scope(OUTPUTS)
    def _outputs(self, x: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        return filter_own_class(x, self.logits.kernel[0, 0], self.logits.bias, classes)

    def compute_losses(
        self, view: View, rois: SampledRoIs, labels: Tensors
    ) -> tuple[MaskBranch, Tensors]:
        """Returns the masks of the positive RoIs, and their `mask_loss`."""
        most = min(self.max_rois, rois.valid.shape[1])
        slots = choose_slots(rois.positive, most, view.static)
        matches = tf.stack([slots.image, slots.take(rois.matches)], -1)
        branch = self._predict(view, slots, rois.boxes, rois.classes)
        targets = matched_targets(
            labels, matches, branch.boxes, self.mask_size, self.target, view.static
        )
        losses = {"mask_loss": mask_loss(branch.logits, targets, slots.valid)}
        return branch._replace(matches=matches, targets=targets), losses

    def detect(self, view: View, found: BoxDetections) -> tuple[MaskBranch, Tensors]:
        """Returns the masks of the detections, and as outputs their probabilities and scores."""
        batch, count = found.valid.shape
        slots = choose_slots(found.valid, count, view.static)
        branch = self._predict(view, slots, found.boxes, found.classes)
        masks = slots.put(tf.sigmoid(branch.logits), batch, count)
        outputs = {"detection_masks": masks, "mask_scores": found.scores}
        return branch._replace(found=found), outputs

    def _predict(
        self, view: View, slots: Slots, boxes: tf.Tensor, classes: tf.Tensor
    ) -> MaskBranch:
        """Predicts the masks of float32 [B, R, 4] and int32 [B, R] that have a slot."""
        boxes, classes = slots.take(boxes), slots.take(classes)
        features = view.pool(boxes, slots.image, self.mask_size // 2)
        return MaskBranch(None, slots, boxes, classes, features, self(features, classes))


def filter_own_class(
    x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, classes: tf.Tensor
) -> tf.Tensor:
    """Applies to the cells of each RoI the filter of its class only.

    Args:
        x: [N, cells, C].
        kernel: float32 [C, K].
        bias: float32 [K].
        classes: int32 [N].

    Returns:
        float32 [N, cells].
    """
    filters = tf.gather(tf.transpose(kernel), classes)
    bias = tf.gather(tf.convert_to_tensor(bias), classes)
    return tf.matmul(tf.cast(x, OUTPUT_DTYPE), filters[:, :, None])[:, :, 0] + bias[:, None]


def matched_targets(
    labels: Tensors,
    matches: tf.Tensor,
    rois: tf.Tensor,
    mask_size: int,
    rule: str,
    static: bool,
) -> tf.Tensor:
    """Makes the mask target of each RoI from its ground truth.

    Args:
        labels: as for `model.detector.Detector.compute_losses`.
        matches: int32 [N, 2], image and ground truth of each RoI.
        rois: float32 [N, 4].
        mask_size: M, cells of the target along a side.
        rule: "bitmap" or "soft", see `mask_targets`, or "polygon", see `polygon_targets`.
        static: see `polygon_targets`.

    Returns:
        float32 [N, M, M] in 0..1, without gradient.
    """
    if rule == "polygon":
        polygons = (labels["gt_polygons"], labels["gt_polygon_parts"])
        polygons = (tf.gather_nd(values, matches) for values in polygons)
        return polygon_targets(*polygons, rois, mask_size, static)
    return mask_targets(*matched_masks(labels, matches), rois, mask_size, rule)


def matched_masks(labels: Tensors, matches: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns each RoI's ground-truth mask and its window: uint8 [N, M', M''], float32 [N, 4]."""
    windows = labels.get("gt_windows", labels["gt_boxes"])
    return tf.gather_nd(labels["gt_masks"], matches), tf.gather_nd(windows, matches)


@in_scope("mask_targets")
def mask_targets(
    gt_masks: tf.Tensor,
    gt_windows: tf.Tensor,
    rois: tf.Tensor,
    mask_size: int,
    rule: str = "bitmap",
) -> tf.Tensor:
    """Samples the part of each ground-truth mask inside its RoI on the RoI's grid.

    This is RoIAlign of the mask's array with as many samples as a bin has cells, the rule that the
    references apply to the bitmap of the image. An array over the object's box has finer or coarser
    cells than pixels, and the object does not extend beyond it.

    Args:
        gt_masks: [N, M', M''], 0 or 1.
        gt_windows: float32 [N, 4], the areas that the masks' arrays cover: the objects' boxes or
            the image.
        rois: float32 [N, 4] within the image, no longer than twice their window.
        mask_size: M, cells of the target along a side.
        rule: "bitmap": 1 where the average is at least one half (Detectron2, mmdetection); "soft":
            the average itself, with cells assumed half a cell further up and left, and RoIs of at
            least one cell (torchvision).

    Returns:
        float32 [N, M, M] in 0..1, without gradient.
    """
    if rule == "soft":
        return sample_masks(gt_masks, gt_windows, rois, mask_size, shift=0.0, least=1.0)
    average = sample_masks(gt_masks, gt_windows, rois, mask_size)
    return tf.cast(average >= HALF, tf.float32)


def sample_masks(
    masks: tf.Tensor,
    windows: tf.Tensor,
    rois: tf.Tensor,
    mask_size: int,
    shift: float = 0.5,
    least: float = 0.0,
) -> tf.Tensor:
    """Averages the part of each mask inside its RoI over the cells of the RoI's grid.

    Args:
        masks, windows, rois, mask_size: as for `mask_targets`.
        shift: where the centre of the arrays' first cell is assumed, in cells.
        least: smallest side of a RoI, in cells of the array.

    Returns:
        float32 [N, M, M] in 0..1, without gradient.
    """
    weights = []
    for axis, cells in enumerate(masks.shape[1:3]):
        start, stop = ends_in_cells(rois, windows, cells, axis)
        stop = tf.maximum(stop, start + least)
        # If cells are pixels, the samples must equal the references', so nothing is rounded.
        snapped = windows[:, axis + 2] - windows[:, axis] != cells
        weights.append(sample_weights(start, stop, mask_size, cells, shift, snapped))
    rows, columns = weights
    average = tf.matmul(tf.matmul(rows, tf.cast(masks, tf.float32)), columns, transpose_b=True)
    return tf.stop_gradient(average)


@in_scope("losses")
def mask_loss(mask_logits: tf.Tensor, targets: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Computes the mean binary cross-entropy over the pixels of all replicas' positive RoIs.

    Args:
        mask_logits: float32 [N, M, M] of each RoI's ground-truth class, or [N, P, 1] of points.
        targets: float32 of the same shape.
        valid: bool [N], slots that hold a positive RoI.

    Returns:
        float32 scalar, 0 if there are no positive RoIs.
    """
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=mask_logits)
    per_roi = tf.where(valid, tf.reduce_mean(cross_entropy, axis=[1, 2]), 0.0)
    count = global_sum(tf.math.count_nonzero(valid, dtype=tf.int32))
    return tf.reduce_sum(per_roi) / tf.maximum(count, 1.0)
