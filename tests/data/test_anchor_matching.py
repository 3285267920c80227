"""Tests of data/anchor_matching.py: equality with the dense rule, ties by hand, sampling."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf

from data import anchor_matching
from data import boxes as box_ops
from data.anchor_windows import AnchorShapes, locate_anchors
from data.anchors import AnchorGrid
from data.config import DataConfig

RATIOS = (0.5, 1.0, 2.0)
COCO_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
SMALL_SIZES = (16.0, 32.0, 64.0, 128.0, 256.0)
POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
NO_BOXES = np.zeros([0, 4], np.float32)
THRESHOLDS = {"positive_iou": 0.7, "negative_iou": 0.3}


@functools.cache
def matcher(grid, ignore_crowds=False, forced_match="best", **thresholds):
    """match() of a grid, and the positives' ground truths, as a graph of boxes in any number."""
    options = {**THRESHOLDS, **thresholds, "ignore_crowds": ignore_crowds}
    options["forced_match"] = forced_match
    boxes = tf.TensorSpec([None, 4], tf.float32)

    @tf.function(input_signature=[boxes, boxes])
    def graph(gt_boxes, crowd_boxes):
        matches = anchor_matching.match(gt_boxes, crowd_boxes, grid, **options)
        anchors = locate_anchors(matches.positives, AnchorShapes(grid))
        return matches, anchor_matching.matched_gts(gt_boxes, anchors, matches.claims)

    return graph


def sparse_labels(grid, gt_boxes, crowd_boxes=NO_BOXES, **options):
    """Labels and matched ground truths (-1 where not positive) of all anchors, from match()."""
    matches, matched_gt = matcher(grid, **options)(gt_boxes, crowd_boxes)
    for ascending in (matches.positives, matches.non_negatives):
        assert (np.diff(ascending) > 0).all()
    labels = np.full(grid.num_anchors, NEGATIVE)
    labels[matches.non_negatives] = IGNORED
    assert (labels[matches.positives] == IGNORED).all()
    labels[matches.positives] = POSITIVE
    matched = np.full(grid.num_anchors, -1)
    matched[matches.positives] = matched_gt
    return labels, matched


# The dense rule, once with the float32 arithmetic of the code under test and once with plain
# corners in float64.


@functools.cache
def float32_anchors(grid):
    """Centres and sizes [A, 2] and areas [A] of all anchors in float32."""
    centres, sizes, areas = [], [], []
    for level, (stride, (rows, columns)) in enumerate(
        zip(grid.strides, grid.level_shapes, strict=True)
    ):
        cells = np.stack(np.meshgrid(range(rows), range(columns), indexing="ij"), -1)
        count = len(grid.sizes) // len(grid.strides)
        level_sizes = grid.sizes[level * count : (level + 1) * count]
        cells = np.repeat(cells.reshape(-1, 2), count * len(grid.ratios), axis=0)
        shapes = [(s * math.sqrt(r), s / math.sqrt(r)) for s in level_sizes for r in grid.ratios]
        shape_areas = [size**2 for size in level_sizes for _ in grid.ratios]
        if grid.rounded:
            # Python's round takes halves to even numbers too.
            shapes = [[2 * round(side / 2) for side in shape] for shape in shapes]
            shape_areas = [height * width for height, width in shapes]
        centres.append(cells * stride)
        sizes.append(np.tile(shapes, (rows * columns, 1)))
        areas.append(np.tile(shape_areas, rows * columns))
    return tuple(np.concatenate(x).astype(np.float32) for x in (centres, sizes, areas))


def float32_ious(grid, boxes):
    """IoUs [G, A] with overlaps from centres and sizes, and intersections [G, A]."""
    centres, sizes, areas = float32_anchors(grid)
    half = np.float32(0.5)
    overlaps = []
    for axis in (0, 1):
        low, high = boxes[:, None, axis], boxes[:, None, axis + 2]
        size, anchor_size = np.maximum(high - low, 0), sizes[None, :, axis]
        distance = np.abs(half * (low + high) - centres[None, :, axis])
        overlap = np.minimum(half * (size + anchor_size) - distance, np.minimum(size, anchor_size))
        overlaps.append(np.maximum(overlap, 0))
    intersections = overlaps[0] * overlaps[1]
    box_areas = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1)
    return intersections / (box_areas[:, None] + areas[None] - intersections), intersections


