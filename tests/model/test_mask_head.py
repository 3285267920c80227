"""Mask head: layers, targets and loss."""

import math

import numpy as np
import pytest
import tensorflow as tf

from model.layers import interleave
from model.mask_head import MaskHead, ends_in_cells, mask_loss, mask_targets, sample_weights


def rng(seed=0):
    return np.random.default_rng(seed)


def f32(values):
    return tf.constant(values, tf.float32)


def test_ends_of_boxes_on_an_array():
    # 4 rows of 2.5 pixels and 5 columns of 1 pixel.
    windows, boxes = f32([[10, 20, 20, 25]]), f32([[15, 18, 22.5, 21]])
    np.testing.assert_allclose(ends_in_cells(boxes, windows, 4, 0), [[2.0], [5.0]])
    np.testing.assert_allclose(ends_in_cells(boxes, windows, 5, 1), [[-2.0], [1.0]])


def weights_of(start, stop, bins, cells, shift=0.5):
    return sample_weights(f32([start]), f32([stop]), bins, cells, shift)[0]


def test_weights_by_hand():
    # Bins of 1.5 cells take two samples, 0.75 apart: at 0.375, 1.125 and at 1.875, 2.625 from the
    # row's end, half a cell less from the centre of cell 0. The first is held there.
    np.testing.assert_allclose(
        weights_of(0, 3, 2, 4), [[0.6875, 0.3125, 0, 0], [0, 0.3125, 0.625, 0.0625]], atol=1e-6
    )
    # Without the shift the same samples read half a cell further.
    np.testing.assert_allclose(
        weights_of(0, 3, 2, 4, shift=0.0),
        [[0.3125, 0.625, 0.0625, 0], [0, 0.0625, 0.625, 0.3125]],
        atol=1e-6,
    )


def test_weights_at_the_ends_of_the_row():
    # One sample a bin, at -0.75, -0.25, 0.25, 0.75 cells: within the row, be it by a quarter of a
    # cell, the first cell is all there is; outside it nothing is.
    np.testing.assert_allclose(weights_of(-1, 1, 4, 3)[:, 0], [0, 0, 1, 0.75])
    np.testing.assert_allclose(weights_of(2, 4, 4, 3)[:, 2], [0.75, 1, 0, 0])


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_weights_equal_the_definition(seed, shift):
    draw = rng(seed)
    start = draw.uniform(-8, 14, 50)
    stop = start + draw.uniform(0.1, 18, 50)
    weights = sample_weights(f32(start), f32(stop), 3, 10, shift).numpy()
    for index in range(50):
        np.testing.assert_allclose(
            weights[index], slow_weights(start[index], stop[index], 3, 10, shift), atol=1e-4
        )


def slow_weights(start, stop, bins, cells, shift):
    """The definition, sample by sample."""
    weights = np.zeros((bins, cells))
    count = min(math.ceil((stop - start) / bins), 2 * math.ceil(cells / bins))
    for i, k in np.ndindex(bins, count):
        point = start + (i + (k + 0.5) / count) * (stop - start) / bins
        if not 0 <= point <= cells:
            continue
        position = min(max(point - shift, 0), cells - 1)
        low = math.floor(position)
        weights[i, low] += (1 - (position - low)) / count
        weights[i, min(low + 1, cells - 1)] += (position - low) / count
    return weights


def test_targets_of_the_window_itself_are_the_mask():
    masks = rng().integers(0, 2, (3, 8, 8)).astype(np.uint8)
    windows = f32([[0, 0, 8, 8], [3, 5, 19, 9], [1.5, 2.5, 4.25, 80]])
    for rule in ("bitmap", "soft"):
        whole = mask_targets(tf.constant(masks), windows, windows, 8, rule)
        # The soft rule reads cell (i, j) at its corner, a quarter of each of its neighbours.
        neighbours = np.pad(masks, ((0, 0), (0, 1), (0, 1)), mode="edge").astype(np.float32)
        between = (neighbours[:, 1:] + neighbours[:, :-1]) / 2
        between = (between[:, :, 1:] + between[:, :, :-1]) / 2
        expected = masks if rule == "bitmap" else between
        np.testing.assert_allclose(whole, expected, atol=2e-5)


