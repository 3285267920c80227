"""Settings of the network and its losses."""

from __future__ import annotations

import dataclasses

from data.config import require, setting

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
NORMS = ("frozen_bn", "bn", "sync_bn", "gn")
# Batch statistics of RoIs would mix in the empty slots that XLA needs.
HEAD_NORMS = ("none", "frozen_bn", "gn")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The Mask Scoring R-CNN network (`model/`)."""

    num_classes: int = setting(
        0,
        "Classes including the background; 0 takes it from the records' manifest, or from the "
        "largest label of records that have none.",
    )
    precision: str = setting("float32", "float32, mixed_bfloat16 or mixed_float16.")
    jit_compile: bool = setting(
        False, "Compile steps with XLA; the mask heads then run on static slots."
    )

    backbone: str = setting("resnet50", "One of " + ", ".join(BACKBONES) + ".")
    norm: str = setting(
        "gn", "Normalisation: gn from scratch, frozen_bn when fine-tuning, bn or sync_bn."
    )
    freeze_at: int = setting(
        0, "Backbone stages that stay as they are: 1 the stem, 2 the stem and res2, ..."
    )
    backbone_width: int = setting(64, "Channels of the stem; the stages' grow with it.")
    resnet_stride_in_1x1: bool = setting(
        False, "Bottlenecks stride in their first 1x1 instead of the 3x3 (Caffe's ResNets)."
    )
    fpn_channels: int = setting(256, "Channels of the pyramid and the convolutional heads.")
    fpn_norm: str = setting("none", "Normalisation after the pyramid's convolutions, or none.")
    pixel_mean: tuple[float, ...] = setting((123.675, 116.28, 103.53), "Subtracted from RGB.")
    pixel_std: tuple[float, ...] = setting((58.395, 57.12, 57.375), "Divides what is left.")

    rpn_num_convs: int = setting(1, "3x3 convolutions before the RPN's two outputs.")
    rpn_pre_nms_train: int = setting(2000, "Proposals a level sends into NMS in training.")
    rpn_pre_nms_test: int = setting(1000, "Proposals a level sends into NMS at test.")
    rpn_post_nms_train: int = setting(1000, "Proposals an image keeps in training.")
    rpn_post_nms_test: int = setting(1000, "Proposals an image keeps at test.")
    rpn_nms_iou: float = setting(0.7, "IoU above which a proposal is suppressed.")
    rpn_box_loss_beta: float = setting(0.0, "Where smooth L1 turns linear; 0 is plain L1.")
    rpn_loss_normaliser: str = setting(
        "slots", "RPN losses are divided by the anchors asked for (slots) or found (sampled)."
    )
    box_delta_clip: str = setting(
        "above", "Log scales of boxes are bounded from above, or on both sides (both)."
    )

    rois_per_image: int = setting(512, "RoIs an image trains its heads on.")
    roi_positive_fraction: float = setting(0.25, "Largest share of positives among them.")
    roi_positive_iou: float = setting(0.5, "RoIs with at least this IoU are positive.")
    roi_sampling_ratio: int = setting(
        2, "Samples a RoIAlign bin takes along each side; 0: as many as it has cells."
    )
    roi_aligned: bool = setting(
        True, "RoIAlign shifts by half a cell; off: the older variant of torchvision's weights."
    )
    head_norm: str = setting("none", "Normalisation in the box and mask heads, or none.")
    box_num_convs: int = setting(0, "3x3 convolutions of the box head.")
    box_num_fcs: int = setting(2, "Fully connected layers of the box head.")
    head_dim: int = setting(1024, "Width of the fully connected layers.")
    box_loss_beta: float = setting(0.0, "Where smooth L1 turns linear; 0 is plain L1.")

    include_mask: bool = setting(True, "Build and train the mask head.")
    mask_size: int = setting(28, "Side of the predicted masks, twice the mask RoI's 14.")
    mask_target: str = setting(
        "bitmap",
        "Mask targets are 0 or 1, made of bitmaps (bitmap) or of the annotated polygons (polygon), "
        "or the share of the cell covered (soft).",
    )
    mask_paste: str = setting(
        "exact", "Masks are pasted onto the box (exact) or onto whole pixels around it (integer)."
    )
    include_maskiou: bool = setting(True, "Build and train the MaskIoU head.")
    maskiou_target_area: str = setting(
        "closed", "Whole-object area from the box's area (closed) or from the mask (ratio)."
    )
    maskiou_target_threshold: float = setting(
        0.5, "Mask probability from which a cell counts as predicted in the MaskIoU target."
    )
    maskiou_stop_gradient: bool = setting(
        False, "Keep the MaskIoU loss from training the mask head and the backbone."
    )
    maskiou_loss_weight: float = setting(1.0, "Weight of the MaskIoU loss.")

    score_threshold: float = setting(0.05, "Detections need a class score above this.")
    nms_iou: float = setting(0.5, "IoU above which a detection of the same class is suppressed.")
    detections_per_image: int = setting(100, "Detections an image keeps.")
    rescore: bool = setting(True, "mask_score = box_score x mask_iou; off: mask_score = box_score.")

    @property
    def include_polygons(self) -> bool:
        """Whether mask targets are drawn from polygons, so that the labels need them."""
        return self.include_mask and self.mask_target == "polygon"

    def __post_init__(self):
        require(
            self.num_classes == 0 or self.num_classes >= 2,
            "num_classes",
            self.num_classes,
            "at least 2 (the background and one class), or 0",
        )
        for name, choices in (
            ("backbone", BACKBONES),
            ("norm", NORMS),
            ("precision", PRECISIONS),
            ("fpn_norm", ("none", *NORMS)),
            ("head_norm", HEAD_NORMS),
            ("rpn_loss_normaliser", ("slots", "sampled")),
            ("box_delta_clip", ("above", "both")),
            ("mask_target", ("bitmap", "soft", "polygon")),
            ("mask_paste", ("exact", "integer")),
            ("maskiou_target_area", ("closed", "ratio")),
        ):
            require(
                getattr(self, name) in choices,
                name,
                getattr(self, name),
                "one of " + ", ".join(choices),
            )
        require(
            not (self.resnet_stride_in_1x1 and self.backbone in ("resnet18", "resnet34")),
            "resnet_stride_in_1x1",
            True,
            f"a backbone with bottlenecks, not {self.backbone}",
        )
        require(0 <= self.freeze_at <= 5, "freeze_at", self.freeze_at, "0 to 5")
        require(
            self.roi_sampling_ratio >= (1 if self.jit_compile else 0),
            "roi_sampling_ratio",
            self.roi_sampling_ratio,
            "at least 1, or 0 without --jit_compile, which needs static shapes",
        )
        require(self.box_num_convs >= 0, "box_num_convs", self.box_num_convs, "0 or more")
        require(
            self.mask_size >= 4 and self.mask_size % 4 == 0,
            "mask_size",
            self.mask_size,
            "a multiple of 4",
        )
        for name in (
            "rpn_pre_nms_train",
            "rpn_pre_nms_test",
            "rpn_post_nms_train",
            "rpn_post_nms_test",
            "rois_per_image",
            "detections_per_image",
            "backbone_width",
            "fpn_channels",
            "rpn_num_convs",
            "box_num_fcs",
            "head_dim",
        ):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in (
            "rpn_nms_iou",
            "roi_positive_fraction",
            "roi_positive_iou",
            "score_threshold",
            "nms_iou",
        ):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        require(
            0 < self.maskiou_target_threshold < 1,
            "maskiou_target_threshold",
            self.maskiou_target_threshold,
            "between 0 and 1",
        )
        require(
            self.include_mask or not self.include_maskiou,
            "include_maskiou",
            True,
            "--include_mask with it",
        )
        for name in ("pixel_mean", "pixel_std"):
            require(len(getattr(self, name)) == 3, name, getattr(self, name), "three numbers")