def float64_ious(grid, boxes):
    """IoUs [G, A] from corners."""
    boxes, anchors = boxes.astype(np.float64)[:, None], grid.boxes().astype(np.float64)[None]
    sides = np.minimum(boxes[..., 2:], anchors[..., 2:]) - np.maximum(
        boxes[..., :2], anchors[..., :2]
    )
    intersections = np.maximum(sides, 0).prod(-1)
    areas = [np.maximum(x[..., 2:] - x[..., :2], 0).prod(-1) for x in (boxes, anchors)]
    return intersections / (areas[0] + areas[1] - intersections)


def dense_labels(ious, tie_tolerance=1e-6):
    """The rule on a matrix of IoUs [G, A]: labels and matched ground truths of all anchors."""
    if not len(ious):
        return np.full(ious.shape[1], NEGATIVE), np.full(ious.shape[1], -1)
    labels = np.full(ious.shape[1], IGNORED)
    labels[ious.max(0) < np.float32(0.3)] = NEGATIVE
    labels[ious.max(0) >= np.float32(0.7)] = POSITIVE
    lowest = ious.max(1, keepdims=True) * ious.dtype.type(1.0 - tie_tolerance)
    labels[((ious >= lowest) & (ious > 0)).any(0)] = POSITIVE
    return labels, np.where(labels == POSITIVE, ious.argmax(0), -1)


def dense_reassigned(ious):
    """mmdetection's rule on a matrix of IoUs [G, A], in its order of steps."""
    if not len(ious):
        return dense_labels(ious)
    best = ious.max(0)
    labels = np.where(best < np.float32(0.3), NEGATIVE, IGNORED)
    labels[best >= np.float32(0.7)] = POSITIVE
    matched = np.where(labels == POSITIVE, ious.argmax(0), -1)
    for gt, row in enumerate(ious):
        if row.max() >= np.float32(0.3):
            forced = row >= row.max() * np.float32(1.0 - 1e-6)
            labels[forced], matched[forced] = POSITIVE, gt
    return labels, matched


def random_boxes(rng, grid, count):
    """Boxes of every kind that has its own way to fail."""
    canvas = np.array([grid.height, grid.width], np.float64)
    kinds = {
        "tiny": lambda: spread(np.exp(rng.uniform(-5, 0, 2))),
        "small": lambda: spread(rng.uniform(1, 20, 2)),
        "medium": lambda: spread(rng.uniform(20, 100, 2)),
        "huge": lambda: spread(canvas * rng.uniform(1, 4, 2)),
        "flat": lambda: spread(np.array([rng.uniform(0.5, 4), rng.uniform(30, canvas[1])])),
        "tall": lambda: spread(np.array([rng.uniform(30, canvas[0]), rng.uniform(0.5, 4)])),
        "far": lambda: spread(rng.uniform(1, 60, 2)) + np.tile(rng.choice([-1, 1], 2) * canvas, 2),
        "whole canvas": lambda: np.concatenate([[0, 0], canvas]),
        "anchor": lambda: rng.choice(grid.boxes()),
        "shifted anchor": lambda: rng.choice(grid.boxes()) + rng.choice([-2, 0, 2, 4]),
        "whole pixels": lambda: np.round(spread(rng.integers(1, 60, 2))),
        "no height": lambda: spread(np.array([0, rng.uniform(1, 60)])),
        "no width": lambda: spread(np.array([rng.uniform(1, 60), 0])),
        "padding": lambda: np.zeros(4),
        "upside down": lambda: spread(rng.uniform(1, 60, 2))[[2, 1, 0, 3]],
    }

    def spread(size):
        """A box anywhere, often across the border."""
        corner = rng.uniform(-size, canvas)
        return np.concatenate([corner, corner + size])

    names = rng.choice(list(kinds), count)
    boxes = [kinds[name]() for name in names]
    if count > 1 and rng.random() < 0.3:
        boxes[-1] = boxes[0]
    return np.reshape(boxes, [-1, 4]).astype(np.float32)


