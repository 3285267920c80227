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
    """Facts about a system that are needed before it is built (`model/systems.py`)."""

    title: str
    has_masks: bool
    has_maskiou: bool = False
    has_rpn: bool = True
    has_pyramid: bool = True
    fits_svms: bool = False


SYSTEMS = {
    "rcnn": System("R-CNN", has_masks=False, has_rpn=False, has_pyramid=False, fits_svms=True),
    "fast_rcnn": System("Fast R-CNN", has_masks=False, has_rpn=False, has_pyramid=False),
    "faster_rcnn_c4": System("Faster R-CNN on one map", has_masks=False, has_pyramid=False),
    "faster_rcnn": System("Faster R-CNN", has_masks=False),
    "mask_rcnn": System("Mask R-CNN", has_masks=True),
    "cascade_mask_rcnn": System("Cascade Mask R-CNN", has_masks=True),
    "pointrend_mask_rcnn": System("Mask R-CNN with PointRend", has_masks=True),
    "mask_scoring_rcnn": System("Mask Scoring R-CNN", has_masks=True, has_maskiou=True),
    "cascade_mask_scoring_rcnn": System(
        "Cascade Mask Scoring R-CNN", has_masks=True, has_maskiou=True
    ),
    "pointrend_mask_scoring_rcnn": System(
        "Mask Scoring R-CNN with PointRend", has_masks=True, has_maskiou=True
    ),
}
NORMS = ("none", "frozen_bn", "bn", "sync_bn", "gn")
# Without bn, since batch statistics of RoIs would include the empty slots that XLA needs.
HEAD_NORMS = ("none", "frozen_bn", "gn")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

