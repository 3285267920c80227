"""Suppression, proposals and detections against torchvision, mmcv, Detectron2 and mmdetection.

`suppress` returns boxes, not indices: an index is recovered as the first unused one of equal box
and score, so that exact duplicates count as one and the same. No boxes are an empty slot, whose
score is not above the threshold. Boxes without area survive here as there.

Not covered: keep_mm of cases with equal scores if it is not keep_tv, for mmcv promises no order.

Deviations:
- torchvision drops proposals with a side below 1e-3 pixels and detections below 1e-2; here those
  without area go.
"""

import numpy as np
import pytest
import tensorflow as tf
from fixtures import agree, fixture, yx
from reference_grids import usual_grid

from model.box_head import DELTA_WEIGHTS, BoxOutputs, detect_boxes
from model.nms import suppress
from model.proposals import Proposals, RPNOutputs, generate_proposals

FILE = fixture("d_nms.npz")
# Of padding, and of the classes that a box is not of; below all scores.
NO_SCORE = -1.0
BOXES_ATOL, SCORES_ATOL = (FILE.tolerance[key] for key in ("boxes_atol", "scores_atol"))

both_ways = pytest.mark.parametrize("static", [False, True], ids=["combined", "static"])
plain = pytest.mark.parametrize("case", FILE.cases_with("keep_tv"), ids=repr)
batched = pytest.mark.parametrize("case", FILE.cases_with("idxs"), ids=repr)
proposal_cases = pytest.mark.parametrize("case", FILE.cases_with("anchors", "logits"), ids=repr)
detection_cases = pytest.mark.parametrize("case", FILE.cases_with("logits_bg_last"), ids=repr)


def kept_indices(boxes, scores, kept):
    """Indices of `kept` (boxes, scores) among the boxes, in kept order."""
    left = list(range(len(boxes)))
    indices = []
    for box, score in zip(*kept, strict=True):
        index = next(i for i in left if scores[i] == score and (boxes[i] == box).all())
        left.remove(index)
        indices.append(index)
    return np.array(indices, np.int32)


def lowest_twins(indices, boxes, scores):
    """Each index replaced by the lowest one of the same box and score."""
    rows = np.column_stack([boxes, scores])
    same = (rows[:, None] == rows[None]).all(-1)
    return np.array([same[index].argmax() for index in indices], np.int32)


def run(boxes, scores, iou_threshold, static):
    """Indices that survive among [N, 4] boxes with scores [N, K], and their classes."""
    slots = max(1, len(boxes))
    padding = [(0, slots - len(boxes)), (0, 0)]
    scores = np.pad(scores, padding, constant_values=NO_SCORE)
    found = suppress(
        tf.constant(np.pad(boxes, padding)[None, :, None], tf.float32),
        tf.constant(scores[None], tf.float32),
        iou_threshold=iou_threshold,
        score_threshold=NO_SCORE,
        max_output=slots,
        static=static,
    )
    valid = found.valid.numpy()[0]
    return kept_indices(
        boxes,
        scores.max(1),
        (found.boxes.numpy()[0][valid], found.scores.numpy()[0][valid]),
    ), found.classes.numpy()[0][valid]


@both_ways
@plain
@pytest.mark.parametrize("reference", ["tv", "mm"])
def test_one_class(case, reference, static):
    boxes, scores = yx(case["boxes"].reshape(-1, 4)), case["scores"]
    kept, _ = run(boxes, scores[:, None], case.params["iou_threshold"], static)
    expected = case[f"keep_{reference}"]
    if len(set(scores)) < len(scores) and list(expected) != list(case["keep_tv"]):
        assert reference == "mm"
        return
    ours, theirs = (lowest_twins(indices, boxes, scores) for indices in (kept, expected))
    agree(ours, theirs, "NMS", reference)


