"""RoIAlign against answers written out by hand and a slow reading of its definition."""

import math

import numpy as np
import pytest
import tensorflow as tf

from model.roi_align import assign_levels, roi_align


def rng(seed=0):
    return np.random.default_rng(seed)


def pool_one_map(feature_map, boxes, output_size, *, sampling_ratio=2, static=False, aligned=True):
    """RoIAlign on a single map [H, W] of stride 1."""
    features = tf.constant(np.asarray(feature_map, np.float32)[None, :, :, None])
    boxes = tf.constant(np.asarray(boxes, np.float32))
    pooled = roi_align(
        [features],
        boxes,
        tf.zeros(boxes.shape[0], tf.int32),
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        static=static,
        aligned=aligned,
        min_level=0,
    )
    return pooled.numpy()[..., 0]


both_ways = pytest.mark.parametrize("static", [False, True], ids=["by_level", "static"])


@both_ways
def test_box_between_cells(static):
    # Detectron2's example: on arange(25) the value at the continuous point (y, x), of which the
    # centre of cell (i, j) is (i + 0.5, j + 0.5), is 5 (y - 0.5) + (x - 0.5).
    pooled = pool_one_map(np.arange(25).reshape(5, 5), [[1, 1, 3, 3]], 4, static=static)
    expected = [
        [4.5, 5.0, 5.5, 6.0],
        [7.0, 7.5, 8.0, 8.5],
        [9.5, 10.0, 10.5, 11.0],
        [12.0, 12.5, 13.0, 13.5],
    ]
    np.testing.assert_allclose(pooled[0], expected, rtol=1e-5)


@both_ways
def test_box_of_whole_cells_averages_them(static):
    # Two samples a side lie at quarters of a 2 x 2 cell bin: on a linear ramp that is the mean.
    ramp = np.arange(36).reshape(6, 6)
    pooled = pool_one_map(ramp, [[1, 1, 5, 5]], 2, static=static)
    means = [[ramp[1:3, 1:3].mean(), ramp[1:3, 3:5].mean()],
             [ramp[3:5, 1:3].mean(), ramp[3:5, 3:5].mean()]]  # fmt: skip
    np.testing.assert_allclose(pooled[0], means, rtol=1e-6)


@both_ways
def test_box_of_one_cell_gives_the_cell(static):
    values = rng().normal(size=(5, 6))
    boxes = [[i, j, i + 1, j + 1] for i in range(1, 4) for j in range(1, 5)]
    pooled = pool_one_map(values, boxes, 1, sampling_ratio=1, static=static)
    np.testing.assert_allclose(pooled.ravel(), values[1:4, 1:5].ravel(), atol=1e-6)


@both_ways
def test_axes_are_not_swapped(static):
    rows = np.repeat(np.arange(8.0)[:, None], 6, axis=1)
    pooled = pool_one_map(rows, [[1, 2, 7, 4]], 3, static=static)
    np.testing.assert_allclose(pooled[0], [[1.5] * 3, [3.5] * 3, [5.5] * 3], rtol=1e-6)


@both_ways
def test_border_is_repeated_for_one_cell_and_zero_beyond(static):
    ones = np.ones((4, 4))
    # Samples of a 4 x 4 box moved up by d lie at -d + 0.0, 1, 2, 3 cells.
    for shift, inside in ((0.75, 4), (1.25, 3), (2.25, 2), (4.75, 0)):
        box = [[-shift, 0, 4 - shift, 4]]
        pooled = pool_one_map(ones, box, 4, sampling_ratio=1, static=static)
        assert pooled[0, :, 0].sum() == pytest.approx(inside)
        down = [[shift, 0, 4 + shift, 4]]
        pooled = pool_one_map(ones, down, 4, sampling_ratio=1, static=static)
        assert pooled[0, :, 0].sum() == pytest.approx(inside)


@both_ways
def test_empty_box_reads_its_point(static):
    values = np.arange(25.0).reshape(5, 5)
    pooled = pool_one_map(values, [[2.5, 1.5, 2.5, 1.5]], 2, static=static)
    np.testing.assert_allclose(pooled[0], np.full((2, 2), values[2, 1]), rtol=1e-6)


