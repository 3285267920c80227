"""Maps scores of detections to the IoU that one can expect, as a part of the graph.

A map of a class is increasing and piecewise linear, so that detections keep their order. With
knots x_k, segments of width w_k and their slopes,

    map(score) = Σ slope_k · min(max(score - x_k, 0), w_k)

which needs no search and no branch: LiteRT, OpenVINO and XLA have all of its operations.

Axes: B images, D detections, K classes with the background, P knots, S segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from model.scopes import in_scope

Tensors = dict[str, tf.Tensor]


class ScoreMap(NamedTuple):
    """An increasing, piecewise linear map from 0..1 to 0..1; both float64 [P], ascending.

    Attributes:
        scores: the knots, from 0 to 1.
        ious: the values there, the first of which is 0.
    """

    scores: np.ndarray
    ious: np.ndarray

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Maps scores of any shape."""
        return np.interp(scores, self.scores, self.ious)


IDENTITY = ScoreMap(np.array([0.0, 1.0]), np.array([0.0, 1.0]))


class ScoreCalibration:
    """Maps the scores of detections, each class by maps of its own.

    Args:
        maps: by the name of the scores in the outputs of `model.detector.Detector.detect`, a map
            for each class but the background: K - 1.
    """

    def __init__(self, maps: Mapping[str, Sequence[ScoreMap]]):
        self._tables = {name: _tabulate(of_classes) for name, of_classes in maps.items()}

    @in_scope("calibration")
    def __call__(self, detections: Tensors) -> Tensors:
        """Returns detections with mapped scores; those of empty slots stay 0.

        Args:
            detections: `detection_classes` int32 [B, D], and scores float32 [B, D].
        """
        classes = detections["detection_classes"]
        mapped = {
            name: _map_scores(detections[name], tf.gather(table, classes))
            for name, table in self._tables.items()
            if name in detections
        }
        return detections | mapped


def _tabulate(maps: Sequence[ScoreMap]) -> np.ndarray:
    """Starts, widths and slopes of the segments: float32 [K, 3, S], zeros for the background."""
    table = np.zeros([len(maps) + 1, 3, max(len(one.scores) for one in maps) - 1], np.float32)
    for row, (scores, ious) in zip(table[1:], maps, strict=True):
        widths = np.diff(scores)
        row[:, : len(widths)] = scores[:-1], widths, np.diff(ious) / widths
    return table


def _map_scores(scores: tf.Tensor, segments: tf.Tensor) -> tf.Tensor:
    """Maps float32 [B, D] by segments float32 [B, D, 3, S]."""
    starts, widths, slopes = tf.unstack(segments, axis=2)
    parts = tf.minimum(tf.maximum(scores[..., None] - starts, 0.0), widths)
    return tf.reduce_sum(slopes * parts, axis=-1)
