"""Masks of any origin as the MaskIoU head sees them, by hand."""

import numpy as np
import pytest

from model.paste import paste_mask
from trainer.given_masks import prepare_masks, rasterise, require_classes


def test_a_mask_is_averaged_over_the_cells_of_its_box():
    mask = np.zeros([5, 7], bool)
    mask[1:3, 2:6] = [[1, 1, 1, 1], [1, 0, 0, 1]]
    box, cells = rasterise(mask, 2)
    assert box.tolist() == [1, 2, 3, 6] and box.dtype == np.float32
    np.testing.assert_allclose(cells, [[1, 1], [0.5, 0.5]])
    # Three cells over four pixels: the first covers a pixel and a third of the next.
    np.testing.assert_allclose(
        rasterise(mask, 3)[1], [[1, 1, 1], [7 / 8, 0.5, 7 / 8], [0.75, 0, 0.75]]
    )


def test_pasting_a_raster_gives_the_mask():
    rng = np.random.default_rng(0)
    mask = np.zeros([50, 60], bool)
    mask[10:38, 20:48] = np.kron(rng.random([7, 7]) < 0.6, np.ones([4, 4]))
    mask[10, 20:48] = mask[37, 20:48] = mask[10:38, 20] = mask[10:38, 47] = True
    box, cells = rasterise(mask, 28)
    np.testing.assert_array_equal(paste_mask(cells, box, 50, 60), mask)


def test_empty_masks_have_boxes_without_area():
    masks = np.zeros([2, 4, 4], np.uint8)
    masks[1, 2, 3] = 7
    given = prepare_masks(masks, [2, 1], (4, 4), 4)
    assert given.boxes.tolist() == [[0, 0, 0, 0], [2, 3, 3, 4]]
    assert given.cells[0].max() == 0 and given.cells[1].min() == 1
    padded = given.padded()
    assert padded.boxes.shape == (32, 4) and padded.cells.shape == (32, 4, 4)
    np.testing.assert_array_equal(padded.classes[:3], [2, 1, 0])


def test_what_does_not_fit_is_refused():
    mask = np.ones([4, 6], bool)
    with pytest.raises(ValueError, match=r"^a mask of \[4, 6\] does not fit an image of \[6, 4\]"):
        prepare_masks([mask], [1], (6, 4), 28)
    with pytest.raises(ValueError, match="1 masks but 2 classes"):
        prepare_masks([mask], [1, 1], (4, 6), 28)
    with pytest.raises(ValueError, match=r"no class 3; the classes are \[1, 2\]"):
        require_classes([1, 3], {1: "cat", 2: "dog"})
