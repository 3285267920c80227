"""Single annotations: boxes, areas, and whether box and mask agree."""

import pathlib

import pytest
from coco_files import HEIGHT, WIDTH
from pycocotools import mask as coco_mask

from data.annotations import clip_box, complete_annotation, find_doubts, read_outline
from data.coco import load_dataset
from data.findings import InvalidAnnotation, SkippedItems

_SHARED_DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
# The mask of x 8..19 and y 5..12, as columns and wrongly as rows.
_POLYGON = [[8, 5, 19, 5, 19, 12, 8, 12]]
_BY_ROWS = {
    "size": [HEIGHT, WIDTH],
    "counts": [5 * WIDTH + 8, *[11, WIDTH - 11] * 6, 11, 8 * WIDTH + 11],
}


def test_boxes_turn_into_corners_and_are_clipped():
    assert clip_box([2, 3, 10, 6], HEIGHT, WIDTH) == (3, 2, 9, 12)
    assert clip_box([-4, 10, 10, 30], HEIGHT, WIDTH) == (10, 0, 20, 6)
    assert clip_box([-1, -1, 99, 99], HEIGHT, WIDTH) == (0, 0, 20, 30)


@pytest.mark.parametrize(
    "bbox, reason",
    [
        ([1, 1, 0, 5], "no area"),
        ([1, 1, 5, 0], "no area"),
        ([30, 1, 5, 5], "no area inside the image of 30x20"),
        ([1, -9, 5, 9], "no area inside"),
        ([29.9, 1, 1e-12, 5], "no area"),
        ([1, 1, -2, 5], "negative side"),
        ([0.25, 0.5, 0.25, 0.5], "between 0 and 1, relative to the image"),
        ([1, 1, float("nan"), 5], "finite"),
        ([1, float("inf"), 5, 5], "finite"),
        ([1, 10**400, 5, 5], "finite"),
        ([1, 1, 5], "four numbers"),
        ([1, 1, 5, "5"], "finite"),
        ([1, 1, 5, True], "finite"),
        ("1234", "four numbers"),
        (None, "four numbers"),
    ],
)
def test_bad_boxes_are_refused(bbox, reason):
    with pytest.raises(InvalidAnnotation, match=reason):
        clip_box(bbox, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
        [[40, 40, 50, 40, 50, 50]],  # outside
        [[2, 3, 10, 3, 19, 3]],  # on a line
        [[2.1, 3.1, 2.3, 3.1, 2.3, 3.3]],  # between the middles of pixels
    ],
)
def test_masks_without_a_pixel_are_refused(segmentation):
    annotation = {"bbox": [2, 3, 10, 6], "segmentation": segmentation}
    with pytest.raises(InvalidAnnotation, match="mask has no pixels inside the image of 30x20"):
        read_outline(annotation, HEIGHT, WIDTH, include_mask=True)
    assert read_outline(annotation, HEIGHT, WIDTH, include_mask=False).area == 60


def test_what_is_absent_is_completed():
    annotation = {"bbox": [-2, 3, 12, 40], "segmentation": _POLYGON, "id": 3}
    complete = complete_annotation(annotation, HEIGHT, WIDTH)
    assert complete["bbox"] == [0, 3, 10, 17]
    assert (complete["area"], complete["iscrowd"], complete["id"]) == (77, 0, 3)
    assert coco_mask.area(complete["segmentation"]) == 77
    del annotation["segmentation"]
    assert complete_annotation(annotation, HEIGHT, WIDTH)["area"] == 170
    assert complete_annotation(annotation | {"area": 5}, HEIGHT, WIDTH)["area"] == 5


def _doubts(bbox, segmentation):
    annotation = {"bbox": bbox, "segmentation": segmentation}
    outline = read_outline(annotation, HEIGHT, WIDTH, include_mask=True)
    return find_doubts(annotation, outline, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "bbox, segmentation, doubts",
    [
        ([8, 5, 11, 7], _POLYGON, []),
        ([7, 4, 13, 9], _POLYGON, []),  # drawn by hand
        ([8, 5, 19, 12], _POLYGON, ["the box is x1, y1, x2, y2"]),
        ([5, 8, 7, 11], _POLYGON, ["the box is y, x, height, width"]),
        ([5, 8, 12, 19], _POLYGON, ["the box is y1, x1, y2, x2"]),
        ([13.5, 8.5, 11, 7], _POLYGON, ["the box is centre x, centre y"]),
        ([20, 14, 9, 5], _POLYGON, ["the box does not fit the mask"]),
        ([8, 5, 11, 7], _BY_ROWS, ["row by row"]),
        ([8, 5, 11, 7], [*_POLYGON, [2, 2]], ["fewer than three points"]),
    ],
)
def test_boxes_that_do_not_fit_their_masks_are_doubted(bbox, segmentation, doubts):
    found = _doubts(bbox, segmentation)
    assert len(found) == len(doubts)
    assert all(part in kind for part, kind in zip(doubts, found, strict=True))


def test_small_objects_may_be_a_pixel_off():
    assert _doubts([3, 3, 2, 2], {"size": [HEIGHT, WIDTH], "counts": [64, 1, 535]}) == []


@pytest.mark.parametrize(
    "name",
    ["coco_tiny/annotations/instances_val2017.json", "nuclei/annotations/instances_val.json"],
)
def test_real_annotations_are_beyond_doubt(name):
    if not (path := _SHARED_DATA / name).exists():
        pytest.skip(f"no {path}")
    for image in load_dataset(str(path), SkippedItems(tolerate=False)).images:
        size = image.height, image.width
        for annotation in image.annotations:
            outline = read_outline(annotation, *size, include_mask=True)
            assert find_doubts(annotation, outline, *size) == []
