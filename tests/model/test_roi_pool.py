"""RoI max pooling against answers by hand, the paper's definition in loops, and torchvision.

`fixtures/torchvision_roi_pool.npz` has what torchvision 0.29.1 computed in these lines, with whole
numbers as values so that many are equal:

    maps = torch.tensor(features.transpose(0, 3, 1, 2), requires_grad=True)
    rois = np.concatenate([image_index[:, None], boxes[:, [1, 0, 3, 2]]], 1, dtype="f")
    pooled = torchvision.ops.roi_pool(maps, torch.tensor(rois), (7, 7), spatial_scale=1 / 16)
    pooled.backward(torch.tensor(upstream.transpose(0, 3, 1, 2)))
"""

import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from model.roi_pool import RoIPool, roi_pool
from model.static import Static

TORCHVISION = pathlib.Path(__file__).parents[1] / "fixtures" / "torchvision_roi_pool.npz"


def rng(seed=0):
    return np.random.default_rng(seed)


def half_away(x):
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def by_loops(features, boxes, image_index, output_size, stride):
    """The paper's definition: the maxima, and for each the cell that it comes from, or None."""
    height, width, channels = features.shape[1:]
    pooled = np.zeros((len(boxes), output_size, output_size, channels), np.float32)
    cells = np.full(pooled.shape, None)
    for n, (box, image) in enumerate(zip(boxes, image_index, strict=True)):
        y1, x1, y2, x2 = (half_away(float(end) / stride) for end in box)
        tall, wide = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for i, j, c in np.ndindex(*pooled.shape[1:]):
            top, bottom = (i * tall) // output_size, -((-(i + 1) * tall) // output_size)
            left, right = (j * wide) // output_size, -((-(j + 1) * wide) // output_size)
            best = -math.inf
            for y in range(max(y1 + top, 0), min(y1 + bottom, height)):
                for x in range(max(x1 + left, 0), min(x1 + right, width)):
                    if features[image, y, x, c] > best:
                        best = features[image, y, x, c]
                        pooled[n, i, j, c], cells[n, i, j, c] = best, (image, y, x, c)
    return pooled, cells


def spread(upstream, cells, shape):
    """The gradient by the map: each bin's goes to its cell."""
    gradient = np.zeros(shape, np.float32)
    for bin_, cell in np.ndenumerate(cells):
        if cell is not None:
            gradient[cell] += upstream[bin_]
    return gradient


def pool_and_differentiate(features, boxes, image_index, upstream, output_size, static, stride=16):
    def run(features, boxes, image_index, upstream):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_pool(
                features, boxes, image_index, stride=stride, output_size=output_size, static=static
            )
        return pooled, tape.gradient(pooled, features, upstream)

    compiled = tf.function(run, jit_compile=static == Static.XLA)
    arrays = [np.float32(features), np.float32(boxes), np.int32(image_index), np.float32(upstream)]
    return [result.numpy() for result in compiled(*map(tf.constant, arrays))]


def pool_one_map(feature_map, boxes, output_size):
    features = tf.constant(np.asarray(feature_map, np.float32)[None, :, :, None])
    boxes = tf.constant(np.asarray(boxes, np.float32))
    index = tf.zeros(boxes.shape[0], tf.int32)
    return RoIPool(stride=1)([features], boxes, index, output_size=output_size)[..., 0].numpy()


def test_rois_of_whole_cells():
    # From cell 1 to cell 4, both included: two bins of two cells.
    pooled = pool_one_map(np.arange(36).reshape(6, 6), [[1, 1, 4, 4]], 2)
    np.testing.assert_array_equal(pooled, [[[14, 16], [26, 28]]])


def test_bins_share_cells_that_their_edges_cut():
    # Five cells in two bins: 0 to 2 and 2 to 4.
    pooled = pool_one_map([[0, 1, 9, 3, 4]], [[0, 0, 0, 4]], 2)
    np.testing.assert_array_equal(pooled[0, 0], [9, 9])
    # Two cells in three bins: 0; 0 and 1; 1.
    pooled = pool_one_map([[5, 2]], [[0, 0, 0, 1]], 3)
    np.testing.assert_array_equal(pooled[0, 0], [5, 5, 2])


@pytest.mark.parametrize(("end", "cell"), [(0.4, 0), (0.5, 1), (1.49, 1), (1.5, 2), (2.5, 3)])
def test_ends_are_rounded_to_cells_and_halves_up(end, cell):
    pooled = pool_one_map([[0, 1, 2, 3, 4]], [[0, 0, 0, end]], 1)
    assert pooled == cell
    pooled = pool_one_map([[4, 3, 2, 1, 0]], [[0, end, 0, 4]], 1)
    assert pooled == 4 - cell


