"""Non-maximum suppression as the papers tell it: an oracle in plain NumPy."""

import numpy as np


def iou_matrix(a, b):
    """IoU of boxes [N, 4] and [M, 4]: float64 [N, M]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    intersection = np.clip(sides, 0, None).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).clip(0).prod(-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def greedy_nms(boxes, scores, threshold):
    """Indices of the survivors in order of falling score."""
    overlap = iou_matrix(boxes, boxes)
    kept = []
    for index in np.argsort(-np.asarray(scores), kind="stable"):
        if all(overlap[index, better] <= threshold for better in kept):
            kept.append(int(index))
    return kept


def greedy_nms_by_class(boxes, scores, *, iou_threshold, score_threshold, most):
    """(score, class, box) of the best survivors of boxes [N, Q, 4] and scores [N, K]."""
    found = []
    for cls in range(scores.shape[1]):
        column = boxes[:, cls if boxes.shape[1] > 1 else 0]
        candidates = np.flatnonzero(scores[:, cls] > score_threshold)
        kept = greedy_nms(column[candidates], scores[candidates, cls], iou_threshold)
        found += [(scores[candidates[k], cls], cls, column[candidates[k]]) for k in kept]
    return sorted(found, key=lambda entry: -entry[0])[:most]


def soft_nms_by_class(boxes, scores, *, sigma, score_threshold, most):
    """The same by Soft-NMS, Gaussian: figure 2 of the paper, class by class."""
    found = []
    for cls in range(scores.shape[1]):
        column = boxes[:, cls if boxes.shape[1] > 1 else 0]
        overlap = iou_matrix(column, column)
        left = {i: float(score) for i, score in enumerate(scores[:, cls])}
        while left := {i: score for i, score in left.items() if score > score_threshold}:
            best = max(left, key=lambda i: (left[i], -i))
            found.append((left.pop(best), cls, column[best], best))
            left = {i: s * np.exp(-(overlap[best, i] ** 2) / sigma) for i, s in left.items()}
    found.sort(key=lambda entry: (-entry[0], entry[3], entry[1]))
    return [entry[:3] for entry in found[:most]]
