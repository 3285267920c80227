"""What benchmarks work on is what they say it is."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tools.benchmarks import synthetic


def test_drawn_boxes_lie_on_the_canvas():
    boxes = synthetic.draw_boxes(np.random.default_rng(0), 2000, 640)
    assert boxes.min() >= 0 and boxes.max() <= 640
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() > 0
    small = np.mean(sides.prod(1) < 32**2)
    assert small == pytest.approx(0.41, abs=0.05)


def test_drawn_annotations_are_ellipses_in_their_boxes():
    image = {"id": 7, "height": 300, "width": 400}
    coco = {"images": [image], "annotations": [], "categories": [{"id": 3}, {"id": 5}]}
    drawn = synthetic.draw_annotations(coco, 30, np.random.default_rng(0))["annotations"]
    assert [entry["category_id"] for entry in drawn[:3]] == [3, 5, 3]
    assert {entry["image_id"] for entry in drawn} == {7}
    assert len({entry["id"] for entry in drawn}) == 30
    for entry in drawn:
        x, y, width, height = entry["bbox"]
        if min(width, height) < 20:
            continue
        mask = coco_mask.decode(coco_mask.frPyObjects(entry["segmentation"], 300, 400))[..., 0]
        rows, columns = np.nonzero(mask)
        assert columns.min() >= x - 1 and columns.max() <= x + width + 1
        assert rows.min() >= y - 1 and rows.max() <= y + height + 1
        assert mask.sum() == pytest.approx(entry["area"], rel=0.1)


def test_results_are_thirty_an_image_and_right_as_often_as_there_are_objects():
    crowd = {"image_id": 1, "iscrowd": 1, "bbox": [0, 0, 9, 9]}
    plain = {"category_id": 2, "iscrowd": 0, "segmentation": "s"}
    objects = [{**plain, "image_id": image, "bbox": [10, 10, 30, 20]} for image in (1, 1, 2)]
    coco = {"annotations": [crowd, *objects], "categories": [{"id": k} for k in range(1, 81)]}
    results = synthetic.draw_results(coco, np.random.default_rng(0))
    assert [entry["image_id"] for entry in results] == [1] * 30 + [2] * 30
    assert [entry["category_id"] for entry in results[:2]] == [2, 2]
    assert len({entry["category_id"] for entry in results}) > 20
    shifts = np.array([entry["bbox"] for entry in results]) - [10, 10, 30, 20]
    assert 1.0 < shifts.std() < 3.0
