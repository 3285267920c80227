"""Mask Scoring R-CNN, put together (Huang et al., CVPR 2019, figure 3).

    image → ResNet → FPN ─┬→ RPN → proposals ─→ RoIAlign 7×7 → box head → classes, boxes
                          └→ RoIAlign 14×14 → mask head → masks
                                     └────────────┴→ MaskIoU head → IoU of each mask

Axes: B images, H W pixels, R sampled RoIs an image, D detections an image, N RoIs of all images,
M side of a mask.

The RoIs that the mask branch sees are either the real ones, as many as there are (`static` off),
or a fixed number of slots of which some are empty, for XLA (`static` on). The losses and the
detections are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from data.anchors import AnchorGrid
from data.config import DataConfig
from model.box_head import ROI_SIZE, BoxHead, box_losses
from model.config import ModelConfig
from model.detections import BoxDetections, detect_boxes, mask_scores
from model.fpn import FPN
from model.layers import Conv, ConvTranspose, Dense
from model.mask_head import HALF, MaskHead, mask_loss, mask_targets
from model.maskiou_head import (
    MaskIoUHead,
    area_ratios,
    closed_full_areas,
    maskiou_loss,
    maskiou_targets,
    ratio_full_areas,
)
from model.polygon_masks import polygon_targets
from model.proposals import Proposals, generate_proposals
from model.resnet import ResNet
from model.roi_align import roi_align
from model.roi_sampling import SampledRoIs, sample_rois
from model.rpn import RPNHead, RPNOutputs, rpn_losses

Tensors = dict[str, tf.Tensor]


class Slots(NamedTuple):
    """The RoIs that go through the mask branch, out of [B, R] ones."""

    index: tf.Tensor  # int32 [N, 2]: image and position
    valid: tf.Tensor  # bool [N], slots that hold a wanted RoI

    def take(self, values: tf.Tensor) -> tf.Tensor:
        """[B, R, …] → [N, …]."""
        return tf.gather_nd(values, self.index)

    @property
    def image(self) -> tf.Tensor:
        """int32 [N], the image each RoI lies in."""
        return self.index[:, 0]


def choose_slots(wanted: tf.Tensor, most: int, static: bool) -> Slots:
    """Slots for the wanted RoIs, which come first in their image.

    Args:
        wanted: bool [B, R].
        most: an image has no more than this many wanted RoIs.
        static: one slot for each of the first `most` RoIs, wanted or not. Otherwise one slot for
            each wanted RoI; when there is none, one that is not valid, because oneDNN's
            convolutions give an empty batch the wrong shape.
    """
    if static:
        batch = wanted.shape[0]
        index = np.stack(np.meshgrid(np.arange(batch), np.arange(most), indexing="ij"), -1)
        index = tf.constant(index.reshape(-1, 2), tf.int32)
        return Slots(index, tf.gather_nd(wanted, index))
    wanted = wanted[:, :most]
    spare = np.zeros(wanted.shape, bool)
    spare[0, 0] = True
    taken = wanted | (spare & ~tf.reduce_any(wanted))
    index = tf.cast(tf.where(taken), tf.int32)
    return Slots(index, tf.gather_nd(wanted, index))


class MaskScoringRCNN(keras.layers.Layer):
    """The network. `compute_losses` trains it, `detect` uses it.

    Args:
        config: the network's settings; `num_classes` has to be known.
        data: the anchors' settings and the seed of the initial weights.
    """

    def __init__(self, config: ModelConfig, data: DataConfig):
        super().__init__(dtype=config.precision, autocast=False)
        rng, dtype = np.random.default_rng(data.seed), config.precision
        channels, classes = config.fpn_channels, config.num_classes
        self.config = config
        self.data = data
        self.backbone = ResNet(
            rng,
            config.backbone,
            width=config.backbone_width,
            stride_in_1x1=config.resnet_stride_in_1x1,
            norm=config.norm,
            freeze_at=config.freeze_at,
            static=config.jit_compile,
            dtype=dtype,
        )
        self.fpn = FPN(rng, self.backbone.out_channels, channels, norm=config.fpn_norm, dtype=dtype)
        self.rpn_head = RPNHead(
            rng, channels, len(data.anchor_ratios), num_convs=config.rpn_num_convs, dtype=dtype
        )
        self.box_head = BoxHead(
            rng,
            channels,
            config.head_dim,
            classes,
            num_convs=config.box_num_convs,
            num_fcs=config.box_num_fcs,
            norm=config.head_norm,
            dtype=dtype,
        )
        self.mask_head = self.maskiou_head = None
        if config.include_mask:
            self.mask_head = MaskHead(rng, channels, classes, norm=config.head_norm, dtype=dtype)
        if config.include_maskiou:
            self.maskiou_head = MaskIoUHead(
                rng, channels, config.head_dim, classes, config.mask_size, dtype=dtype
            )
        self.built = True

    @property
    def decayed_variables(self) -> list[keras.Variable]:
        """Kernels that train: what weight decay applies to. Norms and biases have none."""
        layers = self._flatten_layers(include_self=False)
        kernels = [
            layer.kernel for layer in layers if isinstance(layer, (Conv, ConvTranspose, Dense))
        ]
        return [kernel for kernel in kernels if kernel.trainable]

    def compute_losses(self, features: Tensors, labels: Tensors) -> tuple[Tensors, Tensors]:
        """Losses of one batch.

        Args:
            features: `image` uint8 [B, H, W, 3], `image_id` int64 [B], `image_info` float32 [B, 5].
            labels: what `data.input_fn` gives in training. `gt_windows` float32 [B, G, 4] may say
                which part of the image `gt_masks` cover, if not `gt_boxes`; `gt_polygons` and
                `gt_polygon_parts` are needed if mask targets are drawn from polygons.

        Returns:
            The losses, float32 scalars that are this replica's shares of global means, and counts
            to watch: `num_positive_rois`.
        """
        config = self.config
        pyramid, rpn, proposals = self.propose(
            features, config.rpn_pre_nms_train, config.rpn_post_nms_train, training=True
        )
        rois = sample_rois(
            proposals,
            labels["gt_boxes"],
            labels["gt_classes"],
            labels["sample_seeds"],
            num_rois=config.rois_per_image,
            positive_fraction=config.roi_positive_fraction,
            positive_iou=config.roi_positive_iou,
        )
        box_outputs = self._classify(pyramid, rois.boxes)
        losses = rpn_losses(rpn, labels, config.rpn_box_loss_beta, config.rpn_loss_normaliser)
        losses |= box_losses(box_outputs, rois, labels["gt_boxes"], config.box_loss_beta)
        if self.mask_head is not None:
            losses |= self._mask_losses(pyramid, rois, labels)
        positives = tf.math.count_nonzero(rois.positive, dtype=tf.int32)
        return losses, {"num_positive_rois": tf.cast(positives, tf.float32)}

    def detect(self, features: Tensors) -> Tensors:
        """Detections of one batch.

        Args:
            features: as for `compute_losses`.

        Returns:
            `num_detections` int32 [B]; `detection_boxes` float32 [B, D, 4] in pixels of the
            network's input; `detection_classes` int32 [B, D], 0 for empty slots; `box_scores`;
            with a mask head `detection_masks` float32 [B, D, M, M], probabilities over the box,
            and `mask_scores` float32 [B, D]; with a MaskIoU head `mask_ious` float32 [B, D] in
            0..1. Without one, masks are ranked by `box_scores`.
        """
        config = self.config
        pyramid, _, proposals = self.propose(
            features, config.rpn_pre_nms_test, config.rpn_post_nms_test, training=False
        )
        found = detect_boxes(
            self._classify(pyramid, proposals.boxes),
            proposals,
            features["image_info"],
            score_threshold=config.score_threshold,
            nms_iou=config.nms_iou,
            max_detections=config.detections_per_image,
            static=config.jit_compile,
            clip_below=config.box_delta_clip == "both",
        )
        detections = {
            "num_detections": tf.math.count_nonzero(found.valid, axis=1, dtype=tf.int32),
            "detection_boxes": found.boxes,
            "detection_classes": found.classes,
            "box_scores": found.scores,
        }
        if self.mask_head is not None:
            detections |= self._detect_masks(pyramid, found)
        return detections

    def normalise(self, image: tf.Tensor, image_info: tf.Tensor) -> tf.Tensor:
        """uint8 images [B, H, W, 3] as the network's input; padding is as the mean colour."""
        rows = tf.range(image.shape[1], dtype=tf.float32)[None, :, None, None]
        columns = tf.range(image.shape[2], dtype=tf.float32)[None, None, :, None]
        height, width = image_info[:, 0], image_info[:, 1]
        inside = (rows < height[:, None, None, None]) & (columns < width[:, None, None, None])
        pixels = (tf.cast(image, tf.float32) - self.config.pixel_mean) / self.config.pixel_std
        return tf.cast(tf.where(inside, pixels, 0.0), self.compute_dtype)

    def extract_features(self, image: tf.Tensor, image_info: tf.Tensor, training: bool):
        """[P2, …, P6] of uint8 images [B, H, W, 3]."""
        pixels = self.normalise(image, image_info)
        return self.fpn(self.backbone(pixels, training=training), training=training)

    def propose(
        self, features: Tensors, pre_nms: int, post_nms: int, training: bool
    ) -> tuple[list[tf.Tensor], RPNOutputs, Proposals]:
        """The pyramid, the RPN's outputs and the proposals of one batch.

        Args:
            features: as for `compute_losses`.
            pre_nms: anchors a level sends into NMS.
            post_nms: proposals an image keeps.
            training: whether batch norms take the batch's statistics.
        """
        image, image_info = features["image"], features["image_info"]
        pyramid = self.extract_features(image, image_info, training)
        rpn = self.rpn_head(pyramid)
        proposals = generate_proposals(
            rpn,
            AnchorGrid.from_config(self.data, tuple(image.shape[1:3])),
            image_info,
            pre_nms=pre_nms,
            post_nms=post_nms,
            nms_iou=self.config.rpn_nms_iou,
            static=self.config.jit_compile,
            clip_below=self.config.box_delta_clip == "both",
        )
        return pyramid, rpn, proposals

    def pool(
        self, pyramid: list[tf.Tensor], rois: tf.Tensor, image_index: tf.Tensor, output_size: int
    ) -> tf.Tensor:
        """RoIAlign of float32 [N, 4] from P2 … P5: [N, output_size, output_size, C]."""
        return roi_align(
            pyramid[:-1],
            rois,
            image_index,
            output_size=output_size,
            sampling_ratio=self.config.roi_sampling_ratio,
            static=self.config.jit_compile,
            aligned=self.config.roi_aligned,
        )

    def _classify(self, pyramid: list[tf.Tensor], boxes: tf.Tensor):
        batch, count = boxes.shape[:2]
        image_index = tf.repeat(tf.range(batch), count)
        return self.box_head(self.pool(pyramid, tf.reshape(boxes, [-1, 4]), image_index, ROI_SIZE))

    def _mask_losses(self, pyramid, rois: SampledRoIs, labels: Tensors) -> Tensors:
        config = self.config
        most = min(int(config.rois_per_image * config.roi_positive_fraction), rois.valid.shape[1])
        slots = choose_slots(rois.positive, max(1, most), config.jit_compile)
        boxes, classes = slots.take(rois.boxes), slots.take(rois.classes)
        match = tf.stack([slots.image, slots.take(rois.matches)], -1)
        windows = tf.gather_nd(labels.get("gt_windows", labels["gt_boxes"]), match)
        gt_masks = tf.gather_nd(labels["gt_masks"], match)
        if config.mask_target == "polygon":
            polygons = (labels["gt_polygons"], labels["gt_polygon_parts"])
            polygons = (tf.gather_nd(values, match) for values in polygons)
            targets = polygon_targets(*polygons, boxes, config.mask_size, config.jit_compile)
        else:
            targets = mask_targets(gt_masks, windows, boxes, config.mask_size, config.mask_target)

        features = self.pool(pyramid, boxes, slots.image, config.mask_size // 2)
        logits = self.mask_head(features, classes)
        losses = {"mask_loss": mask_loss(logits, targets, slots.valid)}
        if self.maskiou_head is not None:
            # An IoU is of sets of cells, so soft targets are decided here.
            cells = tf.cast(targets >= HALF, tf.float32)
            if config.maskiou_target_area == "closed":
                full = closed_full_areas(cells, tf.gather_nd(labels["gt_areas"], match), boxes)
            else:
                full = ratio_full_areas(cells, area_ratios(gt_masks, windows, boxes))
            iou_targets = maskiou_targets(logits, cells, full, config.maskiou_target_threshold)
            if config.maskiou_stop_gradient:
                features, logits = tf.stop_gradient(features), tf.stop_gradient(logits)
            predicted = self.maskiou_head(features, logits, classes)
            losses["maskiou_loss"] = config.maskiou_loss_weight * maskiou_loss(
                predicted, iou_targets, slots.valid
            )
        return losses

    def _detect_masks(self, pyramid, found: BoxDetections) -> Tensors:
        config = self.config
        batch, most = found.valid.shape
        slots = choose_slots(found.valid, most, config.jit_compile)
        classes = slots.take(found.classes)
        features = self.pool(pyramid, slots.take(found.boxes), slots.image, config.mask_size // 2)
        logits = self.mask_head(features, classes)

        def put(values: tf.Tensor) -> tf.Tensor:
            """[N, …] → [B, D, …], zeros in empty slots."""
            keep = tf.reshape(slots.valid, [-1] + [1] * (values.shape.rank - 1))
            values = tf.where(keep, values, tf.zeros_like(values))
            return tf.scatter_nd(slots.index, values, [batch, most, *values.shape[1:]])

        masks = {"detection_masks": put(tf.sigmoid(logits)), "mask_scores": found.scores}
        if self.maskiou_head is not None:
            predicted = self.maskiou_head(features, logits, classes)
            mask_ious = put(tf.clip_by_value(predicted, 0.0, 1.0))
            masks["mask_ious"] = mask_ious
            masks["mask_scores"] = mask_scores(found.scores, mask_ious, config.rescore)
        return masks


def build_network(params) -> MaskScoringRCNN:
    """The network that `params.model` and `params.data` describe, its variables created."""
    return MaskScoringRCNN(params.model, params.data)