NUM_CLASSES = Check(
    "at least 2 (the background and one class), or 0", lambda count: count == 0 or count >= 2
)
NO_BATCH_STATISTICS = Relation(
    lambda norm, config: (
        f"frozen_bn, gn or none for {config.system}, in which the last layers of the backbone see "
        "RoIs, some of them empty slots"
    ),
    lambda norm, config: config.has_pyramid or norm not in ("bn", "sync_bn"),
)
MASK_SIZE = Check("a multiple of 4", lambda side: side >= 4 and side % 4 == 0)
OPEN_SHARE = Check("between 0 and 1", lambda value: 0 < value < 1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Settings of the network (`model/`)."""

    system: str = predictive_setting(
        "mask_scoring_rcnn", "One of " + ", ".join(SYSTEMS) + ".", one_of(*SYSTEMS)
    )
    num_classes: int = predictive_setting(
        0,
        "Number of classes, including the background; 0 takes it from the manifest of the "
        "records or, without a manifest, from their largest label.",
        NUM_CLASSES,
    )
    precision: str = predictive_setting(
        "float32",
        "Numeric precision: float32, mixed_bfloat16 or mixed_float16.",
        one_of(*PRECISIONS),
    )
    jit_compile: bool = setting(
        False, "Compile steps with XLA; the mask heads then process a fixed number of RoIs."
    )

    backbone: str = predictive_setting(
        "resnet50", "One of " + ", ".join(BACKBONES) + ".", one_of(*BACKBONES)
    )
    norm: str = predictive_setting(
        "gn",
        "Normalisation of the backbone: gn (for training from scratch), frozen_bn (for "
        "fine-tuning), bn, sync_bn, or none (as published for AlexNet and VGG).",
        one_of(*NORMS),
        NO_BATCH_STATISTICS,
    )
    freeze_at: int = setting(
        0,
        "Number of backbone stages to freeze: 1 freezes the stem, 2 the stem and res2, ...; of VGG "
        "and AlexNet the number of their stages conv1, conv2, ...",
        between(0, 5),
    )
    train_only: tuple[str, ...] = setting(
        (),
        "Parts of the network to train, such as box_head,maskiou_head; the others keep their "
        "weights and statistics. Empty: all parts.",
    )
    backbone_width: int = predictive_setting(
        0,
        "Channels of the stem; those of the stages scale with it. 0 means as published.",
        NOT_NEGATIVE,
    )
    resnet_stride_in_1x1: bool = predictive_setting(
        False,
        "Put the stride of bottlenecks in the first 1x1 convolution instead of the 3x3, "
        "as in Caffe's ResNets.",
    )
    fpn_channels: int = predictive_setting(
        256, "Channels of the feature pyramid and the convolutional heads.", POSITIVE
    )
    fpn_norm: str = predictive_setting(
        "none",
        "Normalisation after the convolutions of the feature pyramid, or none.",
        one_of(*NORMS),
    )
    separable_convs: bool = predictive_setting(
        False,
        "Make the 3x3 convolutions of the feature pyramid and the heads depthwise separable.",
    )
    pixel_mean: tuple[float, ...] = predictive_setting(
        (), "Mean that is subtracted from RGB; if empty, the backbone's own.", each(ANYTHING, 3)
    )
    pixel_std: tuple[float, ...] = predictive_setting(
        (), "Divisor after subtracting the mean; if empty, the backbone's own.", each(POSITIVE, 3)
    )

    rpn_num_convs: int = predictive_setting(
        1, "Number of 3x3 convolutions before the RPN's two outputs.", POSITIVE
    )
    rpn_channels: int = predictive_setting(
        0, "Channels of these convolutions; 0 means as many as their input has.", NOT_NEGATIVE
    )
    rpn_scores: str = predictive_setting(
        "sigmoid",
        "Scores of an anchor in the RPN: one under the sigmoid (sigmoid), or one for background "
        "and one for foreground under softmax (softmax).",
        one_of("sigmoid", "softmax"),
    )
    rpn_pre_nms_train: int = setting(
        2000, "Maximum number of proposals per level before NMS, in training.", POSITIVE
    )
    rpn_pre_nms_test: int = predictive_setting(
        1000, "Maximum number of proposals per level before NMS, at test.", POSITIVE
    )
    rpn_post_nms_train: int = setting(
        1000, "Maximum number of proposals per image after NMS, in training.", POSITIVE
    )
    rpn_post_nms_test: int = predictive_setting(
        1000, "Maximum number of proposals per image after NMS, at test.", POSITIVE
    )
    rpn_nms_iou: float = predictive_setting(0.7, "IoU above which a proposal is suppressed.", SHARE)
    rpn_box_loss_beta: float = setting(
        0.0, "Where smooth L1 turns linear; 0 is plain L1.", NOT_NEGATIVE
    )
    rpn_loss_normaliser: str = setting(
        "slots",
        "RPN losses are divided by the number of anchors requested (slots) or actually sampled "
        "(sampled).",
        one_of("slots", "sampled"),
    )
    box_delta_clip: str = predictive_setting(
        "above",
        "Clip the log scales of boxes from above (above) or on both sides (both).",
        one_of("above", "both"),
    )

    rois_per_image: int = setting(512, "RoIs per image that the heads are trained on.", POSITIVE)
    roi_positive_fraction: float = setting(
        0.25,
        "Maximum fraction of positive RoIs among them.",
        POSITIVE_SHARE,
        room_in("rois_per_image"),
    )
    roi_positive_iou: float = setting(
        0.5, "RoIs with at least this IoU are positive.", POSITIVE_SHARE
    )
    roi_pooling: str = predictive_setting(
        "align",
        "How RoIs are pooled: RoIAlign (align), or the maximum of whole cells as in Fast R-CNN "
        "(max), from a single map only.",
        one_of("align", "max"),
        Relation(
            lambda pooling, config: f"align for {config.system}, which pools from a pyramid",
            lambda pooling, config: pooling == "align" or not config.has_pyramid,
        ),
    )
    region_size: int = predictive_setting(
        227,
        "Side of the squares that R-CNN warps regions to, in pixels.",
        between(208, 240),
    )
    roi_sampling_ratio: int = predictive_setting(
        2,
        "Samples along each side of a RoIAlign bin; 0 means as many as the bin has cells.",
        NOT_NEGATIVE,
        Relation(
            lambda ratio, config: "at least 1 with --jit_compile, which needs static shapes",
            lambda ratio, config: ratio >= (1 if config.jit_compile else 0),
        ),
    )
    roi_aligned: bool = predictive_setting(
        True,
        "Shift RoIs by half a cell in RoIAlign; turn it off for torchvision's weights, "
        "which use the older variant.",
    )
    head_norm: str = predictive_setting(
        "none", "Normalisation of the box and mask heads, or none.", one_of(*HEAD_NORMS)
    )
    box_num_convs: int = predictive_setting(
        0, "Number of 3x3 convolutions in the box head.", NOT_NEGATIVE
    )
    box_num_fcs: int = predictive_setting(
        2, "Number of fully connected layers in the box head.", POSITIVE
    )
    head_dim: int = predictive_setting(
        1024, "Width of the fully connected layers in the heads.", POSITIVE
    )
    box_loss_beta: float = setting(
        0.0, "Where smooth L1 turns linear; 0 is plain L1.", NOT_NEGATIVE
    )

    mask_size: int = predictive_setting(
        28,
        "Side length of the predicted masks; the features of the mask head have half of it.",
        MASK_SIZE,
    )
    mask_target: str = setting(
        "bitmap",
        "Mask targets: 0 or 1, from bitmaps (bitmap) or from the annotated polygons (polygon), "
        "or the covered fraction of each cell (soft).",
        one_of("bitmap", "soft", "polygon"),
    )
    mask_paste: str = predictive_setting(
        "exact",
        "Paste masks onto the exact box (exact) or onto whole pixels around it (integer).",
        one_of("exact", "integer"),
    )
    point_subdivisions: int = predictive_setting(
        2,
        "Times that a point head doubles the side of masks; each time their most uncertain cells "
        "are predicted again.",
        between(1, 4),
    )
    maskiou_inputs: str = predictive_setting(
        "mask_and_feature",
        "What the MaskIoU head sees: the predicted mask and the RoI's features, or only one of "
        "them (mask, feature).",
        one_of("mask_and_feature", "mask", "feature"),
    )
    maskiou_target_classes: str = setting(
        "own",
        "Classes whose MaskIoU is learnt: that of the object (own), or all, with 0 for the others.",
        one_of("own", "all"),
    )
    maskiou_target_area: str = setting(
        "closed",
        "How the MaskIoU target gets the area of the whole object: from the annotated mask's "
        "area (closed), or from the mask target and the fraction of the object inside the RoI "
        "(ratio).",
        one_of("closed", "ratio"),
    )
    maskiou_target_threshold: float = setting(
        0.5,
        "Minimum mask probability for a cell to count as predicted in the MaskIoU target.",
        OPEN_SHARE,
    )
    maskiou_stop_gradient: bool = setting(
        False, "Stop the gradient of the MaskIoU loss before the mask head and the backbone."
    )
    maskiou_loss_weight: float = setting(1.0, "Weight of the MaskIoU loss.", NOT_NEGATIVE)
    maskiou_perturbed_masks: bool = setting(
        False,
        "Also train the MaskIoU head on ground-truth masks that are moved, bent, cut and merged at "
        "random, so that it can rate masks that are not the network's own.",
    )

    score_threshold: float = predictive_setting(
        0.05, "Class score that a detection has to exceed.", SHARE
    )
    nms: str = predictive_setting(
        "hard",
        "Detections that overlap a better one of their class are removed (hard), or their scores "
        "are multiplied by exp(-IoU^2 / sigma) (soft); use soft with a low --score_threshold "
        "such as 0.001.",
        one_of("hard", "soft"),
    )
    nms_iou: float = predictive_setting(
        0.5,
        "With --nms=hard, the IoU above which a detection of the same class is suppressed.",
        SHARE,
    )
    soft_nms_sigma: float = predictive_setting(
        0.5,
        "With --nms=soft, the sigma; the larger it is, the less scores fall with overlap.",
        between(0.01, 100.0),
    )
    detections_per_image: int = predictive_setting(
        100, "Maximum number of detections per image.", POSITIVE
    )
    rescore: bool = predictive_setting(
        True, "Compute mask_score as box_score x mask_iou; if off, it is the box_score."
    )
    calibrate_scores: bool = predictive_setting(
        True,
        "Map scores to the IoU that one can expect, if tools/calibrate.py has made a "
        "calibration.json for the checkpoint.",
    )

    @property
    def include_mask(self) -> bool:
        """Whether the system predicts masks, so that the labels need them."""
        return SYSTEMS[self.system].has_masks

    @property
    def include_maskiou(self) -> bool:
        """Whether the system predicts the IoU of each mask."""
        return SYSTEMS[self.system].has_maskiou

    @property
    def has_rpn(self) -> bool:
        """Whether the system makes its proposals; otherwise they come with the images."""
        return SYSTEMS[self.system].has_rpn

    @property
    def has_pyramid(self) -> bool:
        """Whether RoIs are pooled from a feature pyramid; otherwise from one map of stride 16."""
        return SYSTEMS[self.system].has_pyramid

    @property
    def fits_svms(self) -> bool:
        """Whether SVMs and box regressions are fitted after the training of the network."""
        return SYSTEMS[self.system].fits_svms

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
