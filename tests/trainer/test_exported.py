"""Exports that take whole canvases, on images that do not fill theirs."""

import numpy as np
import pytest

from model.paste import paste_mask
from trainer.exported import crop_masks, find_on_canvas

HEIGHT, WIDTH, SIDE = 40, 60, 28


def disc() -> np.ndarray:
    """A smooth disc that fills its box: float32 [SIDE, SIDE]."""
    centre = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    distance = np.hypot(centre[:, None], centre[None])
    return np.clip(0.5 + 8 * (0.4 - distance), 0, 1).astype(np.float32)


@pytest.mark.parametrize(
    "box",
    [[20, 30, 60, 70], [-10, 5, 20, 35], [5, -20, 35, 20], [10, 10, 30, 30], [-9, -9, 50, 70]],
)
def test_masks_stay_where_they_are_when_boxes_are_clipped(box):
    boxes = np.array([box], np.float32)
    parts = np.clip(boxes, 0, [HEIGHT, WIDTH, HEIGHT, WIDTH])
    (cropped,) = crop_masks(disc()[None], boxes, parts)
    ours = paste_mask(cropped, parts[0], HEIGHT, WIDTH) > 0
    theirs = paste_mask(disc(), boxes[0], HEIGHT, WIDTH) > 0
    assert theirs.sum() > 100
    # Interpolating twice may move the outline by a part of a pixel.
    assert (ours != theirs).sum() <= 0.03 * theirs.sum()
    if (parts == boxes).all():
        np.testing.assert_array_equal(cropped, disc())


def test_detections_are_those_of_the_image():
    """The canvas is 48 x 64, the image 40 x 60 of it."""
    seen = []

    def run(image):
        seen.append(image)
        return {
            "boxes": np.array([[[20, 30, 46, 50], [42, 5, 47, 20], [1, 2, 30, 40]]], np.float32),
            "classes": np.array([[1, 2, 1]]),
            "box_scores": np.array([[0.9, 0.8, 0.7]], np.float32),
            "masks": np.stack([disc()] * 3)[None],
        }

    features = {
        "image": np.full([1, 48, 64, 3], 200, np.uint8),
        "image_info": np.array([[HEIGHT, WIDTH, 1.0, HEIGHT, WIDTH]], np.float32),
    }
    found = find_on_canvas(run, (9.0, 9.0, 9.0))(features)
    assert (seen[0][0, :HEIGHT, :WIDTH] == 200).all() and (seen[0][0, HEIGHT:] == 9).all()
    # The second box lies below the image.
    assert found["num_detections"].tolist() == [2]
    assert found["detection_classes"].tolist() == [[1, 1]]
    np.testing.assert_array_equal(found["detection_boxes"][0, 0], [20, 30, 40, 50])
    first, last = found["detection_masks"][0]
    np.testing.assert_array_equal(last, disc())
    # The lower rows of the first mask are cut off, so its last row is inside the disc.
    assert first[-1].max() > 0.9 > disc()[-1].max()
