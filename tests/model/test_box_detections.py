"""Detections from box head outputs, against a reading in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from greedy_nms import greedy_nms_by_class

from model.box_head import BoxOutputs, detect_boxes
from model.maskiou_head import mask_scores
from model.proposals import Proposals

INFO = np.array([[60, 90, 1, 60, 90], [100, 80, 1, 100, 80]], np.float32)

both_ways = pytest.mark.parametrize("static", [False, True], ids=["combined", "static"])


def random_case(num=40, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 50, (2, num, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, corner.shape)], -1)
    valid = np.tile(np.arange(num) < num - 6, (2, 1))
    proposals = Proposals(tf.constant(boxes, tf.float32), tf.zeros([2, num]), tf.constant(valid))
    outputs = BoxOutputs(
        tf.constant(rng.normal(0, 2, (2 * num, classes)), tf.float32),
        tf.constant(rng.normal(0, 1, (2 * num, classes, 4)), tf.float32),
    )
    return outputs, proposals


def run(outputs, proposals, *, static, score=0.05, iou=0.5, most=15, info=INFO, **more):
    return detect_boxes(
        outputs,
        proposals,
        tf.constant(info),
        score_threshold=score,
        nms_iou=iou,
        max_detections=most,
        static=static,
        **more,
    )


def oracle(outputs, proposals, image, score, iou, most):
    valid = proposals.valid[image].numpy()
    num = len(valid)
    logits = outputs.class_logits.numpy().reshape(2, num, -1)[image].astype(np.float64)
    deltas = outputs.box_deltas.numpy().reshape(2, num, -1, 4)[image].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    references = proposals.boxes[image].numpy()[:, None].astype(np.float64)
    sizes = references[..., 2:] - references[..., :2]
    centres = references[..., :2] + sizes / 2 + deltas[..., :2] / 10 * sizes
    sizes = sizes * np.exp(np.minimum(deltas[..., 2:] / 5, np.log(1000 / 16)))
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], -1)
    boxes = np.clip(boxes, 0, INFO[image, [0, 1, 0, 1]])
    return greedy_nms_by_class(
        boxes[valid][:, 1:],
        probabilities[valid][:, 1:],
        iou_threshold=iou,
        score_threshold=score,
        most=most,
    )


@both_ways
@pytest.mark.parametrize("score, iou, most", [(0.05, 0.5, 15), (0.3, 0.3, 60), (0.0, 0.7, 4)])
def test_equals_the_oracle(static, score, iou, most):
    case = random_case(seed=most)
    found = run(*case, static=static, score=score, iou=iou, most=most)
    for image in range(2):
        expected = oracle(*case, image, score, iou, most)
        valid = found.valid[image].numpy()
        np.testing.assert_array_equal(valid, np.arange(most) < len(expected))
        np.testing.assert_allclose(found.scores[image][valid], [e[0] for e in expected], rtol=1e-5)
        np.testing.assert_array_equal(found.classes[image][valid], [e[1] + 1 for e in expected])
        np.testing.assert_allclose(found.boxes[image][valid], [e[2] for e in expected], atol=1e-4)


@both_ways
def test_soft_suppression_on_a_graph_that_does_not_know_the_number_of_rois(static):
    outputs, proposals = random_case()

    @tf.function(input_signature=[BoxOutputs(*(tf.TensorSpec([None, *s]) for s in ([4], [4, 4])))])
    def detect(outputs):
        return run(outputs, proposals, static=static, soft_nms_sigma=0.5)

    expected = run(outputs, proposals, static=not static, soft_nms_sigma=0.5)
    for ours, theirs in zip(detect(outputs), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    hard = run(outputs, proposals, static=static).scores.numpy()
    np.testing.assert_array_equal(expected.scores[:, 0], hard[:, 0])
    assert (expected.scores.numpy() != hard).any()


@both_ways
def test_empty_slots_hold_zeros(static):
    found = run(*random_case(), static=static, score=0.9, most=30)
    empty = ~found.valid.numpy()
    assert empty.any()
    for values in (found.boxes, found.classes, found.scores):
        assert not values.numpy()[empty].any()
    assert (found.classes.numpy()[~empty] > 0).all()
    assert found.classes.dtype == tf.int32


@both_ways
def test_background_and_invalid_proposals_are_not_detected(static):
    boxes = tf.constant([[[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]]])
    proposals = Proposals(boxes, tf.zeros([1, 3]), tf.constant([[True, True, False]]))
    logits = tf.constant([[9.0, 0, 0], [0.0, 0, 9.0], [0.0, 0, 9.0]])
    outputs = BoxOutputs(logits, tf.zeros([3, 3, 4]))
    found = run(outputs, proposals, static=static, score=0.01, most=3, info=INFO[1:])
    np.testing.assert_array_equal(found.classes, [[2, 0, 0]])
    np.testing.assert_allclose(found.boxes[0, 0], [20, 20, 40, 40], rtol=1e-6)


@both_ways
def test_each_class_has_its_own_box(static):
    proposals = Proposals(
        tf.constant([[[20.0, 20, 40, 40]]]), tf.zeros([1, 1]), tf.constant([[True]])
    )
    deltas = np.zeros((1, 3, 4), np.float32)
    deltas[0, 1] = [5.0, 0, 0, 0]  # down by 5 / 10 of the height
    deltas[0, 2] = [0, 0, 0, 5 * np.log(2)]  # twice as wide
    outputs = BoxOutputs(tf.constant([[0.0, 2.0, 1.0]]), tf.constant(deltas))
    found = run(outputs, proposals, static=static, most=2, info=INFO[1:])
    np.testing.assert_array_equal(found.classes, [[1, 2]])
    np.testing.assert_allclose(found.boxes[0], [[30, 20, 50, 40], [20, 10, 40, 50]], rtol=1e-5)
    total = 1 + np.exp(1) + np.exp(2)
    np.testing.assert_allclose(found.scores[0], [np.exp(2) / total, np.exp(1) / total], rtol=1e-5)


@both_ways
@pytest.mark.parametrize("clip_below", [False, True])
def test_small_scales_are_bounded_on_request(static, clip_below):
    proposals = Proposals(
        tf.constant([[[0.0, 0, 80, 40]]]), tf.zeros([1, 1]), tf.constant([[True]])
    )
    deltas = np.zeros((1, 2, 4), np.float32)
    deltas[0, 1] = [0, 0, 5 * -4.5, 0]  # exp(-4.5) is less than 16 / 1000
    outputs = BoxOutputs(tf.constant([[0.0, 5.0]]), tf.constant(deltas))
    found = run(outputs, proposals, static=static, most=1, info=INFO[1:], clip_below=clip_below)
    half = 40 * (16 / 1000 if clip_below else np.exp(-4.5))
    np.testing.assert_allclose(found.boxes[0, 0], [40 - half, 0, 40 + half, 40], rtol=1e-5)


@both_ways
def test_equal_scores_favour_the_proposal_that_comes_first(static):
    # Logits as an overfitted head gives: every probability is 1 in float32, or on some processors
    # the number before it.
    boxes = np.float32([[20 * i, 0, 20 * i + 10, 10] for i in range(4)])
    boxes = np.concatenate([boxes, boxes + np.float32([0, 2, 0, 2])])
    proposals = Proposals(tf.constant(boxes[None]), tf.zeros([1, 8]), tf.ones([1, 8], tf.bool))
    outputs = BoxOutputs(tf.tile([[-50.0, 50.0]], [8, 1]), tf.zeros([8, 2, 4]))
    found = run(outputs, proposals, static=static, most=6, info=INFO[1:])
    np.testing.assert_array_equal(found.scores[0, :4], np.repeat(found.scores[0, :1], 4))
    np.testing.assert_allclose(found.scores, [[1, 1, 1, 1, 0, 0]], rtol=1e-7)
    np.testing.assert_allclose(found.boxes[0, :4], boxes[:4], atol=1e-5)


@both_ways
def test_boxes_lie_within_their_image(static):
    outputs, proposals = random_case()
    found = run(BoxOutputs(outputs.class_logits, outputs.box_deltas * 5), proposals, static=static)
    for image, (height, width) in enumerate(INFO[:, :2]):
        boxes = found.boxes[image].numpy()
        assert boxes.min() >= 0
        assert boxes[:, [0, 2]].max() <= height
        assert boxes[:, [1, 3]].max() <= width


def test_mask_score_is_a_product():
    box_scores, mask_ious = tf.constant([[0.9, 0.5, 0.0]]), tf.constant([[0.5, 1.0, 0.0]])
    np.testing.assert_allclose(mask_scores(box_scores, mask_ious, True), [[0.45, 0.5, 0.0]])
    np.testing.assert_array_equal(mask_scores(box_scores, mask_ious, False), box_scores)
