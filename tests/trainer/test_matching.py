"""Greedy matching: hand-worked cases, and random cases against pycocotools' COCOeval."""

import contextlib
import copy
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from quality_oracle import annotate, detect, draw_case, make_truth, shape_of

from trainer.matching import AREAS, find_overlaps, match

THRESHOLDS = np.linspace(0.5, 0.95, 10)
SQUARE = shape_of(10, 10, 40, 40)
LOWER = shape_of(10, 20, 40, 40)  # IoU 0.6 with SQUARE
CORNER = shape_of(40, 40, 40, 40)  # IoU 100 / 3100 with SQUARE
ELSEWHERE = shape_of(100, 70, 40, 40)


def run(annotations, results, thresholds=(0.5,), **kwargs):
    """Verdicts and IoUs of the results, in their order, where all sizes count."""
    overlaps = find_overlaps(make_truth(annotations), results, "segm", [1])
    scores = np.array([results[index]["score"] for index in overlaps.entry])
    matches = match(overlaps, scores, np.array(thresholds), **kwargs)
    hit, false = matches.hit[:, 0, 0], matches.false[:, 0, 0]
    said = np.where(hit, "hit", np.where(false, "false", "ignored"))
    order = np.argsort(overlaps.entry)
    return said[order].tolist(), overlaps.iou_of(matches.pair)[order, 0, 0]


def test_the_best_detection_takes_the_object():
    results = [detect(1, 4, LOWER, 0.9), detect(1, 4, SQUARE, 0.8)]
    said, ious = run([annotate(1, 4, SQUARE)], results)
    assert said == ["hit", "false"]
    assert ious.tolist() == [0.6, 0]


def test_a_detection_takes_the_object_that_it_overlaps_most():
    results = [detect(1, 4, LOWER, 0.9), detect(1, 4, SQUARE, 0.8)]
    said, ious = run([annotate(1, 4, SQUARE), annotate(1, 4, LOWER)], results)
    assert said == ["hit", "hit"]
    assert ious.tolist() == [1, 1]


def test_of_objects_that_overlap_equally_cocos_evaluation_takes_the_last():
    # The first detection is 10 rows from both objects; the second one is the last object.
    objects = [annotate(1, 4, SQUARE), annotate(1, 4, shape_of(10, 30, 40, 40))]
    results = [detect(1, 4, LOWER, 0.9), detect(1, 4, shape_of(10, 30, 40, 40), 0.8)]
    assert run(objects, results)[0] == ["hit", "false"]
    assert run(objects[::-1], results)[0] == ["hit", "hit"]


def test_another_category_is_not_matched():
    assert run([annotate(1, 4, SQUARE)], [detect(1, 5, SQUARE, 0.9)])[0] == ["false"]


def test_at_threshold_0_a_match_needs_an_overlap():
    # COCOeval would let the first detection take the object, and the second would be false.
    results = [detect(1, 4, ELSEWHERE, 0.9), detect(1, 4, CORNER, 0.8)]
    said, ious = run([annotate(1, 4, SQUARE)], results, [0.0])
    assert said == ["false", "hit"]
    assert ious[1] == pytest.approx(100 / 3100)


def test_detections_in_crowds_are_ignored_if_they_reach_no_object():
    crowd = annotate(1, 4, shape_of(0, 0, 90, 90), iscrowd=1)
    results = [
        detect(1, 4, SQUARE, 0.9),
        detect(1, 4, LOWER, 0.8),
        detect(1, 4, CORNER, 0.7),
        detect(1, 4, ELSEWHERE, 0.6),
    ]
    said, ious = run([crowd, annotate(1, 4, SQUARE)], results)
    assert said == ["hit", "ignored", "ignored", "false"]
    # The share of the detection that the crowd covers.
    assert ious.tolist() == [1, 1, 1, 0]


