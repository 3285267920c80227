"""Ground truth from records equals the JSON the records were made from."""

import json
import pathlib

import numpy as np
import pytest
from coco_files import tiny_coco, write_dataset
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.conversion import Conversion, convert
from data.errors import UserError
from data.ground_truth import ground_truth_from_records

_SHARED_RECORDS = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "records"


def _convert(tmp_path, content=None, include_masks=True):
    image_dir, annotations_file = write_dataset(tmp_path / "input", content or tiny_coco())
    prefix = str(tmp_path / "records" / "val")
    convert(Conversion(str(image_dir), str(annotations_file), prefix, 2, include_masks))
    return annotations_file, prefix


def _index(content):
    oracle = COCO()
    oracle.dataset = json.loads(json.dumps(content))
    oracle.createIndex()
    return oracle


def test_annotations_come_back(tmp_path):
    annotations_file, prefix = _convert(tmp_path)
    ours = _index(ground_truth_from_records(f"{prefix}-*"))
    theirs = COCO(str(annotations_file))
    assert sorted(ours.imgs) == sorted(theirs.imgs)
    assert {key: entry["name"] for key, entry in ours.cats.items()} == {
        key: entry["name"] for key, entry in theirs.cats.items()
    }
    assert sorted(ours.anns) == sorted(theirs.anns)
    for annotation_id, expected in theirs.anns.items():
        annotation = ours.anns[annotation_id]
        for key in ("image_id", "category_id", "iscrowd", "area"):
            assert annotation[key] == expected[key]
        if annotation_id != 505:  # reaches outside the image
            np.testing.assert_allclose(annotation["bbox"], expected["bbox"], rtol=1e-5)
        np.testing.assert_array_equal(ours.annToMask(annotation), theirs.annToMask(expected))
    np.testing.assert_allclose(ours.anns[505]["bbox"], [0, 10, 6, 10], atol=1e-5)
    assert {(entry["height"], entry["width"]) for entry in ours.imgs.values()} == {(20, 30)}


def test_perfect_detections_score_one(tmp_path, capsys):
    _, prefix = _convert(tmp_path)
    truth = _index(ground_truth_from_records(f"{prefix}-*"))
    detections = [
        {**{key: entry[key] for key in ("image_id", "category_id", "segmentation")}, "score": 0.9}
        for entry in truth.dataset["annotations"]
        if not entry["iscrowd"]
    ]
    evaluation = COCOeval(truth, truth.loadRes(detections), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    assert evaluation.stats[0] == pytest.approx(1)


def test_without_masks_there_is_no_segmentation(tmp_path):
    _, prefix = _convert(tmp_path, include_masks=False)
    truth = ground_truth_from_records(f"{prefix}-*")
    assert len(truth["annotations"]) == 5
    assert not any("segmentation" in entry for entry in truth["annotations"])


def test_annotation_id_zero_is_numbered_anew(tmp_path):
    content = tiny_coco()
    content["annotations"][0]["id"] = 0
    _, prefix = _convert(tmp_path, content)
    truth = ground_truth_from_records(f"{prefix}-*")
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2, 3, 4, 5]


def test_records_without_a_manifest(tmp_path):
    _, prefix = _convert(tmp_path)
    pathlib.Path(f"{prefix}.manifest.json").unlink()
    truth = ground_truth_from_records(f"{prefix}-*")
    assert truth["categories"] == [{"id": label, "name": str(label)} for label in (1, 2, 3)]
    assert sum(coco_mask.area(entry["segmentation"]) for entry in truth["annotations"]) > 0


def test_records_of_others():
    path = _SHARED_RECORDS / "pets_examples.record"
    if not path.exists():
        pytest.skip(f"no {path}")
    truth = ground_truth_from_records(str(path))
    assert len(truth["images"]) == len(truth["annotations"]) == 10
    assert {entry["image_id"] for entry in truth["annotations"]} == {
        entry["id"] for entry in truth["images"]
    }
    assert [entry["id"] for entry in truth["annotations"]] == list(range(1, 11))
    assert {entry["id"] for entry in truth["categories"]} <= set(range(11, 38))


def test_foreign_boxes_equal_their_source():
    source = _SHARED_RECORDS / "coco_val24_src" / "instances.json"
    if not source.exists():
        pytest.skip(f"no {source}")
    truth = ground_truth_from_records(f"{_SHARED_RECORDS}/tpu_masks/*.tfrecord")
    expected = json.loads(source.read_text())
    assert {entry["id"] for entry in truth["images"]} == {
        entry["id"] for entry in expected["images"]
    }

    def boxes(content):
        return sorted((entry["image_id"], *entry["bbox"]) for entry in content["annotations"])

    np.testing.assert_allclose(boxes(truth), boxes(expected), atol=1e-2)


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="no file matches"):
        ground_truth_from_records(f"{tmp_path}/*")
    (tmp_path / "torn.tfrecord").write_bytes(b"not a record at all")
    with pytest.raises(UserError, match=r"cannot read the records .* \(corrupted record"):
        ground_truth_from_records(f"{tmp_path}/*")
