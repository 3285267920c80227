"""Risk and coverage: worked cases, a plain loop, and an evaluation."""

import numpy as np
import pytest
from quality_oracle import annotate, detect, make_truth, shape_of

from trainer.coco_report import format_quality
from trainer.coverage import SHARES, WANTED, measure_coverage
from trainer.quality import measure_quality


def measure(scores, ious):
    return measure_coverage(np.array(scores, float), np.array(ious, float))


def test_a_worked_case():
    # From the best down, the IoUs are 0.9, 1.0, 0.6, 0.8 and 0, their means 0.9, 0.95, 0.8333,
    # 0.825 and 0.66.
    found = measure([0.5, 0.9, 0.8, 0.7, 0.6], [0.0, 0.9, 1.0, 0.6, 0.8])
    assert found["count"] == 5 and found["mean_iou"] == pytest.approx(0.66)
    means = [0.9, 0.9, 0.95, 0.95, 0.95, 5 / 6, 0.825, 0.825, 0.825, 0.66]
    # Half of five detections are rounded to two.
    assert found["curve"] == pytest.approx(
        dict(zip((f"{share:g}" for share in SHARES), means, strict=True))
    )
    thresholds = {
        float(wanted): (one["score"], one["share"]) for wanted, one in found["thresholds"].items()
    }
    assert thresholds == {
        0.7: (0.6, 0.8), 0.75: (0.6, 0.8), 0.8: (0.6, 0.8), 0.85: (0.8, 0.4), 0.9: (0.8, 0.4),
    }  # fmt: skip


def test_equal_scores_are_not_separated():
    found = measure([0.5, 0.5, 0.5, 0.5], [1.0, 0.9, 0.8, 0.1])
    assert list(found["curve"].values()) == pytest.approx([0.7] * len(SHARES))
    assert found["thresholds"]["0.7"] == {"score": 0.5, "share": 1.0}
    assert found["thresholds"]["0.75"] == {"score": None, "share": None}


def test_nothing_found():
    found = measure([], [])
    assert found["count"] == 0 and found["mean_iou"] is None and found["curve"] == {}
    assert [one["score"] for one in found["thresholds"].values()] == [None] * len(WANTED)


def test_random_cases_against_loops():
    rng = np.random.default_rng(0)
    for count in (1, 7, 50):
        scores, ious = rng.integers(0, 12, count) / 12, rng.uniform(0.3, 1, count)
        found = measure(scores, ious)
        for wanted, one in found["thresholds"].items():
            kept = {score: ious[scores >= score] for score in sorted(set(scores))}
            enough = [s for s, values in kept.items() if values.mean() >= float(wanted)]
            assert one["score"] == (enough[0] if enough else None)
            assert not enough or one["share"] == len(kept[enough[0]]) / count


def test_an_evaluation_looks_above_the_threshold_of_olrp():
    squares = [shape_of(5 + 35 * (n % 4), 5 + 50 * (n // 4), 20, 20) for n in range(8)]
    truth = make_truth([annotate(1, 4, shape) for shape in squares[:5]])
    lower = shape_of(5, 7, 20, 20)  # IoU 18 / 22
    results = [
        detect(1, 4, lower, 0.9, 0.5),
        *(detect(1, 4, shape, 0.8, 0.9) for shape in squares[1:5]),
        # Below the threshold, and false; then of a category without objects.
        *(detect(1, 4, shape, 0.1, 0.95) for shape in squares[5:]),
        detect(1, 5, squares[6], 0.99, 1.0),
    ]
    metrics = measure_quality(truth, results, "segm", [1], {4: "cat", 5: "dog"})
    found = {score: quality["coverage"] for score, quality in metrics["quality"].items()}
    mean = (4 + 18 / 22) / 5
    for coverage in found.values():
        assert coverage["count"] == 5 and coverage["mean_iou"] == pytest.approx(mean)
    # The MaskIoU head doubts the one that is moved, the class score does not.
    assert found["mask_iou"]["curve"]["0.1"] == 1 and found["box_score"]["curve"]["0.1"] < 1
    assert format_quality(metrics)[0].splitlines()[-1] == (
        "The 5 detections above the thresholds of oLRP have a mean IoU of 0.964; without the worst "
        "10% by mask_score it is 1.000."
    )
