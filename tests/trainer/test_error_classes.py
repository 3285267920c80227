"""Classes of error: one hand-worked case of each, and second opinions on random cases."""

import json

import numpy as np
import pytest
from quality_oracle import annotate, detect, draw_case, make_truth, shape_of

from trainer.error_classes import ERRORS, measure_errors
from trainer.matching import find_overlaps

SQUARE = shape_of(10, 10, 40, 40)
NEAR = shape_of(10, 35, 40, 40)  # IoU 15 / 65 with SQUARE
LOWER = shape_of(10, 20, 40, 40)  # IoU 0.6 with SQUARE
TOUCHING = shape_of(46, 10, 40, 40)  # IoU 4 / 76 with SQUARE
ELSEWHERE = shape_of(100, 70, 40, 40)


def measure(annotations, results):
    """Errors of results in one image, ranked by box_score."""
    return measure_case(make_truth(annotations), results)


def gains(report):
    """The errors that cost AP."""
    return {name: report[name] for name in ERRORS if report[name]}


def counts(report):
    """The errors that occur."""
    return {name: count for name, count in report["counts"].items() if count}


CAT, FAR_CAT, DOG = annotate(1, 4, SQUARE), annotate(1, 4, ELSEWHERE), annotate(1, 5, SQUARE)
FOUND = detect(1, 4, ELSEWHERE, 0.5)  # always right, and behind the false detection


@pytest.mark.parametrize(
    ("name", "annotations", "false", "repaired"),
    [
        # AP50 without the error: a bad detection finds an object that otherwise stays missed.
        ("localisation", [CAT, FAR_CAT], detect(1, 4, NEAR, 0.9), 1),
        ("class", [DOG, FAR_CAT], detect(1, 4, SQUARE, 0.9), 1),
        ("background", [CAT, FAR_CAT], detect(1, 4, TOUCHING, 0.9), 51 / 101),
        ("both", [DOG, FAR_CAT], detect(1, 4, NEAR, 0.9), 0.5),
    ],
)
def test_a_false_detection_has_one_class(name, annotations, false, repaired):
    report = measure(annotations, [false, FOUND])
    false_detections = {n: c for n, c in counts(report).items() if n != "missed"}
    assert false_detections == {name: 1}
    assert report["AP50"] + report[name] == pytest.approx(repaired)


