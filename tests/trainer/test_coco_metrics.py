"""COCO evaluation: numbers worked out by hand, and files that pycocotools reads."""

import contextlib
import io
import json

import numpy as np
import pytest
from coco_examples import CATEGORIES, ground_truth, predict, square
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.errors import UserError
from data.findings import SkippedImages
from trainer.coco_ground_truth import segmentation_to_rle
from trainer.coco_metrics import CocoEvaluator
from trainer.coco_report import METRICS, format_table
from trainer.lvis_federation import Federation


def left_half():
    """A mask of which only the left half is set: IoU 0.5 with the whole box."""
    mask = np.zeros((28, 28))
    mask[:, :14] = 1
    return mask


def evaluate(truth, *predictions):
    """Metrics of some predictions."""
    evaluator = CocoEvaluator(truth, CATEGORIES)
    for prediction in predictions:
        evaluator.add(prediction)
    return evaluator.evaluate()


def test_perfect_detection_has_ap_1():
    metrics = evaluate(
        ground_truth(square(1, 20, 10, 40)), predict(1, ([10, 20, 50, 60], 1, 0.8, 0.5))
    )
    assert list(metrics["bbox"]) == list(METRICS)
    for kind in ("bbox", "segm", "segm_class_score"):
        assert metrics[kind]["AP"] == pytest.approx(1)
        assert metrics[kind]["APm"] == pytest.approx(1)
        assert metrics[kind]["APs"] == metrics[kind]["APl"] == -1
        assert metrics[kind]["AR1"] == metrics[kind]["AR100"] == 1
    assert metrics["per_category"]["cat"]["segm"] == pytest.approx(1)
    assert metrics["per_category"]["dog"] == {"bbox": -1, "segm": -1, "segm_class_score": -1}


def test_a_network_without_a_maskiou_head_is_evaluated(tmp_path):
    prediction = predict(1, ([10, 20, 50, 60], 1, 0.8, 1.0))
    del prediction["mask_ious"]
    evaluator = CocoEvaluator(ground_truth(square(1, 20, 10, 40)), CATEGORIES)
    evaluator.add(prediction)
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(1)
    evaluator.results.write(str(tmp_path))
    (entry,) = json.loads((tmp_path / "segm.json").read_text())
    assert entry["mask_score"] == entry["score"] == pytest.approx(0.8)
    assert "mask_iou" not in entry


def test_mask_score_reorders_masks_but_not_boxes():
    # Two objects found, and a false detection between them by class score, last by mask score.
    # By class score: TP, FP, TP. Precision is 1 up to recall 0.5 (51 of the 101 recall points),
    # then 2/3 (50 points): (51 + 50 * 2 / 3) / 101. By mask score: TP, TP, FP, so 1.
    truth = ground_truth(square(1, 0, 0, 40), square(1, 60, 50, 40))
    detections = (
        ([0, 0, 40, 40], 1, 0.9, 0.9),
        ([50, 0, 90, 40], 1, 0.8, 0.1),
        ([50, 60, 90, 100], 1, 0.7, 0.9),
    )
    metrics = evaluate(truth, predict(1, *detections))
    by_class_score = (51 + 50 * 2 / 3) / 101
    assert metrics["segm"]["AP"] == pytest.approx(1, abs=1e-12)
    assert metrics["segm_class_score"]["AP"] == pytest.approx(by_class_score, abs=1e-12)
    assert metrics["bbox"]["AP"] == pytest.approx(by_class_score, abs=1e-12)
    assert metrics["segm"]["AR1"] == metrics["segm"]["AR100"] / 2 == 0.5


def test_masks_are_measured_by_their_pixels():
    # Half of the object is covered: a match at IoU 0.5 alone, one of the ten thresholds.
    truth = ground_truth(square(1, 20, 10, 40))
    metrics = evaluate(truth, predict(1, ([10, 20, 50, 60], 1, 0.8, 0.5, left_half())))
    assert metrics["bbox"]["AP"] == pytest.approx(1)
    assert metrics["segm"]["AP"] == pytest.approx(0.1)
    assert metrics["segm"]["AP50"] == pytest.approx(1)
    assert metrics["segm"]["AP75"] == 0