@both_ways
def test_unaligned_box_lies_half_a_cell_further(static):
    # What the aligned variant reads at (y, x) the other reads at (y + 0.5, x + 0.5), which is
    # 5 · 0.5 + 0.5 = 3 more on arange(25).
    values = np.arange(25).reshape(5, 5)
    pooled = pool_one_map(values, [[1, 1, 3, 3]], 2, static=static, aligned=False)
    np.testing.assert_allclose(pooled[0], [[9.0, 10.0], [14.0, 15.0]], rtol=1e-6)


@both_ways
def test_unaligned_box_is_at_least_a_cell_wide(static):
    # The point (1, 2) grows to the cell from there to (2, 3), whose quarters are sampled: rows
    # 1.25 and 1.75, columns 2.25 and 2.75.
    pooled = pool_one_map(
        np.arange(25).reshape(5, 5),
        [[1, 2, 1, 2]],
        2,
        sampling_ratio=1,
        static=static,
        aligned=False,
    )
    np.testing.assert_allclose(pooled[0], [[8.5, 9.0], [11.0, 11.5]], rtol=1e-6)


def test_adaptive_sampling_takes_as_many_samples_as_a_bin_has_cells():
    # Bins of 3 x 1 cells of a map that has a single 1 at (4, 2): the bin of rows 3 to 6 has three
    # samples a column, at the centres of its cells, and one of them sees the 1.
    spike = np.zeros((8, 8))
    spike[4, 2] = 1
    pooled = pool_one_map(spike, [[0, 1, 6, 3]], 2, sampling_ratio=0)
    np.testing.assert_allclose(pooled[0], [[0, 0], [0, 1 / 3]], atol=1e-6)
    # Of 3.5 cells a bin takes four samples: rows 3.5 + 0.875 (k + 0.5) - 0.5, of which those at
    # 3.4375 and 4.3125 see 0.4375 and 0.6875 of the 1.
    pooled = pool_one_map(spike, [[0, 1, 7, 3]], 2, sampling_ratio=0)
    np.testing.assert_allclose(pooled[0], [[0, 0], [0, (0.4375 + 0.6875) / 4]], atol=1e-6)


def test_adaptive_sampling_of_an_empty_box_reads_nothing():
    pooled = pool_one_map(np.ones((4, 4)), [[1, 1, 1, 3], [0, 0, 4, 4]], 2, sampling_ratio=0)
    np.testing.assert_allclose(pooled, [np.zeros((2, 2)), np.ones((2, 2))])


def test_adaptive_sampling_has_no_static_shape():
    with pytest.raises(ValueError, match="sampling_ratio 0"):
        pool_one_map(np.ones((4, 4)), [[0, 0, 4, 4]], 2, sampling_ratio=0, static=True)


def slow_roi_align(
    pyramid, rois, levels, image_index, output_size, sampling_ratio, min_level, aligned=True
):
    """The definition, sample by sample; also the weight each cell of each level has in it."""
    channels = pyramid[0].shape[-1]
    pooled = np.zeros((len(rois), output_size, output_size, channels))
    weights = []
    for roi, level, image in zip(rois.astype(np.float64), levels, image_index, strict=True):
        height, width = pyramid[level].shape[1:3]
        weight = np.zeros((output_size, output_size, height, width))
        corner = roi[:2] / 2 ** (min_level + level) - (0.5 if aligned else 0.0)
        side = (roi[2:] - roi[:2]) / 2 ** (min_level + level)
        side = side if aligned else np.maximum(side, 1.0)
        counts = [sampling_ratio or math.ceil(cells / output_size) for cells in side]
        for i, j, a, b in np.ndindex(output_size, output_size, *counts):
            y = corner[0] + (i + (a + 0.5) / counts[0]) * side[0] / output_size
            x = corner[1] + (j + (b + 0.5) / counts[1]) * side[1] / output_size
            if not (-1 <= y <= height and -1 <= x <= width):
                continue
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            for row in {math.floor(y), math.ceil(y)}:
                for column in {math.floor(x), math.ceil(x)}:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    weight[i, j, row, column] += share / math.prod(counts)
        index = len(weights)
        pooled[index] = np.einsum("ijhw,hwc->ijc", weight, pyramid[level][image])
        weights.append(weight)
    return pooled, weights