def test_only_the_best_of_a_category_in_an_image_count():
    results = [detect(1, 4, SQUARE, 0.1)] + [detect(1, 4, ELSEWHERE, 0.9)] * 2
    assert run([annotate(1, 4, SQUARE)], results, limit=2)[0] == ["ignored", "false", "false"]
    assert run([annotate(1, 4, SQUARE)], results, limit=3)[0] == ["hit", "false", "false"]


def test_more_detections_than_pycocotools_takes_at_once():
    results = [detect(1, 4, SQUARE, 0.5)] * 300
    said, _ = run([annotate(1, 4, SQUARE)], results)
    assert said.count("hit") == 1 and said.count("false") == 99


def test_best_iou_ignores_crowds_and_other_detections():
    annotations = [
        annotate(1, 4, SQUARE),
        annotate(1, 4, ELSEWHERE, iscrowd=1),
        annotate(1, 5, LOWER),
    ]
    results = [detect(1, 4, shape, 0.5) for shape in (SQUARE, LOWER, ELSEWHERE, SQUARE)]
    overlaps = find_overlaps(make_truth(annotations), results, "segm", [1])
    assert overlaps.best_iou().tolist() == [1, 0.6, 0, 1]
    assert overlaps.count_objects().tolist() == [[1, 0, 1, 0], [1, 0, 1, 0]]
    assert len(overlaps.other_pairs.iou) == 3


def test_unknown_images_and_categories_are_left_out():
    results = [
        detect(1, 7, SQUARE, 0.9),
        detect(2, 4, SQUARE, 0.9),
        detect(1, 4, SQUARE, 0.9),
    ]
    overlaps = find_overlaps(make_truth([annotate(1, 4, SQUARE)], 2), results, "segm", [1])
    assert overlaps.entry.tolist() == [2]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nothing_at_all(kind):
    overlaps = find_overlaps(make_truth([]), [], kind, [1])
    matches = match(overlaps, np.zeros(0), THRESHOLDS)
    assert matches.hit.shape == matches.false.shape == matches.pair.shape == (0, 4, 10)
    assert overlaps.count_objects().sum() == 0


def coco_evaluation(truth, results, kind, score):
    """COCOeval's lists of an image and category."""
    shape = {"bbox": "bbox", "segm": "segmentation"}[kind]
    entries = [
        {**{key: result[key] for key in ("image_id", "category_id", shape)}, "score": result[score]}
        for result in results
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        indexed = COCO()
        indexed.dataset = copy.deepcopy(truth)
        indexed.createIndex()
        evaluation = COCOeval(indexed, indexed.loadRes(entries), kind)
        evaluation.evaluate()
    return [found for found in evaluation.evalImgs if found is not None]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_cases_equal_pycocotools(kind, seed):
    rng = np.random.default_rng(seed)
    truth, results = draw_case(rng)
    results.append(detect(1, 4, SQUARE, 0.5))
    for _ in range(rng.choice([0, 130])):  # COCO counts 100 of a category.
        results.append({**results[0], "mask_iou": float(rng.random())})
    overlaps = find_overlaps(truth, results, kind, range(1, 5))
    place = {entry: index for index, entry in enumerate(overlaps.entry)}
    ranges = {area: number for number, area in enumerate(AREAS.values())}
    annotation_ids = np.array([annotation["id"] for annotation in truth["annotations"]] + [0])
    for score in ("box_score", "mask_iou"):
        scores = np.array([results[index][score] for index in overlaps.entry])
        matches = match(overlaps, scores, THRESHOLDS)
        is_ignored = ~(matches.hit | matches.false)
        is_listed = np.zeros(len(results), bool)
        for found in coco_evaluation(truth, results, kind, score):
            mine = [place[number - 1] for number in found["dtIds"]]
            area = ranges[tuple(found["aRng"])]
            objects = overlaps.object_of(matches.pair[mine, area])
            np.testing.assert_array_equal(annotation_ids[objects].T, found["dtMatches"])
            np.testing.assert_array_equal(is_ignored[mine, area].T, found["dtIgnore"])
            is_listed[mine] = True
        # COCOeval lists 100 of a category in an image.
        assert is_ignored[~is_listed].all()
