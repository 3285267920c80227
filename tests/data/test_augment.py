"""Canvases and geometry: where an image goes, and that boxes go with it."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data import augment
from data.config import DataConfig

CONFIG = DataConfig()  # 832x1344, 1344x832, 1024x1024; 800/1333


def _size(*sides):
    return tf.constant(sides, tf.int64)


def _replace(**changes):
    return dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    "size, canvas",
    [
        ((480, 640), "832x1344"),
        ((640, 480), "1344x832"),
        ((500, 500), "1024x1024"),  # 800 fits all three, this has the least area
        ((100, 100), "1024x1024"),
        ((600, 700), "1024x1024"),  # 800 x 933
        ((600, 800), "832x1344"),  # 800 x 1067 no longer fits 1024
        ((3000, 1000), "1344x832"),
        ((1, 2000), "832x1344"),
    ],
)
def test_the_canvas_is_where_the_image_is_largest(size, canvas):
    assert CONFIG.canvases[augment.choose_canvas(_size(*size), CONFIG)] == canvas


def test_canvases_of_many_images_are_those_of_each():
    sizes = np.random.default_rng(0).integers(1, 3000, [50, 2])
    together = augment.choose_canvas(tf.constant(sizes), CONFIG)
    np.testing.assert_array_equal(
        together, [augment.choose_canvas(_size(*size), CONFIG) for size in sizes]
    )


def test_of_equal_canvases_the_smallest_wins_wherever_it_stands():
    config = _replace(canvases=("128x128", "64x64", "96x96"), short_side=64, long_side=64,
                      train_short_side_min=64)  # fmt: skip
    assert augment.choose_canvas(_size(50, 50), config) == 1


@pytest.mark.parametrize(
    "size, canvas, valid",
    [
        ((480, 640), (832, 1344), (800, 1067)),  # 1066.67 rounds up
        ((427, 640), (832, 1344), (800, 1199)),  # 1199.06 rounds down
        ((400, 1000), (832, 1344), (533, 1333)),  # the long side limits: 533.2
        ((480, 640), (512, 512), (384, 512)),  # the canvas limits
        ((1, 3000), (832, 1344), (1, 1333)),  # 0.44 rounds to nothing, yet a row stays
    ],
)
def test_sizes_follow_the_rule_of_short_and_long_side(size, canvas, valid):
    geometry = augment.fit_geometry(_size(*size), _size(*canvas), CONFIG)
    np.testing.assert_array_equal(geometry.valid, valid)
    np.testing.assert_array_equal(geometry.source_box, (0, 0, *size))
    expected = (*valid, valid[0] / size[0], *size)
    np.testing.assert_allclose(geometry.image_info, expected, rtol=1e-6)


def test_equal_seeds_draw_equal_maps_and_others_differ():
    config = _replace(scale_jitter_min=0.5, scale_jitter_max=2.0, vertical_flip=0.5)

    def draw(seed):
        geometry = augment.draw_geometry(_size(97, 130), _size(512, 512), config, [seed, 7])
        return np.concatenate([np.ravel(part) for part in geometry])

    np.testing.assert_array_equal(draw(3), draw(3))
    assert len({tuple(draw(seed)) for seed in range(20)}) == 20


def test_short_sides_are_drawn_evenly_between_their_limits():
    config = _replace(train_short_side_min=790)
    drawn = [
        int(augment.draw_geometry(_size(480, 640), _size(832, 1344), config, [seed, 0]).valid[0])
        for seed in range(200)
    ]
    assert set(drawn) == set(range(790, 801))


@pytest.mark.parametrize("probability, expected", [(0.0, {False}), (1.0, {True})])
def test_flips_of_certain_probability(probability, expected):
    config = _replace(horizontal_flip=probability, vertical_flip=1 - probability)
    flips = [
        augment.draw_geometry(_size(48, 64), _size(832, 1344), config, [seed, 0]).flips.numpy()
        for seed in range(20)
    ]
    assert {bool(flip[1]) for flip in flips} == expected
    assert {bool(flip[0]) for flip in flips} == {not value for value in expected}


def test_every_place_of_a_crop_is_drawn():
    config = _replace(scale_jitter_min=2.0, scale_jitter_max=2.0, short_side=8, long_side=8,
                      train_short_side_min=8, canvases=("32x32",))  # fmt: skip
    size, canvas = _size(8, 6), _size(8, 32)  # 16 x 12 wanted: rows are cropped, columns are not
    geometries = [augment.draw_geometry(size, canvas, config, [seed, 0]) for seed in range(100)]
    for geometry in geometries:
        np.testing.assert_array_equal(geometry.source, (4, 6))
        np.testing.assert_array_equal(geometry.valid, (8, 12))
    offsets = np.array([geometry.offset for geometry in geometries])
    assert set(offsets[:, 0]) == {0, 1, 2, 3, 4}
    assert set(offsets[:, 1]) == {0}


@pytest.mark.parametrize("seed", range(12))
def test_pixels_go_where_the_map_says(seed):
    """On an image whose values are its coordinates, interpolation reads the map back."""
    config = _replace(scale_jitter_min=0.4, scale_jitter_max=2.5, vertical_flip=0.5)
    height, width = 101, 203
    canvas = _size(160, 192)
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([rows, columns, np.full_like(rows, 255)], axis=-1)
    geometry = augment.draw_geometry(_size(height, width), canvas, config, [seed, 1])
    drawn = augment.render_image(tf.constant(image), geometry, canvas).numpy()

    valid_height, valid_width = geometry.valid.numpy()
    assert drawn.shape == (160, 192, 3)
    assert (drawn[:valid_height, :valid_width, 2] == 255).all()
    assert not drawn[valid_height:].any() and not drawn[:, valid_width:].any()

    # The centre of an original pixel at (i + 0.5, j + 0.5), as a box without area.
    points = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2) + 0.5
    first, last = np.split(geometry.source_box.numpy(), 2)
    points = points[((points > first) & (points < last)).all(axis=1)]
    mapped = augment.map_boxes(tf.constant(np.tile(points, 2), tf.float32), geometry).numpy()
    cells = np.floor(mapped[:, :2]).astype(int)
    found = drawn[cells[:, 0], cells[:, 1], :2] + 0.5
    # A canvas pixel's centre is at most half a pixel from the point it holds.
    tolerance = 0.5 / geometry.scale.numpy() + 0.51
    assert (np.abs(found - points) <= tolerance).all()


@pytest.mark.parametrize("flips", [(False, False), (False, True), (True, False), (True, True)])
def test_a_drawn_box_and_the_drawing_of_the_box_agree_to_the_pixel(flips):
    image = np.zeros((10, 12, 3), np.uint8)
    image[2:7, 3:11] = 255
    size = _size(10, 12)
    geometry = augment.Geometry(size, _size(0, 0), size, 2 * size, tf.constant(flips))
    drawn = augment.render_image(tf.constant(image), geometry, _size(32, 64)).numpy()[..., 0]
    rows, columns = np.nonzero(drawn > 127)
    box = augment.map_boxes(tf.constant([[2.0, 3.0, 7.0, 11.0]]), geometry).numpy()[0]
    np.testing.assert_array_equal(
        box, (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    )
    assert len(rows) == 4 * 5 * 8


def test_boxes_are_cut_at_the_crop():
    geometry = augment.Geometry(
        original=_size(20, 20),
        offset=_size(5, 2),
        source=_size(10, 8),
        valid=_size(20, 24),
        flips=tf.constant([False, True]),
    )
    boxes = tf.constant([[0, 0, 20, 20], [6, 3, 7, 5], [0, 0, 5, 2]], tf.float32)
    clipped = augment.clip_to_source(boxes, geometry)
    np.testing.assert_array_equal(clipped, [[5, 2, 15, 10], [6, 3, 7, 5], [5, 2, 5, 2]])
    mapped = augment.map_boxes(clipped, geometry)
    np.testing.assert_allclose(mapped, [[0, 0, 20, 24], [2, 15, 4, 21], [0, 24, 0, 24]])


def test_enlarging_equals_pillow():
    image = np.random.default_rng(0).integers(0, 256, (11, 17, 3), np.uint8)
    size = _size(11, 17)
    geometry = augment.Geometry(size, _size(0, 0), size, _size(23, 37), tf.zeros([2], tf.bool))
    drawn = augment.render_image(tf.constant(image), geometry, _size(32, 64))[:23, :37]
    pillow = Image.fromarray(image).resize((37, 23), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(np.int32(drawn), np.int32(pillow), atol=1)


def test_bytes_and_numbers_are_resized_alike():
    """Pictures are made numbers before an enlargement; the kernel for bytes gives the same."""
    image = np.random.default_rng(1).integers(0, 256, (23, 37, 3), np.uint8)
    size = _size(23, 37)
    for valid in (_size(23, 37), _size(31, 64), _size(64, 41)):
        geometry = augment.Geometry(size, _size(0, 0), size, valid, tf.zeros([2], tf.bool))
        drawn = augment.render_image(tf.constant(image), geometry, valid)
        of_bytes = tf.image.resize(image, tf.cast(valid, tf.int32)).numpy()
        np.testing.assert_array_equal(drawn, np.floor(of_bytes + 0.5))