def random_case(num_rois=24, seed=0):
    """Two images, strides 4, 8, 16; RoIs of all sizes, some partly or entirely outside."""
    draw = rng(seed)
    pyramid = [draw.normal(size=(2, 24 >> k, 32 >> k, 3)).astype(np.float32) for k in range(3)]
    centres = draw.uniform(-20, [116, 148], (num_rois, 2))
    sides = np.exp(draw.uniform(np.log(4), np.log(500), (num_rois, 2)))
    rois = np.concatenate([centres - sides / 2, centres + sides / 2], 1).astype(np.float32)
    rois[0] = 0.0
    images = draw.integers(0, 2, num_rois).astype(np.int32)
    return pyramid, rois, images


def run(pyramid, rois, images, output_size, sampling_ratio, static, aligned=True):
    return roi_align(
        [tf.convert_to_tensor(level) for level in pyramid],
        tf.constant(rois),
        tf.constant(images),
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        static=static,
        aligned=aligned,
    )


every_way = pytest.mark.parametrize(
    "sampling_ratio, static", [(2, False), (2, True), (0, False)], ids=["by_level", "static", "0"]
)
variants = pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])


@variants
@pytest.mark.parametrize(
    "output_size, sampling_ratio, static",
    [
        (7, 2, False),
        (7, 2, True),
        (3, 1, False),
        (3, 1, True),
        (2, 3, False),
        (2, 3, True),
        (7, 0, False),
        (1, 0, False),
    ],
)
def test_equals_the_definition(static, output_size, sampling_ratio, aligned):
    pyramid, rois, images = random_case()
    levels = assign_levels(tf.constant(rois), 2, 4).numpy() - 2
    assert set(levels) == {0, 1, 2}
    settings = output_size, sampling_ratio
    expected, _ = slow_roi_align(pyramid, rois, levels, images, *settings, 2, aligned)
    pooled = run(pyramid, rois, images, *settings, static, aligned)
    np.testing.assert_allclose(pooled, expected, atol=2e-4)


def feature_gradients(
    pyramid, rois, images, output_size, sampling_ratio, static, upstream, aligned=True
):
    levels = [tf.constant(level) for level in pyramid]
    with tf.GradientTape() as tape:
        tape.watch(levels)
        pooled = run(levels, rois, images, output_size, sampling_ratio, static, aligned)
        loss = tf.reduce_sum(pooled * upstream)
    return [tf.convert_to_tensor(gradient).numpy() for gradient in tape.gradient(loss, levels)]


@variants
@every_way
def test_gradient_is_the_transpose_of_the_definition(static, sampling_ratio, aligned):
    pyramid, rois, images = random_case()
    upstream = rng(1).normal(size=(len(rois), 3, 3, 3)).astype(np.float32)
    levels = assign_levels(tf.constant(rois), 2, 4).numpy() - 2
    settings = 3, sampling_ratio
    _, weights = slow_roi_align(pyramid, rois, levels, images, *settings, 2, aligned)
    expected = [np.zeros(level.shape) for level in pyramid]
    for weight, level, image, above in zip(weights, levels, images, upstream, strict=True):
        expected[level][image] += np.einsum("ijhw,ijc->hwc", weight, above)
    gradients = feature_gradients(pyramid, rois, images, *settings, static, upstream, aligned)
    for gradient, transposed in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, transposed, atol=2e-4)


