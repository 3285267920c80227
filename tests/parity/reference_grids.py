"""This project's anchor grids for the sizes that the reference numbers were made with."""

import numpy as np
from fixtures import Case, fixture

from data.anchors import AnchorGrid


def pyramid_cases() -> list[Case]:
    """The cases of a_anchors that have a pyramid of levels."""
    return fixture("a_anchors.npz").cases_with("tv_strides")


def pyramid_grid(hw, params: dict, *, rounded: bool = False) -> AnchorGrid:
    """The grid of `params["strides"]`, `["sizes"]` and `["ratios"]` on an image of (h, w) pixels.

    Args:
        hw: height and width of the padded image.
        params: of a case of a_anchors.
        rounded: as torchvision's anchors.
    """
    levels = np.log2(params["strides"])
    return AnchorGrid(
        *(int(side) for side in hw),
        min_level=int(levels[0]),
        max_level=int(levels[-1]),
        sizes=tuple(map(float, params["sizes"])),
        ratios=tuple(map(float, params["ratios"])),
        rounded=rounded,
    )


def usual_grid(hw, grids_hw) -> AnchorGrid:
    """The grid of the files that name only the image and its levels: a_anchors' sizes, unrounded.

    Args:
        hw: height and width of the padded image.
        grids_hw: rows and columns of each level, which the grid has to have.
    """
    grid = pyramid_grid(hw, pyramid_cases()[0].params)
    assert [list(shape) for shape in grid.level_shapes] == grids_hw
    return grid
