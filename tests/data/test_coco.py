"""Reading COCO files: their structure."""

import json
import pathlib

import pytest
from coco_files import tiny_coco

from data.coco import load_dataset
from data.errors import UserError
from data.findings import SkippedItems

_SHARED_DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data"


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
        ('{"images": [', "truncated"),
        ("[1, 2]", "not a COCO instance file: it has no list 'images'"),
        ({"annotations": [], "categories": []}, "no list 'images'"),
        (dict(tiny_coco(), annotations={}), "no list 'annotations'"),
        (dict(tiny_coco(), categories=...), "no list 'categories'"),
        (dict(tiny_coco(), categories=[]), "lists no categories"),
        ("\xff", "no COCO|JSON"),
        (dict(tiny_coco(), images=[], annotations=[]), "no usable images"),
        (dict(tiny_coco(), categories=[{"id": 1}]), "lacks an integer 'id' or a 'name'"),
        (dict(tiny_coco(), categories=[{"id": 1, "name": "a"}] * 2), "used twice"),
    ],
)
def test_files_that_are_no_coco_are_refused(tmp_path, content, sentence):
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if value is not ...}
    with pytest.raises(UserError, match=sentence):
        _load(tmp_path, content, tolerate=True)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read .*No such file"):
        load_dataset(str(tmp_path / "absent.json"), SkippedItems(tolerate=True))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"id": 7, "file_name": "a.jpg"}, "another image has the same id"),
        ({"id": "x"}, "the id is not an integer"),
        ({"id": -1}, "the id is not an integer of at least 0"),
        ({"height": 0}, "the height 0 is not a positive integer"),
        ({"width": "30"}, "the width '30' is not a positive integer"),
        ({"file_name": 5}, "file_name is not a string"),
        ({"file_name": None}, "file_name is not a string"),
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
        ({"id": None}, "the id is not an integer"),
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
        "the entry 3 is not a JSON object",
        "the entry 'x' is not a JSON object",
    ]


def _change(entry, change):
    for key, value in change.items():
        if value is ...:
            del entry[key]
        else:
            entry[key] = value


@pytest.mark.parametrize(
    "twin", [{"file_name": "b.png"}, {"file_name": ...}, {"id": 7.0, "file_name": "b.png"}]
)
def test_two_pictures_under_one_id_are_both_left_out(tmp_path, twin):
    content = tiny_coco()
    content["images"].append(dict(content["images"][1]))
    _change(content["images"][-1], twin)
    with pytest.raises(UserError, match="^image 7 .*another image has the same id"):
        _load(tmp_path, content)
    dataset, skipped = _load(tmp_path, content, tolerate=True)
    assert [image.id for image in dataset.images] == [9, 40, 42]
    assert [item["image_id"] for item in skipped] == [7, 7]


def test_images_without_annotations_need_no_categories(tmp_path):
    content = {"images": tiny_coco()["images"]}
    dataset, _ = _load(tmp_path, content)
    assert len(dataset.images) == 4 and dataset.categories == []
    with_categories, _ = _load(tmp_path, content | {"categories": tiny_coco()["categories"]})
    assert len(with_categories.categories) == 3


def test_the_first_reason_is_told_when_nothing_is_left(tmp_path):
    content = tiny_coco()
    for number, image in enumerate(content["images"]):
        image["id"] = f"frame {number}"
    with pytest.raises(
        UserError, match=r"usable images, .* the id is not an int.* \(image frame 0\)"
    ):
        _load(tmp_path, content, tolerate=True)
