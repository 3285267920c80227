"""The COCO evaluation (`trainer.coco_metrics`) against pycocotools' recorded numbers.

`evaluate_results` returns the 12 numbers and AP by category. Precision and recall arrays are read
from the pycocotools evaluation that it ran, on the ground truth and results as it had indexed them.

All arrays of the file are compared. No deviations.
"""

import json

import numpy as np
import pytest
from fixtures import FOLDER, agree, fixture
from pycocotools.cocoeval import COCOeval

from trainer import coco_metrics

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


@pytest.fixture
def evaluate(monkeypatch):
    """A function of a case's name and a kind: the 12 numbers, AP by category id, and the arrays."""
    evaluations = []

    class Remembered(COCOeval):
        def __init__(self, *args):
            super().__init__(*args)
            evaluations.append(self)

    monkeypatch.setattr(coco_metrics, "COCOeval", Remembered)

    def run(name, kind):
        entry = INPUTS[name]
        names_by_id = {c["id"]: c["name"] for c in entry["gt"]["categories"]}
        ground_truth = coco_metrics._index_ground_truth(entry["gt"], names_by_id)
        results = [
            {key: det[key] for key in ("image_id", "category_id", "score", KINDS[kind])}
            for det in entry["dets"]
        ]
        image_ids = [image["id"] for image in entry["gt"]["images"]]
        stats, by_category = coco_metrics.evaluate_results(ground_truth, results, kind, image_ids)
        return stats, by_category, evaluations[-1].eval

    return run


@cases
@kinds
def test_the_twelve_numbers(case, kind, evaluate):
    stats, _, _ = evaluate(case.name, kind)
    assert list(stats) == list(coco_metrics.METRICS)
    expected = case[f"{kind}_stats_f64"]
    agree(list(stats.values()), expected, f"COCO {kind} numbers", "pc", atol=ATOL)
    expected = list(INPUTS[case.name]["stats"][kind].values())
    agree(list(stats.values()), expected, f"COCO {kind} numbers", "pc", atol=ATOL)


@pytest.mark.parametrize("case", FILE.cases_with("bbox_precision_f64"), ids=repr)
@kinds
def test_precision_and_recall(case, kind, evaluate):
    _, _, arrays = evaluate(case.name, kind)
    expected = case[f"{kind}_precision_f64"]
    points = arrays["precision"].shape[1]
    step = (points - 1) // (expected.shape[1] - 1)
    ours = arrays["precision"][:, ::step]
    agree(ours, expected, f"COCO {kind} precision", "pc", atol=ATOL)
    agree(arrays["recall"], case[f"{kind}_recall_f64"], f"COCO {kind} recall", "pc", atol=ATOL)


@pytest.mark.parametrize("name", [n for n, e in INPUTS.items() if "per_category_AP_segm" in e])
def test_ap_by_category(name, evaluate):
    _, by_category, _ = evaluate(name, "segm")
    expected = INPUTS[name]["per_category_AP_segm"]
    ours = np.array([by_category[int(category)] for category in expected])
    agree(ours, list(expected.values()), "COCO segm AP by category", "pc", atol=ATOL)