def test_negative_halves_are_rounded_away_from_zero():
    # From cell -1 to cell 0: the first of two bins is outside.
    pooled = pool_one_map([[7, 8]], [[0, -0.5, 0, 0]], 2)
    np.testing.assert_array_equal(pooled[0, 0], [0, 7])


def test_empty_bins_are_zero_even_where_all_values_are_negative():
    pooled = pool_one_map(-np.ones((2, 2)), [[0, 1, 1, 2], [5, 5, 6, 6], [-9, 0, -8, 1]], 2)
    np.testing.assert_array_equal(pooled, [[[-1, 0]] * 2, np.zeros((2, 2)), np.zeros((2, 2))])


def test_a_roi_whose_ends_are_swapped_is_one_cell():
    pooled = pool_one_map(np.arange(16).reshape(4, 4), [[2, 2, 0, 1]], 2)
    np.testing.assert_array_equal(pooled, [[[10, 10], [10, 10]]])


def test_bins_of_57_cells_end_with_the_roi():
    # 7 * (57 / 7) is more than 57 in float32.
    row = np.zeros((1, 60))
    row[0, 57] = 1
    assert not pool_one_map(row, [[0, 0, 0, 56]], 7).any()
    assert pool_one_map(row, [[0, 0, 0, 57]], 7).any()


def test_the_gradient_of_equal_cells_goes_to_the_first():
    ones = np.ones((1, 4, 4, 1))
    upstream = np.arange(1, 5).reshape(1, 2, 2, 1)
    _, gradient = pool_and_differentiate(
        ones, [[1, 1, 3, 3]], [0], upstream, 2, Static.NO, stride=1
    )
    # Three cells in two bins, which share the middle one.
    expected = np.zeros((4, 4))
    expected[1, 1], expected[1, 2], expected[2, 1], expected[2, 2] = 1, 2, 3, 4
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


# XLA takes seconds to compile a case; torchvision's below is one for it.
@pytest.mark.parametrize("static", [Static.NO, Static.PORTABLE])
@pytest.mark.parametrize("size", [(12, 20), (1, 33), (5, 3)])
@pytest.mark.parametrize("output_size", [1, 3, 7])
def test_loops_give_the_same(size, output_size, static):
    height, width = size
    features = rng(1).integers(-3, 4, size=(2, *size, 2))
    corner = rng(2).uniform([-16 * height, -16 * width], [16 * height, 16 * width], size=(12, 2))
    side = rng(3).uniform(-32, [[24 * height, 24 * width]], size=(12, 2))
    boxes = np.float32(np.concatenate([corner, corner + side], 1))
    image_index = rng(4).integers(0, 2, size=12)
    upstream = rng(5).normal(size=(12, output_size, output_size, 2)).astype("f")
    expected, cells = by_loops(features, boxes, image_index, output_size, 16)
    pooled, gradient = pool_and_differentiate(
        features, boxes, image_index, upstream, output_size, static
    )
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_allclose(gradient, spread(upstream, cells, features.shape), atol=1e-5)


@pytest.mark.parametrize("static", list(Static))
def test_torchvision_computed_the_same(static):
    case = np.load(TORCHVISION)
    inputs = [case[name] for name in ("features", "boxes", "image_index", "upstream")]
    pooled, gradient = pool_and_differentiate(*inputs, 7, static)
    np.testing.assert_array_equal(pooled, case["pooled"])
    np.testing.assert_array_equal(gradient, case["gradient"])


def test_the_level_says_which_map_is_pooled():
    maps = [tf.zeros([1, 4, 4, 1]), tf.ones([1, 2, 2, 1])]
    pooled = RoIPool(stride=2, level=1)(
        maps, tf.constant([[0.0, 0.0, 2.0, 2.0]]), tf.constant([0]), output_size=2
    )
    np.testing.assert_array_equal(pooled, np.ones((1, 2, 2, 1)))


def test_half_precision_stays():
    features = tf.cast(tf.random.stateless_normal([1, 6, 6, 4], [0, 1]), tf.bfloat16)
    box = tf.constant([[0.0, 0.0, 80.0, 80.0]])
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = roi_pool(features, box, tf.constant([0]), stride=16, output_size=3)
    assert pooled.dtype == tape.gradient(pooled, features).dtype == tf.bfloat16


def test_no_rois_give_no_features_and_no_gradient():
    pooled, gradient = pool_and_differentiate(
        np.ones((1, 6, 6, 2)), np.zeros((0, 4)), np.zeros(0), np.zeros((0, 7, 7, 2)), 7, Static.NO
    )
    assert pooled.shape == (0, 7, 7, 2) and not gradient.any()
