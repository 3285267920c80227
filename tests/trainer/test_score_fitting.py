"""Maps fitted to detections of half of the images, and what they change on the others."""

import numpy as np
import pytest
from quality_oracle import annotate, detect, make_truth, shape_of

from data.errors import UserError
from trainer.average_precision import evaluate_results
from trainer.score_fitting import (
    MIN_DETECTIONS,
    MIN_DETECTIONS_OF_CLASS,
    Scored,
    apply_maps,
    fit_maps,
    halve,
    measure,
)

LABELS = {4: 1, 5: 2}
NUM_IMAGES = 60


def make_scored(seed=0, per_image=8, kind="segm"):
    """Overconfident detections of two classes in 60 images, two thirds of cats."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, NUM_IMAGES + 1):
        for number in range(per_image):
            category, x, y = 4 + int(number % 3 == 2), 4 + 35 * (number % 4), 8 + 50 * (number // 4)
            score = round(float(rng.uniform(0.05, 1)), 4)
            annotations.append(annotate(image, category, shape_of(x, y, 20, 20)))
            shift = int(rng.integers(1, 6)) if rng.uniform() < score**2 else 21
            shape = shape_of(x, y + shift, 20, 20)
            mask_iou = round(float(np.clip(0.9 - 0.04 * shift + rng.normal(0, 0.05), 0, 1)), 4)
            entry = detect(image, category, shape, score)
            entry |= {"box_score": score, "mask_iou": mask_iou}
            results.append({**entry, "mask_score": score * mask_iou, "score": score * mask_iou})
    truth = make_truth(annotations, NUM_IMAGES, ("cat", "dog"))
    return Scored(truth, results, kind, LABELS)


@pytest.fixture(scope="module")
def scored():
    return make_scored()


@pytest.fixture(scope="module")
def halves():
    return halve(range(1, NUM_IMAGES + 1))


@pytest.fixture(scope="module")
def fitted(scored, halves):
    return fit_maps(scored, halves[0], "isotonic")


def test_halves_do_not_depend_on_order(halves):
    first, second = halves
    assert len(first) == len(second) == 30 and not {*first} & {*second}
    assert halve(range(NUM_IMAGES, 0, -1)) == halves
    # Neither the first images nor every other one.
    assert max(first) > 50 and min(first) < 10 and 8 < sum(n % 2 for n in first) < 22
    with pytest.raises(UserError, match="19 images.*at least 20"):
        halve(range(19))


def test_classes_with_enough_detections_have_a_map_of_their_own(scored, fitted):
    counts = {
        score: {one.label: one.num_detections for one in maps} for score, maps in fitted.items()
    }
    # 30 images with 6 cats and 2 dogs each; the 240 detections all count.
    assert counts["box_score"] == counts["mask_score"] == {None: 240}
    more = fit_maps(scored, range(1, NUM_IMAGES + 1), "isotonic")
    assert {one.label: one.num_detections for one in more["box_score"]} == {None: 480, 1: 360}
    assert MIN_DETECTIONS_OF_CLASS > 120  # so the dogs share the map of all


def test_mask_iou_is_fitted_to_true_detections(scored, fitted):
    (of_all,) = fitted["mask_iou"]
    assert MIN_DETECTIONS < of_all.num_detections < 0.5 * 240
    # Shifts of 1 to 5 of 20 pixels have IoUs of 19 / 21 to 15 / 25.
    assert 0.6 < float(of_all.map(0.8)) < 0.91


@pytest.mark.parametrize("method", ["isotonic", "temperature"])
def test_scores_come_nearer_to_the_iou_and_ap_stays(scored, halves, method):
    calibrated = apply_maps(scored, fit_maps(scored, halves[0], method))
    before, after = (measure(each, halves[1]) for each in (scored, calibrated))
    for score in before:
        assert after[score]["AP"] == pytest.approx(before[score]["AP"], abs=1e-3)
    if method == "isotonic":  # One temperature does not fit every relation.
        assert after["mask_iou"]["mean_error"] < before["mask_iou"]["mean_error"]
        for score in ("box_score", "mask_score"):
            assert after[score]["LaECE"] < 0.7 * before[score]["LaECE"]
            assert after[score]["LaACE"] < before[score]["LaACE"]


def test_all_of_cocos_numbers_stay(scored, fitted, halves):
    calibrated = apply_maps(scored, fitted)
    for score in ("box_score", "mask_iou", "mask_score"):
        first, second = (
            evaluate_results(
                each.ground_truth,
                [{**entry, "score": entry[score]} for entry in each.results],
                "segm",
                halves[1],
            )
            for each in (scored, calibrated)
        )
        assert first[0]["AP"] > 0.1
        for one, other in zip(first, second, strict=True):
            assert other == pytest.approx(one, abs=1e-3)


def test_boxes_have_one_score(scored, halves):
    boxes = [{**e, "bbox": [10, 10, 20, 20]} for e in scored.results]
    truth = {**scored.ground_truth}
    truth["annotations"] = [{**a, "bbox": [10, 12, 20, 20]} for a in truth["annotations"]]
    only_boxes = scored._replace(ground_truth=truth, results=boxes, kind="bbox")
    assert fit_maps(only_boxes, halves[0], "isotonic").keys() == {"box_score"}


def test_what_cannot_be_calibrated_is_refused(scored, halves):
    for results, message in (
        ([], "finds 0 objects"),
        (scored.results[:30], r"finds \d+ objects"),
        (
            [{**e, **shape_of(145, 0, 3, 3)} for e in scored.results],
            "nothing that the model finds overlaps",
        ),
    ):
        few = scored._replace(results=results)
        with pytest.raises(UserError, match=message):
            fit_maps(few, halves[0], "isotonic")
