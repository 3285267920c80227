"""Anchor matching and RoI labels against Detectron2, torchvision and mmdetection.

The references label densely; here the positives and the non-negatives are listed. Left out are
anchors whose label float rounding may flip, as the fixture names them.

Not covered: d2_matched of no_gt, an index among no boxes. Other d2_matched are compared where the
anchor is positive.

Deviations:
- Detectron2 and torchvision let a box that meets no anchor make every anchor of IoU 0 positive;
  here it forces none.
- Detectron2's BOUNDARY_THRESH (and the authors' STRADDLE_THRESH), which ignores anchors across the
  border, is no setting; the comparison adds it.
- mmdetection's ignore_iof_thr ignores every anchor that lies in a crowd by more than that share,
  positives too, and a box whose best anchor goes forces its next best; --rpn_ignore_crowds keeps
  anchors inside by 0.7 from being negatives, no more. Compared where the two rules say the same; by
  default neither side uses them.
- mmdetection also forces RoIs on the box they are best for; that only changes which box a RoI that
  is positive anyway learns. Here it learns the one it overlaps most.
"""

import numpy as np
import pytest
import tensorflow as tf
from fixtures import agree, fixture, yx
from reference_grids import pyramid_cases, usual_grid

from data import boxes as box_ops
from data.anchor_matching import match, match_and_sample, matched_gts
from data.anchor_windows import CROWD_COVERAGE, AnchorShapes, locate_anchors
from model.box_head import DELTA_WEIGHTS
from model.config import ModelConfig
from model.proposals import Proposals
from model.roi_sampling import sample_rois

FILE = fixture("c_assign.npz")
PARAMS = FILE["all"].params
GRID = usual_grid(PARAMS["image_hw"], PARAMS["grids_hw"])
NEGATIVE_IOU, POSITIVE_IOU = PARAMS["thresholds"]
ANCHORS = tf.constant(GRID.boxes())
CROWDLESS = np.zeros([0, 4], np.float32)
NEAR = 1e-6
# "mmdet with ignore_iof_thr=0.5" is what the fixture says of its array.
MM_IGNORE_IOF = 0.5

REG_ATOL = FILE.tolerance["reg_atol"]
matched_cases = FILE.cases_with("d2_labels", "tv_labels", "mm_gt_inds")
cases = pytest.mark.parametrize("case", matched_cases, ids=repr)
crowd_cases = pytest.mark.parametrize("case", FILE.cases_with("iscrowd"), ids=repr)
roi_cases = pytest.mark.parametrize("case", FILE.cases_with("proposals"), ids=repr)


def dense(gt_boxes, crowds=CROWDLESS, *, forced_match="best"):
    """Ours as the references write it: labels 1, 0, -1 [A], and matched boxes, -1 if none [A]."""
    matches = match(
        tf.constant(gt_boxes),
        tf.constant(crowds),
        GRID,
        positive_iou=POSITIVE_IOU,
        negative_iou=NEGATIVE_IOU,
        ignore_crowds=len(crowds) > 0,
        forced_match=forced_match,
    )
    labels = np.zeros(GRID.num_anchors, np.int32)
    labels[matches.non_negatives] = -1
    labels[matches.positives] = 1
    matched = np.full(GRID.num_anchors, -1)
    anchors = locate_anchors(matches.positives, AnchorShapes(GRID))
    matched[matches.positives] = matched_gts(gt_boxes, anchors, matches.claims)
    return labels, matched


def mm_indices(labels, matched):
    """Labels and matched boxes in mmdetection's coding: -1 ignored, 0 negative, box + 1."""
    return np.where(labels == 1, matched + 1, labels)


def ious_of(gt_boxes):
    """IoU of all pairs, float32 [G, A]; one row of zeros if there are no boxes."""
    ious = box_ops.pairwise_iou(tf.constant(gt_boxes), ANCHORS).numpy()
    return ious if len(ious) else np.zeros([1, GRID.num_anchors], np.float32)


def settled(case, gt_boxes):
    """bool [A]: anchors whose labels float rounding cannot flip."""
    if "near_threshold" in case:
        return ~np.isin(np.arange(GRID.num_anchors), case["near_threshold"])
    ious = ious_of(gt_boxes)
    best = ious.max(0)
    near = np.minimum(np.abs(best - NEGATIVE_IOU), np.abs(best - POSITIVE_IOU)) < NEAR
    short_of_best = ious.max(1, keepdims=True) - ious
    return ~(near | ((short_of_best > 0) & (short_of_best < NEAR) & (ious > 0)).any(0))


def reachable(gt_boxes):
    """bool [G]: boxes that meet an anchor."""
    return box_ops.pairwise_iou(tf.constant(gt_boxes), ANCHORS).numpy().any(1)


