"""Quality of scores: hand-worked cases, an independent implementation, and properties."""

import json

import numpy as np
import pytest
from quality_oracle import AREAS, Oracle, annotate, detect, draw_case, make_truth, shape_of

from trainer.average_precision import evaluate_results
from trainer.coco_ground_truth import complete_ground_truth
from trainer.quality import SCORES, measure_quality

NAMES = {4: "cat", 5: "dog", 6: "bird"}
SQUARE = (10, 10, 40, 40)
# 40 wide and 40 high, but 10 lower: IoU 30 / 50 = 0.6 with SQUARE.
LOWER = (10, 20, 40, 40)
ELSEWHERE = (100, 70, 40, 40)
KEYS = ("LRP", "oLRP", "LaECE", "LaACE")


def measure(annotations, results, names=("cat", "dog"), kind="segm"):
    """Quality and errors of a case in as many images as it mentions."""
    entries = [*annotations, *results]
    truth = make_truth(annotations, max([e["image_id"] for e in entries], default=1), names)
    ids = [image["id"] for image in truth["images"]]
    found = {c["id"]: c["name"] for c in truth["categories"]}
    return measure_quality(truth, results, kind, ids, found)


def quality(*args, **kwargs):
    """The quality alone."""
    return measure(*args, **kwargs)["quality"]


def numbers(report, keys=KEYS):
    """Some numbers of a report, in order."""
    return [report[key] for key in keys]


def test_a_worked_case():
    # One object found with IoU 1 and score 0.9, one with IoU 0.6 and score 0.5, a false detection
    # with score 0.7, and a missed object.
    #   LRP of all: (0 + 0.4 / 0.5 + 1 false + 1 missed) / (2 + 1 + 1) = 2.8 / 4.
    #   LRP from 0.9: (0 + 0 + 2) / 3; from 0.7: (0 + 1 + 2) / 4; so the optimum is 2 / 3 at 0.9.
    #   Calibration: |0.9 - 1|, |0.7 - 0| and |0.5 - 0.6|, each in a bin of its own: 0.9 / 3.
    annotations = [
        annotate(1, 4, shape_of(*SQUARE)),
        annotate(2, 4, shape_of(*SQUARE)),
        annotate(2, 4, shape_of(*ELSEWHERE)),
    ]
    results = [
        detect(1, 4, shape_of(*SQUARE), 0.9),
        detect(1, 4, shape_of(*ELSEWHERE), 0.7),
        detect(2, 4, shape_of(*LOWER), 0.5),
    ]
    report = quality(annotations, results)["box_score"]
    assert numbers(report) == pytest.approx([2.8 / 4, 2 / 3, 0.3, 0.3])
    assert report["components"] == {
        "LRP": pytest.approx({"localisation": 0.2, "FP": 1 / 3, "FN": 1 / 3}),
        "oLRP": pytest.approx({"localisation": 0, "FP": 0, "FN": 2 / 3}),
    }
    assert report["agreement"] == pytest.approx(
        {"count": 2, "correlation": 1, "mean_error": 0.1, "spread": 0.2}
    )
    assert report["by_category"]["cat"]["threshold"] == 0.9
    # 40 x 40 pixels are medium-sized.
    assert numbers(report["by_size"]["medium"]) == numbers(report)
    assert numbers(report["by_size"]["small"]) == numbers(report["by_size"]["large"]) == [-1] * 4


def test_scores_in_one_bin_cancel_for_laece_alone():
    # Both scores are in the bin from 0.72 to 0.76: IoU 1 and 0 average to 0.5, |0.75 - 0.5|.
    annotations = [annotate(1, 4, shape_of(*SQUARE))]
    results = [
        detect(1, 4, shape_of(*SQUARE), 0.75),
        detect(1, 4, shape_of(*ELSEWHERE), 0.75),
    ]
    report = quality(annotations, results)["box_score"]
    assert report["LaECE"] == pytest.approx(0.25)
    assert report["LaACE"] == pytest.approx((0.25 + 0.75) / 2)


def test_a_category_with_error_0_counts():
    # Published code takes an error of 0 for a category without detections.
    annotations = [annotate(1, 4, shape_of(*SQUARE)), annotate(1, 5, shape_of(*ELSEWHERE))]
    results = [
        detect(1, 4, shape_of(*SQUARE), 1.0),
        detect(1, 5, shape_of(*ELSEWHERE), 0.6),
    ]
    report = quality(annotations, results)["box_score"]
    assert [report["by_category"][name]["LaACE"] for name in ("cat", "dog")] == [0, 0.4]
    assert numbers(report) == pytest.approx([0, 0, 0.2, 0.2])


