"""Mask pasting against hand-written numbers, a direct bilinear oracle and pycocotools' RLE."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from model.paste import encode_rle, paste_mask, paste_probabilities, paste_rle, paste_window


def paste_directly(mask, box, height, width, threshold):
    """Pixel by pixel: bilinear interpolation of the zero-padded mask at each pixel centre."""
    y1, x1, y2, x2 = box
    side = mask.shape[0]
    padded = np.pad(mask.astype(np.float64), 1)
    pasted = np.zeros((height, width), np.float64)
    for y in range(height):
        for x in range(width):
            v = (y + 0.5 - y1) / (y2 - y1) * side - 0.5
            u = (x + 0.5 - x1) / (x2 - x1) * side - 0.5
            if not (-1 < v < side and -1 < u < side):
                continue
            row, column = int(np.floor(v)), int(np.floor(u))
            dy, dx = v - row, u - column
            cell = padded[row + 1 : row + 3, column + 1 : column + 3]
            pasted[y, x] = np.array([1 - dy, dy]) @ cell @ np.array([1 - dx, dx])
    return pasted, pasted >= threshold


def test_full_mask_fills_exactly_its_box():
    pasted = paste_mask(np.ones((28, 28)), np.array([1, 2, 4, 6.0]), 6, 8)
    expected = np.zeros((6, 8), np.uint8)
    expected[1:4, 2:6] = 1
    np.testing.assert_array_equal(pasted, expected)
    assert pasted.dtype == np.uint8


def test_mask_of_the_boxs_own_size_is_copied():
    mask = np.array([[1, 0], [0, 1.0]])
    pasted = paste_mask(mask, np.array([1, 1, 3, 3.0]), 4, 4)
    np.testing.assert_array_equal(pasted, [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])


def test_value_at_the_threshold_is_set():
    # Centres of the four pixels meet the two cells at u = -0.25, 0.25, 0.75 and 1.25: the row of
    # the mask reads 0.75 * 0.8 = 0.6, then 0.7, 0.5 and 0.3 (0.75 * 0.4).
    mask = np.array([[0.8, 0.4], [0.8, 0.4]])
    box = np.array([0, 0, 2, 4.0])
    np.testing.assert_array_equal(paste_mask(mask, box, 2, 4, 0.49)[0], [1, 1, 1, 0])
    np.testing.assert_array_equal(paste_mask(mask, box, 2, 4, 0.61)[0], [0, 1, 0, 0])
    half = np.full((2, 2), 0.5)
    np.testing.assert_array_equal(paste_mask(half, np.array([0, 0, 2, 2.0]), 2, 2), np.ones((2, 2)))


def test_box_over_the_border_is_cut():
    pasted = paste_mask(np.ones((28, 28)), np.array([-10, -10, 2, 3.0]), 5, 5)
    np.testing.assert_array_equal(np.argwhere(pasted), np.argwhere(np.ones((2, 3))))


@pytest.mark.parametrize(
    "box", [(3, 3, 3, 8), (5, 5, 4, 4), (20, 0, 30, 5), (-9, -9, -2, -2), (np.nan, 0, 1, 1)]
)
def test_boxes_without_area_or_outside_give_nothing(box):
    assert paste_mask(np.ones((4, 4)), np.array(box), 10, 12).sum() == 0
    assert paste_rle(np.ones((4, 4)), np.array(box), 10, 12) == encode_rle(np.zeros((10, 12)))


def test_integer_rule_by_hand():
    # A 2 x 2 mask and its border are 4 cells, so the box [2, 2, 6, 6] grows to [0, 0, 8, 8], and
    # the picture is resized to the 9 pixels 0 to 8. Pixel i lies at cell (i + 0.5) 4 / 9 - 0.5;
    # the mask's two cells are cells 1 and 2.
    soft = paste_probabilities(np.ones((2, 2)), np.array([2, 2, 6, 6.0]), 10, 12, "integer")
    assert (soft.top, soft.left) == (0, 0)
    cells = (np.arange(9) + 0.5) * 4 / 9 - 0.5
    profile = np.minimum(np.clip(cells, 0, 1), np.clip(3 - cells, 0, 1))
    np.testing.assert_allclose(soft.pixels, np.outer(profile, profile), atol=1e-6)
    np.testing.assert_allclose(profile[[0, 1, 2, 4]], [0, 1 / 6, 11 / 18, 1], atol=1e-6)


def test_integer_rule_truncates_toward_zero():
    # Grown by 3 / 2 around their centres, the rows -0.4 to 3.2 are -1.3 to 4.1: the
    # pixels -1 to 4 are one for each of the 6 cells, of which the outer ones are the border.
    box = np.array([-0.4, 4, 3.2, 8])
    soft = paste_probabilities(np.ones((4, 4)), box, 20, 20, "integer")
    assert (soft.top, soft.left) == (0, 3)
    assert soft.pixels.shape == (5, 7)
    np.testing.assert_array_equal(soft.pixels[:, 3], [1, 1, 1, 1, 0])


def test_value_at_the_threshold_is_not_set_by_the_integer_rule():
    half, box = np.full((2, 2), 0.5), np.array([4, 4, 8, 8.0])
    assert paste_mask(half, box, 12, 12, rule="integer").sum() == 0
    assert paste_mask(half, box, 12, 12, threshold=0.49, rule="integer")[6, 6] == 1
    assert paste_mask(half, box, 12, 12)[6, 6] == 1


def resize_directly(mask, box, height, width):
    """The rule "integer", cell by cell, with a clamp where a pixel lies beyond the border."""
    side = mask.shape[0] + 2
    padded = np.pad(mask.astype(np.float64), 1)
    box = np.float32(box)
    half = (box[2:] - box[:2]) * np.float32(0.5) * np.float32(side / mask.shape[0])
    centre = (box[2:] + box[:2]) * np.float32(0.5)
    low, high = np.trunc(centre - half).astype(int), np.trunc(centre + half).astype(int)
    size = high - low + 1
    pasted = np.zeros((height, width))
    for y, x in np.ndindex(*size):
        if not (0 <= y + low[0] < height and 0 <= x + low[1] < width):
            continue
        v, u = np.maximum((np.array([y, x]) + 0.5) * side / size - 0.5, 0)
        row, column = int(v), int(u)
        rows, columns = (min(row + 1, side - 1), min(column + 1, side - 1))
        cell = padded[np.ix_([row, rows], [column, columns])]
        dy, dx = v - row, u - column
        pasted[y + low[0], x + low[1]] = np.array([1 - dy, dy]) @ cell @ np.array([1 - dx, dx])
    return pasted


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.sampled_from([1, 2, 5, 14]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_integer_rule_equals_resizing_directly(seed, side, height, width):
    rng = np.random.default_rng(seed)
    mask = rng.random((side, side))
    start = rng.uniform(-6, [height, width])
    box = np.concatenate([start, start + rng.uniform(0, 25, 2)])
    soft = paste_probabilities(mask, box, height, width, "integer").in_image(height, width)
    values = resize_directly(mask, box, height, width)
    np.testing.assert_allclose(soft, values, atol=1e-4)
    pasted = paste_mask(mask, box, height, width, rule="integer")
    decided = np.abs(values - 0.5) > 1e-4
    np.testing.assert_array_equal(pasted[decided], values[decided] > 0.5)
    assert paste_rle(mask, box, height, width, rule="integer") == encode_rle(pasted)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.sampled_from([1, 2, 5, 14]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    threshold=st.sampled_from([0.05, 0.3, 0.5, 0.8]),
)
def test_equals_direct_bilinear_sampling(seed, side, height, width, threshold):
    rng = np.random.default_rng(seed)
    mask = rng.random((side, side))
    start = rng.uniform(-6, [height, width])
    box = np.concatenate([start, start + rng.uniform(0.3, 25, 2)])
    values, expected = paste_directly(mask, box, height, width, threshold)
    pasted = paste_mask(mask, box, height, width, threshold)
    differs = (pasted != expected) & (np.abs(values - threshold) > 1e-5)
    assert not differs.any()


def test_window_is_no_larger_than_the_box_needs():
    window = paste_window(np.ones((28, 28)), np.array([100, 200, 150, 220.0]), 1000, 2000)
    assert (window.top, window.left) == (99, 199)
    assert window.pixels.shape == (52, 22)


@settings(deadline=None, max_examples=200)
@given(
    hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 1)
    )
)
def test_rle_equals_pycocotools(mask):
    expected = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    assert encode_rle(mask) == {"size": list(mask.shape), "counts": expected}


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_rle_of_a_paste_decodes_to_the_paste(seed):
    rng = np.random.default_rng(seed)
    start = rng.uniform(-4, 12, 2)
    box = np.concatenate([start, start + rng.uniform(1, 30, 2)])
    mask = rng.random((5, 5))
    rle = paste_rle(mask, box, 16, 11)
    np.testing.assert_array_equal(coco_mask.decode(rle), paste_mask(mask, box, 16, 11))


def test_run_that_goes_on_in_the_next_column_is_one_run():
    mask = np.zeros((3, 3), np.uint8)
    mask[1:, 0] = 1
    mask[:2, 1] = 1
    expected = coco_mask.frPyObjects({"size": [3, 3], "counts": [1, 4, 4]}, 3, 3)["counts"]
    assert encode_rle(mask)["counts"] == expected.decode()