def test_anchors():
    atol = fixture("a_anchors.npz").tolerance["atol"]
    agree(GRID.boxes(), yx(FILE[""]["anchors"]), "anchors of a pyramid", "d2", atol=atol)


@pytest.mark.parametrize("reference", ["d2", "tv"])
@cases
def test_labels(case, reference):
    gt_boxes = yx(case["gt"])
    sure = settled(case, gt_boxes)
    if not reachable(gt_boxes).all():
        # They label every anchor positive then: see the next test.
        assert (case[f"{reference}_labels"] == 1).all()
        return
    labels, _ = dense(gt_boxes)
    agree(labels[sure], case[f"{reference}_labels"][sure], "RPN labels", reference)


@cases
def test_a_box_that_meets_no_anchor_changes_nothing(case):
    gt_boxes = yx(case["gt"])
    reached = reachable(gt_boxes)
    labels, _ = dense(gt_boxes)
    np.testing.assert_array_equal(labels, dense(gt_boxes[reached])[0])
    # Theirs differ exactly where that box forces an IoU of 0 and ours is not positive already.
    forced = (~reached).any() & (ious_of(gt_boxes[~reached]) == 0).all(0)
    for reference in ("d2", "tv"):
        theirs, sure = case[f"{reference}_labels"], settled(case, gt_boxes)
        expected = np.where(forced, 1, labels)
        agree(expected[sure], theirs[sure], "RPN labels, IoU 0 forced", reference)


@cases
def test_labels_with_reassigning(case):
    gt_boxes = yx(case["gt"])
    labels, matched = dense(gt_boxes, forced_match="reassign")
    sure = settled(case, gt_boxes)
    ours = mm_indices(labels, matched)
    agree(ours[sure], case["mm_gt_inds"][sure], "RPN labels and boxes, reassigned", "mm")


@cases
def test_labels_of_anchors_inside_the_image(case):
    height, width = PARAMS["image_hw"]
    y1, x1, y2, x2 = GRID.boxes().T
    # Detectron2's inside_box excludes the lower and the right border.
    inside = (y1 >= 0) & (x1 >= 0) & (y2 < height) & (x2 < width)
    agree(inside, FILE[""]["inside"], "anchors inside the image", "d2")
    gt_boxes = yx(case["gt"])
    sure = settled(case, gt_boxes) & (reachable(gt_boxes).all() | ~inside)
    labels = np.where(inside, dense(gt_boxes)[0], -1)
    agree(labels[sure], case["d2_inside_labels"][sure], "RPN labels inside the image", "d2")


@cases
def test_matched_boxes(case):
    gt_boxes = yx(case["gt"])
    labels, matched = dense(gt_boxes)
    positive = settled(case, gt_boxes) & (labels == 1) & (case["d2_labels"] == 1)
    if not len(gt_boxes):
        assert not positive.any()
        return
    # Boxes, as the order of exact duplicates means nothing.
    theirs = gt_boxes[case["d2_matched"][positive]]
    agree(gt_boxes[matched[positive]], theirs, "RPN boxes of positives", "d2")


@pytest.mark.parametrize("case", FILE.cases_with("max_iou", "d2_labels", "tv_labels"), ids=repr)
def test_best_iou(case):
    ours = ious_of(yx(case["gt"])).max(0)
    agree(ours, case["max_iou"], "best IoU of an anchor", "d2", atol=NEAR)


def all_targets(gt_boxes):
    """Deltas of every positive: its anchor [P], ascending, and float32 [P, 4]."""
    targets = match_and_sample(
        tf.constant(gt_boxes),
        tf.constant(CROWDLESS),
        GRID,
        tf.constant([0, 0]),
        positive_iou=POSITIVE_IOU,
        negative_iou=NEGATIVE_IOU,
        num_samples=GRID.num_anchors,
        positive_fraction=1.0,
        ignore_crowds=False,
    )
    positive = targets.labels.numpy() == 1
    anchors = targets.indices.numpy()[positive]
    order = np.argsort(anchors)
    return anchors[order], targets.deltas.numpy()[positive][order]


@pytest.mark.parametrize("case", FILE.cases_with("d2_pos_idx"), ids=repr)
def test_positives_and_their_deltas(case):
    gt_boxes = yx(case["gt"])
    anchors, deltas = all_targets(gt_boxes)
    sure = settled(case, gt_boxes)
    ours, theirs = sure[anchors], sure[case["d2_pos_idx"]]
    if reachable(gt_boxes).all():
        agree(anchors[ours], case["d2_pos_idx"][theirs], "RPN positives", "d2")
    else:
        assert set(anchors) <= set(case["d2_pos_idx"])
    if "d2_pos_targets" in case:
        expected = yx(case["d2_pos_targets"])
        agree(deltas[ours], expected[theirs], "RPN deltas of positives", "d2", atol=REG_ATOL)


