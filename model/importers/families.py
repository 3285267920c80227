"""The detectors whose weights can be imported: their tensor names and this project's.

For the notation see `model.importers.family`.

Source: the key lists of the published checkpoints and the programs' own code.
"""

from __future__ import annotations

import dataclasses

from model.importers.classifiers import (
    EFFICIENTNET_LITE,
    KERAS_RESNET,
    MSRA_RESNET,
    TORCHVISION_ALEXNET,
    TORCHVISION_RESNET,
    TORCHVISION_VGG16,
    TORCHVISION_VGG16_BN,
)
from model.importers.family import BLOCK, CAFFE, RGB, Family, Line, resnet_lines
from model.importers.layouts import (
    anchor_deltas,
    background_absent,
    background_first,
    background_last,
    conv,
    deconv,
    dense,
    flat_dense,
    same,
)
from model.norms import BATCH_NORM_EPSILON

_TORCHVISION_HEADS: tuple[Line, ...] = (
    ("backbone.fpn.inner_blocks.{i}.0.{wb}", "fpn/laterals/{i}/conv/{wb}", conv),
    ("backbone.fpn.inner_blocks.{i}.1.{bn}", "fpn/laterals/{i}/norm/{bn}", same),
    ("backbone.fpn.inner_blocks.{i}.{wb}", "fpn/laterals/{i}/conv/{wb}", conv),
    ("backbone.fpn.layer_blocks.{i}.0.{wb}", "fpn/outputs/{i}/conv/{wb}", conv),
    ("backbone.fpn.layer_blocks.{i}.1.{bn}", "fpn/outputs/{i}/norm/{bn}", same),
    ("backbone.fpn.layer_blocks.{i}.{wb}", "fpn/outputs/{i}/conv/{wb}", conv),
    ("rpn.head.conv.{i}.0.{wb}", "rpn_head/convs/{i}/{wb}", conv),
    ("rpn.head.conv.{wb}", "rpn_head/convs/0/{wb}", conv),
    ("rpn.head.cls_logits.{wb}", "rpn_head/objectness/{wb}", conv),
    ("rpn.head.bbox_pred.{wb}", "rpn_head/deltas/{wb}", anchor_deltas),
    ("roi_heads.box_head.fc6.{wb}", "box_head/fcs/0/{wb}", flat_dense),
    ("roi_heads.box_head.fc7.{wb}", "box_head/fcs/1/{wb}", dense),
    ("roi_heads.box_head.{i}.0.weight", "box_head/convs/{i}/conv/kernel", conv),
    ("roi_heads.box_head.{i}.1.{bn}", "box_head/convs/{i}/norm/{bn}", same),
    ("roi_heads.box_head.5.{wb}", "box_head/fcs/0/{wb}", flat_dense),
    ("roi_heads.box_predictor.cls_score.{wb}", "box_head/classes/{wb}", background_first(dense)),
    ("roi_heads.box_predictor.bbox_pred.{wb}", "box_head/deltas/{wb}", background_first(dense, 4)),
    ("roi_heads.mask_head.{i}.0.{wb}", "mask_head/convs/{i}/conv/{wb}", conv),
    ("roi_heads.mask_head.{i}.1.{bn}", "mask_head/convs/{i}/norm/{bn}", same),
    ("roi_heads.mask_head.mask_fcn{i:1}.{wb}", "mask_head/convs/{i}/conv/{wb}", conv),
    ("roi_heads.mask_predictor.conv5_mask.{wb}", "mask_head/deconv/{wb}", deconv),
    (
        "roi_heads.mask_predictor.mask_fcn_logits.{wb}",
        "mask_head/logits/{wb}",
        background_first(conv),
    ),
)

TORCHVISION = Family(
    name="torchvision Faster or Mask R-CNN",
    signature="backbone.body.layer1.0.conv1.weight",
    lines=resnet_lines("backbone.body.") + _TORCHVISION_HEADS,
    ignored=("{path}.num_batches_tracked",),
    settings=RGB
    | {
        "resnet_stride_in_1x1": False,
        "anchor_rounding": True,
        "roi_aligned": False,
        "roi_sampling_ratio": 2,
        "mask_paste": "integer",
    },
    note="Weights for COCO have one output per COCO id up to 90. This project's converter "
    "numbers the 80 categories from 1; for its records, add --keep_classes=coco91.",
)

# The files released in 2019 have older names; torchvision sets their epsilon to 0.
TORCHVISION_2019 = dataclasses.replace(
    TORCHVISION,
    name="torchvision Faster or Mask R-CNN (released 2019)",
    signature="backbone.fpn.inner_blocks.0.weight",
    batch_norm_epsilon=0.0,
)

_DETECTRON2_BODY = "backbone.bottom_up."
_DETECTRON2_BLOCK = _DETECTRON2_BODY + "res{stage:2}.{block}."

