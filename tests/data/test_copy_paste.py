"""Pasted objects and what is left below them, against whole masks drawn pixel by pixel."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from sample_records import blobs, make_instance, make_record

from data import copy_paste
from data.config import DataConfig
from data.examples import train_example
from data.records import parse_record
from data.scenes import draw_scene

M = 112
CONFIG = DataConfig(
    canvases=("128x192",),
    short_side=128,
    long_side=192,
    train_short_side_min=128,
    horizontal_flip=0.0,
    max_instances=8,
)


def _truths(boxes, masks):
    masks = np.uint8(masks)
    return {
        "gt_boxes": tf.constant(boxes, tf.float32),
        "gt_classes": tf.range(1, len(boxes) + 1),
        "gt_masks": tf.constant(masks),
        "gt_areas": tf.constant([100.0 * (index + 1) for index in range(len(boxes))]),
    }


def _occlude(truths, cover):
    left = copy_paste.occlude(truths, tf.constant(cover))
    return {name: values.numpy() for name, values in left.items()}


def test_what_is_left_by_hand():
    """Three squares of 8 x 8 pixels in cells of a pixel; a cover over rows 4 to 11."""
    whole = np.ones((3, 8, 8))
    boxes = [(0, 0, 8, 8), (4, 8, 12, 16), (12, 16, 20, 24)]
    cover = np.zeros((32, 32), bool)
    cover[4:12] = True
    left = _occlude(_truths(boxes, whole), cover)
    np.testing.assert_array_equal(left["gt_classes"], [1, 3])
    np.testing.assert_array_equal(left["gt_boxes"], [(0, 0, 4, 8), (12, 16, 20, 24)])
    np.testing.assert_array_equal(left["gt_areas"], [50, 300])
    assert left["gt_masks"].all()


def test_a_hole_leaves_the_box_and_a_tenth_is_enough():
    boxes, cover = [(0, 0, 10, 10), (10, 0, 20, 10)], np.zeros((32, 32), bool)
    cover[2:5, 3:6] = True
    cover[10:19] = True
    left = _occlude(_truths(boxes, np.ones((2, 10, 10))), cover)
    np.testing.assert_array_equal(left["gt_boxes"], [(0, 0, 10, 10), (19, 0, 20, 10)])
    np.testing.assert_array_equal(left["gt_masks"][0] == 0, cover[:10, :10])
    np.testing.assert_allclose(left["gt_areas"], [91, 20])
    cover[19, 0] = True
    assert len(_occlude(_truths(boxes, np.ones((2, 10, 10))), cover)["gt_boxes"]) == 1


def test_sides_wider_than_the_mask_stay_where_nothing_covers():
    mask = np.zeros((1, 8, 8))
    mask[0, 2:6, 2:6] = 1
    cover = np.zeros((8, 8), bool)
    cover[4:] = True
    left = _occlude(_truths([(0, 0, 8, 8)], mask), cover)
    np.testing.assert_array_equal(left["gt_boxes"], [(0, 0, 4, 8)])
    assert left["gt_masks"].sum() == 16


def _record(rng, image_id, level, count=3, crowd=True):
    """Objects of 64 x 96 pixels, and the pixels of each as the record has them."""
    masks = [blobs(rng, 64, 96) for _ in range(count + crowd)]
    masks = [mask if mask.any() else np.ones_like(mask) for mask in masks]
    instances = [
        make_instance(mask, label=index + 1, is_crowd=index == count)
        for index, mask in enumerate(masks)
    ]
    picture = np.full((64, 96, 3), level, np.uint8)
    return make_record(picture, instances, image_id=image_id), masks[:count]


def _enlarged(mask):
    return mask.repeat(2, axis=0).repeat(2, axis=1).astype(bool)


def _in_its_box(truth_box, truth_mask):
    """The canvas pixels that a mask travelling as cells says: under a pixel's centre."""
    y1, x1, y2, x2 = truth_box
    rows, columns = np.arange(128) + 0.5, np.arange(192) + 0.5
    cells = [
        np.floor((centres - low) / (high - low) * M).astype(int)
        for centres, low, high in ((rows, y1, y2), (columns, x1, x2))
    ]
    inside = [(index >= 0) & (index < M) for index in cells]
    sampled = truth_mask[np.clip(cells[0], 0, M - 1)[:, None], np.clip(cells[1], 0, M - 1)]
    return (sampled > 0) & inside[0][:, None] & inside[1]


def _near_edge(mask, reach):
    """Pixels with both values among those that lie at most `reach` rows and columns away."""
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(mask, reach), (2 * reach + 1, 2 * reach + 1)
    )
    return windows.any(axis=(2, 3)) & ~windows.all(axis=(2, 3))


def _paste(seed, second_mirrored=False):
    rng = np.random.default_rng(seed)
    (first, below), (second, above) = _record(rng, 1, 50), _record(rng, 2, 200)
    canvas = tf.constant([128, 192], tf.int64)
    scene = draw_scene(parse_record(first, True), canvas, CONFIG, tf.constant([seed, 0]))
    config = dataclasses.replace(CONFIG, horizontal_flip=float(second_mirrored))
    pasted = draw_scene(parse_record(second, True), canvas, config, tf.constant([seed, 1]))
    mixed = copy_paste.copy_paste(scene, lambda: pasted, tf.constant([seed, 2]))
    above = [mask[:, ::-1] if second_mirrored else mask for mask in above]
    return scene, mixed, [_enlarged(m) for m in below], [_enlarged(m) for m in above]


