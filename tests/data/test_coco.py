"""Reading COCO files: structure, boxes, run lengths against pycocotools."""

import copy
import json
import pathlib

import numpy as np
import pytest
from coco_files import HEIGHT, WIDTH, tiny_coco
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from data.coco import (
    InvalidAnnotation,
    SkippedItems,
    clip_box,
    decode_counts,
    is_finite_number,
    load_dataset,
    mask_area,
    run_lengths,
)
from data.errors import UserError

_SHARED_DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data"


def _to_mask(runs, height, width):
    """The mask that run lengths stand for, [H, W], by their definition."""
    flat = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs)
    return flat.reshape([width, height]).T


def _load(tmp_path, content, tolerate=False):
    path = tmp_path / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    skipped = SkippedItems(tolerate)
    return load_dataset(str(path), skipped), skipped.items


def test_images_are_sorted_and_labels_ascend_with_category_ids(tmp_path):
    dataset, skipped = _load(tmp_path, tiny_coco())
    assert skipped == []
    assert [image.id for image in dataset.images] == [7, 9, 40, 42]
    assert [len(image.annotations) for image in dataset.images] == [2, 1, 0, 2]
    assert dataset.categories == [
        {"label": 1, "id": 3, "name": "car"},
        {"label": 2, "id": 18, "name": "dog"},
        {"label": 3, "id": 90, "name": "toothbrush"},
    ]


@pytest.mark.parametrize(
    "content, sentence",
    [
        ('{"images": [', "cut short"),
        ("[1, 2]", "no COCO instance file: it has no list 'images'"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no categories"),
        ("\xff", "no COCO|JSON"),
        (dict(tiny_coco(), images=[], annotations=[]), "no usable image"),
        (dict(tiny_coco(), categories=[{"id": 1}]), "lacks an integer 'id' or a 'name'"),
        (dict(tiny_coco(), categories=[{"id": 1, "name": "a"}] * 2), "stands twice"),
    ],
)
def test_files_that_are_no_coco_are_refused(tmp_path, content, sentence):
    with pytest.raises(UserError, match=sentence):
        _load(tmp_path, content, tolerate=True)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read .*No such file"):
        load_dataset(str(tmp_path / "absent.json"), SkippedItems(tolerate=True))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"id": 7}, "another image has the same id"),
        ({"id": "x"}, "the id is no integer"),
        ({"id": -1}, "the id is no integer of 0 or more"),
        ({"height": 0}, "the height 0 is no positive integer"),
        ({"width": "30"}, "the width '30' is no positive integer"),
        ({"file_name": 5}, "file_name is no text"),
        ({"file_name": None}, "file_name is no text"),
        ({"width": ...}, "the key 'width' is missing"),
    ],
)
def test_bad_images_stop_or_are_left_out(tmp_path, change, reason):
    content = tiny_coco()
    _change(content["images"][3], change)
    with pytest.raises(UserError, match=f"{reason}.*--on_invalid=skip"):
        _load(tmp_path, content)
    dataset, skipped = _load(tmp_path, content, tolerate=True)
    assert [image.id for image in dataset.images] == [7, 9, 42]
    assert len(skipped) == 1 and reason in skipped[0]["reason"]
    assert set(skipped[0]) == {"image_id", "file_name", "reason"}


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"id": 501}, "another annotation has the same id"),
        ({"id": None}, "the id is no integer"),
        ({"image_id": 1}, "no image has this image_id"),
        ({"category_id": 4}, "no category has the id 4"),
        ({"category_id": [4]}, "no category has the id"),
        ({"iscrowd": 2}, "iscrowd is 2"),
        ({"bbox": ...}, "the key 'bbox' is missing"),
        ({"image_id": ...}, "the key 'image_id' is missing"),
    ],
)
def test_bad_annotations_stop_or_are_left_out(tmp_path, change, reason):
    content = tiny_coco()
    _change(content["annotations"][2], change)
    with pytest.raises(UserError, match=reason):
        _load(tmp_path, content)
    dataset, skipped = _load(tmp_path, content, tolerate=True)
    assert [image.id for image in dataset.images] == [7, 9, 40, 42]
    assert dataset.images[1].annotations == []
    assert len(skipped) == 1 and reason in skipped[0]["reason"]
    assert set(skipped[0]) == {"image_id", "annotation_id", "reason"}


def test_annotations_of_a_bad_image_go_with_it(tmp_path):
    content = tiny_coco()
    del content["images"][0]["file_name"]
    dataset, skipped = _load(tmp_path, content, tolerate=True)
    assert [image.id for image in dataset.images] == [7, 9, 40]
    assert [item["image_id"] for item in skipped] == [42]


def test_entries_that_are_no_objects_are_left_out(tmp_path):
    content = tiny_coco()
    content["images"].append(3)
    content["annotations"].append("x")
    dataset, skipped = _load(tmp_path, content, tolerate=True)
    assert len(dataset.images) == 4
    assert [item["reason"] for item in skipped] == [
        "the entry 3 is no JSON object",
        "the entry 'x' is no JSON object",
    ]


def _change(entry, change):
    for key, value in change.items():
        if value is ...:
            del entry[key]
        else:
            entry[key] = value


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


def test_finite_numbers():
    assert is_finite_number(0) and is_finite_number(-2.5)
    assert not any(map(is_finite_number, [float("nan"), float("-inf"), "1", None, True]))


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
    polygons = [[value for point in part for value in point] for part in parts]
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH))
    runs = run_lengths(polygons, HEIGHT, WIDTH)
    np.testing.assert_array_equal(_to_mask(runs, HEIGHT, WIDTH), coco_mask.decode(merged))


@pytest.mark.parametrize(
    "segmentation, reason",
    [
        (None, "no mask"),
        ([], "no mask"),
        ("x", "no mask"),
        ([[1, 1, 5, 5]], "2 points, fewer than three"),
        ([[1, 1, 5, 5, 9, 1], []], "0 points, fewer than three"),
        ([[1, 1, 5, 5, 9, 1, 3]], "no list of x, y pairs"),
        ([1, 1, 5, 5, 9, 1], "no list of x, y pairs"),
        ([["a"] * 6], "no list of x, y pairs"),
        ([[1, 1, 5, 5, 9, float("nan")]], "not all finite"),
        ([[1, 1, 5, 5, 1e9, 1]], "absurdly far"),
        ({"size": [20, 30], "counts": [600, 1]}, "do not add up"),
        ({"size": [20, 30], "counts": [-1, 601]}, "do not add up"),
        ({"size": [20, 30], "counts": []}, "do not add up"),
        ({"size": [20, 30], "counts": [2**62, 2**62, 2**62, 2**62, 600]}, "do not add up"),
        ({"size": [30, 20], "counts": [600]}, r"size \[30, 20\] is not the image's \[20, 30\]"),
        ({"counts": [600]}, "size None"),
        ({"size": [20, 30]}, "neither text nor"),
        ({"size": [20, 30], "counts": [1.5, 598.5]}, "neither text nor"),
        ({"size": [20, 30], "counts": ""}, "foreign characters or nothing"),
        ({"size": [20, 30], "counts": "é"}, "foreign characters"),
        ({"size": [20, 30], "counts": "a b"}, "foreign characters"),
        ({"size": [20, 30], "counts": "XX"}, "cut short"),
        ({"size": [20, 30], "counts": "o" * 30 + "0"}, "cut short"),
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
