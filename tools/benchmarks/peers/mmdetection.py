"""mmdetection's Mask Scoring R-CNN with ResNet-50 (caffe) and FPN, from the config it ships."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tools.benchmarks.peers import PeerSettings, expect_detections, torch_work
from tools.benchmarks.peers.scenes import Scene, draw_scenes
from tools.benchmarks.stages import Workload

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "mmdet", "mmengine", "mmcv", "mmcv-lite", "numpy")
_CONFIG = "ms_rcnn/ms-rcnn_r50-caffe_fpn_1x_coco.py"
# Random weights need inputs of unit scale, so the caffe network gets that scale for its pixels.
_PIXEL_DEVIATION = 58.0


def make_train(settings: PeerSettings) -> Workload:
    """Makes training steps on one batch of noise, optimizer included."""

    model = _build(settings).train()
    batch = _batch(settings, model)
    if settings.positives:
        _pin_positives(model.roi_head, settings.positives)

    def loss() -> torch.Tensor:
        return model.parse_losses(model(**batch, mode="loss"))[0]

    return torch_work.make_step(settings, model, loss)


def make_predict(settings: PeerSettings) -> Workload:
    """Makes the detection with 100 detections per image; masks are pasted and scored."""
    import torch

    model = _build(settings).eval()
    batch = _batch(settings, model)
    model.roi_head.bbox_head.register_forward_hook(
        lambda module, inputs, outputs: torch_work.name_classes(outputs, first=0)
    )

    def run() -> int:
        with torch.inference_mode(), torch_work.autocast(settings):
            found = model(**batch, mode="predict")
        expect_detections([len(sample.pred_instances.masks) for sample in found])
        return settings.batch_size

    return run


WORKLOADS = {"train": make_train, "predict": make_predict}


def _build(settings: PeerSettings) -> torch.nn.Module:
    import mmdet
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    torch_work.set_up(settings)
    register_all_modules()
    folder = os.path.join(os.path.dirname(mmdet.__file__), ".mim", "configs")
    config = Config.fromfile(os.path.join(folder, _CONFIG)).model
    config.backbone.init_cfg = None
    config.data_preprocessor.std = [_PIXEL_DEVIATION] * 3
    if settings.positives:
        sampler = config.train_cfg.rcnn.sampler
        sampler.pos_fraction = settings.positives / sampler.num
    model = MODELS.build(config)
    model.init_weights()
    _compute_rois_in_float(model)
    return model


def _compute_rois_in_float(model: torch.nn.Module) -> None:
    """Works around mmcv's operators for NMS and RoIAlign, which lack bfloat16 on the CPU."""
    import torch
    from torch.utils import _pytree

    def in_float(tree):
        return _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.float(), tree)

    for head in (model.rpn_head, model.roi_head.bbox_head):
        head.register_forward_hook(lambda module, inputs, outputs: in_float(outputs))
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        extractor.register_forward_pre_hook(lambda module, inputs: in_float(inputs))


def _batch(settings: PeerSettings, model: torch.nn.Module) -> dict:
    """Makes the model's arguments, preprocessed."""
    import torch

    scenes = draw_scenes(settings)
    data = {
        "inputs": [torch.from_numpy(scene.image) for scene in scenes],
        "data_samples": [_sample(scene) for scene in scenes],
    }
    return model.data_preprocessor(data, training=True)


def _sample(scene: Scene):
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    shape = scene.image.shape[1:]
    info = {"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)}
    sample = DetDataSample(metainfo=info)
    sample.gt_instances = InstanceData(
        bboxes=torch.from_numpy(scene.boxes),
        labels=torch.from_numpy(scene.labels - 1),
        masks=BitmapMasks(scene.masks, *shape),
    )
    return sample


def _pin_positives(roi_head: torch.nn.Module, count: int) -> None:
    loss = roi_head.loss

    def loss_near_objects(features, proposals, samples, *args):
        for boxes, sample in zip(proposals, samples, strict=True):
            objects = sample.gt_instances.bboxes
            boxes.bboxes = torch_work.near_objects(objects, boxes.bboxes, count)
        return loss(features, proposals, samples, *args)

    roi_head.loss = loss_near_objects