def test_targets_are_the_majority_of_each_cell():
    # 4 x 4 mask reduced to 2 x 2: 2 of 4 cells are enough, 1 is not.
    mask = np.uint8([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    window = f32([[0, 0, 4, 4]])
    targets = mask_targets(tf.constant(mask[None]), window, window, 2)
    np.testing.assert_array_equal(targets[0], [[1, 0], [1, 0]])


def test_soft_targets_by_hand():
    # One sample a bin, which without the shift lies between the cells.
    mask = tf.constant([[[1, 0], [0, 0]]], tf.uint8)
    window = f32([[0, 0, 2, 2]])
    np.testing.assert_allclose(
        mask_targets(mask, window, window, 2, "soft")[0], [[0.25, 0], [0, 0]], atol=1e-6
    )
    # A RoI of no size is a cell wide: samples at 0.25 and 0.75 cells.
    point = f32([[0, 0, 0, 0]])
    np.testing.assert_allclose(
        mask_targets(mask, window, point, 2, "soft")[0], np.outer([0.75, 0.25], [0.75, 0.25])
    )


def blobs(num, side, seed):
    """Smooth random masks."""
    draw = rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    masks = []
    for _ in range(num):
        a, b, c, d = draw.uniform(2, 9, 4)
        masks.append(np.sin(a * rows + b * columns) + np.cos(c * rows - d * columns) > 0.1)
    return np.array(masks, np.uint8)


def random_boxes(num, seed):
    draw = rng(seed)
    corner = draw.uniform(0, 60, (num, 2))
    windows = np.concatenate([corner, corner + draw.uniform(10, 60, (num, 2))], 1)
    rois = windows + draw.uniform(-12, 12, (num, 4))
    rois[:, 2:] = np.maximum(rois[:, 2:], rois[:, :2] + 4)
    return windows.astype(np.float32), rois.astype(np.float32)


def supersampled_share(mask, window, roi, cells, points=24):
    """Share of each grid cell that the mask covers, counted at points² points a cell."""
    shares = (np.arange(cells * points) + 0.5) / (cells * points)
    index = []
    for axis in (0, 1):
        position = roi[axis] + shares * (roi[axis + 2] - roi[axis])
        cell = (position - window[axis]) / (window[axis + 2] - window[axis]) * mask.shape[axis]
        index.append(np.floor(cell).astype(int))
    inside = [(i >= 0) & (i < n) for i, n in zip(index, mask.shape, strict=True)]
    rows, columns = (np.clip(i, 0, n - 1) for i, n in zip(index, mask.shape, strict=True))
    values = mask[rows][:, columns] * np.outer(*inside)
    return values.reshape(cells, points, cells, points).mean((1, 3))


@pytest.mark.parametrize("rule, shift", [("bitmap", 0.5), ("soft", 0.0)])
@pytest.mark.parametrize("side", [28, 112])
def test_targets_equal_the_definition(side, rule, shift):
    masks = blobs(8, side, seed=side)
    windows, rois = random_boxes(8, seed=side)
    targets = mask_targets(tf.constant(masks), f32(windows), f32(rois), 14, rule).numpy()
    for mask, window, roi, target in zip(masks, windows, rois, targets, strict=True):
        scale = side / np.tile(window[2:] - window[:2], 2)
        y1, x1, y2, x2 = (roi - np.tile(window[:2], 2)) * scale
        rows, columns = (slow_weights(*ends, 14, side, shift) for ends in ((y1, y2), (x1, x2)))
        average = rows @ mask @ columns.T
        if rule == "soft":
            np.testing.assert_allclose(target, average, atol=1e-4)
        else:
            decided = np.abs(average - 0.5) > 1e-4
            assert decided.mean() > 0.95
            np.testing.assert_array_equal(target[decided], average[decided] >= 0.5)


@pytest.mark.parametrize("side", [28, 112])
def test_targets_are_near_the_area_covered(side):
    masks = blobs(8, side, seed=side)
    windows, rois = random_boxes(8, seed=side)
    targets = mask_targets(tf.constant(masks), f32(windows), f32(rois), 14).numpy()
    assert 0.2 < targets.mean() < 0.8
    for mask, window, roi, target in zip(masks, windows, rois, targets, strict=True):
        share = supersampled_share(mask, window, roi, 14)
        # Where the window ends within a bin, its two samples a side tell the share to a quarter.
        decided = np.abs(share - 0.5) > 0.26
        assert decided.mean() > 0.75
        np.testing.assert_array_equal(target[decided], share[decided] >= 0.5)


def test_cropped_masks_and_whole_bitmaps_give_equal_targets():
    draw = rng(4)
    bitmap = np.zeros((6, 64, 64), np.uint8)
    windows, crops = [], np.zeros((6, 16, 16), np.uint8)
    for index in range(6):
        y, x = draw.integers(0, 48, 2)
        crops[index] = draw.integers(0, 2, (16, 16))
        bitmap[index, y : y + 16, x : x + 16] = crops[index]
        windows.append([y, x, y + 16, x + 16])
    windows = np.float32(windows)
    rois = windows + draw.uniform(-6, 6, (6, 4))
    whole = np.tile(np.float32([0, 0, 64, 64]), (6, 1))
    from_crops = mask_targets(tf.constant(crops), f32(windows), f32(rois), 14).numpy()
    from_bitmaps = mask_targets(tf.constant(bitmap), f32(whole), f32(rois), 14).numpy()
    # A crop ends abruptly where the bitmap's interpolation fades into the pixel beyond, so only
    # targets with a sample within half a pixel of the box's edge may differ.
    for index in range(6):
        inside = [
            (positions[index] >= windows[index, axis] + 0.5 + margin)
            & (positions[index] <= windows[index, axis + 2] - 0.5 - margin)
            for axis, positions, margin in bin_centres(rois, 14)
        ]
        outside = [
            (positions[index] <= windows[index, axis] - 0.5 - margin)
            | (positions[index] >= windows[index, axis + 2] + 0.5 + margin)
            for axis, positions, margin in bin_centres(rois, 14)
        ]
        sure = np.logical_and.outer(*inside) | np.logical_or.outer(*outside)
        assert sure.mean() > 0.6
        np.testing.assert_array_equal(from_crops[index][sure], from_bitmaps[index][sure])
    assert (from_crops != from_bitmaps).mean() < 0.05


def bin_centres(rois, bins):
    """For each axis: its number, the bins' centres in pixels [N, bins], and half a bin at most."""
    for axis in (0, 1):
        step = (rois[:, axis + 2] - rois[:, axis]) / bins
        yield axis, rois[:, axis, None] + (np.arange(bins) + 0.5) * step[:, None], step.max() / 2


def test_targets_shift_with_everything():
    masks = blobs(4, 28, seed=9)
    windows, rois = random_boxes(4, seed=9)
    here = mask_targets(tf.constant(masks), f32(windows), f32(rois), 14)
    there = mask_targets(tf.constant(masks), f32(windows + 256.0), f32(rois + 256.0), 14)
    assert (here.numpy() != there.numpy()).mean() < 0.002


def test_no_rois():
    targets = mask_targets(
        tf.zeros([0, 112, 112], tf.uint8), tf.zeros([0, 4]), tf.zeros([0, 4]), 28
    )
    assert targets.shape == (0, 28, 28)
    assert float(mask_loss(targets, targets, tf.zeros([0], tf.bool))) == 0.0


def test_loss_by_hand():
    logits = f32([[[0.0, 2.0], [-1.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]], [[99.0, 99], [99, 99]]])
    targets = f32([[[1, 1], [0, 0]], [[0, 0], [0, 1]], [[0, 0], [0, 0]]])
    softplus = [math.log1p(math.exp(x)) for x in (0, -2, -1, 3, 1, 1, 1, -1)]
    expected = (sum(softplus[:4]) / 4 + sum(softplus[4:]) / 4) / 2
    loss = mask_loss(logits, targets, tf.constant([True, True, False]))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_loss_of_empty_slots_is_zero_without_gradient():
    logits = f32(rng().normal(size=(3, 4, 4)))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = mask_loss(logits, tf.ones_like(logits), tf.constant([False] * 3))
    assert float(loss) == 0.0
    assert not tape.gradient(loss, logits).numpy().any()


def test_class_filter_equals_the_channel_of_the_full_convolution():
    head = MaskHead(rng(), 6, 5)
    head.logits.bias.assign(np.arange(5, dtype=np.float32))
    features = f32(rng(1).normal(size=(7, 4, 4, 6)))
    classes = tf.constant([0, 1, 2, 3, 4, 4, 2])
    x = features
    for conv in head.convs:
        x = tf.nn.relu(conv(x))
    x = tf.nn.relu(head.deconv(x))
    full = tf.matmul(x, head.logits.kernel[0, 0]) + head.logits.bias
    channels = tf.stack([interleave(full[:, :, k], 4, 4) for k in range(5)], -1)
    expected = tf.gather(channels, classes, axis=-1, batch_dims=1)
    logits = head(features, classes)
    assert logits.shape == (7, 8, 8)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_gradient_reaches_the_filter_of_the_class_only():
    head = MaskHead(rng(), 4, 5)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(head(f32(rng(1).normal(size=(2, 2, 2, 4))), tf.constant([3, 1])))
    kernel, bias = tape.gradient(loss, [head.logits.kernel.value, head.logits.bias.value])
    touched = np.abs(tf.convert_to_tensor(kernel)).sum((0, 1, 2)) > 0
    np.testing.assert_array_equal(touched, [False, True, False, True, False])
    np.testing.assert_array_equal(tf.convert_to_tensor(bias), [0, 16, 0, 16, 0])


def test_shapes_and_dtypes():
    for dtype in ("float32", "mixed_bfloat16"):
        head = MaskHead(rng(), 4, 3, dtype=dtype)
        logits = head(tf.ones([3, 14, 14, 4]), tf.ones([3], tf.int32))
        assert logits.shape == (3, 28, 28)
        assert logits.dtype == tf.float32


def test_full_width_has_mask_rcnns_parameters():
    head = MaskHead(rng(), 256, 81)
    parameters = sum(int(np.prod(variable.shape)) for variable in head.trainable_variables)
    assert parameters == 4 * (9 * 256 * 256 + 256) + (4 * 256 * 256 + 256) + (256 * 81 + 81)


def test_half_covered_cells_do_not_depend_on_how_the_graph_is_run():
    # Blocks of 4 x 4 cells a bin, of which random masks often fill exactly 8.
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 100, (40, 2))
    boxes = f32(np.concatenate([corner, corner + rng.uniform(5, 200, (40, 2))], axis=1))
    masks = tf.constant(rng.integers(0, 2, (40, 112, 112)), tf.uint8)

    def targets(masks, boxes):
        return mask_targets(masks, boxes, boxes, 28)

    blocks = masks.numpy().reshape(40, 28, 4, 28, 4).sum(axis=(2, 4))
    assert (blocks == 8).sum() > 1000
    for run in (targets, tf.function(targets), tf.function(targets, jit_compile=True)):
        np.testing.assert_array_equal(run(masks, boxes), blocks >= 8)
