"""Losses and their normalisers against Detectron2 (fvcore), torchvision and mmdetection.

All arrays of the file are compared. No deviations: the β of smooth L1 and `--rpn_loss_normaliser`
give each library's loss, `reference_losses` says which.
"""

import numpy as np
import pytest
import tensorflow as tf
from fixtures import agree, fixture, yx

from data import boxes as box_ops
from model.box_head import BoxOutputs, box_losses
from model.losses import smooth_l1
from model.mask_head import mask_loss
from model.maskiou_head import maskiou_loss
from model.proposals import RPNOutputs
from model.roi_sampling import SampledRoIs
from model.rpn import rpn_losses

FILE = fixture("h2_losses.npz")
TOLERANCE = {key: FILE.tolerance[key] for key in ("atol", "rtol")}
BETAS = {"beta0": 0.0, "beta1_9": 1 / 9, "beta1": 1.0}

reference_losses = pytest.mark.parametrize(
    ("reference", "beta", "normaliser"),
    [("d2", 0.0, "slots"), ("tv", 1 / 9, "sampled"), ("mm", 0.0, "sampled")],
)
elementwise = pytest.mark.parametrize("case", FILE.cases_with("pred", "target"), ids=repr)
rpn_cases = pytest.mark.parametrize("case", FILE.cases_with("anchors", "matched_gt"), ids=repr)
roi_cases = pytest.mark.parametrize("case", FILE.cases_with("proposals", "gt"), ids=repr)
mask_cases = pytest.mark.parametrize("case", FILE.cases_with("targets", "loss"), ids=repr)


