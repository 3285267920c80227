"""Segmentations of COCO files as run lengths, against pycocotools."""

import copy
import pathlib

import numpy as np
import pytest
from coco_files import HEIGHT, WIDTH
from hypothesis import assume, given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from data.coco import load_dataset
from data.findings import InvalidAnnotation, SkippedItems
from data.segmentation import (
    decode_counts,
    is_relative,
    mask_area,
    mask_box,
    read_mask,
    run_lengths,
)

_SHARED_DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data"


def _to_mask(runs, height, width):
    """The mask that run lengths stand for, [H, W], by their definition."""
    flat = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs)
    return flat.reshape([width, height]).T


def test_run_lengths_of_a_hand_drawn_mask():
    # Columns top to bottom: 0,1 | 1,1 | 0,0 -> one zero, three ones, two zeros.
    runs = run_lengths({"size": [2, 3], "counts": [1, 3, 2]}, 2, 3)
    np.testing.assert_array_equal(runs, [1, 3, 2])
    assert runs.dtype == np.int64 and mask_area(runs) == 3
    encoded = coco_mask.frPyObjects({"size": [2, 3], "counts": [1, 3, 2]}, 2, 3)
    np.testing.assert_array_equal(decode_counts(encoded["counts"]), [1, 3, 2])
    np.testing.assert_array_equal(_to_mask(runs, 2, 3), [[0, 1, 0], [1, 1, 0]])


@given(st.data())
def test_compressed_counts_agree_with_pycocotools(data):
    height, width = data.draw(st.integers(1, 2000)), data.draw(st.integers(1, 2000))
    cuts = data.draw(st.lists(st.integers(0, height * width), max_size=30))
    runs = np.diff([0, *sorted(cuts), height * width])
    encoded = coco_mask.frPyObjects(
        {"size": [height, width], "counts": runs.tolist()}, height, width
    )
    np.testing.assert_array_equal(decode_counts(encoded["counts"]), runs)
    assert mask_area(decode_counts(encoded["counts"].decode())) == coco_mask.area(encoded)


coordinates = st.floats(-20, 60, allow_nan=False, width=32)


@given(st.lists(st.lists(st.tuples(coordinates, coordinates), min_size=3), min_size=1, max_size=3))
def test_polygons_agree_with_pycocotools(parts):
    outlines = [[value for point in part for value in point] for part in parts]
    assume(not all(map(is_relative, outlines)))
    merged = coco_mask.merge(coco_mask.frPyObjects(outlines, HEIGHT, WIDTH))
    runs = run_lengths(outlines, HEIGHT, WIDTH)
    np.testing.assert_array_equal(_to_mask(runs, HEIGHT, WIDTH), coco_mask.decode(merged))


@pytest.mark.parametrize(
    "segmentation, reason",
    [
        (None, "no mask"),
        ([], "no mask"),
        ("[[1, 1, 5, 5, 9, 1]]", "one flat list x1, y1, x2, y2"),
        (7, "one flat list"),
        ([[1, 1], [5, 5], [9, 1]], "one flat list"),
        ([[[1, 1], [5, 5], [9, 1]]], "one flat list"),
        ([1, 1, 5, 5, 9, 1], "one flat list"),
        ([["a"] * 6], "one flat list"),
        ([[10**400] * 6], "one flat list"),
        ([[1, 1, 5, 5, 9, 1], [[1, 1], [5, 5], [9, 1]]], "one flat list"),
        ([[1, 1, 5, 5]], "fewer than three points"),
        ([[], [1, 1]], "fewer than three points"),
        ([[1, 1, 5, 5, 9, 1, 3]], "not pairs x, y"),
        ([[0.1, 0.1, 0.5, 0.1, 0.5, 0.9]], "between 0 and 1"),
        ([[1, 1, 5, 5, 9, float("nan")]], "not all finite"),
        ([[1, 1, 5, 5, 1e9, 1]], "too far"),
        ({"size": [20, 30], "counts": [600, 1]}, "do not add up"),
        ({"size": [20, 30], "counts": [-1, 601]}, "do not add up"),
        ({"size": [20, 30], "counts": []}, "do not add up"),
        ({"size": [20, 30], "counts": [2**62, 2**62, 2**62, 2**62, 600]}, "do not add up"),
        ({"size": [30, 20], "counts": [600]}, r"size \[30, 20\] is not the image's \[20, 30\]"),
        ({"counts": [600]}, "size None"),
        ({"size": [20, 30]}, "neither text nor"),
        ({"size": [20, 30], "counts": [1.5, 598.5]}, "neither text nor"),
        ({"size": [20, 30], "counts": ""}, "empty or contain invalid characters"),
        ({"size": [20, 30], "counts": "é"}, "invalid characters"),
        ({"size": [20, 30], "counts": "\ud800abc"}, "invalid characters"),
        ({"size": [20, 30], "counts": "a b"}, "invalid characters"),
        ({"size": [20, 30], "counts": "XX"}, "truncated"),
        ({"size": [20, 30], "counts": "o" * 30 + "0"}, "truncated"),
        ({"size": [20, 30], "counts": "11"}, "do not add up"),
    ],
)
def test_bad_segmentations_are_refused(segmentation, reason):
    with pytest.raises(InvalidAnnotation, match=reason):
        run_lengths(copy.deepcopy(segmentation), HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "name",
    ["coco_tiny/annotations/instances_val2017.json", "nuclei/annotations/instances_val.json"],
)
def test_real_masks_equal_ann_to_mask(name, capsys):
    path = _SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"no {path}")
    oracle = COCO(str(path))
    capsys.readouterr()
    dataset = load_dataset(str(path), SkippedItems(tolerate=False))
    checked = 0
    for image in dataset.images[:15]:
        for annotation in image.annotations:
            runs = run_lengths(annotation["segmentation"], image.height, image.width)
            expected = oracle.annToMask(oracle.anns[annotation["id"]])
            np.testing.assert_array_equal(_to_mask(runs, image.height, image.width), expected)
            checked += 1
    assert checked == len(oracle.getAnnIds(imgIds=[image.id for image in dataset.images[:15]]))
    assert checked > 50


def test_pieces_of_fewer_than_three_points_count_for_nothing():
    square = [2, 3, 12, 3, 12, 9, 2, 9]
    strays = [[20, 15], square, [1, 1, 25, 15], []]
    np.testing.assert_array_equal(
        run_lengths(strays, HEIGHT, WIDTH), run_lengths([square], HEIGHT, WIDTH)
    )
    _, (polygon,) = read_mask(strays, HEIGHT, WIDTH)
    np.testing.assert_array_equal(polygon, square)


def test_only_fractions_of_the_first_pixel_are_relative():
    assert is_relative([0.25, 0, 1, 1])
    assert not is_relative([0, 0, 1, 1])  # as well the first pixel itself
    assert not is_relative([0.5, 0.5, 1.5, 0.5])
    assert not is_relative([-0.5, 0.5, 0.5, 0.5])


@given(st.data())
def test_boxes_of_masks_agree_with_their_pixels(data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    pixels = st.lists(st.booleans(), min_size=height * width, max_size=height * width)
    mask = np.array(data.draw(pixels.filter(any))).reshape(width, height)
    changes = np.flatnonzero(np.diff(np.concatenate([[False], mask.ravel()])))
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    if data.draw(st.booleans()):  # counts may be 0 anywhere
        runs = np.concatenate([runs[:1], [0, 0], runs[1:]])
    columns, rows = np.nonzero(mask)
    assert mask_box(runs, height) == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
