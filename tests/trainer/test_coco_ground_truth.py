"""Annotation files as a ground truth: what is left out is said, what is unusable is refused."""

import json

import pytest
from coco_examples import ground_truth, square
from pycocotools import mask as coco_mask

from data.errors import UserError
from trainer.coco_ground_truth import load_ground_truth


def test_annotation_file_is_read_and_broken_annotations_left_out(tmp_path, capsys):
    truth = ground_truth(square(1, 20, 10, 40), square(1, 0, 0, 9), square(1, 0, 0, 9))
    for image in truth["images"]:
        image["file_name"] = "a.jpg"
    truth["annotations"][0].pop("area")
    truth["annotations"][1]["segmentation"] = [[1, 2]]
    truth["annotations"][2]["bbox"] = [0, 0, None, 4]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    loaded = load_ground_truth(str(path), "")
    (annotation,) = loaded["annotations"]
    assert annotation["area"] == 1600
    assert coco_mask.area(annotation["segmentation"]) == 1600
    said = capsys.readouterr().err
    assert said.startswith(f"Warning: 2 images or annotations of {path} cannot be used")
    assert "the first because its polygons have fewer than three points" in said
    assert said.endswith("(annotation 1 of image 1).\n")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"images": [], "annotations": []}'])
def test_unusable_annotation_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "truth.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="truth.json"):
        load_ground_truth(str(path), "")
