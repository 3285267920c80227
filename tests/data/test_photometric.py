"""Colours are mapped as their formulas say, and nothing else is touched."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from data import augment
from data.photometric import ColourMap, photometric_distort, recolour

IDENTITY = np.eye(3, dtype=np.float32)
LUMA = np.float32([0.299, 0.587, 0.114])


def _map(matrix, offset=0.0):
    return ColourMap(tf.constant(matrix, tf.float32), tf.constant(offset))


def _draws(count):
    return [photometric_distort(tf.constant([seed, 3])) for seed in range(count)]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 7)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_every_pixel_is_mapped_by_matrix_and_offset(size, dtype):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*size, 3)).astype(dtype)
    for matrix in (rng.normal(size=(3, 3)), 0.5 * IDENTITY):
        mapped = recolour(tf.constant(pixels), _map(matrix, -20.0))
        assert mapped.dtype == tf.float32
        np.testing.assert_allclose(mapped, pixels @ np.transpose(matrix) - 20.0, atol=1e-3)


def test_maps_are_composed_in_order():
    rng = np.random.default_rng(1)
    pixel = np.float32([[[10, 100, 200]]])
    # Rows of equal sums: grays stay gray, whose offset the second map scales by 0.8.
    first, then = 0.5 * IDENTITY, np.roll(IDENTITY, 1, axis=0) * 0.7 + 0.1 / 3
    chosen = rng.normal(size=(3, 3))
    chosen *= 0.8 / chosen.sum(axis=1, keepdims=True)
    for matrix in (then, chosen):
        one_by_one = recolour(recolour(pixel, _map(first, 7.0)), _map(matrix, -3.0))
        at_once = recolour(pixel, _map(matrix, -3.0).after(_map(first, 7.0)))
        np.testing.assert_allclose(at_once, one_by_one, rtol=1e-5)


def test_each_change_is_made_to_half_of_the_pictures_within_its_range():
    contrasts, brightnesses, saturations, hues = [], [], [], []
    red = np.float32([1, 0, 0])
    for colours in _draws(200):
        matrix = colours.matrix.numpy()
        np.testing.assert_allclose(matrix.sum(axis=1), matrix.sum(axis=1)[0], atol=1e-5)
        contrast = matrix.sum(axis=1)[0]
        contrasts.append(contrast)
        brightnesses.append(float(colours.offset) / contrast)
        # Luma follows the contrast alone.
        np.testing.assert_allclose(LUMA @ matrix, contrast * LUMA, atol=1e-3)
        chroma = _chroma(matrix @ red / contrast) / _chroma(red)
        saturations.append(abs(chroma))
        hues.append(np.degrees(np.angle(chroma)))
    for values, middle, reach in (
        (contrasts, 1, 0.5), (brightnesses, 0, 32), (saturations, 1, 0.5), (hues, 0, 18)
    ):  # fmt: skip
        distances = np.abs(np.array(values) - middle) / reach
        assert 0.35 < (distances < 1e-3).mean() < 0.65
        assert 0.9 < distances.max() <= 1.001
        assert min(values) < middle < max(values)


def _chroma(rgb):
    i, q = np.float32([[0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]) @ rgb
    return complex(i, q)


@pytest.mark.parametrize("rgb", [(200, 90, 80), (90, 180, 70), (60, 90, 170), (170, 160, 80)])
def test_hues_turn_the_same_way_and_about_as_far_as_in_hsv(rgb):
    for colours in _draws(40):
        matrix = colours.matrix.numpy() / colours.matrix.numpy()[0].sum()
        red = np.float32([1, 0, 0])
        turn = np.angle(_chroma(matrix @ red) / _chroma(red)) / (2 * np.pi)
        before, after = (colorsys.rgb_to_hsv(*np.clip(p, 0, 255))[0] for p in (rgb, matrix @ rgb))
        # I and Q turn against the hexagon's order, red, yellow, green.
        assert abs((after - before + turn + 0.5) % 1 - 0.5) < 0.04


def test_equal_seeds_draw_equal_colours():
    for one, other in zip(_draws(3), _draws(3), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)
    assert len({float(colours.matrix[0, 0]) for colours in _draws(20)}) > 10


@pytest.mark.parametrize("valid", [(20, 30), (5, 7)])
def test_a_drawn_picture_has_its_colours_and_black_padding(valid):
    """Before an enlargement or after a reduction, the values are the same, and cut to a byte."""
    image = np.random.default_rng(2).integers(0, 256, (10, 15, 3), np.uint8)
    size, canvas = tf.constant([10, 15], tf.int64), tf.constant([32, 32], tf.int64)
    geometry = augment.Geometry(
        size, 0 * size, size, tf.constant(valid, tf.int64), tf.constant([False, True])
    )
    colours = [_map(1.3 * np.roll(IDENTITY, 1, axis=0)), _map(IDENTITY, 20.0)]
    plain = augment.render_image(tf.constant(image), geometry, canvas).numpy()
    drawn = augment.render_image(tf.constant(image), geometry, canvas, colours).numpy()
    assert not drawn[valid[0] :].any() and not drawn[:, valid[1] :].any()
    expected = np.clip(1.3 * np.roll(plain.astype(float), 1, axis=2) + 20, 0, 255)
    np.testing.assert_allclose(
        drawn[: valid[0], : valid[1]], expected[: valid[0], : valid[1]], atol=1.3
    )
