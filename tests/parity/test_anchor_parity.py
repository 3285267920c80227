"""AnchorGrid against the anchor generators of Detectron2, mmdetection and torchvision.

Deviations:
- torchvision derives a level's stride from the sizes of image and feature map; here it is 2**level.
  They differ where the level does not divide the image; the comparison moves the centres there.
- mmdetection leaves anchors beyond the image's own area (valid_flags) out of training; here they
  are no negatives unless --rpn_negative_area asks for them, but can be positive.
- Detectron2's OFFSET of half a stride is no setting; the comparison moves the centres.
- Nine anchors a cell of one level are no setting; the comparison interleaves three grids.

Not covered: ms, ms_cell, ms_visible_per_level and mm_legacy, which are inclusive coordinates with
sides that are rounded one after the other; nothing here has them.
"""

import numpy as np
import pytest
import tensorflow as tf
from fixtures import agree, fixture, yx
from reference_grids import pyramid_cases, pyramid_grid

from data.anchor_matching import match_and_sample
from data.anchors import AnchorGrid

FILE = fixture("a_anchors.npz")
ATOL = FILE.tolerance["atol"]

pyramids = pytest.mark.parametrize("case", pyramid_cases(), ids=repr)
one_level = pytest.mark.parametrize("case", FILE.cases_with("d2_offset_half"), ids=repr)


def coarsest(grid, values, expected):
    """The last rows of [A, …], as some files leave the finest levels out."""
    whole_levels = np.cumsum(grid.level_sizes[::-1])
    assert len(expected) in whole_levels
    return values[-len(expected) :]


def cells(grid):
    """Row and column of each anchor's cell [A, 2], and its level [A]."""
    indices, levels = [], []
    for level, shape in enumerate(grid.level_shapes):
        cell = np.stack(np.indices(shape), -1).reshape(-1, 2)
        indices.append(np.repeat(cell, len(grid.ratios), axis=0))
        levels += [level] * len(indices[-1])
    return np.concatenate(indices), np.array(levels)


@pyramids
def test_levels_have_the_sizes_of_the_feature_maps(case):
    grid = pyramid_grid(case.params["image_hw"], case.params)
    assert [list(shape) for shape in grid.level_shapes] == case.params["grids_hw"]
    assert list(grid.strides) == case.params["strides"]


@pyramids
@pytest.mark.parametrize("reference", ["d2", "mm"])
def test_unrounded(case, reference):
    grid = pyramid_grid(case.params["image_hw"], case.params)
    expected = yx(case[reference])
    agree(
        coarsest(grid, grid.boxes(), expected), expected, "anchors of a pyramid", reference,
        atol=ATOL,
    )  # fmt: skip


@pyramids
def test_rounded_like_torchvisions(case):
    grid = pyramid_grid(case.params["image_hw"], case.params, rounded=True)
    cell, level = cells(grid)
    moved = cell * (case["tv_strides"] - np.array(grid.strides)[:, None])[level]
    expected = yx(case["tv"])
    ours = coarsest(grid, grid.boxes() + np.tile(moved, 2), expected)
    agree(ours, expected, "anchors of a pyramid, rounded", "tv")


@pyramids
def test_strides_differ_from_torchvisions_only_where_a_level_does_not_divide_the_image(case):
    sides = np.array(case.params["image_hw"])
    strides = np.array(case.params["strides"])[:, None]
    differs = case["tv_strides"] != strides
    agree(case["tv_strides"][~differs], (0 * sides + strides)[~differs], "anchor strides", "tv")
    assert (sides % strides)[differs].all()


@pyramids
def test_valid_flags_are_the_cells_of_a_smaller_canvas(case):
    grid = pyramid_grid(case.params["image_hw"], case.params)
    valid = pyramid_grid(case.params["mm_valid_pad_hw"], case.params)
    cell, level = cells(grid)
    flags = (cell < np.array(valid.level_shapes)[level]).all(1)
    agree(flags, case["mm_valid_flags"], "anchors of the image's own area", "mm")


@pyramids
def test_negatives_of_a_padded_image_are_the_valid_anchors(case):
    grid = pyramid_grid(case.params["image_hw"], case.params)
    targets = match_and_sample(
        tf.zeros([0, 4]),
        tf.zeros([0, 4]),
        grid,
        tf.constant([0, 0]),
        positive_iou=0.7,
        negative_iou=0.3,
        num_samples=grid.num_anchors,
        positive_fraction=0.5,
        ignore_crowds=False,
        negative_area=tf.constant(case.params["mm_valid_pad_hw"], tf.float32),
    )
    flags = np.zeros(grid.num_anchors, bool)
    flags[targets.indices.numpy()[targets.labels == 0]] = True
    agree(flags, case["mm_valid_flags"], "negatives of the image's own area", "mm")


def nine_a_cell(case, *, rounded, sizes_first):
    """Boxes of one-size grids laid side by side, in the order of the reference: [cells * 9, 4]."""
    level = int(np.log2(case.params["stride"]))
    ratios = tuple(map(float, case.params["ratios"]))
    grids = [
        AnchorGrid(*case.params["image_hw"], level, level, (float(size),), ratios, rounded)
        for size in case.params["sizes"]
    ]
    assert {grid.level_shapes for grid in grids} == {(tuple(case.params["grid_hw"]),)}
    by_size = [grid.boxes().reshape(-1, len(ratios), 4) for grid in grids]
    axis = 1 if sizes_first else 2
    return np.stack(by_size, axis).reshape(-1, 4)


@one_level
@pytest.mark.parametrize("reference", ["d2", "mm", "tv"])
def test_nine_anchors_a_cell(case, reference):
    rounded = reference == "tv"
    ours = nine_a_cell(case, rounded=rounded, sizes_first=reference == "d2")
    agree(
        ours, yx(case[reference]), "anchors of one level, 9 a cell", reference,
        atol=0.0 if rounded else ATOL,
    )  # fmt: skip


@one_level
def test_half_a_stride_is_all_that_the_offset_moves(case):
    ours = nine_a_cell(case, rounded=False, sizes_first=True) + case.params["stride"] / 2
    agree(ours, yx(case["d2_offset_half"]), "anchors with offset 0.5", "d2", atol=ATOL)
