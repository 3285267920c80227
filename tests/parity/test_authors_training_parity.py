"""The mask branch of the authors' whole network in training: i_ms_full.npz, case `train`.

From the authors' proposals on: which of them are positive, their mask targets of polygons, the
MaskIoU targets made of these and of the authors' ratios of polygon areas, and both losses.

Not covered: what is in the authors' inclusive coordinates, their anchors, proposals and box deltas,
and so the other losses and the gradients of all losses together.
"""

import numpy as np
import pytest
import tensorflow as tf
from fixtures import agree, fixture, yx
from polygon_rows import authors_ratios, polygon_rows
from reference_networks import batch_features, load

from model.mask_head import mask_loss
from model.maskiou_head import maskiou_loss, maskiou_targets, ratio_full_areas
from model.polygon_masks import polygon_targets

fixture("i_ms_full.npz")
# What float noise amounts to in mask logits of some tens.
LOGIT_NOISE = 1e-3


def inclusive_ious(proposals, gt_boxes):
    """Of boxes x1, y1, x2, y2 whose corners are pixels of theirs: [P, G]."""
    low = np.maximum(proposals[:, None, :2], gt_boxes[:, :2])
    high = np.minimum(proposals[:, None, 2:], gt_boxes[:, 2:])
    shared = np.maximum(high - low + 1, 0).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1) for boxes in (proposals, gt_boxes)]
    return shared / (areas[0][:, None] + areas[1] - shared)


class Positives:
    """The positive RoIs of both images, and what the mask branch makes of them."""

    def __init__(self):
        reference = load("i_ms_full.npz")
        self.reference, self.case = reference, reference.fixture["train"]
        case, network = self.case, reference.network
        images = [case[f"image{index}_rgb"] for index in range(2)]
        features = batch_features(images, tuple(case.params["padded_hw"]))
        rois, image_index, classes, targets, ratios = [], [], [], [], []
        for index, image in enumerate(images):
            proposals = case[f"proposals{index}"]
            ious = inclusive_ious(proposals, case[f"gt{index}_boxes"])
            positive = np.flatnonzero(ious.max(axis=1) >= reference.config.roi_positive_iou)
            match = ious[positive].argmax(axis=1)
            boxes = yx(proposals[positive])
            vertices, parts = (rows[match] for rows in polygon_rows(case, f"gt{index}/"))
            drawn = polygon_targets(*map(tf.constant, (vertices, parts, boxes)), self.mask_size)
            rois.append(boxes)
            image_index += [index] * len(boxes)
            classes.append(reference.to_classes(case[f"gt{index}_labels"][match]))
            targets.append(drawn)
            ratios.append(authors_ratios(vertices, parts, boxes, image.shape[:2]))
        self.classes, self.targets = np.concatenate(classes), tf.concat(targets, axis=0)
        self.ratios = tf.constant(np.concatenate(ratios), tf.float32)
        pyramid = network.extract_features(features["image"], features["image_info"], True)
        rois, image_index = tf.constant(np.concatenate(rois)), tf.constant(image_index)
        pooled = network.regions(pyramid, rois, image_index, output_size=self.mask_size // 2)
        self.logits = network.mask_head(pooled, tf.constant(self.classes))
        self.predicted = network.maskiou_head(pooled, self.logits, tf.constant(self.classes))

    @property
    def mask_size(self):
        return self.reference.config.mask_size

    def expected_loss(self, name):
        names = [one.decode() for one in self.case["loss_names"]]
        return self.case["losses_f64"][names.index(name)]


@pytest.fixture(scope="module")
def positives():
    return Positives()


def test_positive_rois(positives):
    agree(positives.classes, positives.case["positive_labels"], "training: positive RoIs", "ms")


def test_mask_loss(positives):
    valid = tf.ones(len(positives.classes), tf.bool)
    agree(
        mask_loss(positives.logits, positives.targets, valid),
        positives.expected_loss("loss_mask"),
        "training: mask_loss",
        "ms",
        rtol=positives.reference.fixture.tolerance["losses_rtol"],
    )


def test_maskiou_targets_and_loss(positives):
    targets, logits = positives.targets, positives.logits
    ours = maskiou_targets(logits, targets, ratio_full_areas(targets, positives.ratios)).numpy()
    theirs = positives.case["mask_iou_targets"]
    # A cell whose logit lies within float noise of 0 may be on either side of it.
    undecided = (np.abs(logits) < LOGIT_NOISE).sum(axis=(1, 2))
    predicted = np.maximum((logits.numpy() > 0).sum(axis=(1, 2)), 1)
    agree(
        np.where(np.abs(ours - theirs) <= 2 * undecided / predicted, theirs, ours),
        theirs,
        "training: MaskIoU targets",
        "ms",
        atol=fixture("g_maskiou.npz").tolerance["targets_atol"],
    )
    assert (undecided == 0).mean() > 0.5
    valid = tf.ones(len(theirs), tf.bool)
    agree(
        maskiou_loss(positives.predicted, tf.constant(theirs), valid),
        positives.expected_loss("loss_maskiou"),
        "training: maskiou_loss",
        "ms",
        rtol=positives.reference.fixture.tolerance["losses_rtol"],
    )