@both_ways
@batched
def test_several_classes(case, static):
    boxes, scores, idxs = yx(case["boxes"]), case["scores"], case["idxs"]
    one_hot = np.where(np.arange(idxs.max() + 1) == idxs[:, None], scores[:, None], NO_SCORE)
    kept, classes = run(boxes, one_hot, case.params["iou_threshold"], static)
    np.testing.assert_array_equal(classes, idxs[kept])
    for reference in ("tv", "d2", "mm"):
        agree(kept, case["keep"], "NMS by class", reference)


def proposals_of(case, static, clip_below):
    params = case.params
    grid = usual_grid(params["padded_hw"], params["grids_hw"])
    assert list(grid.level_sizes) == params["num_anchors_per_level"]
    np.testing.assert_allclose(grid.boxes(), yx(case["anchors"]), atol=BOXES_ATOL)
    size = params["image_hw"]
    return generate_proposals(
        RPNOutputs(tf.constant(case["logits"][None]), tf.constant(yx(case["deltas"])[None])),
        grid,
        tf.constant([[*size, 1, *size]], tf.float32),
        pre_nms=params["pre_nms_topk"],
        post_nms=params["post_nms_topk"],
        nms_iou=params["nms"],
        static=static,
        clip_below=clip_below,
    )


@both_ways
@proposal_cases
@pytest.mark.parametrize("reference", ["d2", "tv", "mm"])
def test_proposals(case, reference, static):
    found = proposals_of(case, static, clip_below=reference == "mm")
    valid = found.valid.numpy()[0]
    boxes, scores = found.boxes.numpy()[0][valid], found.scores.numpy()[0][valid]
    agree(boxes, yx(case[f"{reference}_boxes"]), "proposals", reference, atol=BOXES_ATOL)
    if reference == "d2":
        expected = case["d2_logits"]
    else:
        scores, expected = tf.sigmoid(scores), case[f"{reference}_scores"]
    agree(scores, expected, "scores of proposals", reference, atol=SCORES_ATOL)


def background_first(values):
    """[N, K + 1], background last → first."""
    return np.roll(values, 1, axis=1)


def detections_of(case, static, clip_below):
    """Detections of the case's proposals, and their class probabilities [P, K + 1]."""
    params = case.params
    assert tuple(params["delta_weights"]) == DELTA_WEIGHTS
    logits = background_first(case["logits_bg_last"])
    count, size = len(logits), params["image_hw"]
    deltas = yx(case["deltas"].reshape(count, params["num_classes"], 4))
    deltas = np.concatenate([np.zeros_like(deltas[:, :1]), deltas], 1)
    found = detect_boxes(
        BoxOutputs(tf.constant(logits), tf.constant(deltas)),
        Proposals(
            tf.constant(yx(case["proposals"])[None]),
            tf.zeros([1, count]),
            tf.ones([1, count], tf.bool),
        ),
        tf.constant([[*size, 1, *size]], tf.float32),
        score_threshold=params["score_thresh"],
        nms_iou=params["nms"],
        max_detections=params["topk"],
        static=static,
        clip_below=clip_below,
    )
    return found, tf.nn.softmax(logits).numpy()


@both_ways
@detection_cases
@pytest.mark.parametrize(("reference", "first_label"), [("d2", 0), ("tv", 1), ("mm", 0)])
def test_detections(case, reference, first_label, static):
    found, probabilities = detections_of(case, static, clip_below=reference == "mm")
    valid = found.valid.numpy()[0]
    boxes, scores, classes = (
        values.numpy()[0][valid] for values in (found.boxes, found.scores, found.classes)
    )
    expected_boxes, expected_scores = yx(case[f"{reference}_boxes"]), case[f"{reference}_scores"]
    labels = case[f"{reference}_labels"] + 1 - first_label
    agree(classes, labels, "classes of detections", reference)
    agree(scores, expected_scores, "scores of detections", reference, atol=SCORES_ATOL)
    agree(boxes, expected_boxes, "detections", reference, atol=BOXES_ATOL)
    if f"{reference}_source" in case:
        # The proposal of which that is the score of that class.
        source = np.abs(probabilities[:, classes] - scores).argmin(0)
        agree(source, case[f"{reference}_source"], "proposals of detections", reference)