PROPERTY_CASES = [
    (AnchorGrid(64, 96, 2, 6, COCO_SIZES, RATIOS), 700, 50),
    (AnchorGrid(64, 96, 2, 6, SMALL_SIZES, RATIOS), 700, 50),
    (AnchorGrid(128, 128, 2, 6, SMALL_SIZES, RATIOS), 500, 20),
    (AnchorGrid(70, 45, 3, 5, (16.0, 40.0, 90.0), (0.2, 1.0, 1.3, 3.0)), 500, 20),
    (AnchorGrid(320, 256, 2, 6, COCO_SIZES, RATIOS), 60, 10),
    (AnchorGrid(320, 256, 2, 6, SMALL_SIZES, RATIOS), 60, 10),
    (AnchorGrid(64, 96, 2, 6, COCO_SIZES, RATIOS, rounded=True), 300, 50),
    (AnchorGrid(70, 45, 3, 5, (5.0, 9.0, 41.0), (0.2, 1.0, 1.3, 3.0), rounded=True), 300, 20),
    # The single map of Faster R-CNN, and two levels of two sizes each.
    (AnchorGrid(320, 256, 4, 4, (128.0, 256.0, 512.0), RATIOS), 60, 10),
    (AnchorGrid(128, 96, 4, 4, (8.0, 30.0, 70.0), RATIOS), 300, 20),
    (AnchorGrid(70, 45, 3, 4, (9.0, 20.0, 30.0, 41.0), (0.3, 1.0)), 300, 20),
]
RULES = {"best": dense_labels, "reassign": dense_reassigned}


@pytest.mark.parametrize("forced_match", RULES)
@pytest.mark.parametrize(("grid", "num_cases", "most_boxes"), PROPERTY_CASES)
def test_equals_the_dense_rule(grid, num_cases, most_boxes, forced_match):
    rng = np.random.default_rng(grid.num_anchors)
    for case in range(num_cases):
        boxes = random_boxes(rng, grid, int(most_boxes * rng.random() ** 3 + 0.5))
        expected_labels, expected_gt = RULES[forced_match](float32_ious(grid, boxes)[0])
        labels, matched_gt = sparse_labels(grid, boxes, forced_match=forced_match)
        np.testing.assert_array_equal(labels, expected_labels, f"case {case}: {boxes.tolist()}")
        np.testing.assert_array_equal(matched_gt, expected_gt, f"case {case}: {boxes.tolist()}")


@pytest.mark.parametrize("grid", [case[0] for case in (*PROPERTY_CASES[:4], *PROPERTY_CASES[6:])])
def test_equals_the_plain_rule_wherever_rounding_cannot_matter(grid):
    rng = np.random.default_rng(7)
    num_decided = 0
    for _ in range(100):
        boxes = random_boxes(rng, grid, rng.integers(1, 12))
        ious = float64_ious(grid, boxes)
        labels, matched_gt = sparse_labels(grid, boxes)
        strict, strict_gt = dense_labels(ious, tie_tolerance=0.0)
        lenient, _ = dense_labels(ious, tie_tolerance=1e-4)
        best = ious.max(0)
        decided = (strict == lenient) & (np.abs(best - 0.3) > 1e-5) & (np.abs(best - 0.7) > 1e-5)
        np.testing.assert_array_equal(labels[decided], strict[decided])
        runner_up = np.sort(ious, axis=0)[-2] if len(ious) > 1 else np.zeros_like(best)
        clear = decided & (best - runner_up > 1e-5)
        np.testing.assert_array_equal(matched_gt[clear], strict_gt[clear])
        num_decided += (labels[decided] == POSITIVE).sum()
    assert num_decided > 500


@pytest.mark.parametrize(("grid", "num_cases"), [(PROPERTY_CASES[0][0], 300),
                                                 (PROPERTY_CASES[2][0], 150)])  # fmt: skip
def test_anchors_inside_crowds_are_never_negative(grid, num_cases):
    rng = np.random.default_rng(11)
    num_shielded = 0
    for _ in range(num_cases):
        boxes = random_boxes(rng, grid, rng.integers(0, 6))
        crowds = random_boxes(rng, grid, rng.integers(0, 4))
        expected_labels, expected_gt = dense_labels(float32_ious(grid, boxes)[0])
        areas = float32_anchors(grid)[2]
        inside = float32_ious(grid, crowds)[1] >= np.float32(0.7) * areas
        shielded = inside.any(0) & (expected_labels == NEGATIVE)
        expected_labels[shielded] = IGNORED
        labels, matched_gt = sparse_labels(grid, boxes, crowds, ignore_crowds=True)
        np.testing.assert_array_equal(labels, expected_labels)
        np.testing.assert_array_equal(matched_gt, expected_gt)
        num_shielded += shielded.sum()
        plain_labels, _ = sparse_labels(grid, boxes, crowds)
        np.testing.assert_array_equal(plain_labels, sparse_labels(grid, boxes)[0])
    assert num_shielded > 1000


