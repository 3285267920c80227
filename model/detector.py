"""A detector composed of parts: image → maps → proposals → RoIs → heads.

    image → pixels → backbone → neck ─┬→ proposer → sampler (in training) ─→ RoIs
                                      └→ regions ─→ head → head → head ←──────┘

`model/systems.py` lists the parts of each system of the R-CNN family. A part is

    neck      maps of the backbone's maps: `neck(maps, training=…)`.
    proposer  `propose(maps, features, training=…, static=…)` → (outputs, `Proposals`) and
              `compute_losses(outputs, labels)` → losses by name.
    sampler   `sampler(proposals, gt_boxes, gt_classes, seeds)` → `SampledRoIs`.
    regions   how a box is pooled from the maps, see `model.view.View`.
    head      `compute_losses(view, rois, labels)` → (RoIs for the next head, losses by name) and
              `detect(view, found)` → (what is found, for the next head; outputs by name). The first
              head starts from the sampled RoIs, at test from the proposals.

Axes: B images, H W pixels, D detections an image, M side of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import tensorflow as tf

from data.settings import require
from model.backbones import Pixels
from model.layers import Part
from model.pixels import normalise
from model.proposals import Proposals
from model.score_calibration import ScoreCalibration
from model.view import View

Tensors = dict[str, tf.Tensor]


class Detector(Part):
    """The network: `compute_losses` for training, `detect` for inference.

    Args:
        pixels: the normalisation of the backbone's input.
        backbone, neck, proposer, sampler, regions: see above.
        heads: the heads in order, by their names in checkpoints.
        whole_image: whether the backbone sees the image; otherwise `regions` shows it each region,
            and the only map is the normalised image itself.
        dtype: Keras dtype policy.

    Attributes:
        calibration: maps the scores of detections to the IoU to expect; None leaves them as they
            are.
    """

    def __init__(
        self,
        *,
        pixels: Pixels,
        backbone: keras.layers.Layer,
        neck: keras.layers.Layer,
        proposer: keras.layers.Layer,
        sampler: Callable,
        regions: Callable,
        heads: Mapping[str, keras.layers.Layer],
        whole_image: bool = True,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        self.pixels, self.sampler, self.regions = pixels, sampler, regions
        self.head_names, self.whole_image = tuple(heads), whole_image
        self.part_names = ("backbone", "fpn", "rpn_head", *heads)
        self.calibration: ScoreCalibration | None = None
        parts = (backbone, neck, proposer, *heads.values())
        for name, part in zip(self.part_names, parts, strict=True):
            # Checkpoints have the attributes' names, and graphs those of the layers.
            setattr(self, name, part)
            part.name = name
        self.built = True

    @property
    def heads(self) -> list[keras.layers.Layer]:
        """The heads in order."""
        return [getattr(self, name) for name in self.head_names]

    @property
    def decayed_variables(self) -> list[keras.Variable]:
        """Variables that weight decay applies to: the trainable kernels that each part declares."""
        parts = [getattr(self, name) for name in self.part_names]
        return [variable for part in parts for variable in part.decayed_variables]

    def train_only(self, names: Collection[str]) -> None:
        """Freezes the parts that are not named: their variables, and statistics of batches.

        Raises:
            SettingError: the network has no part of that name.
        """
        require(
            set(names) <= set(self.part_names),
            "train_only",
            names,
            f"parts of this system: {', '.join(self.part_names)}",
        )
        for name in self.part_names:
            if name not in names:
                getattr(self, name).trainable = False

    def compute_losses(
        self, features: Tensors, labels: Tensors, static: bool = False
    ) -> tuple[Tensors, Tensors]:
        """Computes the losses of one batch.

        Args:
            features: `image` uint8 [B, H, W, 3], `image_id` int64 [B], `image_info` float32 [B, 5].
            labels: as from `data.input_fn` in training. If `gt_masks` cover other areas than
                `gt_boxes`, `gt_windows` float32 [B, G, 4] states them; `gt_polygons` and
                `gt_polygon_parts` are needed if mask targets are drawn from polygons.
            static: see `View`.

        Returns:
            The losses, float32 scalars that are this replica's shares of global means, and counts
            to monitor: `num_positive_rois`.
        """
        view, outputs, proposals = self.propose(features, training=True, static=static)
        losses = self.rpn_head.compute_losses(outputs, labels)
        rois = self.sampler(
            proposals, labels["gt_boxes"], labels["gt_classes"], labels["sample_seeds"]
        )
        positives = tf.math.count_nonzero(rois.positive, dtype=tf.int32)
        for head in self.heads:
            rois, head_losses = head.compute_losses(view, rois, labels)
            losses |= head_losses
        return losses, {"num_positive_rois": tf.cast(positives, tf.float32)}

    def detect(self, features: Tensors, static: bool = False) -> Tensors:
        """Detects the objects in one batch.

        Args:
            features: as for `compute_losses`.
            static: see `View`.

        Returns:
            `num_detections` int32 [B]; `detection_boxes` float32 [B, D, 4] in pixels of the
            network's input; `detection_classes` int32 [B, D], 0 for empty slots; `box_scores`;
            with a mask head `detection_masks` float32 [B, D, M, M], probabilities over the box,
            and `mask_scores` float32 [B, D]; with a MaskIoU head `mask_ious` float32 [B, D] in
            0..1. Without one, masks are ranked by `box_scores`. Detections are in order of
            falling `box_scores`, before calibration.
        """
        view, _, found = self.propose(features, training=False, static=static)
        detections: Tensors = {}
        for head in self.heads:
            found, outputs = head.detect(view, found)
            detections |= outputs
        return self.calibrate(detections)

    def calibrate(self, detections: Tensors) -> Tensors:
        """Returns detections with calibrated scores, if the network has a calibration."""
        return self.calibration(detections) if self.calibration else detections

    def rate(
        self, features: Tensors, boxes: tf.Tensor, classes: tf.Tensor, masks: tf.Tensor
    ) -> tf.Tensor:
        """Predicts how well masks of any origin outline their objects; needs a MaskIoU head.

        Args:
            features: as for `compute_losses`.
            boxes: float32 [B, N, 4] around the masks, in pixels of the network's input.
            classes: int32 [B, N].
            masks: float32 [B, N, M, M], the share of each cell of its box that a mask covers.

        Returns:
            float32 [B, N], the expected IoU of each mask, in 0..1.
        """
        image_info = features["image_info"]
        maps = self.extract_features(features["image"], image_info, training=False)
        return self.maskiou_head.rate(View(maps, image_info, self.regions), boxes, classes, masks)

    def propose(
        self, features: Tensors, training: bool, static: bool = False
    ) -> tuple[View, Any, Proposals]:
        """Returns a batch as the heads see it, the proposer's outputs, and the proposals."""
        image, image_info = features["image"], features["image_info"]
        maps = self.extract_features(image, image_info, training, static)
        outputs, proposals = self.rpn_head.propose(maps, features, training=training, static=static)
        return View(maps, image_info, self.regions, static, training), outputs, proposals

    def extract_features(
        self, image: tf.Tensor, image_info: tf.Tensor, training: bool, static: bool = False
    ) -> list[tf.Tensor]:
        """Computes the neck's maps of uint8 images [B, H, W, 3]."""
        pixels = normalise(image, image_info, self.pixels, self.compute_dtype)
        maps = [pixels]
        if self.whole_image:
            maps = self.backbone(pixels, training=training, static=static)
        return self.fpn(maps, training=training)