def test_a_category_without_detections_is_missed_but_not_uncalibrated():
    annotations = [annotate(1, 4, shape_of(*SQUARE)), annotate(1, 5, shape_of(*ELSEWHERE))]
    report = quality(annotations, [detect(1, 4, shape_of(*SQUARE), 0.9)])["mask_score"]
    dog = report["by_category"]["dog"]
    assert numbers(dog) == [1, 1, -1, -1]
    assert dog["components"]["LRP"] == {"localisation": -1, "FP": -1, "FN": 1}
    assert dog["threshold"] == -1
    assert numbers(report) == pytest.approx([0.5, 0.5, 0.1, 0.1])


def test_a_category_without_objects_is_left_out():
    annotations = [annotate(1, 4, shape_of(*SQUARE))]
    right = [detect(1, 4, shape_of(*SQUARE), 0.9)]
    wrong = [detect(1, 5, shape_of(*SQUARE), 0.9), detect(1, 5, shape_of(*ELSEWHERE), 0.3)]
    report = quality(annotations, right + wrong)["box_score"]
    assert numbers(report["by_category"]["dog"]) == [-1] * 4
    assert report["by_category"]["dog"]["ranking"]["AP"] == -1
    alone = quality(annotations, right)["box_score"]
    assert report == alone


def test_a_detection_in_a_crowd_does_not_count():
    # Published code lets ignored detections count as false ones in LaACE.
    annotations = [
        annotate(1, 4, shape_of(*SQUARE)),
        annotate(1, 4, shape_of(60, 10, 80, 100), iscrowd=1),
    ]
    found = detect(1, 4, shape_of(*SQUARE), 0.8)
    crowded = [detect(1, 4, shape_of(70 + 20 * n, 50, 15, 15), 0.9) for n in range(3)]
    report = quality(annotations, [found, *crowded])
    assert report == quality(annotations[:1], [found])
    assert numbers(report["box_score"]) == pytest.approx([0, 0, 0.2, 0.2])


def test_a_detection_outside_the_range_does_not_count():
    # A small object, and a large detection: only where all sizes count, it is false.
    annotations = [annotate(1, 4, shape_of(10, 10, 20, 20))]
    results = [
        detect(1, 4, shape_of(10, 10, 20, 20), 0.8),
        detect(1, 4, shape_of(40, 10, 100, 100), 0.9),
    ]
    report = quality(annotations, results)["box_score"]
    assert report["LRP"] == 0.5
    assert numbers(report["by_size"]["small"]) == pytest.approx([0, 0, 0.2, 0.2])


def test_an_ignored_detection_is_no_threshold():
    annotations = [
        annotate(1, 4, shape_of(*SQUARE)),
        annotate(1, 4, shape_of(60, 10, 80, 100), iscrowd=1),
    ]
    results = [
        detect(1, 4, shape_of(70, 50, 15, 15), 0.95),
        detect(1, 4, shape_of(*SQUARE), 0.8),
        detect(1, 4, shape_of(70, 80, 15, 15), 0.7),
    ]
    assert quality(annotations, results)["box_score"]["by_category"]["cat"]["threshold"] == 0.8


def test_equal_scores_cannot_be_separated_by_a_threshold():
    annotations = [annotate(1, 4, shape_of(*SQUARE))]
    results = [
        detect(1, 4, shape_of(*SQUARE), 0.8),
        detect(1, 4, shape_of(*ELSEWHERE), 0.8),
    ]
    assert quality(annotations, results)["box_score"]["oLRP"] == 0.5


def test_perfect_detections():
    annotations = [annotate(n, 4 + n % 2, shape_of(*SQUARE)) for n in range(1, 6)]
    results = [detect(n, 4 + n % 2, shape_of(*SQUARE), 0.7) for n in range(1, 6)]
    report = quality(annotations, results)["mask_score"]
    assert numbers(report) == pytest.approx([0, 0, 0.3, 0.3], abs=1e-12)
    assert report["agreement"]["correlation"] is None
    assert report["ranking"] == {
        "AP": pytest.approx(1),
        "AP_class_score": pytest.approx(1),
        "AP_ceiling": pytest.approx(1),
        "gap_closed": None,
    }


