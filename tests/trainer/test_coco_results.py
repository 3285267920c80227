"""Predictions as COCO results: worked out by hand, read back by pycocotools."""

import json

import numpy as np
import pytest
from coco_examples import CATEGORIES, predict
from pycocotools import mask as coco_mask

from trainer.coco_results import CocoResults


def test_classes_without_a_category_do_not_pass_for_another(tmp_path):
    ids = {category["label"]: category["id"] for category in CATEGORIES}
    another = next(number for number in ids.values() if number not in ids)
    free = max([*ids, *ids.values()]) + 1
    results = CocoResults(CATEGORIES)
    labels = [*ids, another, free]
    results.add(predict(1, *(([0, 0, 9, 9], label, 0.5, 1.0) for label in labels)))
    results.write(str(tmp_path))
    found = json.loads((tmp_path / "bbox.json").read_text())
    assert [entry["category_id"] for entry in found] == [*ids.values(), free]


def test_network_pixels_become_original_pixels(tmp_path):
    detection = ([10, 20, 50, 60], 2, 0.75, 0.5)
    for scale in (1.0, 2.5):
        results = CocoResults(CATEGORIES)
        results.add(predict(1, detection, scale=scale))
        results.write(tmp_path / str(scale))
        (box,) = json.loads((tmp_path / str(scale) / "bbox.json").read_text())
        (mask,) = json.loads((tmp_path / str(scale) / "segm.json").read_text())
        scores = {"box_score": 0.75, "mask_iou": 0.5, "mask_score": 0.375}
        assert box == {
            "image_id": 1, "category_id": 9, "bbox": [20, 10, 40, 40], "score": 0.75, **scores,
        }  # fmt: skip
        assert {key: mask[key] for key in scores} == scores
        assert mask["score"] == 0.375
        expected = np.zeros((100, 120), np.uint8)
        expected[10:50, 20:60] = 1
        np.testing.assert_array_equal(coco_mask.decode(mask["segmentation"]), expected)


def test_boxes_are_clipped_to_the_image(tmp_path):
    results = CocoResults(CATEGORIES)
    results.add(predict(1, ([-5, -6, 50, 130], 1, 0.9, 1)))
    results.write(tmp_path)
    (box,) = json.loads((tmp_path / "bbox.json").read_text())
    assert box["bbox"] == [0, 0, 120, 50]


def test_a_class_without_an_id_is_left_out(tmp_path):
    results = CocoResults([{**CATEGORIES[0], "id": None}, CATEGORIES[1]])
    results.add(predict(1, ([0, 0, 9, 9], 1, 0.9, 1), ([0, 0, 9, 9], 2, 0.8, 1)))
    results.write(tmp_path)
    (entry,) = json.loads((tmp_path / "bbox.json").read_text())
    assert entry["category_id"] == 9


def test_label_without_category_stands_for_itself(tmp_path):
    results = CocoResults([])
    results.add(predict(1, ([0, 0, 9, 9], 17, 0.9, 1)))
    results.write(tmp_path)
    assert json.loads((tmp_path / "bbox.json").read_text())[0]["category_id"] == 17


@pytest.mark.parametrize("mask_paste, area", [("exact", 40 * 40), ("integer", 42 * 42 - 4)])
def test_masks_are_pasted_by_the_rule_asked_for(mask_paste, area, tmp_path):
    # By the integer rule 30 cells are spread over the 44 pixels 8 to 51, of which all but the
    # outermost lie more than half way into the mask; at the corners half of a half is too little.
    results = CocoResults(CATEGORIES, mask_paste)
    results.add(predict(1, ([10, 20, 50, 60], 1, 0.8, 0.5)))
    results.write(str(tmp_path))
    (mask,) = json.loads((tmp_path / "segm.json").read_text())
    assert coco_mask.area(mask["segmentation"]) == area


def test_results_name_the_picture(tmp_path):
    results = CocoResults(CATEGORIES, file_names={1: "a/1.jpg"})
    for image_id in (1, 2):
        results.add(predict(image_id, ([10, 20, 50, 60], 1, 0.8, 1)))
    results.write(tmp_path)
    for kind in ("bbox", "segm"):
        first, second = json.loads((tmp_path / f"{kind}.json").read_text())
        assert first["file_name"] == "a/1.jpg"
        assert "file_name" not in second


def test_padding_entries_are_passed_over():
    results = CocoResults(CATEGORIES)
    results.add(predict(-1, ([10, 20, 50, 60], 1, 0.8, 1)))
    assert not (results.image_ids or results.boxes or results.masks or results.have_masks)
