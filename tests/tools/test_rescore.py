"""Masks of other programs, and annotations, rated by the MaskIoU head of a small model."""

import json
import re

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from small_model import make_model_dir, photograph, save

import msrcnn
from tools.rescore import main

CATEGORIES = [{"id": 3, "name": "dog"}, {"id": 9, "name": "cat"}, {"id": 11, "name": "cow"}]


def rectangle(y1, x1, y2, x2, height=40, width=60):
    mask = np.zeros([height, width], np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    rle = coco_mask.encode(mask)
    return mask, {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rescore")
    images = []
    for number in (1, 2):
        save(folder, f"{number}.png", photograph(seed=number))
        images.append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 60})
    annotations = [
        {
            "id": 70 + number,
            "image_id": 1 + number % 2,
            "category_id": category,
            "segmentation": [[x, 4, x + 20, 4, x + 20, 30, x, 30]],
            "bbox": [x, 4, 20, 26],
            "area": 520,
            "iscrowd": 0,
        }
        for number, (category, x) in enumerate([(3, 2), (9, 10), (9, 30)])
    ]
    crowd = {**annotations[0], "id": 90, "iscrowd": 1, "segmentation": rectangle(1, 1, 9, 9)[1]}
    content = {"images": images, "annotations": [*annotations, crowd], "categories": CATEGORIES}
    (folder / "truth.json").write_text(json.dumps(content))
    return folder


def rescore(folder, model, *given, results=None):
    flags = [f"--image_dir={folder}", f"--object_annotations_file={folder / 'truth.json'}"]
    if results is not None:
        path = folder / "results.json"
        path.write_text(results if isinstance(results, str) else json.dumps(results))
        flags.append(f"--results={path}")
    output = folder / "rated.json"
    output.unlink(missing_ok=True)
    status = main(["rescore", f"--model={model}", *flags, f"--output={output}", *given])
    return status, json.loads(output.read_text()) if output.exists() else None


def result(number, category_id=9, score=0.5, image_id=2):
    box = (5, 2 + 9 * number, 30, 20 + 9 * number)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": rectangle(*box)[1],
        "score": score,
        "from": f"program {number}",
    }


def test_results_keep_what_they_say_and_are_rated(folder, small_model, capsys):
    results = [result(0), result(1, 3, 0.9, image_id=1), result(2, score=0.25)]
    status, rated = rescore(folder, small_model, results=results)
    assert status == 0
    assert [{k: v for k, v in entry.items() if k in results[0]} for entry in rated] == results
    model = msrcnn.load(small_model)
    for number, entry in enumerate(rated):
        mask, _ = rectangle(5, 2 + 9 * number, 30, 20 + 9 * number)
        label = {"cat": 1, "dog": 2}["dog" if entry["category_id"] == 3 else "cat"]
        path = folder / f"{entry['image_id']}.png"
        assert entry["mask_iou"] == pytest.approx(model.rate(path, [mask], [label])[0], abs=1e-5)
        assert entry["mask_score"] == pytest.approx(entry["score"] * entry["mask_iou"])
    said = capsys.readouterr().out
    assert "ranked by score" in said and "by mask_score" in said
    worst = min(rated, key=lambda entry: entry["mask_iou"])
    assert f"  {worst['mask_iou']:.2f}  {worst['image_id']}.png" in said


def test_annotations_are_rated_without_crowds_and_keep_their_ids(folder, small_model, capsys):
    status, rated = rescore(folder, small_model, "--num_worst=1")
    assert status == 0
    assert [entry["id"] for entry in rated] == [70, 72, 71], "image by image"
    assert all(entry["score"] == 1 and entry["mask_score"] == entry["mask_iou"] for entry in rated)
    assert 0 < max(entry["mask_iou"] for entry in rated) <= 1
    said = capsys.readouterr().out
    assert said.count(", annotation 7") == 1 and "AP" not in said


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "is empty: there is nothing to rate"),
        ("[", "cannot be read as JSON"),
        ({"a": 1}, "is not in COCO results format"),
        ([result(0), {"image_id": 1}], "entry 1 has no 'category_id'"),
        ([result(0, image_id=5)], "is of image 5, which --object_annotations_file does not have"),
        ([result(0, category_id=4)], "have the category id 4, which --object_annotations_file"),
        ([result(0, category_id=11)], "the model does not know 'cow'; it can rate masks of 'cat'"),
        ([result(0, score="high")], "has the score 'high', which is not a number"),
        (
            [{**result(0), "segmentation": rectangle(1, 1, 5, 5, 60, 40)[1]}],
            r"a mask of image 2 cannot be rated: the RLE's size \[60, 40\] is not the image's",
        ),
    ],
)
def test_results_that_do_not_fit_are_refused(folder, small_model, capsys, results, message):
    status, rated = rescore(folder, small_model, results=results)
    assert (status, rated) == (1, None)
    assert re.search(message, capsys.readouterr().err)


def test_models_that_cannot_rate_say_so(folder, tmp_path, capsys):
    model = make_model_dir(tmp_path / "run", system="mask_rcnn")
    status, rated = rescore(folder, model, results=[result(0)])
    assert (status, rated) == (1, None)
    assert "a system with a MaskIoU head" in capsys.readouterr().err


def test_exports_cannot_rate(folder, small_exports, capsys):
    status, _ = rescore(folder, small_exports / "saved_model", results=[result(0)])
    assert status == 1
    assert "This model cannot rate masks" in capsys.readouterr().err
