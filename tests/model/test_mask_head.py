"""Mask head: layers, targets and loss."""

import math

import numpy as np
import pytest
import tensorflow as tf

from model.layers import interleave
from model.mask_head import MaskHead, cover_mask, coverage, mask_loss, mask_targets


def rng(seed=0):
    return np.random.default_rng(seed)


def f32(values):
    return tf.constant(values, tf.float32)


def test_coverage_by_hand():
    covered = coverage(f32([0.5]), f32([3.5]), 2, 4)
    np.testing.assert_allclose(covered[0], [[0.5, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5]])


@pytest.mark.parametrize("seed", range(3))
def test_coverage_adds_up_to_what_lies_within_the_row(seed):
    draw = rng(seed)
    start = draw.uniform(-8, 14, 50)
    stop = start + draw.uniform(0, 15, 50)
    covered = coverage(f32(start), f32(stop), 7, 10).numpy()
    clipped = np.clip(stop, 0, 10) - np.clip(start, 0, 10)
    np.testing.assert_allclose(covered.sum((1, 2)), clipped, atol=1e-4)
    edges = start[:, None] + (stop - start)[:, None] * np.arange(8) / 7
    of_bin = np.diff(np.clip(edges, 0, 10), axis=1)
    np.testing.assert_allclose(covered.sum(2), of_bin, atol=1e-4)
    of_cell = [np.minimum(stop, j + 1) - np.maximum(start, j) for j in range(10)]
    np.testing.assert_allclose(covered.sum(1), np.clip(of_cell, 0, None).T, atol=1e-4)
    assert (covered >= 0).all()


def test_cover_mask_by_hand():
    # A 4 x 4 array over the window [10, 20, 14, 28]: its cells are 1 pixel high and 2 wide.
    mask = np.zeros((1, 4, 4), np.uint8)
    mask[0, 1:3, :2] = 1  # pixels 11 to 13 by 20 to 24
    window = f32([[10, 20, 14, 28]])
    whole = cover_mask(tf.constant(mask), window, window, 1)
    np.testing.assert_allclose(whole, [[[4.0]]])
    # Bins of 2 by 4 pixels; the left ones begin 3 pixels before the window.
    quarters = cover_mask(tf.constant(mask), window, f32([[11, 17, 15, 25]]), 2)
    np.testing.assert_allclose(quarters, [[[1.0, 3.0], [0.0, 0.0]]])
    apart = cover_mask(tf.constant(mask), window, f32([[50, 50, 60, 60]]), 2)
    assert not apart.numpy().any()


def test_targets_of_the_window_itself_are_the_mask():
    masks = rng().integers(0, 2, (3, 8, 8)).astype(np.uint8)
    windows = f32([[0, 0, 8, 8], [3, 5, 19, 9], [1.5, 2.5, 4.25, 80]])
    np.testing.assert_array_equal(mask_targets(tf.constant(masks), windows, windows, 8), masks)


def test_targets_are_the_majority_of_each_cell():
    # 4 x 4 mask reduced to 2 x 2: 2 of 4 cells are enough, 1 is not.
    mask = np.uint8([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    window = f32([[0, 0, 4, 4]])
    targets = mask_targets(tf.constant(mask[None]), window, window, 2)
    np.testing.assert_array_equal(targets[0], [[1, 0], [1, 0]])


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


@pytest.mark.parametrize("side", [28, 112])
def test_targets_equal_supersampling(side):
    masks = blobs(8, side, seed=side)
    windows, rois = random_boxes(8, seed=side)
    targets = mask_targets(tf.constant(masks), f32(windows), f32(rois), 14).numpy()
    assert 0.2 < targets.mean() < 0.8
    for mask, window, roi, target in zip(masks, windows, rois, targets, strict=True):
        share = supersampled_share(mask, window, roi, 14)
        decided = np.abs(share - 0.5) > 0.05
        assert decided.mean() > 0.9
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
    from_crops = mask_targets(tf.constant(crops), f32(windows), f32(rois), 14)
    from_bitmaps = mask_targets(tf.constant(bitmap), f32(whole), f32(rois), 14)
    np.testing.assert_array_equal(from_crops, from_bitmaps)


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
