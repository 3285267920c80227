"""The backbones that `--backbone` names.

A backbone is one file here and one line in `BACKBONES`. The file has a function

    make(rng, name, options)

that returns a `model.layers.Part`: called with normalised pixels [B, H, W, 3], `training` and
`static`, it returns C2 … C5, of strides 4, 8, 16 and 32, whose channels are its `out_channels`. It
declares which of its variables weight decay applies to, freezes stages, and refuses options that it
does not support by `data.settings.require`.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple


class Pixels(NamedTuple):
    """How a network normalises an image: (RGB - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Options(NamedTuple):
    """The options of a backbone, named as their settings.

    Attributes:
        norm: see `model.norms.make_norm`.
        freeze_at: frozen stages, which also stop gradients: 1 the stem, 2 everything up to C2, ….
        width: channels of the stem; 0 means as published.
        stride_in_1x1: whether bottlenecks have the stride in their first 1×1 convolution.
        dtype: Keras dtype policy.
    """

    norm: str
    freeze_at: int = 0
    width: int = 0
    stride_in_1x1: bool = False
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
    "efficientnet_lite0": Backbone("efficientnet_lite", Pixels((127.0,) * 3, (128.0,) * 3)),
    "mobilenet_v3_small": Backbone("mobilenet_v3", Pixels((127.5,) * 3, (127.5,) * 3)),
    "mobilenet_v3_large": Backbone("mobilenet_v3", Pixels((127.5,) * 3, (127.5,) * 3)),
}


def make_backbone(rng, name: str, options: Options):
    """Makes the backbone with a name in `BACKBONES`; returns the result of its `make`."""
    module = importlib.import_module(f"{__package__}.{BACKBONES[name].file}")
    return module.make(rng, name, options)