def test_equals_the_dense_rule_on_a_full_canvas():
    grid = AnchorGrid.from_config(DataConfig(), (832, 1344))
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, grid, 12)
    expected_labels, expected_gt = dense_labels(float32_ious(grid, boxes)[0])
    labels, matched_gt = sparse_labels(grid, boxes)
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_array_equal(matched_gt, expected_gt)


@pytest.mark.parametrize(("positive_iou", "negative_iou"), [(0.5, 0.5), (0.9, 0.05), (1.0, 1e-4)])
def test_other_thresholds(positive_iou, negative_iou):
    grid = PROPERTY_CASES[1][0]
    rng = np.random.default_rng(5)
    for _ in range(20):
        boxes = random_boxes(rng, grid, 5)
        ious, _ = float32_ious(grid, boxes)
        labels, _ = sparse_labels(grid, boxes, positive_iou=positive_iou, negative_iou=negative_iou)
        best = ious.max(0)
        forced = ((ious >= ious.max(1, keepdims=True) * np.float32(1 - 1e-6)) & (ious > 0)).any(0)
        np.testing.assert_array_equal(
            labels == POSITIVE, (best >= np.float32(positive_iou)) | forced
        )
        np.testing.assert_array_equal(
            labels == NEGATIVE, (best < np.float32(negative_iou)) & ~forced
        )


# Cases counted by hand on one level: 16 x 16 cells 4 pixels apart, square anchors of 32 pixels.
ONE_LEVEL = AnchorGrid(64, 64, min_level=2, max_level=2, sizes=(32.0,), ratios=(1.0,))


def cell_of(anchors):
    return {divmod(int(anchor), 16) for anchor in anchors}


def test_a_tiny_box_ties_in_every_anchor_that_contains_it():
    # Anchors from c - 16 to c + 16 contain 30 to 35 for c from 19 to 46, so for 20, 24, ..., 44.
    labels, matched_gt = sparse_labels(ONE_LEVEL, np.float32([[30, 30, 35, 35]]))
    expected = {(row, column) for row in range(5, 12) for column in range(5, 12)}
    assert cell_of(np.flatnonzero(labels == POSITIVE)) == expected
    assert (labels != IGNORED).all()
    assert set(matched_gt) == {-1, 0}


@pytest.mark.parametrize("offset", [0.0, 0.1, 1 / 3, 0.7])
def test_ties_of_a_tiny_box_do_not_depend_on_rounding(offset):
    # Centres from 19.7 to 46.1 at the offsets' extremes: always 20, ..., 44.
    box = np.float32([[30 + offset, 30.1, 34.9 + offset, 34.7]])
    labels, _ = sparse_labels(ONE_LEVEL, box)
    assert (labels == POSITIVE).sum() == 49


def test_a_box_between_cells_ties_in_both():
    # A box as large as an anchor, its centre half way between rows 7 and 8: IoU 30 / 34 > 0.7.
    labels, _ = sparse_labels(ONE_LEVEL, np.float32([[14, 12, 46, 44]]))
    strong = [(7, 7), (8, 7), (7, 6), (7, 8), (8, 6), (8, 8)]
    # 30 * 28 / (2048 - 840) = 0.695, so the diagonal neighbours fall short of 0.7.
    assert cell_of(np.flatnonzero(labels == POSITIVE)) == set(strong[:2])


def test_a_huge_box_ties_in_the_anchors_of_all_ratios_inside_it():
    grid = AnchorGrid(64, 64, 5, 6, sizes=(40.0, 90.0), ratios=RATIOS)
    labels, _ = sparse_labels(grid, np.float32([[-300, -300, 400, 400]]))
    # Level 5 has 2 x 2 cells and level 6 a single one; its three anchors are larger.
    np.testing.assert_array_equal(np.flatnonzero(labels == POSITIVE), [12, 13, 14])


