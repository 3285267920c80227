"""Masks drawn from polygons against pycocotools, which draws them one by one."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from model.polygon_masks import MIN_SIDES_IN_PIXEL, polygon_targets

VERTICES = 72


def rows(objects):
    """Closed polygons y, x as `polygon_targets` takes them: [N, V, 2] and [N, V]."""
    vertices = np.zeros([len(objects), VERTICES, 2], np.float32)
    parts = np.zeros([len(objects), VERTICES], np.int32)
    for index, polygons in enumerate(objects):
        closed = [np.concatenate([polygon, polygon[:1]]) for polygon in polygons]
        count = sum(map(len, closed))
        vertices[index, :count] = np.concatenate(closed)
        parts[index, :count] = np.repeat(np.arange(len(closed)) + 1, list(map(len, closed)))
    return tf.constant(vertices), tf.constant(parts)


def ours(objects, rois, size, run=polygon_targets, **kwargs):
    return run(*rows(objects), tf.constant(rois, tf.float32), size, **kwargs).numpy()


def on_grid(polygons, roi, size):
    """Polygons y, x in cells of the RoI's grid, in double precision."""
    roi = np.float64(roi)
    scale = size / np.maximum(roi[2:] - roi[:2], 1 / MIN_SIDES_IN_PIXEL)
    return [(np.float64(polygon) - roi[:2]) * scale for polygon in polygons]


def theirs(objects, rois, size):
    """The same by pycocotools."""
    masks = []
    for polygons, roi in zip(objects, rois, strict=True):
        flat = [grid[:, ::-1].ravel() for grid in on_grid(polygons, roi, size)]
        masks.append(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, size, size))))
    return np.array(masks)


def random_objects(seed, count, grid=None):
    """Objects of one to three polygons of all sizes with RoIs near them, far beyond and within."""
    rng = np.random.default_rng(seed)
    objects, rois = [], []
    for _ in range(count):
        centre, reach = rng.uniform(0, 200, 2), rng.choice([0.3, 4, 30, 120, 4000])
        polygons = []
        for _ in range(rng.integers(1, 4)):
            polygon = centre + rng.uniform(-reach, reach, [rng.integers(3, 20), 2])
            if grid:
                polygon = np.round(polygon * grid) / grid
            if rng.random() < 0.2:
                polygon[1] = polygon[0]  # a point twice
            if rng.random() < 0.2:
                polygon[:, rng.integers(2)] = polygon[0, 0]  # all on a line
            if rng.random() < 0.1:
                polygon[:] = polygon[0]
            polygons.append(polygon.astype(np.float32))
        corner = centre + rng.uniform(-1, 0.5, 2) * min(reach, 60)
        side = rng.choice([0.05, 1, 1, 1, 1]) * rng.uniform(0.2, 1.6, 2) * min(reach, 60)
        rois.append(np.concatenate([corner, corner + side]).astype(np.float32))
        objects.append(polygons)
    return objects, np.array(rois)


@functools.cache
def compiled():
    """As a graph and by XLA, which compile each size once."""
    return tf.function(polygon_targets), tf.function(polygon_targets, jit_compile=True)


@pytest.mark.parametrize("size", [4, 14, 28, 64])
@pytest.mark.parametrize("seed", range(2))
def test_masks_are_pycocotools(seed, size, tied_columns):
    objects, rois = random_objects(seed, 400)
    found, expected = ours(objects, rois, size), theirs(objects, rois, size)
    assert 0.05 < expected.mean() < 0.95 and found.dtype == np.float32
    for index in np.flatnonzero((found != expected).any(axis=(1, 2))):
        tied = tied_columns(on_grid(objects[index], rois[index], size), size)
        np.testing.assert_array_equal(found[index][:, ~tied], expected[index][:, ~tied])
    # Ties that doubles decide otherwise are rare.
    assert (found != expected).sum() <= 8
    for run in compiled():
        np.testing.assert_array_equal(ours(objects, rois, size, run, static=True), found)