def test_gradient_loses_no_update_to_a_race():
    # Many RoIs upon the same few cells, where unordered additions would collide.
    draw = rng(2)
    pyramid = [draw.normal(size=(1, 8, 8, 64)).astype(np.float32)]
    corner = draw.uniform(0, 8, (256, 2))
    rois = np.concatenate([corner, corner + draw.uniform(8, 24, (256, 2))], 1).astype(np.float32)
    images = np.zeros(256, np.int32)
    upstream = draw.uniform(0.5, 1, (256, 7, 7, 64)).astype(np.float32)
    first, *rest = (
        feature_gradients(pyramid, rois, images, 7, 2, False, upstream)[0] for _ in range(4)
    )
    for again in rest:
        np.testing.assert_array_equal(again, first)
    # All samples lie within a cell of the map, so that the weights of each bin add up to 1.
    np.testing.assert_allclose(first.sum(), upstream.sum(dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize("enabled, warnings", [(True, 0), (False, 1)])
def test_a_gradient_that_may_race_is_warned_about(monkeypatch, capsys, enabled, warnings):
    monkeypatch.setattr("model.roi_align.is_op_determinism_enabled", lambda: enabled)
    pyramid, rois, images = random_case(4)
    run(pyramid[:1], rois, images, 2, 2, False)
    assert not capsys.readouterr().err
    feature_gradients(pyramid[:1], rois, images, 2, 2, False, tf.ones([len(rois), 2, 2, 3]))
    assert capsys.readouterr().err.count("Warning: the gradient of RoIAlign") == warnings


@both_ways
def test_no_gradient_to_the_boxes(static):
    pyramid, rois, images = random_case(4)
    rois = tf.constant(rois)
    with tf.GradientTape() as tape:
        tape.watch(rois)
        loss = tf.reduce_sum(
            roi_align(
                [tf.constant(level) for level in pyramid],
                rois,
                tf.constant(images),
                output_size=2,
                sampling_ratio=2,
                static=static,
            )
        )
    assert tape.gradient(loss, rois) is None


@every_way
def test_no_rois(static, sampling_ratio):
    pyramid, rois, images = random_case(4)
    gradients = feature_gradients(
        pyramid, rois[:0], images[:0], 2, sampling_ratio, static, tf.zeros([0, 2, 2, 3])
    )
    assert run(pyramid, rois[:0], images[:0], 2, sampling_ratio, static).shape == (0, 2, 2, 3)
    assert not any(np.any(gradient) for gradient in gradients)


@every_way
def test_bfloat16_features(static, sampling_ratio):
    pyramid, rois, images = random_case()
    low = [tf.cast(level, tf.bfloat16) for level in pyramid]
    expected = run(
        [tf.cast(level, tf.float32) for level in low], rois, images, 7, sampling_ratio, static
    )
    pooled = run(low, rois, images, 7, sampling_ratio, static)
    assert pooled.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(pooled, tf.float32), expected, atol=0.03)


def test_static_compiles_and_order_of_rois_is_kept():
    pyramid, rois, images = random_case()
    static = tf.function(lambda: run(pyramid, rois, images, 3, 2, True), jit_compile=True)()
    by_level = run(pyramid, rois, images, 3, 2, False)
    np.testing.assert_allclose(static, by_level, atol=2e-4)
    backwards = run(pyramid, rois[::-1], images[::-1], 3, 2, False)
    np.testing.assert_array_equal(backwards[::-1], by_level)


def square(side):
    return [10.0, 20.0, 10.0 + side, 20.0 + side]


@pytest.mark.parametrize(
    "box, level",
    [
        (square(112), 3),
        (square(111.99), 2),
        (square(224), 4),
        (square(223.99), 3),
        (square(448), 5),
        (square(447.99), 4),
        (square(5000), 5),
        (square(1), 2),
        ([0, 0, 112, 448], 4),  # √(112 · 448) = 224
        ([0, 0, 56, 224], 3),
        ([0, 0, 0, 0], 2),
        ([5, 5, 5, 400], 2),
        ([9, 9, 3, 3], 2),
    ],
)
def test_level_of_a_box(box, level):
    assert assign_levels(tf.constant([box], tf.float32), 2, 5).numpy() == [level]


def test_every_scale_of_the_boundary_stays_on_its_level():
    sides = [224.0 * 2.0**k for k in range(-5, 5)]
    rois = tf.constant([[0.0, 0.0, side, side] for side in sides])
    np.testing.assert_array_equal(assign_levels(rois, -10, 20), 4 + np.arange(-5, 5))
    np.testing.assert_array_equal(
        tf.function(assign_levels, jit_compile=True)(rois, -10, 20), 4 + np.arange(-5, 5)
    )
