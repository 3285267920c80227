"""The R-CNN family: the parts of each system. Only this file reads `ModelConfig`.

    rcnn                           Girshick et al., CVPR 2014: given proposals, cut from the image
    └ fast_rcnn                    Girshick, ICCV 2015: pooled from one map, boxes learnt with it
      └ faster_rcnn_c4             Ren et al., NIPS 2015: + a network that makes the proposals
        └ faster_rcnn              Lin et al., CVPR 2017: on a feature pyramid
          └ mask_rcnn              He et al., ICCV 2017: + a mask of each box
            └ mask_scoring_rcnn    Huang et al., CVPR 2019: + the IoU that each mask should have
    cascade_…                      Cai and Vasconcelos, CVPR 2018: three box heads in a row
    pointrend_…                    Kirillov et al., CVPR 2020: masks refined at uncertain points

A system is a row of functions that make its parts from the settings; most systems differ from their
parent in one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from data.anchors import AnchorGrid
from data.config import DataConfig
from model.augmented_detector import AugmentedDetector
from model.backbones import Options, Pixels, make_backbone, make_trunk
from model.box_head import BoxHead
from model.cascade_head import DELTA_WEIGHTS, CascadeHead
from model.config import ModelConfig
from model.detector import Detector
from model.fpn import FPN
from model.given_proposals import GivenProposals
from model.layers import Part
from model.mask_head import MaskHead
from model.maskiou_head import MaskIoUHead
from model.point_head import PointHead
from model.region_head import RegionHead
from model.roi_align import RoIAlign
from model.roi_pool import RoIPool
from model.roi_sampling import sample_rois
from model.rpn import RPNHead
from model.single_map import SingleMap
from model.warped_regions import WarpedRegions

# Systems without a pyramid pool from C4, of stride 16.
_SINGLE_LEVEL = 4


class Settings(NamedTuple):
    """What the makers of parts read.

    Attributes:
        model, data: settings.
        rng: source of the initial weights.
        options: the backbone's.
        backbone: None before there is one.
        channels: of the maps that regions are pooled from; 0 before there is a neck.
    """

    model: ModelConfig
    data: DataConfig
    rng: np.random.Generator
    options: Options
    backbone: Part | None = None
    channels: int = 0


class System(NamedTuple):
    """Functions that make a system's parts from `Settings` (the neck also from C2 … C5's channels).

    Weights are drawn part by part in this order, after the backbone's.

    Attributes:
        last_stage: the last of C2 … C5 that the backbone computes.
        whole_image: whether for the whole image, otherwise for each region.
    """

    neck: Callable
    proposer: Callable
    sampler: Callable
    regions: Callable
    heads: Mapping[str, Callable]
    last_stage: int = 5
    whole_image: bool = True

    def with_heads(self, heads: Mapping[str, Callable]) -> System:
        """Returns the system with these heads, in the place of those of the same names or last."""
        return self._replace(heads={**self.heads, **heads})


def _fpn(settings: Settings, in_channels: tuple[int, ...]) -> FPN:
    model = settings.model
    return FPN(
        settings.rng,
        in_channels,
        model.fpn_channels,
        norm=model.fpn_norm,
        separable=model.separable_convs,
        dtype=model.precision,
    )


def _single_map(settings: Settings, in_channels: tuple[int, ...]) -> SingleMap:
    return SingleMap(in_channels[-1])


def _given_proposals(settings: Settings) -> GivenProposals:
    return GivenProposals()


def _rpn(settings: Settings) -> RPNHead:
    model, data = settings.model, settings.data
    return RPNHead(
        settings.rng,
        settings.channels,
        functools.partial(AnchorGrid.from_config, data),
        data.anchors_per_cell,
        hidden=model.rpn_channels,
        softmax=model.rpn_scores == "softmax",
        num_convs=model.rpn_num_convs,
        separable=model.separable_convs,
        pre_nms=(model.rpn_pre_nms_train, model.rpn_pre_nms_test),
        post_nms=(model.rpn_post_nms_train, model.rpn_post_nms_test),
        nms_iou=model.rpn_nms_iou,
        clip_below=model.box_delta_clip == "both",
        box_loss_beta=model.rpn_box_loss_beta,
        loss_normaliser=model.rpn_loss_normaliser,
        dtype=model.precision,
    )


def _roi_sampler(settings: Settings):
    model = settings.model
    return functools.partial(
        sample_rois,
        num_rois=model.rois_per_image,
        positive_fraction=model.roi_positive_fraction,
        positive_iou=model.roi_positive_iou,
    )


def _roi_align(settings: Settings, **levels: int) -> RoIAlign:
    return RoIAlign(settings.model.roi_sampling_ratio, settings.model.roi_aligned, **levels)


def _pool_from_one_map(settings: Settings) -> RoIAlign | RoIPool:
    if settings.model.roi_pooling == "max":
        return RoIPool(2**_SINGLE_LEVEL)
    return _roi_align(settings, num_levels=1, min_level=_SINGLE_LEVEL)


def _warped_regions(settings: Settings) -> WarpedRegions:
    return WarpedRegions(settings.backbone, settings.model.region_size)


def _region_head(settings: Settings) -> RegionHead:
    model = settings.model
    return RegionHead(
        settings.rng,
        make_trunk(settings.rng, model.backbone, settings.options),
        settings.channels,
        model.num_classes,
        _detection_limits(model),
        dtype=model.precision,
    )


def _detection_limits(model: ModelConfig) -> dict[str, float]:
    return {
        "score_threshold": model.score_threshold,
        "nms_iou": model.nms_iou,
        "soft_nms_sigma": model.soft_nms_sigma if model.nms == "soft" else 0.0,
        "max_detections": model.detections_per_image,
    }


def _box_head_on_trunk(settings: Settings) -> BoxHead:
    model = settings.model
    return _box_head(settings, make_trunk(settings.rng, model.backbone, settings.options))


def _cascade_head(settings: Settings) -> CascadeHead:
    make = functools.partial(_box_head, settings, class_specific=False)
    return CascadeHead([make(delta_weights=weights) for weights in DELTA_WEIGHTS])


def _box_head(settings: Settings, trunk: Part | None = None, **options) -> BoxHead:
    model = settings.model
    return BoxHead(
        settings.rng,
        settings.channels,
        model.head_dim,
        model.num_classes,
        trunk=trunk,
        num_convs=model.box_num_convs,
        separable=model.separable_convs,
        num_fcs=model.box_num_fcs,
        norm=model.head_norm,
        box_loss_beta=model.box_loss_beta,
        **_detection_limits(model),
        **options,
        clip_below=model.box_delta_clip == "both",
        dtype=model.precision,
    )


def _mask_head(settings: Settings) -> MaskHead:
    model = settings.model
    return MaskHead(
        settings.rng,
        settings.channels,
        model.num_classes,
        mask_size=model.mask_size,
        max_rois=_most_positives(model),
        target=model.mask_target,
        separable=model.separable_convs,
        norm=model.head_norm,
        dtype=model.precision,
    )


def _most_positives(model: ModelConfig) -> int:
    return int(model.rois_per_image * model.roi_positive_fraction)


def _point_head(settings: Settings, is_judged: bool = False) -> PointHead:
    model = settings.model
    return PointHead(
        settings.rng,
        settings.channels,
        model.num_classes,
        mask_size=model.mask_size,
        subdivisions=model.point_subdivisions,
        max_rois=_most_positives(model),
        target=model.mask_target,
        is_judged=is_judged,
        dtype=model.precision,
    )


def _maskiou_head(settings: Settings) -> MaskIoUHead:
    model = settings.model
    return MaskIoUHead(
        settings.rng,
        settings.channels,
        model.head_dim,
        model.num_classes,
        model.mask_size,
        inputs=model.maskiou_inputs,
        target_classes=model.maskiou_target_classes,
        target_area=model.maskiou_target_area,
        target_threshold=model.maskiou_target_threshold,
        stop_gradient=model.maskiou_stop_gradient,
        loss_weight=model.maskiou_loss_weight,
        num_perturbed=_most_positives(model) // 2 if model.maskiou_perturbed_masks else 0,
        rescore=model.rescore,
        separable=model.separable_convs,
        dtype=model.precision,
    )


_FAST_RCNN = System(
    _single_map,
    _given_proposals,
    _roi_sampler,
    _pool_from_one_map,
    {"box_head": _box_head_on_trunk},
    last_stage=_SINGLE_LEVEL,
)
_RCNN = _FAST_RCNN._replace(
    regions=_warped_regions, heads={"box_head": _region_head}, whole_image=False
)
_FASTER_RCNN_C4 = _FAST_RCNN._replace(proposer=_rpn)
_FASTER_RCNN = System(_fpn, _rpn, _roi_sampler, _roi_align, {"box_head": _box_head})
_MASK_RCNN = _FASTER_RCNN.with_heads({"mask_head": _mask_head})
_MASKIOU_HEAD = {"maskiou_head": _maskiou_head}
_MASK_SCORING_RCNN = _MASK_RCNN.with_heads(_MASKIOU_HEAD)

_CASCADE_HEAD = {"box_head": _cascade_head}
_POINT_HEAD = {"point_head": _point_head}
_JUDGED_POINT_HEAD = {"point_head": functools.partial(_point_head, is_judged=True)}

SYSTEMS = {
    "rcnn": _RCNN,
    "fast_rcnn": _FAST_RCNN,
    "faster_rcnn_c4": _FASTER_RCNN_C4,
    "faster_rcnn": _FASTER_RCNN,
    "mask_rcnn": _MASK_RCNN,
    "pointrend_mask_rcnn": _MASK_RCNN.with_heads(_POINT_HEAD),
    "mask_scoring_rcnn": _MASK_SCORING_RCNN,
    "cascade_mask_rcnn": _MASK_RCNN.with_heads(_CASCADE_HEAD),
    "cascade_mask_scoring_rcnn": _MASK_SCORING_RCNN.with_heads(_CASCADE_HEAD),
    "pointrend_mask_scoring_rcnn": _MASK_RCNN.with_heads(_JUDGED_POINT_HEAD).with_heads(
        _MASKIOU_HEAD
    ),
}


def build_network(params) -> Detector:
    """Builds the network that `params.model` and `params.data` describe, with its variables.

    Raises:
        ValueError: the backbone does not support an option in the settings, or the system has no
            part that `train_only` names.
    """
    model = params.model
    system = SYSTEMS[model.system]
    options = Options(
        norm=model.norm,
        freeze_at=model.freeze_at,
        width=model.backbone_width,
        stride_in_1x1=model.resnet_stride_in_1x1,
        dtype=model.precision,
        last_stage=system.last_stage,
    )
    rng = np.random.default_rng(params.data.seed)
    settings = Settings(model, params.data, rng, options)
    backbone = make_backbone(rng, model.backbone, options)
    neck = system.neck(settings, backbone.out_channels)
    settings = settings._replace(backbone=backbone, channels=neck.out_channels)
    make_detector, scales, flip = Detector, len(params.data.test_scales), params.data.test_flip
    if scales > 1 or flip:
        make_detector = functools.partial(AugmentedDetector, num_scales=scales, flip=flip)
    network = make_detector(
        pixels=Pixels(model.pixel_mean, model.pixel_std),
        backbone=backbone,
        neck=neck,
        proposer=system.proposer(settings),
        sampler=system.sampler(settings),
        regions=system.regions(settings),
        heads={name: make(settings) for name, make in system.heads.items()},
        whole_image=system.whole_image,
        dtype=model.precision,
    )
    if model.train_only:
        network.train_only(model.train_only)
    return network