@pytest.mark.parametrize("size", [14, 28])
def test_whole_fifths_are_drawn_as_they_are(size, tied_columns):
    """Corners on the grid of fifths, where ties abound, in a RoI of one pixel a cell."""
    objects, _ = random_objects(7, 400, grid=5)
    objects = [[np.round(p - p.min(axis=0), 1) for p in polygons] for polygons in objects]
    rois = np.tile(np.float32([0, 0, size, size]), (len(objects), 1))
    found, expected = ours(objects, rois, size), theirs(objects, rois, size)
    different = np.flatnonzero((found != expected).any(axis=(1, 2)))
    for index in different:
        tied = tied_columns(on_grid(objects[index], rois[index], size), size)
        np.testing.assert_array_equal(found[index][:, ~tied], expected[index][:, ~tied])
    assert len(different) < 0.02 * len(objects)


def test_a_rectangle_and_a_hole_by_hand():
    # Cells whose middle lies inside; the second polygon overlaps the first and hides nothing.
    square = np.float32([[1, 1], [1, 3], [3, 3], [3, 1]])
    beside = np.float32([[2, 2], [2, 4], [4, 4], [4, 2]])
    roi = np.float32([[0, 0, 4, 4]])
    expected = np.zeros([4, 4])
    expected[1:3, 1:3] = 1
    np.testing.assert_array_equal(ours([[square]], roi, 4)[0], expected)
    expected[2:4, 2:4] = 1
    np.testing.assert_array_equal(ours([[square, beside]], roi, 4)[0], expected)
    # One polygon that goes around twice is empty where it overlaps itself.
    twice = np.concatenate([square, square])
    assert not ours([[twice]], roi, 4).any()
    # A polygon around everything, far outside, and one that the RoI does not meet.
    np.testing.assert_array_equal(ours([[square * 1000 - 2000]], roi, 4), np.ones([1, 4, 4]))
    assert not ours([[square + 100]], roi, 4).any()


def test_slots_without_polygons_and_without_rois_are_empty():
    square = np.float32([[1, 1], [1, 3], [3, 3], [3, 1]])
    vertices, parts = rows([[square], [square]])
    parts = parts * tf.constant([[0], [1]])
    rois = tf.constant([[0.0, 0, 4, 4], [1, 1, 3, 3]])
    for static in (False, True):
        found = polygon_targets(vertices, parts, rois, 4, static).numpy()
        assert not found[0].any() and found[1].all()
        late = polygon_targets(tf.roll(vertices, 50, 1), tf.roll(parts, 50, 1), rois, 4, static)
        np.testing.assert_array_equal(late, found)
        nothing = polygon_targets(vertices, 0 * parts, rois, 4, static).numpy()
        assert nothing.shape == (2, 4, 4) and not nothing.any()
        empty = polygon_targets(vertices[:0], parts[:0], rois[:0], 4, static)
        assert empty.shape == (0, 4, 4)


@pytest.mark.parametrize("size", [28, 64])
def test_the_side_of_the_masks_is_static_for_any_number_of_rois(size):
    shapes = [
        ([None, VERTICES, 2], tf.float32),
        ([None, VERTICES], tf.int32),
        ([None, 4], tf.float32),
    ]
    signature = [tf.TensorSpec(*shape) for shape in shapes]
    drawn = tf.function(lambda *inputs: polygon_targets(*inputs, size), signature)
    assert drawn.get_concrete_function().output_shapes.as_list() == [None, size, size]


def test_an_empty_roi_counts_as_a_tenth_of_a_pixel():
    square = np.float32([[1, 1], [1, 1.05], [1.1, 1.05], [1.1, 1]])
    found = ours([[square]], [[1, 1, 1, 1]], 4)[0]
    np.testing.assert_array_equal(found, [[1, 1, 0, 0]] * 4)


def test_no_gradient_flows_into_the_rois():
    square = np.float32([[1, 1], [1, 3], [3, 3], [3, 1]])
    rois = tf.constant([[0.0, 0, 4, 4]])
    with tf.GradientTape() as tape:
        tape.watch(rois)
        drawn = polygon_targets(*rows([[square]]), rois, 4)
    assert tape.gradient(drawn, rois) is None and drawn.numpy().sum() == 4
