"""Cascade head: box heads in a row, each of which corrects the boxes of the one before.

Source: Cai and Vasconcelos, Cascade R-CNN, CVPR 2018; numbers and details as in Detectron2.

Axes: B images, R RoIs an image, P proposals, K classes with the background.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from data import boxes as box_ops
from model.box_head import (
    BoxCandidates,
    BoxDetections,
    BoxHead,
    BoxOutputs,
    box_losses,
    choose_detections,
    make_candidates,
    name_outputs,
)
from model.layers import LayerList, Part
from model.proposals import Proposals
from model.roi_sampling import SampledRoIs, label_rois
from model.view import View

# From which a box is positive for the second and third stage; for the first, the sampler decides.
LATER_IOUS = (0.6, 0.7)
DELTA_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


class CascadeHead(Part):
    """Box heads whose boxes do not depend on the class; each has a higher IoU for its positives.

    Args:
        stages: three box heads with the `DELTA_WEIGHTS`.
    """

    def __init__(self, stages: Sequence[BoxHead]):
        super().__init__(autocast=False)
        self.stages = LayerList(stages)
        self.built = True

    def compute_losses(
        self, view: View, rois: SampledRoIs, labels: dict[str, tf.Tensor]
    ) -> tuple[SampledRoIs, dict[str, tf.Tensor]]:
        """Returns the RoIs unchanged, and `class_loss_n` and `box_loss_n` of stage n from 1 on."""
        losses: dict[str, tf.Tensor] = {}
        gt_boxes, current = labels["gt_boxes"], rois
        for number, stage in enumerate(self.stages, 1):
            # The stages share the map, so that each may change it by its share only.
            outputs = stage.classify(view, current.boxes, gradient_share=1.0 / len(self.stages))
            found = box_losses(outputs, current, gt_boxes, stage.box_loss_beta, stage.delta_weights)
            losses |= {f"{name}_{number}": value for name, value in found.items()}
            if number < len(self.stages):
                boxes = _correct(stage, outputs, current.boxes, view)
                iou = LATER_IOUS[number - 1]
                current = label_rois(boxes, current.valid, gt_boxes, labels["gt_classes"], iou)
        return rois, losses

    def detect(
        self, view: View, proposals: Proposals
    ) -> tuple[BoxDetections, dict[str, tf.Tensor]]:
        """Returns the detections among `find_candidates`."""
        return self.choose(self.find_candidates(view, proposals), view.static)

    def find_candidates(self, view: View, proposals: Proposals) -> BoxCandidates:
        """Returns the boxes of the last stage, scored by the mean probabilities of all stages."""
        shape, probabilities = proposals.valid.shape, []
        for number, stage in enumerate(self.stages, 1):
            outputs = stage.classify(view, proposals.boxes)
            probabilities.append(tf.nn.softmax(outputs.class_logits))
            if number < len(self.stages):
                boxes = _correct(stage, outputs, proposals.boxes, view)
                proposals = proposals._replace(boxes=boxes)
        scores = tf.add_n(probabilities) / len(probabilities)
        return make_candidates(
            tf.reshape(scores, [*shape, scores.shape[1]])[:, :, 1:],
            tf.reshape(outputs.box_deltas, [*shape, 1, 4]),
            proposals,
            view.image_info,
            stage.delta_weights,
            stage.clip_below,
        )

    def choose(
        self, candidates: BoxCandidates, static: bool
    ) -> tuple[BoxDetections, dict[str, tf.Tensor]]:
        """Chooses the detections among the candidates of one or several views."""
        found = choose_detections(candidates, static=static, **self.stages[0].limits)
        return found, name_outputs(found)


def _correct(stage: BoxHead, outputs: BoxOutputs, boxes: tf.Tensor, view: View) -> tf.Tensor:
    """Applies a stage's deltas to its boxes: float32 [B, R, 4], within the image, no gradient."""
    deltas = tf.reshape(tf.stop_gradient(outputs.box_deltas), boxes.shape)
    moved = box_ops.decode(deltas, boxes, stage.delta_weights, clip_below=stage.clip_below)
    return box_ops.clip(moved, view.image_info[:, None, 0], view.image_info[:, None, 1])
