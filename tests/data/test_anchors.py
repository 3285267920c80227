"""Tests of data/anchors.py on grids small enough to write out."""

import dataclasses

import numpy as np
import pytest

from data.anchors import AnchorGrid
from data.config import DataConfig


def test_one_level_written_out():
    grid = AnchorGrid(8, 4, min_level=2, max_level=2, sizes=(8.0,), ratios=(0.25, 1.0, 4.0))
    # Ratio 0.25 is 4 high and 16 wide, ratio 4 is 16 high and 4 wide.
    expected = [[-2, -8, 2, 8], [-4, -4, 4, 4], [-8, -2, 8, 2],
                [2, -8, 6, 8], [0, -4, 8, 4], [-4, -2, 12, 2]]  # fmt: skip
    assert grid.level_shapes == ((2, 1),)
    assert grid.boxes().dtype == np.float32
    np.testing.assert_array_equal(grid.boxes(), expected)


def test_rounded_corners_written_out():
    # Size 5: 2.5 x 10, 5 x 5 and 10 x 2.5. Halves of sides are 1.25, 5 and 2.5, which go to the
    # nearest, and to the even one of two: 1, 5 and 2.
    grid = AnchorGrid(4, 8, 2, 2, sizes=(5.0,), ratios=(0.25, 1.0, 4.0), rounded=True)
    cell = np.array([[-1, -5, 1, 5], [-2, -2, 2, 2], [-5, -1, 5, 1]])
    np.testing.assert_array_equal(grid.boxes(), [*cell, *(cell + [0, 4, 0, 4])])
    # torchvision's table of 32 pixels.
    grid = AnchorGrid(4, 4, 2, 2, sizes=(32.0,), ratios=(0.5, 1.0, 2.0), rounded=True)
    expected = [[-11, -23, 11, 23], [-16, -16, 16, 16], [-23, -11, 23, 11]]
    np.testing.assert_array_equal(grid.boxes(), expected)


def test_rounding_is_a_setting():
    for rounded in (False, True):
        config = DataConfig(anchor_rounding=rounded)
        boxes = AnchorGrid.from_config(config, (64, 64)).boxes()
        assert (boxes == np.round(boxes)).all() == rounded


def test_order_is_level_row_column_ratio():
    grid = AnchorGrid(8, 12, min_level=2, max_level=3, sizes=(4.0, 8.0), ratios=(1.0, 4.0))
    boxes = grid.boxes()
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    expected = [
        (row * stride, column * stride)
        for stride, rows, columns in ((4, 2, 3), (8, 1, 2))
        for row in range(rows)
        for column in range(columns)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(centres, expected)
    sizes = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_array_equal(sizes[0::2], [[4, 4]] * 6 + [[8, 8]] * 2)
    np.testing.assert_array_equal(sizes[1::2], [[8, 2]] * 6 + [[16, 4]] * 2)


def test_sizes_of_a_cell_come_before_its_ratios():
    config = DataConfig(anchor_levels=(4,), anchor_sizes=(128, 256, 512))
    grid = AnchorGrid.from_config(config, (640, 960))
    assert grid.level_shapes == ((40, 60),)
    assert grid.num_anchors == 40 * 60 * 9
    cell = grid.boxes()[:9]
    sides = cell[:, 2:] - cell[:, :2]
    np.testing.assert_allclose(sides.prod(axis=1), np.repeat(np.square([128, 256, 512]), 3))
    np.testing.assert_allclose(sides[:, 0] / sides[:, 1], [0.5, 1, 2] * 3, rtol=1e-6)
    np.testing.assert_array_equal(grid.boxes()[9:18], cell + [0, 16, 0, 16])


def test_counts_of_the_default_grid():
    grid = AnchorGrid.from_config(DataConfig(), (1024, 1024))
    assert grid.level_shapes == ((256, 256), (128, 128), (64, 64), (32, 32), (16, 16))
    assert grid.num_anchors == 261_888
    assert grid.boxes().shape == (261_888, 4)
    assert sum(grid.level_sizes) == grid.num_anchors


@pytest.mark.parametrize("side", range(32, 33 * 32, 32))
def test_rounding_once_equals_rounding_level_by_level(side):
    grid = AnchorGrid.from_config(DataConfig(), (side, 64))
    rows = [shape[0] for shape in grid.level_shapes]
    halved = [side // 4]
    while len(halved) < len(rows):
        halved.append((halved[-1] + 1) // 2)
    assert rows == halved


def test_ratio_is_height_over_width_and_keeps_the_area():
    grid = AnchorGrid.from_config(DataConfig(), (64, 64))
    np.testing.assert_allclose(grid.shapes[..., 0] / grid.shapes[..., 1], [[0.5, 1.0, 2.0]] * 5)
    areas = grid.shapes[..., 0] * grid.shapes[..., 1]
    np.testing.assert_allclose(areas, np.square([[32.0], [64], [128], [256], [512]]) * [1, 1, 1])


def test_grids_are_hashable_and_comparable():
    config = DataConfig()
    grid = AnchorGrid.from_config(config, (64, 96))
    assert grid == AnchorGrid.from_config(config, (64, 96))
    assert len({grid, AnchorGrid.from_config(config, (96, 64))}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "canvas 0x64"),
        ({"max_level": 1}, "levels 2 to 1"),
        ({"sizes": (8.0,)}, "sizes=\\(8.0,\\)"),
        ({"sizes": (8.0, 9.0, 16.0)}, "as many positive sizes for each level"),
        ({"sizes": (8.0, -1.0)}, "sizes"),
        ({"ratios": ()}, "ratios=\\(\\)"),
        ({"ratios": (1.0, 0.0)}, "ratios"),
        ({"sizes": (0.9, 8.0), "rounded": True}, "sizes=\\(0.9, 8.0\\), ratios=\\(1.0,\\)"),
    ],
)
def test_impossible_grids_are_refused(change, message):
    grid = AnchorGrid(64, 64, min_level=2, max_level=3, sizes=(8.0, 16.0), ratios=(1.0,))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(grid, **change)