def test_a_box_off_the_grid_takes_the_nearest_anchors():
    # Rows and columns end at 60; an anchor there reaches to 76, and this box starts at 70.
    labels, _ = sparse_labels(ONE_LEVEL, np.float32([[70, 70, 90, 90]]))
    assert cell_of(np.flatnonzero(labels == POSITIVE)) == {(15, 15)}


@pytest.mark.parametrize(
    "box",
    [
        [200, 200, 220, 220],  # far away
        [76, 76, 90, 90],  # touches the corner of the last anchor
        [76, 10, 90, 30],  # touches the lower side of the last row
        [30, 30, 30, 40],  # no height
        [30, 30, 40, 30],  # no width
        [0, 0, 0, 0],  # padding
        [62, 30, 30, 62],  # upside down
        [0, 0, 1e-21, 1e-21],  # an area too small for float32
    ],
)
def test_a_box_that_meets_no_anchor_forces_none(box):
    labels, _ = sparse_labels(ONE_LEVEL, np.float32([box]))
    assert (labels == NEGATIVE).all()


def test_no_boxes_leave_all_anchors_negative():
    labels, matched_gt = sparse_labels(ONE_LEVEL, NO_BOXES)
    assert (labels == NEGATIVE).all()
    assert (matched_gt == -1).all()


def test_the_first_of_identical_boxes_is_matched():
    box = [16.0, 16.0, 48.0, 48.0]
    labels, matched_gt = sparse_labels(ONE_LEVEL, np.float32([[0, 0, 5, 5], box, box]))
    assert labels[8 * 16 + 8] == POSITIVE
    assert matched_gt[8 * 16 + 8] == 1
    assert set(matched_gt) == {-1, 0, 1}


def test_a_forced_anchor_is_matched_to_the_box_it_overlaps_most():
    # The second box is weak everywhere: its best anchor, at (8, 8), is the first box itself.
    gt_boxes = np.float32([[16, 16, 48, 48], [16, 16, 48, 20]])
    labels, matched_gt = sparse_labels(ONE_LEVEL, gt_boxes)
    assert labels[8 * 16 + 8] == POSITIVE
    assert matched_gt[8 * 16 + 8] == 0


@pytest.mark.parametrize(("forced_match", "learnt"), [("best", 0), ("reassign", 1)])
def test_a_forced_anchor_learns_the_box_that_forces_it_on_request(forced_match, learnt):
    # The first box is the anchor at (8, 8). The second is 32 x 14 pixels of it, IoU 0.4375, and as
    # much of the anchors in rows 4 (from 0 to 32) to 7, which overlap the first by more from row 5.
    boxes = np.float32([[16, 16, 48, 48], [16, 16, 30, 48]])
    labels, matched_gt = sparse_labels(ONE_LEVEL, boxes, forced_match=forced_match)
    forced = [row * 16 + 8 for row in range(4, 9)]
    assert (labels[forced] == POSITIVE).all()
    np.testing.assert_array_equal(matched_gt[forced], [1] + [learnt] * 4)


def test_reassigning_leaves_boxes_without_anchors_that_overlap_them_well():
    box = np.float32([[16, 16, 48, 20]])  # IoU 4 / 32 with the anchors that contain it
    assert (sparse_labels(ONE_LEVEL, box)[0] == POSITIVE).sum() == 8
    assert (sparse_labels(ONE_LEVEL, box, forced_match="reassign")[0] == NEGATIVE).all()


def test_the_last_of_identical_boxes_is_reassigned():
    boxes = np.float32([[16, 16, 48, 48]] * 3)
    labels, matched_gt = sparse_labels(ONE_LEVEL, boxes, forced_match="reassign")
    assert matched_gt[8 * 16 + 8] == 2
    # IoU 28 / 36 with the four anchors next to it: positive, but not its best.
    neighbours = [7 * 16 + 8, 9 * 16 + 8, 8 * 16 + 7, 8 * 16 + 9]
    np.testing.assert_array_equal(matched_gt[neighbours], 0)


@pytest.mark.parametrize(("positive_iou", "negative_iou"), [(0.7, 0.0), (0.3, 0.7)])
def test_impossible_thresholds_are_refused(positive_iou, negative_iou):
    with pytest.raises(ValueError, match="negative_iou"):
        anchor_matching.match(
            NO_BOXES, NO_BOXES, ONE_LEVEL,
            positive_iou=positive_iou, negative_iou=negative_iou, ignore_crowds=False,
        )  # fmt: skip