DETECTRON2 = Family(
    name="Detectron2 Faster or Mask R-CNN",
    signature="backbone.bottom_up.res2.0.conv1.weight",
    lines=(
        (_DETECTRON2_BODY + "stem.conv1.weight", "backbone/stem/conv/kernel", conv),
        (_DETECTRON2_BODY + "stem.conv1.norm.{bn}", "backbone/stem/norm/{bn}", same),
        (_DETECTRON2_BLOCK + "conv{n}.weight", BLOCK + "conv{n}/conv/kernel", conv),
        (_DETECTRON2_BLOCK + "conv{n}.norm.{bn}", BLOCK + "conv{n}/norm/{bn}", same),
        (_DETECTRON2_BLOCK + "shortcut.weight", BLOCK + "shortcut/conv/kernel", conv),
        (_DETECTRON2_BLOCK + "shortcut.norm.{bn}", BLOCK + "shortcut/norm/{bn}", same),
        ("backbone.fpn_lateral{i:2}.{wb}", "fpn/laterals/{i}/conv/{wb}", conv),
        ("backbone.fpn_output{i:2}.{wb}", "fpn/outputs/{i}/conv/{wb}", conv),
        ("proposal_generator.rpn_head.conv.{wb}", "rpn_head/convs/0/{wb}", conv),
        ("proposal_generator.rpn_head.objectness_logits.{wb}", "rpn_head/objectness/{wb}", conv),
        ("proposal_generator.rpn_head.anchor_deltas.{wb}", "rpn_head/deltas/{wb}", anchor_deltas),
        ("roi_heads.box_head.fc1.{wb}", "box_head/fcs/0/{wb}", flat_dense),
        ("roi_heads.box_head.fc2.{wb}", "box_head/fcs/1/{wb}", dense),
        ("roi_heads.box_predictor.cls_score.{wb}", "box_head/classes/{wb}", background_last(dense)),
        (
            "roi_heads.box_predictor.bbox_pred.{wb}",
            "box_head/deltas/{wb}",
            background_absent(dense, 4),
        ),
        ("roi_heads.mask_head.mask_fcn{i:1}.{wb}", "mask_head/convs/{i}/conv/{wb}", conv),
        ("roi_heads.mask_head.deconv.{wb}", "mask_head/deconv/{wb}", deconv),
        ("roi_heads.mask_head.predictor.{wb}", "mask_head/logits/{wb}", background_absent(conv)),
    ),
    ignored=(
        "pixel_mean",
        "pixel_std",
        "proposal_generator.anchor_generator.cell_anchors.{i}",
        "{path}.num_batches_tracked",
    ),
    settings=CAFFE
    | {
        "anchor_rounding": False,
        "roi_aligned": True,
        "roi_sampling_ratio": 0,
        "mask_paste": "exact",
    },
    channel_order="bgr",
)


MMDETECTION = Family(
    name="mmdetection, PyTorch style",
    signature="roi_head.bbox_head.fc_cls.weight",
    lines=resnet_lines("backbone.")
    + (
        ("neck.lateral_convs.{i}.conv.{wb}", "fpn/laterals/{i}/conv/{wb}", conv),
        ("neck.fpn_convs.{i}.conv.{wb}", "fpn/outputs/{i}/conv/{wb}", conv),
        ("rpn_head.rpn_conv.{wb}", "rpn_head/convs/0/{wb}", conv),
        ("rpn_head.rpn_cls.{wb}", "rpn_head/objectness/{wb}", conv),
        ("rpn_head.rpn_reg.{wb}", "rpn_head/deltas/{wb}", anchor_deltas),
        ("roi_head.bbox_head.shared_fcs.0.{wb}", "box_head/fcs/0/{wb}", flat_dense),
        ("roi_head.bbox_head.shared_fcs.{i}.{wb}", "box_head/fcs/{i}/{wb}", dense),
        ("roi_head.bbox_head.fc_cls.{wb}", "box_head/classes/{wb}", background_last(dense)),
        ("roi_head.bbox_head.fc_reg.{wb}", "box_head/deltas/{wb}", background_absent(dense, 4)),
        ("roi_head.mask_head.convs.{i}.conv.{wb}", "mask_head/convs/{i}/conv/{wb}", conv),
        ("roi_head.mask_head.upsample.{wb}", "mask_head/deconv/{wb}", deconv),
        (
            "roi_head.mask_head.conv_logits.{wb}",
            "mask_head/logits/{wb}",
            background_absent(conv),
        ),
        ("roi_head.mask_iou_head.convs.{i}.{wb}", "maskiou_head/convs/{i}/{wb}", conv),
        ("roi_head.mask_iou_head.fcs.0.{wb}", "maskiou_head/fcs/0/{wb}", flat_dense),
        ("roi_head.mask_iou_head.fcs.{i}.{wb}", "maskiou_head/fcs/{i}/{wb}", dense),
        (
            "roi_head.mask_iou_head.fc_mask_iou.{wb}",
            "maskiou_head/maskiou/{wb}",
            background_absent(dense),
        ),
    ),
    ignored=("{path}.num_batches_tracked",),
    settings=RGB
    | {
        "resnet_stride_in_1x1": False,
        "anchor_rounding": False,
        "roi_aligned": True,
        "roi_sampling_ratio": 0,
        "box_delta_clip": "both",
        "rpn_forced_match": "reassign",
        "mask_paste": "exact",
    },
    note="The file does not state the style of its ResNet. PyTorch style is assumed because of "
    "--noresnet_stride_in_1x1; for Caffe style, add "
    "--flagfile=configs/mmdetection_caffe.flags.",
)
MMDETECTION_CAFFE = dataclasses.replace(
    MMDETECTION,
    name="mmdetection, Caffe style",
    settings=MMDETECTION.settings | CAFFE,
    channel_order="bgr",
    note="The file does not state the style of its ResNet. Caffe style is assumed because of "
    "--resnet_stride_in_1x1; for PyTorch style, give --flagfile=configs/mmdetection.flags.",
)

