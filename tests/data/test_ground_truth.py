"""Ground truth from records equals the JSON the records were made from."""

import copy
import json
import pathlib

import numpy as np
import pytest
from coco_files import tiny_coco, write_dataset
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sample_records import blobs, encode_png, make_foreign_record, make_instance

from data.conversion import Conversion, convert
from data.errors import UserError
from data.ground_truth import ground_truth_from_records, read_file_names
from data.tfrecords import write_shard
from trainer.coco_ground_truth import load_ground_truth
from trainer.coco_metrics import CocoEvaluator

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
    names = {1: "car", 2: "dog", 3: "toothbrush"}
    assert truth["categories"] == [{"id": key, "name": name} for key, name in names.items()]
    assert sum(coco_mask.area(entry["segmentation"]) for entry in truth["annotations"]) > 0


def test_images_have_their_file_names(tmp_path):
    _, prefix = _convert(tmp_path)
    names = {image["id"]: image["file_name"] for image in tiny_coco()["images"]}
    truth = ground_truth_from_records(f"{prefix}-*")
    assert {image["id"]: image["file_name"] for image in truth["images"]} == names
    assert read_file_names(f"{prefix}-*") == names

    pixels = np.zeros((20, 30, 3), np.uint8)
    sources = [[b"cat.jpg"], [b"12"], [b""]]
    foreign = [make_foreign_record(pixels, image__source_id=source) for source in sources]
    foreign[2] = make_foreign_record(pixels, image__filename=[b"dog.jpg"])
    write_shard(str(tmp_path / "x.record"), foreign)
    found = read_file_names(f"{tmp_path}/x.record")
    assert found[12] == ""
    assert sorted(found.values()) == ["", "cat.jpg", "dog.jpg"]


def test_masks_of_others_become_rle(tmp_path):
    masks = [blobs(np.random.default_rng(seed), 20, 30) for seed in range(3)]
    own_boxes = [np.float64(make_instance(mask).box) / [20, 30, 20, 30] for mask in masks]
    boxes, labels = [tuple(box) for box in own_boxes], [90, 2, 90]
    pngs = {"image__object__mask": [encode_png(mask * np.uint8(255)) for mask in masks]}
    pixels = np.zeros((20, 30, 3), np.uint8)
    with_masks = make_foreign_record(pixels, boxes, labels, image__source_id=[b"7"], **pngs)
    nothing = make_foreign_record(pixels, image__source_id=[b"8"])
    write_shard(str(tmp_path / "x.record"), [with_masks, nothing])
    truth = ground_truth_from_records(f"{tmp_path}/x.record")
    assert [entry["id"] for entry in truth["images"]] == [7, 8]
    assert truth["categories"] == [{"id": 2, "name": "2"}, {"id": 90, "name": "90"}]
    decoded = [coco_mask.decode(entry["segmentation"]) for entry in truth["annotations"]]
    np.testing.assert_array_equal(decoded, masks)

    boxes_only = make_foreign_record(pixels, boxes, labels, image__source_id=[b"9"])
    write_shard(str(tmp_path / "y.record"), [with_masks, boxes_only])
    truth = ground_truth_from_records(f"{tmp_path}/y.record")
    assert len(truth["annotations"]) == 6
    assert not any("segmentation" in entry for entry in truth["annotations"])


def _noisy_detections(content):
    """Detections of either kind that hit, miss and confuse, the same for equal categories."""
    oracle = _index(content)
    rng = np.random.default_rng(0)
    categories = sorted(oracle.cats)
    for number in sorted(oracle.anns):
        truth = oracle.anns[number]
        shift = rng.integers(-9, 10, 2)
        mask = np.roll(oracle.annToMask(truth), shift, (0, 1)).astype(np.uint8, order="F")
        confused = rng.random() < 0.2
        yield {
            "image_id": truth["image_id"],
            "category_id": int(rng.choice(categories)) if confused else truth["category_id"],
            "score": float(rng.random()),
            "segmentation": coco_mask.encode(mask),
        }


def test_masks_of_others_measure_like_their_source(shared_data):
    source = json.loads((shared_data / "records/coco_val24_src/instances.json").read_text())
    rebuilt = ground_truth_from_records(f"{shared_data}/records/tpu_masks/*.tfrecord")
    from_source, from_records = _index(source), _index(rebuilt)
    pairs = [
        sorted(index.dataset["annotations"], key=lambda entry: (entry["image_id"], *entry["bbox"]))
        for index in (from_source, from_records)
    ]
    assert len(pairs[0]) == 220
    for one, other in zip(*pairs, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["area"] == pytest.approx(other["area"], rel=1e-6)
        np.testing.assert_array_equal(from_source.annToMask(one), from_records.annToMask(other))

    detections = list(_noisy_detections(source))
    for kind in ("segm", "bbox"):
        stats = []
        for index in (from_source, from_records):
            evaluation = COCOeval(index, index.loadRes(copy.deepcopy(detections)), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            stats.append(evaluation.stats.tolist())
        assert stats[0] == stats[1]
        assert 0.2 < stats[0][0] < 0.9


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
    with pytest.raises(UserError, match=r"cannot use record 1 of .*torn.tfrecord \(byte 0\) \("):
        ground_truth_from_records(f"{tmp_path}/*")


def test_a_mask_that_cannot_be_used_is_named(tmp_path):
    pixels, path = np.zeros((20, 30, 3), np.uint8), tmp_path / "x.record"
    for mask, reason in (
        (np.ones((30, 20), np.uint8), "differs in size"),
        (None, "not an 8-bit PNG"),
    ):
        png = b"else" if mask is None else encode_png(mask)
        names = {"image__source_id": [b"77"], "image__object__mask": [png]}
        write_shard(str(path), [make_foreign_record(pixels, [(0, 0, 0.5, 1.0)], [1], **names)])
        with pytest.raises(UserError, match=rf"record 1 of {path} \(.*id 77\) .*{reason}"):
            ground_truth_from_records(str(path))


def test_json_and_records_tell_the_same_truth(tmp_path):
    content = tiny_coco()
    content["annotations"][0]["bbox"] = [-3, 3, 15, 60]  # beyond the image
    for annotation in content["annotations"]:
        del annotation["area"]
    content["annotations"][1]["segmentation"].append([1, 1])
    annotations_file, prefix = _convert(tmp_path, content)
    truths = [
        load_ground_truth(str(annotations_file), ""), load_ground_truth("", f"{prefix}-*")
    ]  # fmt: skip
    by_id = [{entry["id"]: entry for entry in truth["annotations"]} for truth in truths]
    assert by_id[0].keys() == by_id[1].keys() and len(by_id[0]) == 5
    for number, expected in by_id[0].items():
        found = by_id[1][number]
        np.testing.assert_allclose(found["bbox"], expected["bbox"], atol=1e-5)
        for key in ("area", "iscrowd", "category_id", "image_id", "segmentation"):
            assert found[key] == expected[key]
    prediction = {
        "image_id": np.int64(7), "image_info": np.float32([20, 30, 1, 20, 30]),
        "num_detections": np.int32(1), "detection_boxes": np.float32([[3, 0, 20, 12]]),
        "detection_classes": np.int32([3]), "box_scores": np.float32([0.9]),
    }  # fmt: skip
    scores = []
    for truth in truths:
        evaluator = CocoEvaluator(truth, [{"label": 3, "id": 90, "name": "toothbrush"}])
        evaluator.add(prediction)
        scores.append(evaluator.evaluate())
    assert scores[0] == scores[1]
    assert scores[0]["per_category"]["toothbrush"]["bbox"] == pytest.approx(1)