def test_an_unknown_way_of_forcing_is_refused():
    with pytest.raises(ValueError, match="forced_match='worst'"):
        anchor_matching.match(
            NO_BOXES, NO_BOXES, ONE_LEVEL, **THRESHOLDS, ignore_crowds=False, forced_match="worst"
        )


# Sampling


def sample(gt_boxes, grid, seed=(1, 2), crowd_boxes=NO_BOXES, **changes):
    options = {
        **THRESHOLDS, "num_samples": 256, "positive_fraction": 0.5, "ignore_crowds": False,
        **changes,
    }  # fmt: skip
    return anchor_matching.match_and_sample(
        tf.constant(gt_boxes), tf.constant(crowd_boxes), grid, tf.constant(seed), **options
    )


SAMPLE_GRID = AnchorGrid(128, 128, 2, 6, SMALL_SIZES, RATIOS)
SAMPLE_BOXES = np.float32(
    [[10, 10, 60, 70], [30, 64, 34, 68], [5, 80, 100, 125], [0, 0, 128, 128], [90, 3, 120, 40]]
)


@pytest.mark.parametrize(
    ("num_samples", "positive_fraction"), [(256, 0.5), (256, 0.02), (64, 0.25), (16, 0.0)]
)
def test_samples_agree_with_the_labels_of_all_anchors(num_samples, positive_fraction):
    labels, matched_gt = sparse_labels(SAMPLE_GRID, SAMPLE_BOXES)
    targets = sample(
        SAMPLE_BOXES, SAMPLE_GRID, num_samples=num_samples, positive_fraction=positive_fraction
    )
    indices = targets.indices.numpy()
    num_positives = min((labels == POSITIVE).sum(), int(num_samples * positive_fraction))
    assert targets.indices.dtype == targets.labels.dtype == tf.int32
    assert len(set(indices)) == num_samples
    np.testing.assert_array_equal(
        targets.labels, [1] * num_positives + [0] * (num_samples - num_positives)
    )
    np.testing.assert_array_equal(labels[indices], targets.labels)
    np.testing.assert_array_equal(targets.deltas[num_positives:], 0.0)
    positives = indices[:num_positives]
    np.testing.assert_allclose(
        box_ops.decode(targets.deltas[:num_positives], SAMPLE_GRID.boxes()[positives]),
        SAMPLE_BOXES[matched_gt[positives]],
        atol=1e-3,
    )


@pytest.mark.parametrize("forced_match", ["best", "reassign"])
def test_the_deltas_lead_to_the_matched_boxes(forced_match):
    # The third box is weak (0.375 at best) and takes the first's only anchor when it may.
    boxes = np.float32([[16, 16, 48, 48], [0, 64, 30, 96], [16, 16, 28, 48]])
    grid = AnchorGrid(128, 128, 4, 4, sizes=(32.0,), ratios=(1.0,), rounded=True)
    _, matched_gt = sparse_labels(grid, boxes, forced_match=forced_match)
    assert (0 in matched_gt) == (forced_match == "best")
    targets = sample(boxes, grid, num_samples=16, forced_match=forced_match)
    positives = targets.labels.numpy() == 1
    indices = targets.indices.numpy()[positives]
    np.testing.assert_allclose(
        box_ops.decode(targets.deltas[positives], grid.boxes()[indices]),
        boxes[matched_gt[indices]],
        atol=1e-4,
    )


@pytest.mark.parametrize("area", [(128, 128), (96, 77), (64.5, 128), (128, 4), (1, 1), (33, 32)])
def test_negatives_are_drawn_from_the_area_alone(area):
    """As many samples as there are anchors: all negatives of the area, each of them once."""
    labels, _ = sparse_labels(SAMPLE_GRID, SAMPLE_BOXES)
    everything = {"num_samples": SAMPLE_GRID.num_anchors, "positive_fraction": 1.0}
    area_tensor = tf.constant(area, tf.float32)
    targets = sample(SAMPLE_BOXES, SAMPLE_GRID, negative_area=area_tensor, **everything)
    drawn = targets.indices.numpy()[targets.labels == NEGATIVE]
    centres = float32_anchors(SAMPLE_GRID)[0]
    within = (centres < np.float32(area)).all(1)
    np.testing.assert_array_equal(np.sort(drawn), np.flatnonzero(within & (labels == NEGATIVE)))
    positives = targets.indices.numpy()[targets.labels == POSITIVE]
    np.testing.assert_array_equal(np.sort(positives), np.flatnonzero(labels == POSITIVE))