def test_no_detections_give_zero_not_a_crash():
    metrics = evaluate(ground_truth(square(1, 20, 10, 40)), predict(1))
    assert metrics["bbox"]["AP"] == metrics["segm"]["AP"] == metrics["segm"]["AR100"] == 0


def test_boxes_alone_are_measured_without_masks():
    metrics = evaluate(
        ground_truth(square(1, 20, 10, 40)),
        predict(1, ([10, 20, 50, 60], 1, 0.8, 1), masks=False),
    )
    assert set(metrics) == {"bbox", "per_category", "quality", "errors"}
    assert metrics["per_category"]["cat"] == {"bbox": pytest.approx(1)}
    assert list(metrics["quality"]) == ["box_score"]


def test_first_annotation_with_id_0_can_be_found():
    truth = ground_truth(square(1, 20, 10, 40))
    assert truth["annotations"][0]["id"] == 0
    assert evaluate(truth, predict(1, ([10, 20, 50, 60], 1, 0.8, 1)))["bbox"]["AP"] > 0.99


def test_files_give_pycocotools_the_same_numbers(tmp_path):
    truth = ground_truth(square(1, 20, 10, 40), square(2, 0, 0, 20), num_images=2)
    evaluator = CocoEvaluator(truth, CATEGORIES)
    evaluator.add(predict(1, ([10, 20, 52, 60], 1, 0.8, 0.4), ([0, 0, 30, 30], 1, 0.5, 0.9)))
    evaluator.add(predict(2, ([0, 0, 20, 22], 1, 0.6, 0.9)))
    evaluator.results.write(tmp_path)
    metrics = evaluator.evaluate()
    for annotation in truth["annotations"]:
        annotation["id"] += 1
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for kind in ("bbox", "segm"):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(tmp_path / "truth.json"))
            results = coco.loadRes(str(tmp_path / f"{kind}.json"))
            evaluation = COCOeval(coco, results, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert list(metrics[kind].values()) == pytest.approx(evaluation.stats.tolist(), abs=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bbox.json",
        "segm.json",
        "truth.json",
    ]


def test_crowds_are_neither_missed_nor_wrong():
    counts = segmentation_to_rle(square(1, 0, 0, 90)["segmentation"], 100, 120)
    crowd = square(1, 0, 0, 90, iscrowd=1) | {"segmentation": counts}
    truth = ground_truth(crowd, square(1, 95, 0, 20))
    hits = [
        ([0, 95, 20, 115], 1, 0.5, 1),
        ([0, 0, 30, 30], 1, 0.9, 1),
        ([40, 40, 80, 80], 1, 0.8, 1),
    ]
    metrics = evaluate(truth, predict(1, *hits))
    assert metrics["segm"]["AP"] == pytest.approx(1)
    assert metrics["bbox"]["AP"] == pytest.approx(1)


def test_image_predicted_twice_is_refused():
    evaluator = CocoEvaluator(ground_truth(square(1, 0, 0, 9)), CATEGORIES)
    evaluator.add(predict(1))
    with pytest.raises(UserError, match="image 1 was predicted twice"):
        evaluator.add(predict(1))


def test_image_unknown_to_the_ground_truth_is_refused():
    evaluator = CocoEvaluator(ground_truth(square(1, 0, 0, 9)), CATEGORIES)
    with pytest.raises(UserError, match="image 7 was predicted but is not in the ground truth"):
        evaluator.add(predict(7))


def test_padding_entries_are_passed_over():
    evaluator = CocoEvaluator(ground_truth(square(1, 20, 10, 40)), CATEGORIES)
    evaluator.add(predict(-1, ([10, 20, 50, 60], 1, 0.8, 1)))
    evaluator.add(predict(-1))
    evaluator.add(predict(1, ([10, 20, 50, 60], 1, 0.8, 1)))
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(1)


def test_category_of_another_name_is_refused():
    truth = ground_truth(square(1, 0, 0, 9))
    truth["categories"][0]["name"] = "tiger"
    with pytest.raises(UserError, match="category 4 is 'cat' in the records but 'tiger'"):
        CocoEvaluator(truth, CATEGORIES)


@pytest.mark.parametrize("most", [100, 150])
def test_more_than_100_objects_are_measured_beside_cocos_numbers(most):
    # 160 objects, all found: 100 of them are a recall of 0.625, so 63 of 101 recall points.
    boxes = [(x, y) for x in range(0, 120, 8) for y in range(0, 88, 8)][:160]
    truth = ground_truth(*(square(1, x, y, 8) for x, y in boxes))
    evaluator = CocoEvaluator(truth, CATEGORIES, max_detections=most)
    found = [([y, x, y + 8, x + 8], 1, 0.9 - n / 1000, 1) for n, (x, y) in enumerate(boxes[:most])]
    evaluator.add(predict(1, *found))
    metrics = evaluator.evaluate()
    (sentence,) = [said for said in evaluator.explain(metrics) if "COCO" in said]
    assert sentence.startswith(
        "COCO's metrics count 100 detections per image, and image 1 has 160 objects"
    )
    for kind in ("bbox", "segm", "segm_class_score"):
        assert metrics[kind]["AP"] == pytest.approx(63 / 101, abs=1e-12)
        assert metrics[kind]["AR100"] == pytest.approx(100 / 160)
    if most == 100:
        assert list(metrics["bbox"]) == list(METRICS)
        assert "a larger --detections_per_image" in sentence
    else:
        # A recall of 150 / 160 reaches 94 of the 101 points.
        assert metrics["segm"]["AP@150"] == pytest.approx(94 / 101, abs=1e-12)
        assert "AP@150 counts up to 150" in sentence
        assert format_table(metrics).split("\n")[0].split() == [*METRICS, "AP@150"]


def test_every_minus_one_is_explained():
    evaluator = CocoEvaluator(ground_truth(square(1, 20, 10, 40), num_images=3), CATEGORIES)
    evaluator.add(predict(1))
    sentences = evaluator.explain(evaluator.evaluate())
    kinds = "bbox, segm and segm_class_score"
    assert sentences == [
        "2 of the 3 images of the ground truth were not predicted and are excluded (for example "
        "image 2).",
        f"APs of {kinds} is -1: the evaluated images have no small objects "
        "(area below 32² pixels).",
        f"APl of {kinds} is -1: the evaluated images have no large objects "
        "(area above 96² pixels).",
        "LaECE and LaACE of box_score, mask_iou and mask_score are -1: there are no detections "
        "that count.",
        "AP of category 'dog' is -1: the evaluated images contain no objects of it.",
    ]


def test_many_categories_without_objects_share_a_sentence():
    names = [*"abcdefghijkl"]
    categories = [{"label": n, "id": n, "name": name} for n, name in enumerate(names, 1)]
    truth = {**ground_truth(square(1, 20, 10, 40)), "categories": categories}
    evaluator = CocoEvaluator(truth, categories)
    evaluator.add(predict(1))
    *_, sentence = sentences = evaluator.explain(evaluator.evaluate())
    assert sum("categor" in sentence for sentence in sentences) == 1
    assert sentence == (
        "AP of 11 categories is -1 because the evaluated images contain no objects of them: 'a', "
        "'b', 'c', 'e', 'f', 'g', 'h', 'i', 'j', 'k' and 1 more."
    )


def test_missing_ground_truth_is_explained():
    evaluator = CocoEvaluator(ground_truth(square(1, 0, 0, 40, iscrowd=1)), CATEGORIES)
    evaluator.add(predict(1, masks=False))
    metrics = evaluator.evaluate()
    assert metrics["bbox"]["AP"] == -1
    sentences = evaluator.explain(metrics)
    assert len(sentences) == 6
    assert all("no annotated objects (crowds do not count)" in sentence for sentence in sentences)


def test_ground_truth_without_outlines_measures_boxes_and_says_so():
    truth = ground_truth(square(1, 20, 10, 40))
    del truth["annotations"][0]["segmentation"]
    evaluator = CocoEvaluator(truth, CATEGORIES)
    evaluator.add(predict(1, ([10, 20, 50, 60], 1, 0.8, 1)))
    metrics = evaluator.evaluate()
    assert "segm" not in metrics
    assert "have no segmentation" in evaluator.explain(metrics)[0]


def test_table_shows_all_numbers():
    evaluator = CocoEvaluator(ground_truth(square(1, 20, 10, 40)), CATEGORIES)
    evaluator.add(predict(1, ([10, 20, 50, 60], 1, 0.8, 0.5, left_half())))
    lines = format_table({"step": 5, **evaluator.evaluate()}).split("\n")
    assert lines[0].split() == list(METRICS)
    assert lines[1].split()[:5] == ["bbox", "1.000", "1.000", "1.000", "-1"]
    assert lines[2].split()[:4] == ["segm", "0.100", "1.000", "0.000"]
    assert lines[3].startswith("segm_class_score")
    assert lines[5].split() == ["AP", "by", "category", "bbox", "segm", "segm_class_score"]
    assert lines[6].split() == ["cat", "1.000", "0.100", "0.100"]
    assert lines[7].split() == ["dog", "-1", "-1", "-1"]


def test_quality_is_measured_on_masks_for_all_three_scores():
    # Half of the object is covered, IoU 0.5: LRP (0.5 / 0.5) / 1, and 0.8 - 0.5 for the box score.
    evaluator = CocoEvaluator(ground_truth(square(1, 20, 10, 40)), CATEGORIES)
    evaluator.add(predict(1, ([10, 20, 50, 60], 1, 0.8, 0.25, left_half())))
    metrics = evaluator.evaluate()
    errors = {name: quality["LaACE"] for name, quality in metrics["quality"].items()}
    assert errors == pytest.approx({"box_score": 0.3, "mask_iou": 0.25, "mask_score": 0.3})
    assert metrics["quality"]["mask_score"]["LRP"] == 1
    assert list(metrics["quality"]["mask_score"]["by_category"]) == ["cat", "dog"]
    assert metrics["errors"]["AP50"] == pytest.approx(1)
    for key, kind in (("box_score", "segm_class_score"), ("mask_score", "segm")):
        assert metrics["quality"][key]["ranking"]["AP"] == pytest.approx(metrics[kind]["AP"])
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_table_ends_with_quality_and_errors():
    evaluator = CocoEvaluator(ground_truth(square(1, 20, 10, 40)), CATEGORIES)
    # By mask score, the second comes first; it alone is right at all thresholds.
    evaluator.add(
        predict(1, ([10, 20, 50, 60], 1, 0.8, 0.5, left_half()), ([10, 20, 50, 60], 1, 0.6, 0.9))
    )
    *_, quality, errors = format_table(evaluator.evaluate()).split("\n\n")
    title, box, iou, mask, gap, coverage = quality.split("\n")
    assert title.split()[:6] == ["score", "LRP", "oLRP", "loc", "FP", "FN"]
    # Both detections: the half one matches at 0.5, (1 + 1) / 2; at the optimum the same.
    assert box.split()[:3] == ["box_score", "1.000", "1.000"]
    assert iou.split()[:4] == ["mask_iou", "0.500", "0.000", "0.000"]
    assert mask.split() == ["mask_score", "0.500", "0.000", "0.000", "0.000", "0.000", "0.430",
                            "0.430", "–", "0.460", "1.000"]  # fmt: skip
    assert gap == (
        "AP by class score is 0.550, with the true IoU it would be 1.000; the mask score closes "
        "100% of the gap."
    )
    assert errors.split("\n")[1].split() == ["1.000"] + ["0.000"] * 6


def test_boundary_and_lvis_are_measured_if_wanted():
    truth = ground_truth(square(1, 20, 10, 40))
    none = {1: frozenset()}
    federation = Federation(negative=none, not_exhaustive=none, frequency={4: "f"})
    evaluator = CocoEvaluator(truth, CATEGORIES, boundary=True, federation=federation)
    evaluator.add(predict(1, ([10, 20, 50, 60], 1, 0.8, 0.5, left_half())))
    metrics = evaluator.evaluate()
    # Contours are 2 % of the diagonal wide, 3 pixels: 40² - 34² = 456 pixels of the object and
    # 40 · 20 - 34 · 14 = 324 of its half, 3 · 40 + 2 · 3 · 17 = 222 of both, an IoU of 0.4.
    assert metrics["boundary"]["AP"] == 0
    assert list(metrics["boundary"]) == list(METRICS)
    assert metrics["lvis"]["AP"] == metrics["lvis"]["APf"] == pytest.approx(0.1)
    assert metrics["per_category"]["cat"] == pytest.approx(
        {"bbox": 1, "segm": 0.1, "segm_class_score": 0.1, "boundary": 0, "lvis": 0.1}
    )
    table = format_table(metrics).split("\n\n")
    assert table[0].split("\n")[4].startswith("boundary")
    assert table[1].split("\n")[1].split()[:2] == ["lvis", "0.100"]
    assert table[2].split("\n")[0].split()[3:] == list(metrics["per_category"]["cat"])
    sentences = evaluator.explain(metrics)
    assert any(said.startswith("APs of bbox, segm, segm_class_score and boundary is -1")
               for said in sentences)  # fmt: skip


def test_results_have_the_file_names_of_the_ground_truth():
    truth = ground_truth(square(1, 20, 10, 40))
    truth["images"][0]["file_name"] = "a/1.jpg"
    evaluator = CocoEvaluator(truth, CATEGORIES)
    evaluator.add(predict(1, ([10, 20, 50, 60], 1, 0.8, 1)))
    assert evaluator.results.boxes[0]["file_name"] == "a/1.jpg"


def test_skipped_images_count_as_images_without_detections():
    truth = ground_truth(square(1, 20, 10, 40), square(2, 20, 10, 40), num_images=2)

    def measure(**skipped):
        evaluator = CocoEvaluator(truth, CATEGORIES, skipped=SkippedImages(**skipped))
        evaluator.add(predict(1, ([10, 20, 50, 60], 1, 0.8, 0.5)))
        metrics = evaluator.evaluate()
        return metrics["bbox"]["AR100"], evaluator.explain(metrics)[0]

    assert measure() == (1.0, "1 of the 2 images of the ground truth were not predicted and are "
                              "excluded (for example image 2).")  # fmt: skip
    counted = (
        "1 of the 2 images of the ground truth count as images without detections, because their "
        "records are corrupt and were skipped (for example image 2)."
    )
    assert measure(ids=frozenset({2})) == (0.5, counted)
    assert measure(num_unknown=1) == (0.5, counted)


def test_images_that_nobody_can_tell_from_absent_ones_are_excluded():
    truth = ground_truth(square(1, 20, 10, 40), num_images=4)
    evaluator = CocoEvaluator(truth, CATEGORIES, skipped=SkippedImages(frozenset({2}), 1))
    evaluator.add(predict(1, ([10, 20, 50, 60], 1, 0.8, 0.5)))
    sentences = evaluator.explain(evaluator.evaluate())
    assert sentences[0].startswith("1 of the 4 images of the ground truth count as images")
    assert sentences[1].startswith("1 corrupt records do not count, because it is unknown which")
    assert sentences[2].startswith("2 of the 4 images of the ground truth were not predicted")
