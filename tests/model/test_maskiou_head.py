"""MaskIoU head: layers, targets and loss."""

import math

import numpy as np
import pytest
import tensorflow as tf

from model.mask_head import mask_targets
from model.maskiou_head import (
    MaskIoUHead,
    _pool,
    area_ratios,
    closed_full_areas,
    maskiou_loss,
    maskiou_targets,
    ratio_full_areas,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def f32(values):
    return tf.constant(values, tf.float32)


def target_of(predicted, mask, full, threshold=0.5):
    """Target of one mask given as 0/1 arrays."""
    logits = np.where(np.asarray(predicted) > 0, 5.0, -5.0)
    return float(maskiou_targets(f32(logits[None]), f32(mask)[None], f32([full]), threshold)[0])


def test_target_by_hand():
    predicted = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    mask = [[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    # 4 predicted cells, 6 in the object, 2 in both; with the whole object in the RoI the union
    # is 8, and with another 6 cells outside it is 14.
    assert target_of(predicted, mask, 6.0) == pytest.approx(2 / 8)
    assert target_of(predicted, mask, 12.0) == pytest.approx(2 / 14)


def test_what_the_roi_cuts_off_counts_against_the_mask():
    # The object is a square of 20 pixels; the RoI holds its left half, predicted perfectly.
    gt_masks = tf.ones([1, 112, 112], tf.uint8)
    window, roi = f32([[0, 0, 20, 20]]), f32([[0, 0, 20, 10]])
    targets = mask_targets(gt_masks, window, roi, 28)
    np.testing.assert_array_equal(targets, np.ones((1, 28, 28)))
    logits = tf.fill([1, 28, 28], 3.0)
    for full in (
        closed_full_areas(targets, f32([400.0]), roi),
        ratio_full_areas(targets, area_ratios(gt_masks, window, roi)),
    ):
        np.testing.assert_allclose(full, [2 * 28 * 28], rtol=1e-5)
        np.testing.assert_allclose(maskiou_targets(logits, targets, full), [0.5], rtol=1e-5)


def disc_case(num=6, seed=0):
    """Discs in their boxes, and RoIs that contain them entirely."""
    draw = rng(seed)
    centre = np.arange(112) - 55.5
    disc = np.hypot(centre[:, None], centre[None, :]) <= 56
    corner = draw.uniform(10, 50, (num, 2))
    windows = np.concatenate([corner, corner + draw.uniform(20, 90, (num, 2))], 1)
    rois = windows + draw.uniform(0, 6, (num, 4)) * [-1, -1, 1, 1]
    masks = np.tile(disc.astype(np.uint8), (num, 1, 1))
    sides = windows[:, 2:] - windows[:, :2]
    return tf.constant(masks), f32(windows), f32(rois), f32(disc.mean() * sides.prod(1))


def test_area_ratio_counts_whole_pixels():
    # Of the 3 x 4 pixels at (1, 2) the RoI, truncated to rows 2 to 4 and columns 0 to 4, has 2 x 2.
    mask = np.zeros((1, 6, 8), np.uint8)
    mask[0, 1:4, 2:6] = 1
    image = f32([[0, 0, 6, 8]])
    ratio = area_ratios(tf.constant(mask), image, f32([[2.9, 0.9, 4.9, 4.2]]))
    np.testing.assert_allclose(ratio, [4 / 12], rtol=1e-6)
    # A side of no whole pixel becomes one: (3, 5) is in the object, (0, 0) is not.
    for roi, pixels in (([3.2, 5.1, 3.9, 5.9], 1), ([0.2, 0.1, 0.9, 0.9], 0)):
        ratio = area_ratios(tf.constant(mask), image, f32([roi]))
        np.testing.assert_allclose(ratio, [pixels / 12], rtol=1e-6)


def test_area_ratio_of_a_crop_measures_parts_of_its_cells():
    # 2 x 2 cells of 5 pixels a side, the right ones set; the RoI's pixels are rows 3 to 8 and
    # columns 3 to 7 of the crop, of which 2 columns are in the object.
    crop = tf.constant([[[0, 1], [0, 1]]], tf.uint8)
    window, roi = f32([[10, 20, 20, 30]]), f32([[13.5, 23.5, 18.5, 27.5]])
    np.testing.assert_allclose(area_ratios(crop, window, roi), [5 * 2 / 50], rtol=1e-6)


def test_area_ratios_equal_counting_pixels():
    draw = rng(5)
    masks = (draw.uniform(size=(40, 20, 30)) < 0.4).astype(np.uint8)
    corner = draw.uniform(0, [17, 27], (40, 2))
    rois = np.concatenate([corner, corner + draw.uniform(0.1, 3 + (corner < 8) * 9)], 1)
    counted = []
    for mask, roi in zip(masks, rois.astype(np.float32), strict=True):
        y1, x1, y2, x2 = roi.astype(int)
        inside = mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
        counted.append(inside.sum() / mask.sum())
    image = np.tile(np.float32([0, 0, 20, 30]), (40, 1))
    ratios = area_ratios(tf.constant(masks), f32(image), f32(rois))
    np.testing.assert_allclose(ratios, counted, atol=1e-6)


def test_both_areas_agree_on_contained_objects_and_perfect_masks_score_one():
    masks, windows, rois, areas = disc_case()
    targets = mask_targets(masks, windows, rois, 28)
    closed = closed_full_areas(targets, areas, rois)
    # Truncation may cut a pixel off the object at the RoI's far edges.
    contained = rois + tf.constant([0.0, 0.0, 1.0, 1.0])
    ratio = ratio_full_areas(targets, area_ratios(masks, windows, contained))
    np.testing.assert_allclose(ratio, tf.reduce_sum(targets, [1, 2]), rtol=1e-5)
    np.testing.assert_allclose(closed, ratio, rtol=0.03)
    perfect = 20.0 * targets - 10.0
    np.testing.assert_allclose(maskiou_targets(perfect, targets, ratio), np.ones(6), atol=1e-5)
    of_closed = maskiou_targets(perfect, targets, closed).numpy()
    assert (of_closed <= 1).all() and (of_closed > 0.97).all()


def test_closed_and_ratio_agree_on_objects_cut_by_the_roi():
    masks, windows, _, areas = disc_case(seed=3)
    # RoIs of whole pixels are what the ratio counts.
    rois = tf.round(windows + f32(rng(1).uniform(-8, 8, (6, 4))))
    targets = mask_targets(masks, windows, rois, 28)
    ratios = area_ratios(masks, windows, rois)
    closed = closed_full_areas(targets, areas, rois)
    np.testing.assert_allclose(closed, ratio_full_areas(targets, ratios), rtol=0.05)
    # The share of the object within the RoI is that of its area in the grid's cells.
    np.testing.assert_allclose(tf.reduce_sum(targets, [1, 2]) / closed, ratios, rtol=0.05)
    assert ratios.numpy().min() < 0.95


@pytest.mark.parametrize(
    "threshold, logit", [(0.5, 0.0), (0.4, math.log(2 / 3)), (0.9, math.log(9))]
)
def test_threshold_is_a_probability(threshold, logit):
    logits = f32([[[logit - 1e-3, logit + 1e-3]]])
    mask = f32([[[1, 1]]])
    # One of the two cells is predicted.
    target = maskiou_targets(logits, mask, f32([2.0]), threshold)
    np.testing.assert_allclose(target, [0.5])


def test_probability_of_exactly_one_half_is_not_predicted():
    assert float(maskiou_targets(tf.zeros([1, 2, 2]), tf.ones([1, 2, 2]), f32([4.0]))[0]) == 0.0


def test_target_is_between_zero_and_one():
    draw = rng()
    logits = f32(draw.normal(size=(200, 6, 6)) + draw.normal(size=(200, 1, 1)) * 3)
    masks = f32(draw.uniform(size=(200, 6, 6)) < draw.uniform(size=(200, 1, 1)))
    full = f32(np.maximum(draw.uniform(0, 80, 200), masks.numpy().sum((1, 2))))
    targets = maskiou_targets(logits, masks, full).numpy()
    assert targets.min() >= 0 and targets.max() <= 1
    plain = []
    for logit, mask, area in zip(logits.numpy(), masks.numpy(), full.numpy(), strict=True):
        p, m = logit > 0, mask > 0
        union = p.sum() + area - (p & m).sum()
        plain.append((p & m).sum() / max(union, 1.0))
    np.testing.assert_allclose(targets, plain, rtol=1e-5)


def test_closed_area_is_at_least_what_the_roi_shows():
    shown = f32([[[1, 1], [0, 0]], [[1, 1], [1, 1]]])
    rois = f32([[0, 0, 2, 2], [0, 0, 2, 2]])
    np.testing.assert_allclose(closed_full_areas(shown, f32([3.0, 3.0]), rois), [3.0, 4.0])


def test_nothing_predicted_of_a_tiny_object():
    zeros = np.zeros((2, 2))
    assert target_of(zeros, zeros, 0.0) == 0.0
    assert target_of([[1, 0], [0, 0]], zeros, 0.25) == 0.0


def test_object_outside_the_roi_has_no_ratio():
    masks = tf.ones([1, 8, 8], tf.uint8)
    window, roi = f32([[0, 0, 8, 8]]), f32([[50, 50, 60, 60]])
    ratios = area_ratios(masks, window, roi)
    np.testing.assert_array_equal(ratios, [0.0])
    targets = mask_targets(masks, window, roi, 4)
    np.testing.assert_array_equal(ratio_full_areas(targets, ratios), [0.0])


def test_empty_slots_have_areas():
    """Slots without an object, which XLA needs, have an empty mask and an empty window."""
    masks, nowhere = tf.zeros([1, 8, 8], tf.uint8), tf.zeros([1, 4])
    targets = mask_targets(masks, nowhere, nowhere, 4)
    ratios = area_ratios(masks, nowhere, nowhere)
    np.testing.assert_array_equal(ratio_full_areas(targets, ratios), [0.0])
    np.testing.assert_array_equal(closed_full_areas(targets, f32([0.0]), nowhere), [0.0])


def test_ratio_area_by_hand():
    # 3 cells are shown, a quarter of the object.
    shown = f32([[[1, 1], [1, 0]]])
    np.testing.assert_allclose(ratio_full_areas(shown, f32([0.25])), [12.0], rtol=1e-6)


def test_closed_area_by_hand_and_of_an_empty_roi():
    rois = f32([[0, 0, 10, 20], [5, 5, 5, 5]])
    full = closed_full_areas(tf.zeros([2, 28, 28]), f32([100.0, 0.0]), rois)
    np.testing.assert_allclose(full, [392.0, 0.0])


def test_targets_carry_no_gradient():
    logits = f32(rng().normal(size=(2, 4, 4)))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(maskiou_targets(logits, tf.ones([2, 4, 4]), f32([16.0, 32.0])))
    assert tape.gradient(loss, logits) is None


def test_loss_by_hand():
    predicted, targets = f32([0.5, 0.9, 0.3, 0.7]), f32([0.7, 0.5, 0.0, 0.1])
    valid = tf.constant([True, True, True, False])
    # The third target is 0 and the fourth slot is empty.
    loss = maskiou_loss(predicted, targets, valid)
    assert float(loss) == pytest.approx(0.5 * (0.2**2 + 0.4**2) / 2, rel=1e-5)


def test_loss_of_other_classes_by_hand():
    others = f32([[0.1, -0.2], [0.0, 0.3], [9.0, 9.0], [9.0, 9.0]])
    valid = tf.constant([True, True, True, False])
    loss = maskiou_loss(f32([0.5, 0.9, 0.3, 0.7]), f32([0.7, 0.5, 0.0, 0.1]), valid, others)
    squares = 0.2**2 + 0.4**2 + 0.1**2 + 0.2**2 + 0.3**2
    assert float(loss) == pytest.approx(0.5 * squares / 2, rel=1e-5)


def test_loss_gradient_is_the_error_over_the_count():
    predicted = f32([0.5, 0.9, 0.3, 0.7])
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        loss = maskiou_loss(
            predicted, f32([0.7, 0.5, 0.0, 0.1]), tf.constant([True, True, True, False])
        )
    np.testing.assert_allclose(tape.gradient(loss, predicted), [-0.1, 0.2, 0, 0], atol=1e-6)


def test_loss_without_targets_is_zero():
    predicted = f32([0.5, 0.9])
    for targets, valid in (([0.0, 0.0], [True, True]), ([0.5, 0.5], [False, False])):
        with tf.GradientTape() as tape:
            tape.watch(predicted)
            loss = maskiou_loss(predicted, f32(targets), tf.constant(valid))
        assert float(loss) == 0.0
        assert not tape.gradient(loss, predicted).numpy().any()


@pytest.mark.parametrize("size", [4, 28])
def test_pool_equals_max_pool(size):
    masks = f32(rng().uniform(size=(3, size, size, 1)))
    np.testing.assert_array_equal(_pool(masks), tf.nn.max_pool2d(masks, 2, 2, "VALID"))


def small_case(dtype="float32"):
    head = MaskIoUHead(rng(), 4, 16, 5, 8, dtype=dtype)
    features = f32(rng(1).normal(size=(3, 4, 4, 4)))
    mask_logits = f32(rng(2).normal(size=(3, 8, 8)))
    return head, features, mask_logits


def test_refined_masks_are_pooled_to_the_features():
    head = MaskIoUHead(rng(), 4, 8, 3, 8, inputs="mask")
    masks = f32(rng(1).normal(size=(3, 32, 32)))
    pooled = head._combine(tf.zeros([3, 4, 4, 4]), masks)
    expected = tf.sigmoid(masks).numpy().reshape(3, 4, 8, 4, 8).max((2, 4))
    np.testing.assert_array_equal(pooled[..., 0], expected)


def test_forward_equals_a_plain_reading():
    head, features, mask_logits = small_case()
    masks = tf.nn.max_pool2d(tf.sigmoid(mask_logits)[..., None], 2, 2, "VALID")
    x = tf.concat([features, masks], -1)
    for conv, stride in zip(head.convs, (1, 1, 1, 2), strict=True):
        padded = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        x = tf.nn.relu(tf.nn.conv2d(padded, conv.kernel, stride, "VALID"))
    x = x.numpy().reshape(3, -1)
    for layer in head.fcs:
        x = np.maximum(x @ layer.kernel.numpy(), 0)
    every_class = x @ head.maskiou.kernel.numpy()
    predicted = head(features, mask_logits, tf.constant([4, 0, 2]))
    np.testing.assert_allclose(predicted, every_class[[0, 1, 2], [4, 0, 2]], atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "channels", "sees"),
    [
        ("mask_and_feature", 5, (True, True)),
        ("mask", 1, (True, False)),
        ("feature", 4, (False, True)),
    ],
)
def test_the_head_sees_what_it_is_given(inputs, channels, sees):
    head = MaskIoUHead(rng(), 4, 16, 5, 8, inputs=inputs)
    _, features, mask_logits = small_case()
    assert head.convs[0].kernel.shape == (3, 3, channels, 4)
    before = head.predict_all_classes(features, mask_logits)
    for index, (f, m) in enumerate([(features, -mask_logits), (-features, mask_logits)]):
        changed = np.abs(head.predict_all_classes(f, m) - before).max() > 1e-6
        assert changed == sees[index]


def test_prediction_is_linear_and_not_clipped():
    head, features, mask_logits = small_case()
    head.maskiou.bias.assign([5.0, -5.0, 0, 0, 0])
    predicted = head(features, mask_logits, tf.constant([0, 1, 1])).numpy()
    assert predicted[0] > 1 and predicted[1] < 0


def test_gradients_flow_to_mask_and_features():
    head, features, mask_logits = small_case()
    with tf.GradientTape() as tape:
        tape.watch([features, mask_logits])
        loss = tf.reduce_sum(head(features, mask_logits, tf.constant([1, 2, 3])))
    of_features, of_masks = tape.gradient(loss, [features, mask_logits])
    assert np.any(of_features) and np.any(of_masks)
    # Only the largest of each 2 x 2 cells of a mask is seen.
    assert (np.abs(of_masks) > 0).sum() <= 3 * 16


def test_mixed_precision_reads_logits_in_float32():
    head, features, mask_logits = small_case("mixed_bfloat16")
    exact, *_ = small_case()
    predicted = head(tf.cast(features, tf.bfloat16), mask_logits, tf.constant([1, 2, 3]))
    assert predicted.dtype == tf.float32
    expected = exact(features, mask_logits, tf.constant([1, 2, 3]))
    np.testing.assert_allclose(predicted, expected, atol=0.05 * np.abs(expected).max())


def test_full_width_has_the_papers_parameters():
    head = MaskIoUHead(rng(), 256, 1024, 81, 28)
    parameters = sum(int(np.prod(variable.shape)) for variable in head.trainable_variables)
    assert parameters == pytest.approx(16.3e6, rel=0.005)
    assert head.convs[0].kernel.shape == (3, 3, 257, 256)
    assert head.maskiou.kernel.numpy().std() == pytest.approx(0.01, rel=0.02)
    fan_out = 9 * 256
    assert head.convs[0].kernel.numpy().std() == pytest.approx(math.sqrt(2 / fan_out), rel=0.01)
    bound = math.sqrt(3 / 1024)
    assert np.abs(head.fcs[1].kernel.numpy()).max() == pytest.approx(bound, rel=1e-3)