def test_an_area_as_large_as_the_canvas_changes_no_draw():
    whole = sample(SAMPLE_BOXES, SAMPLE_GRID, negative_area=tf.constant([128.0, 128.0]))
    for one, other in zip(whole, sample(SAMPLE_BOXES, SAMPLE_GRID), strict=True):
        np.testing.assert_array_equal(one, other)


def test_too_few_anchors_are_padded():
    grid = AnchorGrid(32, 32, 4, 4, sizes=(16.0,), ratios=(1.0,))
    targets = sample(np.float32([[8, 8, 24, 24]]), grid, num_samples=8)
    # Four anchors: the box is the last, and the others overlap it by a half or a quarter.
    np.testing.assert_array_equal(targets.labels, [1, 0, 0, 0, -1, -1, -1, -1])
    assert targets.indices[0] == 3
    assert set(targets.indices[1:4].numpy()) == {0, 1, 2}
    np.testing.assert_array_equal(targets.indices[4:], 0)
    np.testing.assert_array_equal(targets.deltas, np.zeros([8, 4]))


def test_an_image_without_boxes_gives_negatives_only():
    targets = sample(NO_BOXES, SAMPLE_GRID)
    np.testing.assert_array_equal(targets.labels, [0] * 256)
    assert len(set(targets.indices.numpy())) == 256


def test_crowds_keep_their_anchors_out_of_the_samples():
    crowd = np.float32([[0, 0, 128, 64]])
    targets = sample(NO_BOXES, SAMPLE_GRID, crowd_boxes=crowd, ignore_crowds=True)
    inside = float32_ious(SAMPLE_GRID, crowd)[1][0] >= 0.7 * float32_anchors(SAMPLE_GRID)[2]
    assert inside.sum() > 500
    assert not inside[targets.indices].any()


def test_where_everything_is_crowd_only_anchors_reaching_outside_are_left():
    grid = AnchorGrid(64, 64, 2, 2, sizes=(4.0,), ratios=(1.0,))
    crowd = np.float32([[-50, -50, 150, 150]])
    targets = sample(NO_BOXES, grid, crowd_boxes=crowd, ignore_crowds=True)
    np.testing.assert_array_equal(targets.labels, [-1] * 256)


def test_equal_seeds_draw_equally_and_other_seeds_differently():
    seeds = [(0, 0), (0, 1), (1, 0), (1, 1), (7, -3)]
    draws = [sample(SAMPLE_BOXES, SAMPLE_GRID, seed).indices.numpy() for seed in seeds]
    again = [sample(SAMPLE_BOXES, SAMPLE_GRID, seed).indices.numpy() for seed in seeds]
    np.testing.assert_array_equal(draws, again)
    for one in range(len(seeds)):
        for other in range(one):
            # Of about 2,800 negatives each draws fewer than 256: 20 in common are to be expected.
            assert len(set(draws[one]) & set(draws[other])) < 150


@functools.cache
def drawer(limit):
    @tf.function(input_signature=[tf.TensorSpec([], tf.int32), tf.TensorSpec([None, 2], tf.int32)])
    def draw_often(population, seeds):
        return tf.map_fn(
            lambda seed: anchor_matching.draw(population, seed, limit),
            seeds,
            fn_output_signature=tf.TensorSpec([None], tf.int32),
        )

    return draw_often


def seeds_in_sequence(count):
    return tf.stack([tf.fill([count], 5), tf.range(count)], axis=1)


