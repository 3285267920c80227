"""The COCO evaluation (`trainer.average_precision`) against pycocotools' recorded numbers.

`evaluate_results` gives the 12 numbers and AP by category, `measure_curves` the arrays that they
are means of.

All arrays of the file are compared. No deviations.
"""

import json

import numpy as np
import pytest
from fixtures import FOLDER, agree, fixture

from trainer.average_precision import evaluate_results, measure_curves
from trainer.coco_ground_truth import complete_ground_truth
from trainer.coco_report import METRICS

FILE = fixture("j_coco.npz")
ATOL = FILE.tolerance["atol"]
KINDS = {"bbox": "bbox", "segm": "segmentation"}


def inputs():
    """Ground truths and results of all cases."""
    with open(FOLDER / FILE["all"].params["json"], encoding="utf-8") as file:
        return json.load(file)


INPUTS = inputs()
cases = pytest.mark.parametrize("case", FILE.cases_with("bbox_stats_f64"), ids=repr)
kinds = pytest.mark.parametrize("kind", KINDS)


def measure(function, name, kind):
    """What a function of `trainer.average_precision` says of a case, all its images taking part."""
    truth, detections = INPUTS[name]["gt"], INPUTS[name]["dets"]
    complete = complete_ground_truth(truth, {c["id"]: c["name"] for c in truth["categories"]})
    results = [
        {key: detection[key] for key in ("image_id", "category_id", "score", KINDS[kind])}
        for detection in detections
    ]
    return function(complete, results, kind, [image["id"] for image in truth["images"]])


@cases
@kinds
def test_the_twelve_numbers(case, kind):
    stats, _ = measure(evaluate_results, case.name, kind)
    assert list(stats) == list(METRICS)
    expected = case[f"{kind}_stats_f64"]
    agree(list(stats.values()), expected, f"COCO {kind} numbers", "pc", atol=ATOL)
    expected = list(INPUTS[case.name]["stats"][kind].values())
    agree(list(stats.values()), expected, f"COCO {kind} numbers", "pc", atol=ATOL)


@pytest.mark.parametrize("case", FILE.cases_with("bbox_precision_f64"), ids=repr)
@kinds
def test_precision_and_recall(case, kind):
    curves = measure(measure_curves, case.name, kind)
    expected = case[f"{kind}_precision_f64"]
    points = curves.precision.shape[1]
    step = (points - 1) // (expected.shape[1] - 1)
    ours = curves.precision[:, ::step]
    agree(ours, expected, f"COCO {kind} precision", "pc", atol=ATOL)
    agree(curves.recall, case[f"{kind}_recall_f64"], f"COCO {kind} recall", "pc", atol=ATOL)


@pytest.mark.parametrize("name", [n for n, e in INPUTS.items() if "per_category_AP_segm" in e])
def test_ap_by_category(name):
    _, by_category = measure(evaluate_results, name, "segm")
    expected = INPUTS[name]["per_category_AP_segm"]
    ours = np.array([by_category[int(category)] for category in expected])
    agree(ours, list(expected.values()), "COCO segm AP by category", "pc", atol=ATOL)