_AUTHORS_MASK = "roi_heads.mask."
_AUTHORS_MASKIOU = "roi_heads.maskiou."

AUTHORS = Family(
    name="the Mask Scoring R-CNN authors' code or maskrcnn-benchmark",
    signature="roi_heads.box.feature_extractor.fc6.weight",
    lines=resnet_lines("backbone.body.", stem="stem.")
    + (
        ("backbone.fpn.fpn_inner{i:1}.{wb}", "fpn/laterals/{i}/conv/{wb}", conv),
        ("backbone.fpn.fpn_layer{i:1}.{wb}", "fpn/outputs/{i}/conv/{wb}", conv),
        ("rpn.head.conv.{wb}", "rpn_head/convs/0/{wb}", conv),
        ("rpn.head.cls_logits.{wb}", "rpn_head/objectness/{wb}", conv),
        ("rpn.head.bbox_pred.{wb}", "rpn_head/deltas/{wb}", anchor_deltas),
        ("roi_heads.box.feature_extractor.fc6.{wb}", "box_head/fcs/0/{wb}", flat_dense),
        ("roi_heads.box.feature_extractor.fc7.{wb}", "box_head/fcs/1/{wb}", dense),
        (
            "roi_heads.box.predictor.cls_score.{wb}",
            "box_head/classes/{wb}",
            background_first(dense),
        ),
        (
            "roi_heads.box.predictor.bbox_pred.{wb}",
            "box_head/deltas/{wb}",
            background_first(dense, 4),
        ),
        (
            _AUTHORS_MASK + "feature_extractor.mask_fcn{i:1}.{wb}",
            "mask_head/convs/{i}/conv/{wb}",
            conv,
        ),
        (_AUTHORS_MASK + "predictor.conv5_mask.{wb}", "mask_head/deconv/{wb}", deconv),
        (
            _AUTHORS_MASK + "predictor.mask_fcn_logits.{wb}",
            "mask_head/logits/{wb}",
            background_first(conv),
        ),
        (
            _AUTHORS_MASKIOU + "feature_extractor.maskiou_fcn{i:1}.{wb}",
            "maskiou_head/convs/{i}/{wb}",
            conv,
        ),
        (
            _AUTHORS_MASKIOU + "feature_extractor.maskiou_fc1.{wb}",
            "maskiou_head/fcs/0/{wb}",
            flat_dense,
        ),
        (
            _AUTHORS_MASKIOU + "feature_extractor.maskiou_fc2.{wb}",
            "maskiou_head/fcs/1/{wb}",
            dense,
        ),
        (
            _AUTHORS_MASKIOU + "predictor.maskiou.{wb}",
            "maskiou_head/maskiou/{wb}",
            background_first(dense),
        ),
    ),
    ignored=("rpn.anchor_generator.cell_anchors.{i}", "{path}.num_batches_tracked"),
    settings={
        "pixel_mean": (122.7717, 115.9465, 102.9801),
        "pixel_std": (1.0, 1.0, 1.0),
        "resnet_stride_in_1x1": True,
        "roi_aligned": False,
        "roi_sampling_ratio": 2,
        "mask_paste": "integer",
    },
    channel_order="bgr",
    batch_norm_epsilon=0.0,
    note="The authors' anchors and boxes have inclusive corners and are shifted by up to half a "
    "stride. This is not reproduced, so fine-tune before you rely on the detections.",
)


OWN = Family(
    name="this project",
    signature="backbone/stem/conv/kernel",
    lines=(("{path}", "{path}", same),),
    batch_norm_epsilon=BATCH_NORM_EPSILON,
)

# More telling signatures first.
FAMILIES = (
    OWN,
    AUTHORS,
    TORCHVISION_2019,
    TORCHVISION,
    DETECTRON2,
    MMDETECTION,
    MSRA_RESNET,
    KERAS_RESNET,
    TORCHVISION_RESNET,
    TORCHVISION_VGG16,
    TORCHVISION_VGG16_BN,
    TORCHVISION_ALEXNET,
    EFFICIENTNET_LITE,
)
