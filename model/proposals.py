"""Makes proposals from RPN outputs (Ren et al., NIPS 2015, section 3.3; per level as in FPN).

Axes: B images, A anchors, L levels, P proposals.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from data import boxes as box_ops
from data.anchors import AnchorGrid
from model.gather import gather_rows
from model.nms import suppress
from model.scopes import in_scope

# Score of empty slots, finite so that arithmetic on it gives no NaN.
EMPTY_SCORE = -1e30


class RPNOutputs(NamedTuple):
    """Objectness and box deltas of every anchor."""

    logits: tf.Tensor  # float32 [B, A]
    deltas: tf.Tensor  # float32 [B, A, 4], [dy, dx, dh, dw]


class Proposals(NamedTuple):
    """Class-agnostic boxes by descending score, without gradient."""

    boxes: tf.Tensor  # float32 [B, P, 4], zeros where not valid
    scores: tf.Tensor  # float32 [B, P], objectness logits
    valid: tf.Tensor  # bool [B, P]


@in_scope("proposals")
def generate_proposals(
    outputs: RPNOutputs,
    grid: AnchorGrid,
    image_info: tf.Tensor,
    *,
    pre_nms: int,
    post_nms: int,
    nms_iou: float,
    static: bool,
    clip_below: bool = False,
) -> Proposals:
    """Selects the best anchors of each level, then decodes, clips and suppresses them by level.

    Args:
        outputs: of the RPN head.
        grid: the anchors that the outputs belong to.
        image_info: float32 [B, 5]; its first two columns are the height and width to clip to.
        pre_nms: maximum number of anchors per level before NMS.
        post_nms: P.
        nms_iou: IoU above which the worse of two proposals is removed.
        static: see `suppress`.
        clip_below: see `data.boxes.decode`.

    Returns:
        `Proposals`.
    """
    logits, deltas = tf.stop_gradient(outputs.logits), tf.stop_gradient(outputs.deltas)
    boxes, scores = _best_of_each_level(logits, deltas, grid, image_info, pre_nms, clip_below)
    batch, levels, candidates = scores.shape
    kept = suppress(
        tf.reshape(boxes, [batch * levels, candidates, 1, 4]),
        tf.reshape(scores, [batch * levels, candidates, 1]),
        iou_threshold=nms_iou,
        score_threshold=EMPTY_SCORE / 2,
        max_output=min(post_nms, candidates),
        static=static,
    )
    scores = tf.reshape(tf.where(kept.valid, kept.scores, EMPTY_SCORE), [batch, -1])
    boxes = tf.reshape(kept.boxes, [batch, -1, 4])
    scores, best = tf.math.top_k(scores, min(post_nms, scores.shape[1]))
    return Proposals(
        boxes=gather_rows(boxes, best),
        scores=scores,
        valid=scores > EMPTY_SCORE / 2,
    )


def _best_of_each_level(logits, deltas, grid, image_info, pre_nms, clip_below):
    """Returns boxes [B, L, N, 4] and scores [B, L, N], N a level's maximum of candidates."""
    anchors = tf.split(tf.constant(grid.boxes()), grid.level_sizes)
    logits = tf.split(logits, grid.level_sizes, axis=1)
    deltas = tf.split(deltas, grid.level_sizes, axis=1)
    height, width = image_info[:, None, 0], image_info[:, None, 1]
    most = min(pre_nms, max(grid.level_sizes))
    all_boxes, all_scores = [], []
    for level in range(len(anchors)):
        count = min(pre_nms, grid.level_sizes[level])
        scores, best = tf.math.top_k(logits[level], count)
        boxes = box_ops.decode(
            gather_rows(deltas[level], best),
            tf.gather(anchors[level], best),
            clip_below=clip_below,
        )
        boxes = box_ops.clip(boxes, height, width)
        scores = tf.where(box_ops.area(boxes) > 0, scores, EMPTY_SCORE)
        padding = [[0, 0], [0, most - count]]
        all_boxes.append(tf.pad(boxes, [*padding, [0, 0]]))
        all_scores.append(tf.pad(scores, padding, constant_values=EMPTY_SCORE))
    return tf.stack(all_boxes, 1), tf.stack(all_scores, 1)
