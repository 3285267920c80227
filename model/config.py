"""Settings of the network and its losses."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from data.settings import (
    ANYTHING,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    Check,
    Relation,
    between,
    check_settings,
    each,
    one_of,
    predictive_setting,
    room_in,
    setting,
)
from model.backbones import BACKBONES


class System(NamedTuple):
    """What is known of a system without building it (`model/systems.py`)."""

    title: str
    has_masks: bool


SYSTEMS = {
    "faster_rcnn": System("Faster R-CNN", has_masks=False),
    "mask_rcnn": System("Mask R-CNN", has_masks=True),
    "mask_scoring_rcnn": System("Mask Scoring R-CNN", has_masks=True),
}
NORMS = ("frozen_bn", "bn", "sync_bn", "gn")
# Batch statistics of RoIs would mix in the empty slots that XLA needs.
HEAD_NORMS = ("none", "frozen_bn", "gn")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

NUM_CLASSES = Check(
    "at least 2 (the background and one class), or 0", lambda count: count == 0 or count >= 2
)
MASK_SIZE = Check("a multiple of 4", lambda side: side >= 4 and side % 4 == 0)
OPEN_SHARE = Check("between 0 and 1", lambda value: 0 < value < 1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network (`model/`)."""

    system: str = predictive_setting(
        "mask_scoring_rcnn", "One of " + ", ".join(SYSTEMS) + ".", one_of(*SYSTEMS)
    )
    num_classes: int = predictive_setting(
        0,
        "Classes including the background; 0 takes it from the records' manifest, or from the "
        "largest label of records that have none.",
        NUM_CLASSES,
    )
    precision: str = predictive_setting(
        "float32", "float32, mixed_bfloat16 or mixed_float16.", one_of(*PRECISIONS)
    )
    jit_compile: bool = setting(
        False, "Compile steps with XLA; the mask heads then run on static slots."
    )

    backbone: str = predictive_setting(
        "resnet50", "One of " + ", ".join(BACKBONES) + ".", one_of(*BACKBONES)
    )
    norm: str = predictive_setting(
        "gn",
        "Normalisation: gn from scratch, frozen_bn when fine-tuning, bn or sync_bn.",
        one_of(*NORMS),
    )
    freeze_at: int = setting(
        0,
        "Backbone stages that stay as they are: 1 the stem, 2 the stem and res2, ...",
        between(0, 5),
    )
    backbone_width: int = predictive_setting(
        0, "Channels of the stem; the stages' grow with it. 0: as published.", NOT_NEGATIVE
    )
    resnet_stride_in_1x1: bool = predictive_setting(
        False, "Bottlenecks stride in their first 1x1 instead of the 3x3 (Caffe's ResNets)."
    )
    fpn_channels: int = predictive_setting(
        256, "Channels of the pyramid and the convolutional heads.", POSITIVE
    )
    fpn_norm: str = predictive_setting(
        "none", "Normalisation after the pyramid's convolutions, or none.", one_of("none", *NORMS)
    )
    pixel_mean: tuple[float, ...] = predictive_setting(
        (), "Subtracted from RGB; if empty, what the backbone was made for.", each(ANYTHING, 3)
    )
    pixel_std: tuple[float, ...] = predictive_setting(
        (), "Divides what is left; if empty, as above.", each(POSITIVE, 3)
    )

    rpn_num_convs: int = predictive_setting(
        1, "3x3 convolutions before the RPN's two outputs.", POSITIVE
    )
    rpn_pre_nms_train: int = setting(
        2000, "Proposals a level sends into NMS in training.", POSITIVE
    )
    rpn_pre_nms_test: int = predictive_setting(
        1000, "Proposals a level sends into NMS at test.", POSITIVE
    )
    rpn_post_nms_train: int = setting(1000, "Proposals an image keeps in training.", POSITIVE)
    rpn_post_nms_test: int = predictive_setting(1000, "Proposals an image keeps at test.", POSITIVE)
    rpn_nms_iou: float = predictive_setting(0.7, "IoU above which a proposal is suppressed.", SHARE)
    rpn_box_loss_beta: float = setting(
        0.0, "Where smooth L1 turns linear; 0 is plain L1.", NOT_NEGATIVE
    )
    rpn_loss_normaliser: str = setting(
        "slots",
        "RPN losses are divided by the anchors asked for (slots) or found (sampled).",
        one_of("slots", "sampled"),
    )
    box_delta_clip: str = predictive_setting(
        "above",
        "Log scales of boxes are bounded from above, or on both sides (both).",
        one_of("above", "both"),
    )

    rois_per_image: int = setting(512, "RoIs an image trains its heads on.", POSITIVE)
    roi_positive_fraction: float = setting(
        0.25,
        "Largest share of positives among them.",
        POSITIVE_SHARE,
        room_in("rois_per_image"),
    )
    roi_positive_iou: float = setting(
        0.5, "RoIs with at least this IoU are positive.", POSITIVE_SHARE
    )
    roi_sampling_ratio: int = predictive_setting(
        2,
        "Samples a RoIAlign bin takes along each side; 0: as many as it has cells.",
        NOT_NEGATIVE,
        Relation(
            lambda ratio, config: (
                "at least 1, or 0 without --jit_compile, which needs static shapes"
            ),
            lambda ratio, config: ratio >= (1 if config.jit_compile else 0),
        ),
    )
    roi_aligned: bool = predictive_setting(
        True, "RoIAlign shifts by half a cell; off: the older variant of torchvision's weights."
    )
    head_norm: str = predictive_setting(
        "none", "Normalisation in the box and mask heads, or none.", one_of(*HEAD_NORMS)
    )
    box_num_convs: int = predictive_setting(0, "3x3 convolutions of the box head.", NOT_NEGATIVE)
    box_num_fcs: int = predictive_setting(2, "Fully connected layers of the box head.", POSITIVE)
    head_dim: int = predictive_setting(1024, "Width of the fully connected layers.", POSITIVE)
    box_loss_beta: float = setting(
        0.0, "Where smooth L1 turns linear; 0 is plain L1.", NOT_NEGATIVE
    )

    mask_size: int = predictive_setting(
        28, "Side of the predicted masks, twice the mask RoI's 14.", MASK_SIZE
    )
    mask_target: str = setting(
        "bitmap",
        "Mask targets are 0 or 1, made of bitmaps (bitmap) or of the annotated polygons (polygon), "
        "or the share of the cell covered (soft).",
        one_of("bitmap", "soft", "polygon"),
    )
    mask_paste: str = predictive_setting(
        "exact",
        "Masks are pasted onto the box (exact) or onto whole pixels around it (integer).",
        one_of("exact", "integer"),
    )
    maskiou_target_area: str = setting(
        "closed",
        "Whole-object area from the box's area (closed) or from the mask (ratio).",
        one_of("closed", "ratio"),
    )
    maskiou_target_threshold: float = setting(
        0.5,
        "Mask probability from which a cell counts as predicted in the MaskIoU target.",
        OPEN_SHARE,
    )
    maskiou_stop_gradient: bool = setting(
        False, "Keep the MaskIoU loss from training the mask head and the backbone."
    )
    maskiou_loss_weight: float = setting(1.0, "Weight of the MaskIoU loss.", NOT_NEGATIVE)

    score_threshold: float = predictive_setting(
        0.05, "Detections need a class score above this.", SHARE
    )
    nms: str = predictive_setting(
        "hard",
        "A detection that overlaps a better one of its class goes (hard), or its score falls by "
        "exp(-IoU^2 / sigma), which wants a low --score_threshold such as 0.001 (soft).",
        one_of("hard", "soft"),
    )
    nms_iou: float = predictive_setting(
        0.5, "IoU above which a detection of the same class is suppressed (hard).", SHARE
    )
    soft_nms_sigma: float = predictive_setting(
        0.5, "The larger, the less scores fall with overlap (soft).", between(0.01, 100.0)
    )
    detections_per_image: int = predictive_setting(100, "Detections an image keeps.", POSITIVE)
    rescore: bool = predictive_setting(
        True, "mask_score = box_score x mask_iou; off: mask_score = box_score."
    )

    @property
    def include_mask(self) -> bool:
        """Whether the system has masks, so that the labels need them."""
        return SYSTEMS[self.system].has_masks

    @property
    def include_polygons(self) -> bool:
        """Whether mask targets are drawn from polygons, so that the labels need them."""
        return self.include_mask and self.mask_target == "polygon"

    def __post_init__(self):
        pixels = BACKBONES[self.backbone].pixels if self.backbone in BACKBONES else None
        for name, own in (("pixel_mean", "mean"), ("pixel_std", "std")):
            if pixels and not getattr(self, name):
                object.__setattr__(self, name, getattr(pixels, own))
        check_settings(self)
