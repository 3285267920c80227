"""Tests of data/boxes.py against numbers worked out by hand and a scalar oracle."""

import math

import numpy as np
import pytest
import tensorflow as tf

from data import boxes as box_ops


def random_boxes(rng, *shape):
    corner = rng.uniform(-50, 250, (*shape, 2))
    size = rng.uniform(1, 200, (*shape, 2))
    return np.concatenate([corner, corner + size], axis=-1).astype(np.float32)


def scalar_iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return height * width / (both - height * width)


def test_area_adds_no_pixel():
    boxes = tf.constant([[3.0, 2.0, 6.0, 4.0], [0.0, 0.0, 0.5, 8.0]])
    np.testing.assert_array_equal(box_ops.area(boxes), [6.0, 4.0])


@pytest.mark.parametrize("box", [[5, 5, 5, 9], [5, 5, 9, 5], [0, 0, 0, 0], [9, 9, 5, 5]])
def test_degenerate_boxes_have_no_area_and_no_overlap(box):
    box = tf.constant([box], tf.float32)
    big = tf.constant([[0.0, 0.0, 20.0, 20.0]])
    assert box_ops.area(box).numpy() == 0.0
    assert box_ops.iou(box, big).numpy() == 0.0
    assert box_ops.iou(box, box).numpy() == 0.0


def test_iou_by_hand():
    a = tf.constant([[0.0, 0.0, 4.0, 4.0]] * 4)
    b = tf.constant([[0, 0, 4, 4], [0, 2, 4, 6], [1, 1, 3, 3], [4, 4, 8, 8]], tf.float32)
    np.testing.assert_allclose(box_ops.iou(a, b), [1.0, 8 / 24, 4 / 16, 0.0])


def test_pairwise_iou_equals_the_scalar_oracle():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 2, 7), random_boxes(rng, 2, 5)
    expected = [[[scalar_iou(p, q) for q in bb] for p in aa] for aa, bb in zip(a, b, strict=True)]
    np.testing.assert_allclose(box_ops.pairwise_iou(a, b), expected, rtol=1e-5)


def test_pairwise_iou_of_no_boxes_is_empty():
    assert box_ops.pairwise_iou(tf.zeros([0, 4]), tf.zeros([3, 4])).shape == (0, 3)


def test_encode_by_hand():
    reference = tf.constant([[0.0, 0.0, 10.0, 20.0]])
    box = tf.constant([[5.0, 5.0, 25.0, 15.0]])
    expected = [[1.0, 0.0, math.log(2.0), math.log(0.5)]]
    np.testing.assert_allclose(box_ops.encode(box, reference), expected, rtol=1e-6)
    weighted = np.multiply(expected, [10, 10, 5, 5])
    np.testing.assert_allclose(
        box_ops.encode(box, reference, weights=(10.0, 10.0, 5.0, 5.0)), weighted, rtol=1e-6
    )


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decode_inverts_encode(weights):
    rng = np.random.default_rng(1)
    boxes, references = random_boxes(rng, 3, 40), random_boxes(rng, 3, 40)
    # Scales within the bound of decode.
    deltas = box_ops.encode(boxes, references, weights)
    decoded = box_ops.decode(deltas, references, weights, max_log_scale=10.0)
    np.testing.assert_allclose(decoded, boxes, atol=2e-3)


def test_encode_of_padding_is_zero_with_finite_gradients():
    boxes = tf.constant([[0, 0, 0, 0], [1, 1, 5, 5], [0, 0, 0, 0], [1, 1, 5, 1]], tf.float32)
    references = tf.constant([[1, 1, 5, 5], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 5, 5]], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([boxes, references])
        deltas = box_ops.encode(boxes, references)
    np.testing.assert_array_equal(deltas, np.zeros([4, 4]))
    for gradient in tape.gradient(deltas, [boxes, references]):
        assert np.isfinite(gradient).all()


def test_decode_bounds_growth_but_not_shrinkage():
    reference = tf.constant([[0.0, 0.0, 16.0, 16.0]])
    grown = box_ops.decode(tf.constant([[0.0, 0.0, 50.0, 50.0]]), reference).numpy()[0]
    np.testing.assert_allclose(grown, [-492, -492, 508, 508], rtol=1e-5)
    shrunk = box_ops.decode(tf.constant([[0.0, 0.0, -50.0, -5.0]]), reference).numpy()[0]
    np.testing.assert_allclose(shrunk[2] - shrunk[0], 0.0, atol=1e-6)
    np.testing.assert_allclose(shrunk[3] - shrunk[1], 16.0 * math.exp(-5.0), rtol=1e-4)


def test_decode_bounds_shrinkage_on_request():
    reference = tf.constant([[0.0, 0.0, 1000.0, 1000.0]])
    deltas = tf.constant([[0.0, 0.0, -50.0, -2.0], [0.0, 0.0, 0.5, 50.0]])
    boxes = box_ops.decode(deltas, reference, clip_below=True).numpy()
    # The largest scale is 1000 / 16, so the smallest is 16 / 1000.
    np.testing.assert_allclose(
        boxes[:, 2:] - boxes[:, :2],
        [[16, 1000 * math.exp(-2)], [1000 * math.exp(0.5), 62500]],
        rtol=1e-5,
    )


def test_clip_to_one_image_and_to_an_image_per_batch_entry():
    boxes = tf.constant([[-5, 3, 50, 70], [90, 90, 99, 99]], tf.float32)
    np.testing.assert_array_equal(box_ops.clip(boxes, 40, 60), [[0, 3, 40, 60], [40, 60, 40, 60]])
    batch = box_ops.clip(
        tf.stack([boxes, boxes]), tf.constant([[40.0], [100.0]]), tf.constant([[60.0], [100.0]])
    )
    np.testing.assert_array_equal(batch[0], [[0, 3, 40, 60], [40, 60, 40, 60]])
    np.testing.assert_array_equal(batch[1], [[0, 3, 50, 70], [90, 90, 99, 99]])


def test_graph_and_dataset_map_equal_eager():
    rng = np.random.default_rng(2)
    a, b = random_boxes(rng, 6), random_boxes(rng, 6)

    def everything(a, b):
        deltas = box_ops.encode(a, b)
        return box_ops.pairwise_iou(a, b), deltas, box_ops.clip(box_ops.decode(deltas, b), 99, 88)

    dataset = tf.data.Dataset.from_tensors((a, b)).map(everything)
    for eager, graph, mapped in zip(
        everything(a, b), tf.function(everything)(a, b), next(iter(dataset)), strict=True
    ):
        np.testing.assert_allclose(graph, eager, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(mapped, eager, rtol=1e-5, atol=1e-5)
