"""Box head: its layers and losses."""

import math

import numpy as np
import pytest
import tensorflow as tf

from data import boxes as box_ops
from model.box_head import DELTA_WEIGHTS, BoxHead, BoxOutputs, box_losses
from model.roi_sampling import SampledRoIs


def rng(seed=0):
    return np.random.default_rng(seed)


def hand_case():
    """One image, four RoIs: class 1, class 2, background, empty slot."""
    gt_boxes = tf.constant([[[0.0, 0, 10, 10], [10, 10, 30, 20]]])
    rois = SampledRoIs(
        boxes=tf.constant([[[1.0, 0, 11, 10], [10, 10, 30, 20], [50, 50, 60, 60], [0, 0, 0, 0]]]),
        classes=tf.constant([[1, 2, 0, 0]]),
        matches=tf.constant([[0, 1, 0, 0]]),
        valid=tf.constant([[True, True, True, False]]),
    )
    logits = tf.constant([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [5.0, -5.0, 0.0]])
    deltas = np.full((4, 3, 4), 50.0, np.float32)
    deltas[0, 1] = [-1.0, 0.5, 0.0, 0.0]  # the target is (-0.1, 0, 0, 0) times the weights
    deltas[1, 2] = [0.0, 0.0, 2.0, -0.25]  # the target is 0
    return BoxOutputs(logits, tf.constant(deltas)), rois, gt_boxes


def test_losses_by_hand():
    losses = box_losses(*hand_case(), 0.0)
    e = math.e
    cross_entropy = math.log((2 + e) / e) + math.log(3) + math.log((2 + e**2) / e**2)
    assert float(losses["class_loss"]) == pytest.approx(cross_entropy / 3, rel=1e-5)
    assert float(losses["box_loss"]) == pytest.approx((0.5 + 2.0 + 0.25) / 3, rel=1e-5)
    smooth = box_losses(*hand_case(), 1.0)["box_loss"]
    assert float(smooth) == pytest.approx((0.125 + 1.5 + 0.25**2 / 2) / 3, rel=1e-5)


def test_targets_carry_the_weights():
    _, rois, gt_boxes = hand_case()
    targets = box_ops.encode(gt_boxes[:, :1], rois.boxes[:, :1], DELTA_WEIGHTS)
    np.testing.assert_allclose(targets[0, 0], [-1.0, 0, 0, 0], atol=1e-6)
    exact = np.zeros((4, 3, 4), np.float32)
    exact[0, 1] = targets[0, 0]
    losses = box_losses(BoxOutputs(tf.zeros([4, 3]), tf.constant(exact)), rois, gt_boxes, 0.0)
    assert float(losses["box_loss"]) == pytest.approx(0.0, abs=1e-6)


def gradients(outputs, rois, gt_boxes):
    with tf.GradientTape() as tape:
        tape.watch(list(outputs))
        loss = tf.add_n(list(box_losses(outputs, rois, gt_boxes, 0.0).values()))
    return [
        tf.convert_to_tensor(gradient).numpy() for gradient in tape.gradient(loss, list(outputs))
    ]


def test_gradient_reaches_the_true_class_of_positives_only():
    of_logits, of_deltas = gradients(*hand_case())
    assert not of_logits[3].any()
    np.testing.assert_allclose(of_logits[1], [1 / 9, 1 / 9, -2 / 9], rtol=1e-5)
    expected = np.zeros((4, 3, 4))
    expected[0, 1, 1] = 1 / 3
    expected[1, 2, 2:] = [1 / 3, -1 / 3]
    np.testing.assert_allclose(of_deltas, expected, atol=1e-6)


def test_empty_slots_have_no_say():
    outputs, rois, gt_boxes = hand_case()
    changed = BoxOutputs(
        tf.concat([outputs.class_logits[:3], [[-9.0, 99.0, 3.0]]], 0),
        tf.concat([outputs.box_deltas[:3], tf.fill([1, 3, 4], -1e6)], 0),
    )
    dirty = rois._replace(
        boxes=tf.concat([rois.boxes[:, :3], [[[7.0, 7.0, 9.0, 9.0]]]], 1),
        matches=tf.constant([[0, 1, 1, 1]]),
    )
    clean = box_losses(outputs, rois, gt_boxes, 1.0)
    for name, value in box_losses(changed, dirty, gt_boxes, 1.0).items():
        assert value == clean[name]


@pytest.mark.parametrize("valid", [True, False])
def test_without_ground_truth_the_box_loss_is_zero(valid):
    outputs, rois, gt_boxes = hand_case()
    rois = rois._replace(
        classes=tf.zeros_like(rois.classes), valid=tf.fill(rois.valid.shape, valid)
    )
    losses = box_losses(outputs, rois, tf.zeros_like(gt_boxes), 1.0)
    assert float(losses["box_loss"]) == 0.0
    assert np.isfinite(losses["class_loss"]) and (float(losses["class_loss"]) > 0) == valid
    for gradient in gradients(outputs, rois, tf.zeros_like(gt_boxes)):
        assert np.isfinite(gradient).all()


def test_images_are_averaged_over_their_rois():
    outputs, rois, gt_boxes = hand_case()
    twice = BoxOutputs(*(tf.concat([x, x], 0) for x in outputs))
    rois_twice = SampledRoIs(*(tf.concat([x, x], 0) for x in rois))
    both = box_losses(twice, rois_twice, tf.concat([gt_boxes, gt_boxes], 0), 0.0)
    for name, value in box_losses(outputs, rois, gt_boxes, 0.0).items():
        assert float(both[name]) == pytest.approx(float(value), rel=1e-6)


def test_shapes_and_dtypes():
    for dtype in ("float32", "mixed_bfloat16"):
        head = BoxHead(rng(), 4, 16, 5, dtype=dtype)
        outputs = head(tf.ones([3, 7, 7, 4]))
        assert outputs.class_logits.shape == (3, 5)
        assert outputs.box_deltas.shape == (3, 5, 4)
        assert outputs.class_logits.dtype == outputs.box_deltas.dtype == tf.float32
    assert [tuple(v.shape) for v in head.trainable_variables] == [
        (196, 16), (16,), (16, 16), (16,), (16, 5), (5,), (16, 20), (20,),
    ]  # fmt: skip


def test_forward_equals_numpy():
    head = BoxHead(rng(), 2, 6, 3)
    x = rng(1).normal(size=(4, 7, 7, 2)).astype(np.float32)
    hidden = x.reshape(4, -1)
    for layer in head.fcs:
        hidden = np.maximum(hidden @ layer.kernel.numpy() + layer.bias.numpy(), 0)
    outputs = head(tf.constant(x))
    np.testing.assert_allclose(
        outputs.class_logits, hidden @ head.classes.kernel.numpy(), atol=1e-5
    )
    deltas = (hidden @ head.deltas.kernel.numpy()).reshape(4, 3, 4)
    np.testing.assert_allclose(outputs.box_deltas, deltas, atol=1e-6)


def test_output_layers_start_small():
    head = BoxHead(rng(), 8, 256, 81)
    assert head.classes.kernel.numpy().std() == pytest.approx(0.01, rel=0.03)
    assert head.deltas.kernel.numpy().std() == pytest.approx(0.001, rel=0.03)
