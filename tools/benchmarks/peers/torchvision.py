"""torchvision's Mask R-CNN with ResNet-50 and FPN."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tools.benchmarks import synthetic
from tools.benchmarks.peers import CLASSES, PeerSettings, expect_detections, torch_work
from tools.benchmarks.peers.scenes import draw_scenes
from tools.benchmarks.stages import Workload

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "numpy")
# With batch norm frozen at the identity, the variance doubles in every residual block.
_RESIDUAL_GAIN = 0.2


def make_train(settings: PeerSettings) -> Workload:
    """Makes training steps on one batch of noise, optimizer included."""

    model = _build(settings).train()
    images, targets = _batch(settings)
    if settings.positives:
        _pin_positives(model, settings.positives)

    def loss() -> torch.Tensor:
        return sum(model(images, targets).values())

    return torch_work.make_step(settings, model, loss)


def make_predict(settings: PeerSettings) -> Workload:
    """Makes the detection with 100 detections per image; masks are pasted."""
    import torch

    model = _build(settings).eval()
    images, _ = _batch(settings)
    model.roi_heads.box_predictor.register_forward_hook(
        lambda module, inputs, outputs: torch_work.name_classes(outputs, first=1)
    )

    def run() -> int:
        with torch.inference_mode(), torch_work.autocast(settings):
            found = model(images)
        expect_detections([len(image["masks"]) for image in found])
        return settings.batch_size

    return run


def write_exports(settings: PeerSettings, folder: str) -> None:
    """Writes model.onnx: from uint8 [1, S, S, 3] to boxes, classes, scores and masks."""
    import torch

    model = _build(settings).eval()
    # It would paste the masks, in a loop.
    model.transform.postprocess = lambda found, *sizes: found
    detector, image = _make_detector(model), synthetic.draw_image(settings.image_size)
    with torch.inference_mode():
        _spread_logits(model, detector, torch.from_numpy(image))
    torch.onnx.export(
        detector,
        (torch.from_numpy(image),),
        os.path.join(folder, "model.onnx"),
        input_names=["image"],
        output_names=["boxes", "classes", "scores", "masks"],
        dynamo=False,
    )


WORKLOADS = {"train": make_train, "predict": make_predict}


def _build(settings: PeerSettings) -> torch.nn.Module:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.resnet import Bottleneck
    from torchvision.ops import FrozenBatchNorm2d

    torch_work.set_up(settings)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    for module in backbone.modules():
        if isinstance(module, Bottleneck):
            module.bn3.weight.fill_(_RESIDUAL_GAIN)
    size = settings.image_size
    return MaskRCNN(backbone, CLASSES, min_size=size, max_size=size)


def _make_detector(model: torch.nn.Module) -> torch.nn.Module:
    import torch

    class Detector(torch.nn.Module):
        """Maps the pixels of one image to tensors."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            (found,) = self.model([image[0].permute(2, 0, 1) / 255.0])
            return tuple(found[name] for name in ("boxes", "labels", "scores", "masks"))

    return Detector().eval()


def _spread_logits(model: torch.nn.Module, detector: torch.nn.Module, image: torch.Tensor) -> None:
    """Scales the classifier so that random weights give scores high enough for detections."""
    deviations = []
    predictor = model.roi_heads.box_predictor
    hook = predictor.register_forward_hook(
        lambda module, inputs, outputs: deviations.append(outputs[0].std())
    )
    detector(image)
    hook.remove()
    predictor.cls_score.weight.mul_(synthetic.LOGIT_DEVIATION / deviations[0])


def _batch(settings: PeerSettings) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    import torch

    scenes = draw_scenes(settings)
    images = [torch.from_numpy(scene.image) / 255.0 for scene in scenes]
    targets = [
        {name: torch.from_numpy(getattr(scene, name)) for name in ("boxes", "labels", "masks")}
        for scene in scenes
    ]
    return images, targets


def _pin_positives(model: torch.nn.Module, count: int) -> None:
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

    def propose_near_objects(module, inputs, outputs):
        (_, _, targets), (proposals, losses) = inputs, outputs
        pairs = zip(targets, proposals, strict=True)
        return [torch_work.near_objects(t["boxes"], p, count) for t, p in pairs], losses

    rois = torch_work.SAMPLED_ROIS
    model.rpn.register_forward_hook(propose_near_objects)
    model.roi_heads.fg_bg_sampler = BalancedPositiveNegativeSampler(rois, count / rois)
