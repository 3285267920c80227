"""Test-time augmentation: a detector that processes each image at several scales, and mirrored.

    view ─→ maps ─→ proposals ─→ candidates ─┐
    view ─→ maps ─→ proposals ─→ candidates ─┴→ suppression ─→ detections ─┬→ view ─→ masks ─┐
                                                                           └→ view ─→ masks ─┴→ mean

The candidates of all views are mapped to the first view and suppressed together, once. Detectron2
(`GeneralizedRCNNWithTTA`) thresholds, suppresses and limits detections within each view, and then
suppresses the union. There a box can be suppressed by one that is itself suppressed by a better one
of another view, and soft suppression would lower scores twice.

Each detection is then evaluated in every view, as in Detectron2: its box is mapped to the view, and
the outputs of the remaining heads are averaged, masks as probabilities and mirrored back. The
MaskIoU head judges each view's own mask, because it was trained on masks together with the features
that they were predicted from; the mean of all masks has no such features.

Axes: B images, P proposals of a view, K classes with the background, D detections.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from data import boxes as box_ops
from data.examples import view_feature
from model.box_head import BoxCandidates, BoxDetections
from model.detector import Detector, Tensors
from model.scopes import in_scope
from model.view import View


class AugmentedView(NamedTuple):
    """One version of a batch's images."""

    image: tf.Tensor  # uint8 [B, H, W, 3]
    image_info: tf.Tensor  # float32 [B, 5]
    first_info: tf.Tensor  # float32 [B, 5], that of the first view
    mirrored: bool

    def to_first(self, boxes: tf.Tensor) -> tf.Tensor:
        """Maps boxes of this view, float32 [B, ..., 4], to the first view."""
        if self.mirrored:
            boxes = _mirror_boxes(boxes, self.image_info)
        return _resize_boxes(boxes, self.image_info, self.first_info)

    def from_first(self, boxes: tf.Tensor) -> tf.Tensor:
        """Maps boxes of the first view, float32 [B, ..., 4], to this one."""
        boxes = _resize_boxes(boxes, self.first_info, self.image_info)
        return _mirror_boxes(boxes, self.image_info) if self.mirrored else boxes


class AugmentedDetector(Detector):
    """A `Detector` whose `detect` uses several views; training is the same.

    Args:
        num_scales: number of scales in the features of an image, see `data.examples.lay_out`.
        flip: whether to add a mirrored view of each.
        parts: as for `Detector`.
    """

    def __init__(self, *, num_scales: int, flip: bool, **parts):
        super().__init__(**parts)
        self.num_scales, self.flip = num_scales, flip

    def detect(self, features: Tensors, static: bool = False) -> Tensors:
        """Detects as `Detector.detect` does; boxes are in pixels of the first view.

        Args:
            features: as for `Detector.detect`, and with several scales `image_1`, `image_info_1`
                and so on.
            static: see `View`.
        """
        seen = make_views(features, self.num_scales, self.flip)
        views, candidates = zip(*(self._look(one, static) for one in seen), strict=True)
        merged = (tf.concat(parts, axis=1) for parts in zip(*candidates, strict=True))
        found, detections = self.heads[0].choose(BoxCandidates(*merged), static)
        judged = [self._judge(found, one, view) for one, view in zip(seen, views, strict=True)]
        means = {
            name: tf.add_n([outputs[name] for outputs in judged]) / len(judged)
            for name in judged[0]
        }
        return self.calibrate(detections | means)

    def _look(self, one: AugmentedView, static: bool) -> tuple[View, BoxCandidates]:
        """Returns one view as the heads see it, and its candidates mapped to the first view."""
        features = {"image": one.image, "image_info": one.image_info}
        view, _, proposals = self.propose(features, training=False, static=static)
        candidates = self.heads[0].find_candidates(view, proposals)
        return view, candidates._replace(boxes=one.to_first(candidates.boxes))

    def _judge(self, found: BoxDetections, one: AugmentedView, view: View) -> Tensors:
        """Returns one view's outputs of the remaining heads for detections in the first view."""
        found = found._replace(boxes=one.from_first(found.boxes))
        outputs: Tensors = {}
        for head in self.heads[1:]:
            found, more = head.detect(view, found)
            outputs |= more
        if one.mirrored and "detection_masks" in outputs:
            outputs["detection_masks"] = tf.reverse(outputs["detection_masks"], axis=[3])
        return outputs


@in_scope("views")
def make_views(features: Tensors, num_scales: int, flip: bool) -> list[AugmentedView]:
    """Makes the views of a batch: each scale, and with `flip` each followed by its mirror image.

    Only the valid area is mirrored, as if the original image had been.

    Args:
        features: `image` uint8 [B, H, W, 3] and `image_info` float32 [B, 5] of the first scale, and
            of the others by the names of `data.examples.view_feature`.
        num_scales: number of scales.
        flip: whether to mirror them.
    """
    views = []
    first_info = features["image_info"]
    for number in range(num_scales):
        image, info = (features[view_feature(name, number)] for name in ("image", "image_info"))
        views.append(AugmentedView(image, info, first_info, mirrored=False))
        if flip:
            views.append(AugmentedView(mirror_images(image, info), info, first_info, mirrored=True))
    return views


def mirror_images(image: tf.Tensor, image_info: tf.Tensor) -> tf.Tensor:
    """Mirrors the valid area left to right: uint8 [B, H, W, 3] → the same."""
    columns = tf.range(image.shape[2])
    widths = tf.cast(image_info[:, 1], tf.int32)[:, None]
    return tf.gather(
        image, tf.where(columns < widths, widths - 1 - columns, columns), axis=2, batch_dims=1
    )


def _mirror_boxes(boxes: tf.Tensor, image_info: tf.Tensor) -> tf.Tensor:
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    width = _per_image(image_info[:, 1], y1)
    return tf.stack([y1, width - x2, y2, width - x1], axis=-1)


def _resize_boxes(boxes: tf.Tensor, info: tf.Tensor, other_info: tf.Tensor) -> tf.Tensor:
    """Maps boxes from one valid area to another."""
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    height, width = (_per_image(other_info[:, axis], y1) for axis in (0, 1))
    down, across = (_per_image(other_info[:, axis] / info[:, axis], y1) for axis in (0, 1))
    resized = tf.stack([y1 * down, x1 * across, y2 * down, x2 * across], axis=-1)
    return box_ops.clip(resized, height, width)


def _per_image(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Reshapes [B] → [B, 1, ...], to the rank of another tensor."""
    return tf.reshape(values, [-1] + [1] * (like.shape.rank - 1))