def test_the_share_of_the_gap_that_rescoring_closes():
    # Two detections of one object, the worse with the higher class score. Of the ten thresholds,
    # the worse one (IoU 0.6) is right at three: by class score AP is 0.3 + 0.7 / 2, and with the
    # true IoU 1. The mask score ranks as the true IoU does and closes the gap.
    annotations = [annotate(1, 4, shape_of(*SQUARE))]
    results = [
        detect(1, 4, shape_of(*LOWER), 0.9, 0.5),
        detect(1, 4, shape_of(*SQUARE), 0.8, 0.9),
    ]
    report = quality(annotations, results)
    assert report["mask_score"]["ranking"] == pytest.approx(
        {"AP": 1, "AP_class_score": 0.65, "AP_ceiling": 1, "gap_closed": 1}
    )
    assert report["box_score"]["ranking"]["gap_closed"] == 0


def test_boxes_have_one_score():
    annotations = [annotate(1, 4, shape_of(*SQUARE))]
    report = quality(annotations, [detect(1, 4, shape_of(*LOWER), 0.9)], kind="bbox")
    assert list(report) == ["box_score"]
    assert report["box_score"]["LaACE"] == pytest.approx(0.3)


def test_a_network_without_a_maskiou_head_has_no_mask_iou():
    result = detect(1, 4, shape_of(*SQUARE), 0.9)
    del result["mask_iou"]
    assert list(quality([annotate(1, 4, shape_of(*SQUARE))], [result])) == [
        "box_score",
        "mask_score",
    ]


def test_nothing_detected_and_nothing_to_detect():
    nothing = quality([annotate(1, 4, shape_of(*SQUARE))], [])
    assert list(nothing) == list(SCORES["segm"])
    assert numbers(nothing["mask_score"]) == [1, 1, -1, -1]
    assert nothing["mask_score"]["ranking"]["AP"] == 0
    empty = measure([], [detect(1, 4, shape_of(*SQUARE), 0.9)])
    assert numbers(empty["quality"]["mask_score"]) == [-1] * 4
    assert json.loads(json.dumps(empty, allow_nan=False)) == empty


def expected_report(oracle, category, area, scores):
    """The numbers of one category in the order of `flat`."""
    if not oracle.objects(category, area):
        return [-1] * 11 + [0] + [-1] * 3
    lrp = oracle.lrp(category, area, scores)
    optimal = oracle.optimal_lrp(category, area, scores) or (1, None, None, 1, None)
    pairs = oracle.true_pairs(category, area, scores)
    error = np.mean([abs(s - iou) for s, iou in pairs]) if pairs else None
    spread = np.std([iou for _, iou in pairs]) if pairs else None
    calibration = oracle.calibration(category, area, scores)
    ap = oracle.average_precision(category, area, scores)
    found = [lrp[0], optimal[0], *calibration, *lrp[1:], *optimal[1:], len(pairs), error, spread,
             ap]  # fmt: skip
    return [-1 if value is None else value for value in found]


def flat(report):
    """A category's report as a list."""
    parts = [v for kind in ("LRP", "oLRP") for v in report["components"][kind].values()]
    agreement = report["agreement"]
    return [
        *numbers(report),
        *parts,
        report["threshold"],
        *(agreement[key] for key in ("count", "mean_error", "spread")),
        report["ranking"]["AP"],
    ]


def mean(values):
    """The mean of what is measured."""
    measured = [value for value in values if value != -1]
    return np.mean(measured) if measured else -1


