"""Exact anchor matching and sampling for the RPN, with graph operations only.

The rule is Faster R-CNN's (Ren et al., section 3.1.2). An anchor is positive if its IoU with some
ground truth reaches `positive_iou`, or if it is some ground truth's best anchor (every one of them
where several tie); it is negative if its best IoU is below `negative_iou`; otherwise it is ignored.
A positive's target is the ground truth it overlaps most, the first one on ties. A ground truth that
overlaps no anchor makes none positive, whereas Detectron2 and torchvision would force all anchors
at IoU 0. Crowds are ignored; optionally, anchors lying mostly inside one are not used as negatives.

mmdetection forces anchors differently (`forced_match="reassign"`): only a best IoU that reaches
`negative_iou`, its min_pos_iou, forces anchors, and their target is the ground truth that forces
them (the last one if there are several), even if they overlap another one more.

Only pairs that can affect the result are compared (`anchor_windows`), and the negatives, nearly all
of the anchors, are never listed. Time and memory therefore grow with the number of boxes and hardly
with the canvas.

Axes: A anchors, G ground truths, C crowds, N pairs of a box and an anchor or other lists, P
positives, S samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data import boxes as box_ops
from data.anchor_windows import (
    AnchorShapes,
    CentredBoxes,
    anchors_inside,
    ious_with_all,
    locate_anchors,
    pairs_with_gts,
)
from data.anchors import AnchorGrid

# IoUs with a smaller relative difference count as equal, because rounding separates values that are
# equal in exact arithmetic, such as those of all ratios inside a huge box.
TIE_TOLERANCE = 1e-6
FORCED_MATCHES = ("best", "reassign")


class AnchorMatches(NamedTuple):
    """The labels of all anchors, sparsely; anchors in neither list are negative.

    Attributes:
        positives: int32 [P], ascending indices of the positive anchors.
        non_negatives: int32 [N], ascending indices of the positive and the ignored anchors.
        claims: float32 [G], the IoU from which a positive's target has to be this ground truth;
            infinite where the target is the one it overlaps most.
    """

    positives: tf.Tensor
    non_negatives: tf.Tensor
    claims: tf.Tensor


class RpnTargets(NamedTuple):
    """The sampled anchors of one image: positives first, then negatives, then padding.

    Attributes:
        indices: int32 [S], anchor indices, 0 in padding.
        labels: int32 [S], 1 positive, 0 negative, -1 padding.
        deltas: float32 [S, 4], from the anchor to its ground truth; 0 unless positive.
    """

    indices: tf.Tensor
    labels: tf.Tensor
    deltas: tf.Tensor


def match_and_sample(
    gt_boxes: tf.Tensor,
    crowd_boxes: tf.Tensor,
    grid: AnchorGrid,
    seed: tf.Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    num_samples: int,
    positive_fraction: float,
    ignore_crowds: bool,
    forced_match: str = "best",
    negative_area: tf.Tensor | None = None,
) -> RpnTargets:
    """Labels the anchors of one image and draws those that train the RPN.

    Args:
        gt_boxes: float32 [G, 4], pixels; degenerate ones are ignored.
        crowd_boxes: float32 [C, 4], pixels; only used with `ignore_crowds`.
        grid: the anchors of the image's canvas.
        seed: int32 [2]; equal seeds draw equal samples.
        positive_iou: IoU from which an anchor is positive.
        negative_iou: IoU below which an anchor is negative, above 0.
        num_samples: S.
        positive_fraction: largest share of positives among the samples.
        ignore_crowds: whether anchors inside crowds are kept out of the negatives.
        forced_match: "best" or "reassign", as described above.
        negative_area: float32 [2], height and width of the area, starting at the canvas' upper left
            corner, that the centres of negatives lie within; None for the whole canvas.

    Returns:
        RpnTargets.

    Raises:
        ValueError: the thresholds are not 0 < negative_iou <= positive_iou, or `forced_match` is
            unknown.
    """
    matches = match(
        gt_boxes,
        crowd_boxes,
        grid,
        positive_iou=positive_iou,
        negative_iou=negative_iou,
        ignore_crowds=ignore_crowds,
        forced_match=forced_match,
    )
    drawn = draw(tf.size(matches.positives), seed, int(num_samples * positive_fraction))
    positives = tf.gather(matches.positives, drawn)
    negatives = _draw_negatives(
        matches.non_negatives,
        grid,
        (grid.height, grid.width) if negative_area is None else negative_area,
        tf.random.experimental.stateless_fold_in(seed, 1),
        num_samples,
    )[: num_samples - tf.size(positives)]
    anchors = locate_anchors(positives, AnchorShapes(grid))
    targets = tf.gather(gt_boxes, matched_gts(gt_boxes, anchors, matches.claims))
    deltas = box_ops.encode(targets, corners(anchors))
    return RpnTargets(
        indices=_pad(tf.concat([positives, negatives], 0), num_samples, 0),
        labels=_pad(
            tf.concat([tf.ones_like(positives), tf.zeros_like(negatives)], 0), num_samples, -1
        ),
        deltas=_pad(deltas, num_samples, 0.0),
    )


def match(
    gt_boxes: tf.Tensor,
    crowd_boxes: tf.Tensor,
    grid: AnchorGrid,
    *,
    positive_iou: float,
    negative_iou: float,
    ignore_crowds: bool,
    forced_match: str = "best",
) -> AnchorMatches:
    """Labels all anchors of one image; see `match_and_sample` for the arguments and errors."""
    if not 0.0 < negative_iou <= positive_iou:
        raise ValueError(
            f"negative_iou={negative_iou}, positive_iou={positive_iou}: "
            "expected 0 < negative_iou <= positive_iou."
        )
    if forced_match not in FORCED_MATCHES:
        raise ValueError(f"forced_match={forced_match!r}: expected one of {FORCED_MATCHES}.")
    shapes = AnchorShapes(grid)
    pairs = pairs_with_gts(gt_boxes, shapes, negative_iou)
    ious = pairs.intersections / (pairs.box_areas + pairs.anchor_areas - pairs.intersections)
    best = tf.math.unsorted_segment_max(ious, pairs.boxes, tf.shape(gt_boxes)[0])
    tied, claims = best * (1.0 - TIE_TOLERANCE), tf.fill(tf.shape(best), np.float32(np.inf))
    if forced_match == "reassign":
        tied = claims = tf.where(best >= negative_iou, tied, claims)
    needed = tf.gather(tf.minimum(tied, positive_iou), pairs.boxes)
    is_positive = (ious > 0.0) & (ious >= needed)
    # 2 or more makes an anchor positive, 1 keeps it out of the negatives. An anchor's highest
    # verdict, which the last of its sorted keys carries, decides.
    verdicts = tf.cast(is_positive, tf.int32) * 2 + tf.cast(ious >= negative_iou, tf.int32)
    keys = pairs.anchors * 4 + verdicts
    if ignore_crowds:
        keys = tf.concat([keys, anchors_inside(crowd_boxes, shapes) * 4 + 1], 0)
    keys = tf.sort(keys)
    anchors, verdicts = tf.bitwise.right_shift(keys, 2), tf.bitwise.bitwise_and(keys, 3)
    is_last = tf.not_equal(anchors, tf.concat([anchors, [-1]], 0)[1:])
    return AnchorMatches(
        positives=tf.gather(anchors, tf.where(is_last & (verdicts > 1))[:, 0]),
        non_negatives=tf.gather(anchors, tf.where(is_last & (verdicts > 0))[:, 0]),
        claims=claims,
    )


def matched_gts(gt_boxes: tf.Tensor, anchors: CentredBoxes, claims: tf.Tensor) -> tf.Tensor:
    """Finds each anchor's target: the last ground truth that claims it or the one it overlaps most.

    All G ground truths are compared, because below `negative_iou` any of them may overlap a forced
    anchor more than the one that forces it. The first of equally large overlaps is taken.

    Args:
        gt_boxes: float32 [G, 4].
        anchors: CentredBoxes [P].
        claims: float32 [G], of `AnchorMatches`.

    Returns:
        int32 [P], indices of ground truths.
    """
    ious = ious_with_all(gt_boxes, anchors)
    is_most = tf.equal(ious, tf.reduce_max(ious, axis=0))
    num_gts = tf.shape(gt_boxes)[0]
    gts = tf.range(num_gts)[:, tf.newaxis]
    most = tf.reduce_min(tf.where(is_most, gts, num_gts), axis=0)
    claimant = tf.reduce_max(tf.where(ious >= claims[:, tf.newaxis], gts, -1), axis=0)
    return tf.where(claimant >= 0, claimant, most)


def draw(population: tf.Tensor, seed: tf.Tensor, limit: int) -> tf.Tensor:
    """Draws distinct numbers below `population`, all ordered selections being equally likely.

    `tf.random.experimental.index_shuffle` is not used because its selections are too regular.

    Args:
        population: int32 scalar.
        seed: int32 [2].
        limit: how many are drawn, if `population` is large enough.

    Returns:
        int32 [min(limit, population)].
    """

    def shuffle_all():
        scores = tf.random.stateless_uniform([population], seed)
        return tf.math.top_k(scores, tf.minimum(limit, population)).indices

    def skip_repeated():
        # One in 26 is repeated on average, so at least `limit` of them are different.
        draws = tf.random.stateless_uniform(
            [limit + limit // 4 + 16], seed, 0, population, tf.int32
        )
        return tf.unique(draws).y[:limit]

    return tf.cond(population <= 16 * limit, shuffle_all, skip_repeated)


def _draw_negatives(
    non_negatives: tf.Tensor, grid: AnchorGrid, area: tf.Tensor, seed: tf.Tensor, limit: int
) -> tf.Tensor:
    """Draws up to `limit` distinct negatives whose centres lie within the area: int32 [n]."""
    edges = tf.concat(_runs_within(grid, area), 0)
    # Runs of ranks among all negatives, in place of runs of anchors.
    starts, ends = tf.split(edges - _num_below(edges, non_negatives), 2)
    totals = tf.cumsum(ends - starts)
    ranks = draw(totals[-1], seed, limit)
    runs = _num_below(ranks + 1, totals)
    return negatives_of_ranks(ranks + tf.gather(ends - totals, runs), non_negatives)


def _runs_within(grid: AnchorGrid, area: tf.Tensor) -> tuple[np.ndarray, tf.Tensor]:
    """Where the anchors of each row of cells begin, and where those centred in the area end.

    Args:
        grid: the anchors of the canvas.
        area: float32 [2], height and width in pixels.

    Returns:
        Two int32 [R], R rows of all levels, ascending: anchor indices.
    """
    levels = zip(grid.strides, grid.level_shapes, strict=True)
    rows = [
        (row * stride, stride, columns * grid.per_cell)
        for stride, (num_rows, columns) in levels
        for row in range(num_rows)
    ]
    centres, strides, lengths = np.int32(rows).T
    starts = np.cumsum(lengths, dtype=np.int32) - lengths
    # A centre on the far edge is outside, so columns are counted by rounding up.
    height, width = tf.unstack(area)
    columns = tf.cast(tf.math.ceil(width / np.float32(strides)), tf.int32)
    inside = tf.minimum(columns * grid.per_cell, lengths)
    return starts, starts + inside * tf.cast(np.float32(centres) < height, tf.int32)


def _num_below(values: tf.Tensor, ascending: tf.Tensor) -> tf.Tensor:
    """How many of an ascending list are below each value: int32 [N]; `searchsorted` in few ops."""
    return tf.raw_ops.LowerBound(sorted_inputs=ascending[tf.newaxis], values=values[tf.newaxis])[0]


def negatives_of_ranks(ranks: tf.Tensor, non_negatives: tf.Tensor) -> tf.Tensor:
    """Returns the anchor indices of negatives, given how many negatives come before each.

    Args:
        ranks: int32 [S].
        non_negatives: int32 [N], ascending.

    Returns:
        int32 [S].
    """
    negatives_before = non_negatives - tf.range(tf.size(non_negatives))
    return ranks + _num_below(ranks + 1, negatives_before)


def corners(boxes: CentredBoxes) -> tf.Tensor:
    """CentredBoxes [P] -> float32 [P, 4]."""
    half_height, half_width = 0.5 * boxes.heights, 0.5 * boxes.widths
    y, x = boxes.y, boxes.x
    return tf.stack([y - half_height, x - half_width, y + half_height, x + half_width], axis=-1)


def _pad(values: tf.Tensor, length: int, fill: float) -> tf.Tensor:
    """Extends the first axis to `length`, a static size, with `fill`."""
    paddings = [[0, length - tf.shape(values)[0]]] + [[0, 0]] * (values.shape.rank - 1)
    padded = tf.pad(values, paddings, constant_values=fill)
    return tf.ensure_shape(padded, [length, *values.shape[1:]])