@crowd_cases
def test_crowds_take_no_part(case):
    gt_boxes = yx(case["gt"])[case["iscrowd"] == 0]
    sure = settled(case, gt_boxes)
    labels, _ = dense(gt_boxes)
    agree(labels[sure], case["labels"][sure], "RPN labels beside crowds", "d2")
    agree(labels[sure], case["labels"][sure], "RPN labels beside crowds", "tv")
    ours = mm_indices(*dense(gt_boxes, forced_match="reassign"))
    agree(ours[sure], case["mm_gt_inds"][sure], "RPN labels beside crowds", "mm")


@crowd_cases
def test_anchors_inside_crowds_where_both_rules_say_the_same(case):
    boxes = yx(case["gt"])
    gt_boxes, crowds = boxes[case["iscrowd"] == 0], boxes[case["iscrowd"] == 1]
    ours = mm_indices(*dense(gt_boxes, crowds, forced_match="reassign"))
    theirs = case["mm_ignore_iof_gt_inds"]
    iou = ious_of(crowds)
    areas = box_ops.area(tf.constant(crowds)).numpy()[:, None], box_ops.area(ANCHORS).numpy()[None]
    covered = (iou / (1 + iou) * (areas[0] + areas[1]) / areas[1]).max(0)
    assert (theirs[covered > MM_IGNORE_IOF + NEAR] == -1).all()
    outside = (covered <= MM_IGNORE_IOF - NEAR) & ~next_best(gt_boxes, covered)
    same = outside | ((covered >= CROWD_COVERAGE + NEAR) & (ours <= 0))
    same &= settled(case, gt_boxes)
    assert (ours[same] == -1).any()
    agree(ours[same], theirs[same], "anchors inside crowds", "mm")


def next_best(gt_boxes, covered):
    """bool [A]: anchors outside crowds that are the best there, but not the best, of some box."""
    ious = ious_of(gt_boxes)
    outside = np.where(covered <= MM_IGNORE_IOF, ious, -1)
    best = outside.max(1, keepdims=True)
    return ((best < ious.max(1, keepdims=True)) & (outside >= best - NEAR)).any(0)


def roi_labels(case):
    """Matched box + 1 of each of the case's RoIs, 0 for background: int [R]."""
    gt_boxes, candidates = yx(case["gt"]), yx(case["proposals"])
    count = len(candidates) - len(gt_boxes)
    np.testing.assert_array_equal(candidates[count:], gt_boxes)
    proposals = Proposals(
        tf.constant(candidates[None, :count]), tf.zeros([1, count]), tf.ones([1, count], tf.bool)
    )
    rois = sample_rois(
        proposals,
        tf.constant(gt_boxes[None]),
        tf.range(1, len(gt_boxes) + 1)[None],
        tf.zeros([1, 2], tf.int32),
        num_rois=len(candidates),
        positive_fraction=1.0,
        positive_iou=ModelConfig().roi_positive_iou,
    )
    assert rois.valid.numpy().all()
    np.testing.assert_array_equal(
        rois.classes[0], np.where(rois.positive[0], rois.matches[0] + 1, 0)
    )
    # They come shuffled; equal boxes have equal labels.
    same = (rois.boxes.numpy()[0][None] == candidates[:, None]).all(-1)
    assert same.any(1).all()
    return rois.classes.numpy()[0][same.argmax(1)]


@roi_cases
def test_rois(case):
    gt_boxes, candidates = yx(case["gt"]), yx(case["proposals"])
    ours = roi_labels(case)
    agree(ours > 0, case["d2_labels"], "RoI labels", "d2")
    positive = case["pos_idx"]
    agree(np.flatnonzero(ours), positive, "RoI labels", "d2")
    matched = ours[positive] - 1
    agree(matched, case["d2_matched"][positive], "RoI boxes of positives", "d2")
    iou = box_ops.pairwise_iou(candidates, gt_boxes).numpy()
    agree(iou.max(1), case["max_iou"], "best IoU of a RoI", "d2", atol=NEAR)
    deltas = box_ops.encode(gt_boxes[matched], candidates[positive], DELTA_WEIGHTS)
    agree(deltas, yx(case["pos_targets_w10"]), "RoI deltas of positives", "d2", atol=REG_ATOL)


@roi_cases
def test_rois_of_mmdetection_differ_only_where_it_forces(case):
    iou = box_ops.pairwise_iou(yx(case["proposals"]), yx(case["gt"])).numpy()
    forced = (iou >= iou.max(0) - NEAR).any(1)
    ours, theirs = roi_labels(case), case["mm_gt_inds"]
    agree(ours > 0, theirs > 0, "RoI labels", "mm")
    agree(ours[~forced], theirs[~forced], "RoI boxes of positives", "mm")


def test_the_grid_is_one_of_the_compared_ones():
    assert GRID.sizes == tuple(map(float, pyramid_cases()[0].params["sizes"]))