@pytest.mark.parametrize("seed", range(8))
def test_masks_boxes_and_areas_are_those_of_pixel_exact_pasting(seed):
    """Boxes to a cell (here of up to 1.7 pixels), masks to 2 pixels of an edge, areas to 5 %."""
    scene, mixed, below, above = _paste(seed, seed % 2 == 1)
    classes = mixed.truths["gt_classes"].numpy()
    cover = np.all(mixed.image.numpy() == 200, axis=2)
    chosen = [index for index, mask in enumerate(above) if (cover & mask).sum() == mask.sum()]
    np.testing.assert_array_equal(cover, np.any([above[i] for i in chosen] + [cover & False], 0))
    visible = [mask & ~cover for mask in below]
    shares = [v.sum() / mask.sum() for v, mask in zip(visible, below, strict=True)]
    kept = [index for index, share in enumerate(shares) if share >= 0.1]
    pasted_from = len(kept)
    np.testing.assert_array_equal(classes[:pasted_from], [index + 1 for index in kept])
    assert set(classes[pasted_from:] - 1) <= set(chosen)
    for place, index in enumerate(kept):
        rows, columns = (np.flatnonzero(visible[index].any(axis=axis)) for axis in (1, 0))
        box, before = (
            values["gt_boxes"].numpy()[number]
            for values, number in ((mixed.truths, place), (scene.truths, index))
        )
        cell = np.tile((before[2:] - before[:2]) / M, 2)
        exact = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
        assert (np.abs(box - exact) <= cell + 1e-3).all()
        found = _in_its_box(box, mixed.truths["gt_masks"].numpy()[place])
        assert not ((found != visible[index]) & ~_near_edge(visible[index], reach=2)).any()
        area = mixed.truths["gt_areas"].numpy()[place]
        assert area == pytest.approx(visible[index].sum(), rel=0.05)


def test_crowds_below_stay_and_crowds_above_are_not_pasted():
    for seed in range(4):
        scene, mixed, _, _ = _paste(seed)
        np.testing.assert_array_equal(mixed.crowds, scene.crowds)
        assert len(mixed.crowds) == 1
        assert 4 not in mixed.truths["gt_classes"].numpy()


def test_half_of_the_objects_are_pasted_and_draws_repeat():
    pasted = [_paste(seed)[1].truths["gt_classes"].numpy() for seed in range(6)]
    again = [_paste(seed)[1].truths["gt_classes"].numpy() for seed in range(6)]
    for one, other in zip(pasted, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({tuple(classes) for classes in pasted}) > 2


def _small_and_large(pasted_from):
    rng = np.random.default_rng(5)
    (first, _), (second, _) = _record(rng, 1, 50), _record(rng, 2, 200)
    small = dataclasses.replace(CONFIG, scale_jitter_min=0.25, scale_jitter_max=0.25)
    canvas = tf.constant([128, 192], tf.int64)
    scene = draw_scene(parse_record(first, True), canvas, small, tf.constant([0, 0]))
    above = draw_scene(parse_record(second, True), canvas, CONFIG, tf.constant([0, 1]))
    return scene, copy_paste.copy_paste(scene, lambda: above, tf.constant([0, pasted_from]))


def test_the_valid_area_grows_to_hold_what_is_pasted():
    grown = 0
    for seed in range(6):
        scene, mixed = _small_and_large(seed)
        np.testing.assert_array_equal(scene.valid, (32, 48))
        valid, image = mixed.valid.numpy(), mixed.image.numpy()
        low, high = np.split(mixed.truths["gt_boxes"].numpy(), 2, axis=1)
        assert (high <= valid).all() and (low >= 0).all()
        assert not image[valid[0] :].any() and not image[:, valid[1] :].any()
        levels = set(np.unique(image[: valid[0], : valid[1]]))
        assert levels <= {50, 128, 200}
        grown += (valid > (32, 48)).any()
        np.testing.assert_array_equal(mixed.image_info[2:], scene.image_info[2:])
    assert grown >= 3


def test_an_example_has_room_for_the_largest_and_keeps_its_shapes():
    rng = np.random.default_rng(6)
    (first, _), (second, _) = _record(rng, 1, 50), _record(rng, 2, 200)
    config = dataclasses.replace(
        CONFIG, max_instances=3, augmentations=("copy_paste", "photometric_distort")
    )

    def example(record, other):
        return train_example(record, tf.constant(0, tf.int64), config, True, second=other)

    dataset = tf.data.Dataset.from_tensors((first, second)).map(example)
    (features, labels), (same, same_labels) = next(iter(dataset)), example(first, second)
    tf.nest.map_structure(np.testing.assert_array_equal, labels, same_labels)
    tf.nest.map_structure(np.testing.assert_array_equal, features, same)
    assert features["image"].shape == (128, 192, 3)
    assert labels["gt_masks"].shape == (3, M, M)
    assert set(dataset.element_spec[1]) == set(labels)
    assert all(spec.shape.is_fully_defined() for spec in dataset.element_spec[1].values())
