"""Crops and areas of run-length masks, against pycocotools and plain indexing."""

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask
from sample_records import blobs, run_lengths

from data.masks import crop_masks, draw_union, mask_areas


def _tensors(masks):
    runs = [run_lengths(mask) for mask in masks]
    height, width = masks[0].shape
    return (
        tf.constant(np.concatenate(runs), tf.int64),
        tf.constant([len(lengths) for lengths in runs], tf.int64),
        tf.constant(height, tf.int64),
        tf.constant(width, tf.int64),
    )


def _crop(masks, windows, size, **flips):
    windows = tf.reshape(tf.constant(windows, tf.float32), [-1, 4])
    instances = tf.range(len(windows), dtype=tf.int64)
    return crop_masks(*_tensors(masks), windows, instances, size, **flips).numpy()


def _sample(mask, window, size):
    """The mask's values at the cell centres of a window, one pixel at a time."""
    height, width = mask.shape
    y1, x1, y2, x2 = np.float32(window)
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    rows = np.clip(np.floor(y1 + centres * (y2 - y1)), 0, height - 1).astype(int)
    columns = np.clip(np.floor(x1 + centres * (x2 - x1)), 0, width - 1).astype(int)
    return mask[rows[:, None], columns[None, :]]


def _decoded(mask):
    """The mask after a trip through pycocotools' own run lengths."""
    height, width = mask.shape
    rle = {"size": [height, width], "counts": run_lengths(mask).tolist()}
    return coco_mask.decode(coco_mask.frPyObjects(rle, height, width))


def test_a_crop_worked_by_hand():
    mask = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 1, 0]], np.uint8)
    # Cells of one pixel over columns 1 to 3, then cells of half a pixel over the corner (0, 1).
    crops = _crop([mask, mask], [[0, 1, 3, 4], [0, 1, 1.5, 2.5]], 3)
    np.testing.assert_array_equal(crops[0], [[1, 1, 0], [0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(crops[1], [[1, 1, 1], [1, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize("size", [1, 7, 28, 63, 64, 65, 112, 130])
def test_crops_equal_sampling_the_decoded_masks(size):
    rng = np.random.default_rng(size)
    for _ in range(4):
        height, width = rng.integers(1, 60, 2)
        masks = [blobs(rng, height, width) for _ in range(6)]
        corners = np.sort(rng.uniform(-3, [[height + 3], [width + 3]], (6, 2, 2)), axis=2)
        windows = corners.transpose(0, 2, 1).reshape(6, 4).astype(np.float32)
        expected = [
            _sample(_decoded(mask), window, size)
            for mask, window in zip(masks, windows, strict=True)
        ]
        np.testing.assert_array_equal(_crop(masks, windows, size), expected)


@pytest.mark.parametrize("flip", [(True, False), (False, True), (True, True)])
def test_a_flipped_crop_is_the_mirrored_crop(flip):
    rng = np.random.default_rng(3)
    masks = [blobs(rng, 23, 31) for _ in range(8)]
    windows = np.tile(np.float32([2.25, 1.5, 21.0, 30.5]), (8, 1))
    plain = _crop(masks, windows, 28)
    axes = tuple(axis for axis, flipped in zip((1, 2), flip, strict=True) if flipped)
    flipped = _crop(masks, windows, 28, flip_vertical=flip[0], flip_horizontal=flip[1])
    np.testing.assert_array_equal(flipped, np.flip(plain, axes))
    assert (plain != flipped).any()


def test_windows_may_show_any_instances_in_any_number():
    rng = np.random.default_rng(4)
    masks = [blobs(rng, 12, 9) for _ in range(5)]
    shown = [4, 1, 1, 0]
    windows = tf.constant([[0, 0, 12, 9]] * 4, tf.float32)
    crops = crop_masks(*_tensors(masks), windows, tf.constant(shown, tf.int64), 16)
    expected = [_sample(masks[index], [0, 0, 12, 9], 16) for index in shown]
    np.testing.assert_array_equal(crops, expected)


def test_empty_and_full_masks():
    masks = [np.zeros((5, 4), np.uint8), np.ones((5, 4), np.uint8), np.zeros((5, 4), np.uint8)]
    crops = _crop(masks, [[0, 0, 5, 4]] * 3, 8)
    np.testing.assert_array_equal(crops, np.stack([np.full((8, 8), v) for v in (0, 1, 0)]))


def test_an_image_without_instances_has_no_crops_and_no_areas():
    nothing = tf.zeros([0], tf.int64)
    size = tf.constant(6, tf.int64), tf.constant(5, tf.int64)
    crops = crop_masks(nothing, nothing, *size, tf.zeros([0, 4]), nothing, 28)
    assert crops.shape == (0, 28, 28)
    areas = mask_areas(nothing, nothing, *size, tf.constant([0, 0, 6, 5], tf.int64))
    assert areas.shape == (0,)


def test_areas_count_the_pixels_in_a_rectangle():
    rng = np.random.default_rng(5)
    for _ in range(20):
        height, width = rng.integers(1, 40, 2)
        masks = [blobs(rng, height, width) for _ in range(5)]
        y1, y2 = np.sort(rng.integers(0, height + 1, 2))
        x1, x2 = np.sort(rng.integers(0, width + 1, 2))
        for rectangle in ([y1, x1, y2, x2], [0, 0, height, width]):
            areas = mask_areas(*_tensors(masks), tf.constant(rectangle, tf.int64))
            top, left, bottom, right = rectangle
            expected = [mask[top:bottom, left:right].sum() for mask in masks]
            np.testing.assert_array_equal(areas, expected)


def test_positions_beyond_32_bits():
    side = 50_000  # one mask has 2.5e9 pixels; it is never drawn
    lengths = tf.constant([side * side - 1, 1, 0, side * side], tf.int64)
    arguments = (lengths, tf.constant([2, 2], tf.int64), *(tf.constant(side, tf.int64),) * 2)
    window = [[side - 2, side - 2, side, side]] * 2
    crops = crop_masks(*arguments, tf.constant(window, tf.float32), tf.range(2, dtype=tf.int64), 2)
    np.testing.assert_array_equal(crops, [[[0, 0], [0, 1]], [[1, 1], [1, 1]]])
    areas = mask_areas(*arguments, tf.constant([0, 0, side, side], tf.int64))
    np.testing.assert_array_equal(areas, [1, side * side])


def test_within_a_data_set_the_same_crops():
    rng = np.random.default_rng(6)
    masks = [blobs(rng, 20, 30) for _ in range(3)]
    windows = np.float32([[0, 0, 20, 30], [3.5, 2, 9, 28], [1, 1, 2, 2]])
    elements = tf.data.Dataset.from_tensors((*_tensors(masks), windows)).map(
        lambda *element: crop_masks(*element, tf.range(3, dtype=tf.int64), 28)
    )
    np.testing.assert_array_equal(next(iter(elements)), _crop(masks, windows, 28))


@pytest.mark.parametrize("seed", range(4))
def test_a_union_is_drawn_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    masks = np.stack([blobs(rng, 13, 17) for _ in range(4)] + [np.zeros((13, 17), np.uint8)])
    for instances in ([], [1], [0, 2, 4], [3, 1, 2, 0]):
        union = draw_union(*_tensors(masks), tf.constant(instances, tf.int64))
        expected = masks[np.array(instances, int)].any(axis=0)
        np.testing.assert_array_equal(union, expected)