@pytest.mark.parametrize("seed", range(8))
def test_random_cases_equal_an_independent_implementation(seed):
    truth, results = draw_case(np.random.default_rng(seed))
    oracle = Oracle(truth, results)
    report = measure_quality(truth, results, "segm", range(1, 5), NAMES)["quality"]
    by_class = [result["box_score"] for result in results]
    best = [score * oracle.best_iou(d) for d, score in enumerate(by_class)]
    for name in SCORES["segm"]:
        scores = [result[name] for result in results]
        for area in AREAS:
            rows = [expected_report(oracle, category, area, scores) for category in NAMES]
            found = report[name] if area == "all" else report[name]["by_size"][area]
            if area == "all":
                for category, row in zip(found["by_category"].values(), rows, strict=True):
                    assert flat(category) == pytest.approx(row, abs=1e-9)
            overall = [mean(column) for column in zip(*rows, strict=True)]
            parts = [v for kind in ("LRP", "oLRP") for v in found["components"][kind].values()]
            assert numbers(found) == pytest.approx(overall[:4], abs=1e-9)
            assert parts == pytest.approx(overall[4:10], abs=1e-9)
            pairs = [p for c in NAMES for p in oracle.true_pairs(c, area, scores)]
            assert found["agreement"]["count"] == len(pairs)
            if len(pairs) > 2:
                wanted = np.corrcoef(*zip(*pairs, strict=True))[0, 1]
                assert found["agreement"]["correlation"] == pytest.approx(wanted)
            aps = [
                mean([oracle.average_precision(c, area, ranked) for c in (4, 5)
                      if oracle.objects(c, area)])
                for ranked in (scores, by_class, best)
            ]  # fmt: skip
            assert list(found["ranking"].values())[:3] == pytest.approx(aps, abs=1e-9)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ap_is_that_of_the_evaluation(kind):
    truth, results = draw_case(np.random.default_rng(11), 30)
    ranked_by = SCORES[kind][-1]
    results = [{**result, "score": result[ranked_by]} for result in results]
    stats, by_category = evaluate_results(truth, results, kind, range(1, 31))
    found = measure_quality(truth, results, kind, range(1, 31), NAMES)
    report = found["quality"][ranked_by]
    sizes = [report["by_size"][size]["ranking"]["AP"] for size in ("small", "medium", "large")]
    assert [report["ranking"]["AP"], *sizes] == pytest.approx(
        [stats[key] for key in ("AP", "APs", "APm", "APl")], abs=1e-12
    )
    each = [category["ranking"]["AP"] for category in report["by_category"].values()]
    assert each == pytest.approx(list(by_category.values()), abs=1e-12)
    assert found["errors"]["AP50"] == pytest.approx(stats["AP50"], abs=1e-12)


def test_a_monotone_lie_changes_calibration_alone():
    truth, results = draw_case(np.random.default_rng(3), 10)
    lies = [{**result, "box_score": result["box_score"] ** 3} for result in results]
    honest, lying = (
        measure_quality(truth, said, "segm", range(1, 11), NAMES)["quality"]["box_score"]
        for said in (results, lies)
    )
    assert numbers(lying, ["LRP", "oLRP"]) == numbers(honest, ["LRP", "oLRP"])
    assert lying["ranking"]["AP"] == honest["ranking"]["AP"]
    assert abs(lying["LaECE"] - honest["LaECE"]) > 0.05
    assert abs(lying["LaACE"] - honest["LaACE"]) > 0.02


def leaves(report):
    """All numbers in nested dicts, in order."""
    if isinstance(report, dict):
        return [leaf for value in report.values() for leaf in leaves(value)]
    return [report]


def test_the_order_of_images_and_results_does_not_matter():
    truth, results = draw_case(np.random.default_rng(5), 10)
    rng = np.random.default_rng(0)
    for result in results:  # Without ties, whose order does matter.
        result |= dict(zip(SCORES["segm"], map(float, rng.random(3)), strict=True))
    mixed = [results[index] for index in rng.permutation(len(results))]
    found, again = (
        measure_quality(truth, said, "segm", ids, NAMES)
        for said, ids in ((results, range(1, 11)), (mixed, range(10, 0, -1)))
    )
    assert leaves(again) == pytest.approx(leaves(found), abs=1e-12)


def test_images_that_are_not_evaluated_do_not_count():
    truth, results = draw_case(np.random.default_rng(6), 6)
    found = measure_quality(truth, results, "segm", [2, 3], NAMES)
    inside = {
        key: [entry for entry in truth[key] if entry.get("image_id", entry["id"]) in (2, 3)]
        for key in ("images", "annotations")
    }
    kept = [result for result in results if result["image_id"] in (2, 3)]
    assert found == measure_quality({**truth, **inside}, kept, "segm", [2, 3], NAMES)


def test_cocos_own_results(shared_data):
    folder = shared_data / "results" / "cocoapi_val2014_fake100"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    truth = complete_ground_truth(truth, names)
    results = [{**result, "box_score": result["score"], "mask_score": 1.0} for result in results]
    ids = [image["id"] for image in truth["images"]]
    report = measure_quality(truth, results, "segm", ids, names)["quality"]["box_score"]
    expected = json.loads((folder / "expected_stats.json").read_text())["pycocotools_2_0_11"]
    sizes = [report["by_size"][size]["ranking"]["AP"] for size in ("small", "medium", "large")]
    found = [report["ranking"]["AP"], *sizes]
    assert found == pytest.approx([expected["segm"][k] for k in ("AP", "APs", "APm", "APl")])