def test_a_duplicate():
    # Right, wrong, right: precision 1, then 2 / 3; without the duplicate 1.
    results = [detect(1, 4, SQUARE, 0.9), detect(1, 4, LOWER, 0.8), FOUND]
    report = measure([CAT, FAR_CAT], results)
    assert counts(report) == {"duplicate": 1}
    assert report["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert gains(report) == {"duplicate": pytest.approx(50 / 3 / 101)}


def test_a_missed_object():
    report = measure([CAT, FAR_CAT], [FOUND])
    assert counts(report) == {"missed": 1}
    assert report["AP50"] == pytest.approx(51 / 101)
    assert gains(report) == {"missed": pytest.approx(50 / 101)}


def test_an_object_that_a_bad_detection_covers_is_not_missed():
    assert counts(measure([CAT], [detect(1, 4, NEAR, 0.9)])) == {"localisation": 1}
    assert counts(measure([CAT], [detect(1, 5, SQUARE, 0.9)])) == {"class": 1}


def test_only_the_best_of_two_bad_detections_is_repaired():
    results = [detect(1, 4, NEAR, 0.9), detect(1, 4, NEAR, 0.8)]
    report = measure([CAT], results)
    assert counts(report) == {"localisation": 2}
    assert gains(report) == {"localisation": pytest.approx(1)}


def test_a_bad_detection_of_an_object_that_is_found_is_removed():
    # Wrong, right: precision 0.5; without the first 1.
    report = measure([CAT], [detect(1, 4, NEAR, 0.9), detect(1, 4, SQUARE, 0.8)])
    assert report["AP50"] == pytest.approx(0.5)
    assert gains(report) == {"localisation": pytest.approx(0.5)}


def test_a_category_of_which_nothing_is_found_is_left_out_without_misses():
    report = measure([FAR_CAT, DOG], [FOUND])
    assert report["AP50"] == pytest.approx(0.5)
    assert gains(report) == {"missed": pytest.approx(0.5)}
    assert measure([CAT], [detect(1, 4, ELSEWHERE, 0.9)])["missed"] == 1


def test_crowds_are_no_errors():
    crowd = annotate(1, 4, shape_of(0, 0, 90, 110), iscrowd=1)
    report = measure([crowd, FAR_CAT], [detect(1, 4, SQUARE, 0.9), FOUND])
    assert counts(report) == gains(report) == {}
    assert report["AP50"] == pytest.approx(1)


def test_nothing_to_detect():
    report = measure([], [FOUND])
    assert [report[name] for name in ("AP50", *ERRORS)] == [-1] * 7
    assert counts(report) == {"background": 1}


def draw_frozen_case(seed):
    """A case that RandomState, whose numbers never change, draws: 36 objects, 84 detections."""
    rng = np.random.RandomState(seed)
    annotations, results = [], []
    for image_id in range(1, 13):
        boxes = [(*rng.randint(0, 60, 2), *rng.randint(8, 60, 2)) for _ in range(3)]
        categories = rng.randint(4, 6, 3).tolist()
        for box, category in zip(boxes, categories, strict=True):
            annotations.append(annotate(image_id, category, shape_of(*map(int, box))))
        for number in range(7):
            moved = np.maximum(boxes[number % 3] + rng.randint(-6, 7, 4), [0, 0, 4, 4])
            category = categories[number % 3] if rng.randint(4) else int(rng.randint(4, 6))
            if number > 4:
                moved = np.concatenate([rng.randint(0, 60, 2), rng.randint(8, 60, 2)])
            score = (len(results) * 37 % 101) / 101
            results.append(detect(image_id, category, shape_of(*map(int, moved)), score))
    return make_truth(annotations, 12), results


def measure_case(truth, results):
    """Errors of a case, ranked by box_score."""
    image_ids = [image["id"] for image in truth["images"]]
    overlaps = find_overlaps(truth, results, "segm", image_ids)
    scores = np.array([results[index]["box_score"] for index in overlaps.entry])
    return measure_errors(overlaps, scores)


# By seed, what tidecv 1.0.1 says: AP50 and the gain of each error in percent, and the counts.
TIDECV = {
    2: (
        [47.8945514, 0.6284976, 19.2091645, 1.0117472, 4.5354299, 7.7633962, 2.1702232],
        [2, 19, 6, 15, 12, 1],
    ),
    4: (
        [32.6020377, 5.1491598, 23.7538262, 3.0302435, 6.2270356, 4.1744618, 1.1424219],
        [2, 18, 8, 17, 11, 1],
    ),
}


@pytest.mark.parametrize("seed", TIDECV)
def test_frozen_cases_equal_tidecv(seed):
    report = measure_case(*draw_frozen_case(seed))
    found = [100 * report[name] for name in ("AP50", *ERRORS)]
    assert found == pytest.approx(TIDECV[seed][0], abs=1e-6)
    assert [report["counts"][name] for name in ERRORS] == TIDECV[seed][1]


def without_pixels(entries):
    """What fits into JSON."""
    return [{k: v for k, v in entry.items() if k != "pixels"} for entry in entries]


@pytest.mark.parametrize("seed", range(10))
def test_random_cases_equal_hotcoco(seed, tmp_path):
    hotcoco = pytest.importorskip("hotcoco")
    rng = np.random.default_rng(seed)
    truth, results = draw_case(rng, 12)
    # hotcoco takes detections that a crowd covers in part for badly placed ones, and orders equal
    # scores differently.
    truth["annotations"] = [{**annotation, "iscrowd": 0} for annotation in truth["annotations"]]
    for result in results:
        result["box_score"] = result["score"] = float(rng.random())
    truth_json, results_json = tmp_path / "truth.json", tmp_path / "results.json"
    plain = {**truth, "annotations": without_pixels(truth["annotations"])}
    truth_json.write_text(json.dumps(plain))
    results_json.write_text(json.dumps(without_pixels(results)))
    coco = hotcoco.COCO(str(truth_json))
    evaluation = hotcoco.COCOeval(coco, coco.load_res(str(results_json)), "segm")
    evaluation.run()
    theirs, ours = evaluation.tide_errors(), measure_case(truth, results)
    names = dict(zip(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), ERRORS, strict=True))
    assert ours["AP50"] == pytest.approx(theirs["ap_base"], abs=1e-12)
    assert {short: ours["counts"][name] for short, name in names.items()} == theirs["counts"]
    gained = {short: theirs["delta_ap"][short] for short in names}
    assert {short: ours[name] for short, name in names.items()} == pytest.approx(gained, abs=1e-12)
