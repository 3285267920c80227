"""The backbones that `--backbone` names.

A backbone is one file here and one line in `BACKBONES`. The file has a function

    make(rng, name, options)

that returns a `model.layers.Part`: called with normalised pixels [B, H, W, 3], `training` and
`static`, it returns C2 … C5, of strides 4, 8, 16 and 32, whose channels are its `out_channels`. It
declares which of its variables weight decay applies to, freezes stages, and refuses options that it
does not support by `data.settings.require`. Detectors on one map need C2 … C4 only and apply the
rest of the network to each RoI. That is its trunk, which

    make_trunk(rng, name, options)

returns as another `Part`: called with the features of N RoIs, [N, roi_size, roi_size, C4 channels],
and `training`, it returns vectors [N, out_channels].
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

from data.settings import require


class Pixels(NamedTuple):
    """How a network normalises an image: (RGB - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Options(NamedTuple):
    """The options of a backbone, named as their settings.

    Attributes:
        norm: see `model.norms.ConvNorm`.
        freeze_at: frozen stages, which also stop gradients: 1 the stem, 2 everything up to C2, …,
            and with 5 the trunk; in VGG and AlexNet the first convolutions, see there.
        width: channels of the stem; 0 means as published.
        stride_in_1x1: whether bottlenecks have the stride in their first 1×1 convolution.
        last_stage: the backbone ends with C5, or with C4, C3 or C2.
        dtype: Keras dtype policy.
    """

    norm: str
    freeze_at: int = 0
    width: int = 0
    stride_in_1x1: bool = False
    last_stage: int = 5
    dtype: str = "float32"


class Backbone(NamedTuple):
    """The module that makes a backbone, and the normalisation that its ImageNet weights need."""

    file: str
    pixels: Pixels


_IMAGENET = Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

BACKBONES = {
    "resnet18": Backbone("resnet", _IMAGENET),
    "resnet34": Backbone("resnet", _IMAGENET),
    "resnet50": Backbone("resnet", _IMAGENET),
    "resnet101": Backbone("resnet", _IMAGENET),
    "resnet152": Backbone("resnet", _IMAGENET),
    "resnet50_dcn": Backbone("resnet", _IMAGENET),
    "resnet101_dcn": Backbone("resnet", _IMAGENET),
    "resnext50_32x4d": Backbone("resnet", _IMAGENET),
    "resnext101_32x4d": Backbone("resnet", _IMAGENET),
    "resnext101_32x8d": Backbone("resnet", _IMAGENET),
    "resnext101_64x4d": Backbone("resnet", _IMAGENET),
    "vgg16": Backbone("vgg", _IMAGENET),
    "alexnet": Backbone("alexnet", _IMAGENET),
    "alexnet_torchvision": Backbone("alexnet", _IMAGENET),
    "efficientnet_lite0": Backbone("efficientnet_lite", Pixels((127.0,) * 3, (128.0,) * 3)),
    "mobilenet_v3_small": Backbone("mobilenet_v3", Pixels((127.5,) * 3, (127.5,) * 3)),
    "mobilenet_v3_large": Backbone("mobilenet_v3", Pixels((127.5,) * 3, (127.5,) * 3)),
}


def make_backbone(rng, name: str, options: Options):
    """Makes the backbone with a name in `BACKBONES`; returns the result of its `make`."""
    return _import(name).make(rng, name, options)


def make_trunk(rng, name: str, options: Options):
    """Makes the trunk of the backbone with a name in `BACKBONES`."""
    return _import(name).make_trunk(rng, name, options)


def require_no_stride_in_1x1(name: str, options: Options) -> None:
    """Refuses an option of ResNets for other backbones.

    Raises:
        SettingError: it is set.
    """
    require(
        not options.stride_in_1x1,
        "resnet_stride_in_1x1",
        True,
        f"false for {name}, which is not a ResNet",
    )


def require_norm_of_rois(norm: str) -> None:
    """Refuses batch norms for a trunk: RoIs include empty slots, which would move the statistics.

    Raises:
        SettingError: the norm uses statistics of the batch.
    """
    require(
        norm not in ("bn", "sync_bn"),
        "norm",
        norm,
        "none, frozen_bn or gn if the last layers of the backbone are applied to RoIs",
    )


def _import(name: str):
    return importlib.import_module(f"{__package__}.{BACKBONES[name].file}")