@pytest.mark.parametrize(("population", "limit"), [(20, 8), (128, 8), (129, 8), (200_000, 64)])
def test_draws_are_uniform(population, limit):
    num_draws = 3000
    drawn = drawer(limit)(population, seeds_in_sequence(num_draws)).numpy()
    assert drawn.shape == (num_draws, limit)
    assert drawn.min() >= 0 and drawn.max() < population
    assert all(len(set(row)) == limit for row in drawn)
    bins = 20
    edges = np.arange(bins + 1) * population / bins
    share = np.diff(np.ceil(edges)) / population
    counts = np.stack([(drawn * bins // population == b).sum(1) for b in range(bins)], axis=1)
    expected = share * drawn.size
    # 19 degrees of freedom: 43.8 is exceeded once in a thousand.
    assert (np.square(counts.sum(0) - expected) / expected).sum() < 43.8
    # Neither clustered nor spread evenly: the variance of a hypergeometric distribution.
    half = counts[:, : bins // 2].sum(1)
    variance = limit / 4 * (population - limit) / (population - 1)
    assert 0.9 < half.var() / variance < 1.1
    # Successive numbers of a draw are independent.
    correlation = np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]
    assert abs(correlation + 1 / (population - 1)) < 0.03


@pytest.mark.parametrize(("population", "limit"), [(0, 4), (1, 4), (3, 4), (4, 4), (5, 0), (0, 0)])
def test_draws_from_few(population, limit):
    drawn = drawer(limit)(population, seeds_in_sequence(2)).numpy()
    assert drawn.shape == (2, min(limit, population))
    for row in drawn:
        assert set(row) <= set(range(population)) and len(set(row)) == len(row)


@pytest.mark.parametrize("listed", [[], [0], [9], [0, 1, 2], [3, 4, 8], [7, 8, 9], range(10)])
def test_ranks_count_the_anchors_that_are_not_listed(listed):
    expected = [index for index in range(10) if index not in listed]
    indices = anchor_matching.negatives_of_ranks(
        tf.range(len(expected)), tf.constant(list(listed), tf.int32)
    )
    np.testing.assert_array_equal(indices, expected)


@pytest.mark.parametrize(
    "grid",
    [
        SAMPLE_GRID,
        AnchorGrid(70, 45, 3, 4, (9.0, 20.0), (0.3, 1.0)),
        AnchorGrid(70, 45, 3, 4, (9.0, 20.0), (0.3, 1.0), rounded=True),
    ],
)
def test_computed_anchors_equal_the_grid(grid):
    anchors = locate_anchors(tf.range(grid.num_anchors), AnchorShapes(grid))
    boxes = anchor_matching.corners(anchors)
    np.testing.assert_allclose(boxes, grid.boxes(), atol=1e-4)


def test_inside_dataset_map_with_any_number_of_boxes():
    rng = np.random.default_rng(13)
    images = [random_boxes(rng, SAMPLE_GRID, count) for count in (0, 1, 5, 30, 2, 0, 9)]
    ragged = tf.ragged.stack([tf.constant(boxes) for boxes in images])

    def targets_of(boxes, seed):
        return anchor_matching.match_and_sample(
            tf.ensure_shape(boxes.to_tensor(shape=[None, 4]), [None, 4]),
            tf.zeros([0, 4]),
            SAMPLE_GRID,
            tf.stack([seed, 3]),
            **THRESHOLDS,
            num_samples=32,
            positive_fraction=0.5,
            ignore_crowds=False,
        )

    dataset = tf.data.Dataset.from_tensor_slices((ragged, tf.range(len(images))))
    dataset = dataset.map(targets_of, num_parallel_calls=2).batch(len(images), drop_remainder=True)
    assert dataset.element_spec == anchor_matching.RpnTargets(
        tf.TensorSpec([7, 32], tf.int32),
        tf.TensorSpec([7, 32], tf.int32),
        tf.TensorSpec([7, 32, 4], tf.float32),
    )
    mapped = next(iter(dataset))
    for image, boxes in enumerate(images):
        eager = sample(boxes, SAMPLE_GRID, (image, 3), num_samples=32)
        np.testing.assert_array_equal(mapped.indices[image], eager.indices)
        np.testing.assert_array_equal(mapped.labels[image], eager.labels)
        np.testing.assert_allclose(mapped.deltas[image], eager.deltas, rtol=1e-5, atol=1e-5)


def test_the_graph_calls_no_python():
    definition = (
        matcher(SAMPLE_GRID, ignore_crowds=True).get_concrete_function().graph.as_graph_def()
    )
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    assert len(nodes) > 100
    assert not [node.name for node in nodes if "PyFunc" in node.op]
