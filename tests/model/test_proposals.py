"""Proposals against a reading of the papers in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from greedy_nms import greedy_nms, iou_matrix

from data.anchors import AnchorGrid
from model.proposals import RPNOutputs, generate_proposals

GRID = AnchorGrid(64, 64, 2, 6, (8, 16, 32, 64, 128), (0.5, 1, 2))
INFO = np.array([[60, 52, 1, 60, 52], [64, 64, 1, 64, 64]], np.float32)

both_ways = pytest.mark.parametrize("static", [False, True], ids=["combined", "static"])


def random_outputs(seed=0, shift=0.0):
    """Logits without ties, and deltas that leave some boxes outside the image."""
    rng = np.random.default_rng(seed)
    logits = rng.permuted(np.linspace(-3, 3, 2 * GRID.num_anchors)).reshape(2, -1) + shift
    deltas = rng.normal(0, 0.5, (2, GRID.num_anchors, 4))
    return logits.astype(np.float32), deltas.astype(np.float32)


def run(logits, deltas, *, static, pre_nms=40, post_nms=50, nms_iou=0.7, info=INFO, **more):
    return generate_proposals(
        RPNOutputs(tf.constant(logits, tf.float32), tf.constant(deltas, tf.float32)),
        GRID,
        tf.constant(info),
        pre_nms=pre_nms,
        post_nms=post_nms,
        nms_iou=nms_iou,
        static=static,
        **more,
    )


def decode_and_clip(deltas, anchors, height, width):
    deltas, anchors = deltas.astype(np.float64), anchors.astype(np.float64)
    sizes = anchors[:, 2:] - anchors[:, :2]
    centres = (anchors[:, 2:] + anchors[:, :2]) / 2 + deltas[:, :2] * sizes
    sizes = sizes * np.exp(np.minimum(deltas[:, 2:], np.log(1000 / 16)))
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1)
    return np.clip(boxes, 0, [height, width, height, width])


def oracle(logits, deltas, info, pre_nms, post_nms, nms_iou):
    """Boxes and scores of one image."""
    found, start = [], 0
    for size in GRID.level_sizes:
        level = slice(start, start + size)
        start += size
        best = np.argsort(-logits[level], kind="stable")[:pre_nms]
        boxes = decode_and_clip(deltas[level][best], GRID.boxes()[level][best], info[0], info[1])
        scores = logits[level][best]
        proper = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores = boxes[proper], scores[proper]
        kept = greedy_nms(boxes, scores, nms_iou)
        found += list(zip(scores[kept], boxes[kept], strict=True))
    found = sorted(found, key=lambda entry: -entry[0])[:post_nms]
    return np.array([box for _, box in found]), np.array([score for score, _ in found])


@both_ways
@pytest.mark.parametrize(
    "shift, pre_nms, post_nms, nms_iou",
    [(0.0, 40, 50, 0.7), (-50.0, 40, 50, 0.7), (50.0, 2000, 200, 0.3), (-2.0, 9, 7, 0.5)],
)
def test_equals_the_oracle(static, shift, pre_nms, post_nms, nms_iou):
    logits, deltas = random_outputs(seed=post_nms, shift=shift)
    kwargs = {"pre_nms": pre_nms, "post_nms": post_nms, "nms_iou": nms_iou}
    proposals = run(logits, deltas, static=static, **kwargs)
    assert proposals.boxes.shape == (2, post_nms, 4)
    for image in range(2):
        boxes, scores = oracle(logits[image], deltas[image], INFO[image], **kwargs)
        valid = proposals.valid[image].numpy()
        np.testing.assert_array_equal(valid, np.arange(post_nms) < len(boxes))
        np.testing.assert_allclose(proposals.scores[image][valid], scores, rtol=1e-6)
        np.testing.assert_allclose(proposals.boxes[image][valid], boxes, atol=1e-4)


@both_ways
def test_properties(static):
    logits, deltas = random_outputs(seed=5, shift=-2.0)
    proposals = run(logits, 3 * deltas, static=static, post_nms=150)
    boxes, scores, valid = (values.numpy() for values in proposals)
    assert not valid.all() and valid.any()
    assert (np.diff(scores, axis=1) <= 0).all()
    assert not boxes[~valid].any()
    for image in range(2):
        kept = boxes[image][valid[image]]
        assert (kept >= 0).all()
        assert (kept[:, [0, 2]] <= INFO[image, 0]).all()
        assert (kept[:, [1, 3]] <= INFO[image, 1]).all()
        assert ((kept[:, 2:] - kept[:, :2]) > 0).all()


@both_ways
def test_suppression_stays_within_a_level(static):
    # Every anchor becomes the whole image: one survivor a level.
    logits, _ = random_outputs()
    anchors = GRID.boxes().astype(np.float64)
    sizes = anchors[:, 2:] - anchors[:, :2]
    shift = (32 - (anchors[:, 2:] + anchors[:, :2]) / 2) / sizes
    deltas = np.tile(np.concatenate([shift, np.log(70 / sizes)], 1), (2, 1, 1))
    proposals = run(logits, deltas, static=static, info=INFO[[1, 1]])
    np.testing.assert_array_equal(proposals.valid.numpy().sum(1), [5, 5])
    np.testing.assert_allclose(proposals.boxes[:, :5], np.tile([0, 0, 64, 64], (2, 5, 1)))
    ends = np.cumsum(GRID.level_sizes)[:-1]
    best = [level.max() for level in np.split(logits[0], ends)]
    np.testing.assert_allclose(proposals.scores[0, :5], sorted(best, reverse=True))


@both_ways
def test_boxes_outside_the_image_are_dropped(static):
    logits, deltas = random_outputs()
    deltas[..., 0] = 100.0  # far below the image
    proposals = run(logits, deltas, static=static)
    assert not proposals.valid.numpy().any()
    assert not proposals.boxes.numpy().any()


def test_survivors_overlap_no_more_than_allowed():
    logits, deltas = random_outputs(seed=3)
    logits[:, GRID.level_sizes[0] :] -= 100.0  # the finest level fills the output
    proposals = run(logits, deltas, static=False, pre_nms=300, post_nms=60, nms_iou=0.4)
    overlap = iou_matrix(proposals.boxes[0], proposals.boxes[0])
    assert proposals.scores.numpy().min() > -10
    assert (overlap - np.eye(60)).max() <= 0.4 + 1e-6


@both_ways
def test_no_gradient(static):
    logits, deltas = (tf.constant(values) for values in random_outputs())
    with tf.GradientTape() as tape:
        tape.watch([logits, deltas])
        proposals = run(logits, deltas, static=static)
        loss = tf.reduce_sum(proposals.boxes) + tf.reduce_sum(proposals.scores)
    assert tape.gradient(loss, [logits, deltas]) == [None, None]


@both_ways
@pytest.mark.parametrize("clip_below", [False, True])
def test_small_scales_are_bounded_on_request(static, clip_below):
    # Only the last level's first anchor scores, whose centre moves from the origin to (30, 30).
    logits, deltas = np.full((1, GRID.num_anchors), -9.0), np.zeros((1, GRID.num_anchors, 4))
    index = GRID.num_anchors - 3
    logits[0, index] = 9.0
    height, width = GRID.shapes[-1, 0]
    deltas[0, index] = [30 / height, 30 / width, -5.0, 0.0]
    proposals = run(logits, deltas, static=static, post_nms=1, info=INFO[:1], clip_below=clip_below)
    half = height / 2 * (16 / 1000 if clip_below else np.exp(-5.0))
    np.testing.assert_allclose(proposals.boxes[0, 0, ::2], [30 - half, 30 + half], rtol=1e-5)


def test_large_scale_deltas_stay_finite():
    logits, deltas = random_outputs()
    proposals = run(logits, deltas * 1000.0, static=False)
    assert np.isfinite(proposals.boxes.numpy()).all()