def gradients(losses_of, *inputs):
    """Gradients of the sum of all losses of `losses_of(*inputs)`."""
    inputs = [tf.constant(values) for values in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.add_n(tf.nest.flatten(losses_of(*inputs)))
    return [tf.convert_to_tensor(gradient).numpy() for gradient in tape.gradient(loss, inputs)]


@elementwise
@pytest.mark.parametrize("name", BETAS)
def test_smooth_l1(case, name):
    error, beta = case["pred"] - case["target"], BETAS[name]
    expected = case[f"smooth_l1_{name}"]
    agree(smooth_l1(tf.constant(error), beta), expected, "smooth L1", "d2", **TOLERANCE)
    (gradient,) = gradients(lambda e: tf.reduce_sum(smooth_l1(e, beta)), error)
    expected = case[f"smooth_l1_{name}_grad"]
    agree(gradient, expected, "gradient of smooth L1", "d2", **TOLERANCE)


@elementwise
@pytest.mark.parametrize(
    ("array", "beta"), [("mm_l1_weighted_avg10", 0.0), ("mm_smoothl1_weighted_avg10", 1 / 9)]
)
def test_weighted_smooth_l1(case, array, beta):
    loss = smooth_l1(tf.constant(case["pred"] - case["target"]), beta)
    loss = tf.reduce_sum(loss * case["weights"]) / int(array.rpartition("avg")[2])
    agree(loss, case[array], "smooth L1", "mm", **TOLERANCE)


@elementwise
def test_maskiou_loss_is_half_the_mean_square(case):
    # Both are moved, so that every target is above 0 and counts.
    moved = 1.0 - case["target"].min()
    pred, target = (tf.constant((case[k] + moved).ravel()) for k in ("pred", "target"))
    loss = maskiou_loss(pred, target, tf.ones_like(target, tf.bool))
    agree(loss, case["mm_mse_half"], "MaskIoU loss", "mm", **TOLERANCE)


def sampled_anchors(case):
    """What the input pipeline says of the case's sampled anchors, as many slots as d2 samples."""
    slots = case.params["d2_batch_size_per_image"]
    chosen = [np.flatnonzero(labels >= 0) for labels in case["labels"]]
    indices = np.stack([np.pad(c, (0, slots - len(c))) for c in chosen])
    labels = np.stack(
        [
            np.pad(labels[c], (0, slots - len(c)), constant_values=-1)
            for labels, c in zip(case["labels"], chosen, strict=True)
        ]
    )
    gt_boxes = tf.gather(yx(case["matched_gt"]), indices, batch_dims=1)
    deltas = box_ops.encode(gt_boxes, tf.gather(yx(case["anchors"]), indices))
    return {
        "rpn_indices": tf.constant(indices),
        "rpn_labels": tf.constant(labels),
        "rpn_deltas": tf.where((labels == 1)[..., None], deltas, 0.0),
    }


def of_rpn(case, logits, deltas, beta, normaliser):
    outputs = RPNOutputs(tf.convert_to_tensor(logits), tf.convert_to_tensor(deltas))
    return rpn_losses(outputs, sampled_anchors(case), beta, normaliser)


@rpn_cases
@reference_losses
def test_rpn_losses(case, reference, beta, normaliser):
    losses = of_rpn(case, case["logits"], yx(case["deltas"]), beta, normaliser)
    for name, array in (("rpn_objectness_loss", "loss_cls"), ("rpn_box_loss", "loss_box")):
        agree(losses[name], case[f"{reference}_{array}"], "RPN losses", reference, **TOLERANCE)


@rpn_cases
def test_gradients_of_the_rpn_losses(case):
    of_logits, of_deltas = gradients(
        lambda logits, deltas: of_rpn(case, logits, deltas, 0.0, "slots"),
        case["logits"],
        yx(case["deltas"]),
    )
    operator = "gradients of the RPN losses"
    agree(of_logits, case["d2_grad_logits"], operator, "d2", **TOLERANCE)
    agree(of_deltas, yx(case["d2_grad_deltas"]), operator, "d2", **TOLERANCE)


def background_first(case):
    """Logits [P, K + 1], deltas [P, K + 1, 4] and classes [P] with background 0."""
    count, classes = len(case["proposals"]), case.params["num_classes"]
    logits = np.roll(case["logits"], 1, axis=1)
    deltas = yx(case["deltas"].reshape(count, classes, 4))
    deltas = np.concatenate([np.zeros_like(deltas[:, :1]), deltas], 1)
    labels = case["labels"]
    return logits, deltas, np.where(labels == case.params["background_label"], 0, labels + 1)


def of_rois(case, logits, deltas, beta):
    classes = background_first(case)[2].astype(np.int32)[None]
    rois = SampledRoIs(
        boxes=tf.constant(yx(case["proposals"])[None]),
        classes=tf.constant(classes),
        matches=tf.range(classes.size)[None],
        valid=tf.ones(classes.shape, tf.bool),
    )
    outputs = BoxOutputs(tf.convert_to_tensor(logits), tf.convert_to_tensor(deltas))
    return box_losses(outputs, rois, tf.constant(yx(case["gt"])[None]), beta)


@roi_cases
@reference_losses
def test_box_losses(case, reference, beta, normaliser):
    del normaliser  # of the RPN; all divide by the sampled RoIs here
    losses = of_rois(case, *background_first(case)[:2], beta)
    for name, array in (("class_loss", "loss_cls"), ("box_loss", "loss_box")):
        agree(losses[name], case[f"{reference}_{array}"], "box losses", reference, **TOLERANCE)


@roi_cases
def test_gradients_of_the_box_losses(case):
    of_logits, of_deltas = gradients(
        lambda logits, deltas: of_rois(case, logits, deltas, 0.0), *background_first(case)[:2]
    )
    operator = "gradients of the box losses"
    agree(np.roll(of_logits, -1, axis=1), case["d2_grad_logits"], operator, "d2", **TOLERANCE)
    assert not of_deltas[:, 0].any()
    expected = yx(case["d2_grad_deltas"].reshape(of_deltas[:, 1:].shape))
    agree(of_deltas[:, 1:], expected, operator, "d2", **TOLERANCE)


@mask_cases
def test_mask_loss(case):
    labels = case["labels"]
    logits = tf.constant(case["logits"][np.arange(len(labels)), labels])
    loss = mask_loss(logits, case["targets"].astype(np.float32), tf.ones_like(labels, tf.bool))
    # mmdetection's, which Detectron2's and torchvision's formula equals.
    agree(loss, case["loss"].item(), "mask loss", "mm", **TOLERANCE)
    for name, reference in (("mm", "mm"), ("plain_bce", "d2"), ("plain_bce", "tv")):
        agree(loss, case.params[name], "mask loss", reference, **TOLERANCE)
