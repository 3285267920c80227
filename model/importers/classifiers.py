"""The ImageNet classifiers that backbones can start from: their tensor names and this project's.

For the notation see `model.importers.family`.

Source: the key lists of the published checkpoints and the programs' own code.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from model.importers.family import (
    BLOCK,
    CAFFE,
    RESNET_TRUNK,
    RGB,
    TRUNK,
    Family,
    Line,
    resnet_lines,
)
from model.importers.layouts import conv, dense, depthwise, flat_dense, same

_SCOPE = ("backbone/", TRUNK)

TORCHVISION_RESNET = Family(
    name="torchvision ResNet",
    signature="layer1.0.conv1.weight",
    lines=resnet_lines(""),
    ignored=("fc.weight", "fc.bias", "{path}.num_batches_tracked"),
    settings=RGB | {"resnet_stride_in_1x1": False},
    scope=_SCOPE,
    trunk=RESNET_TRUNK,
)

_MSRA_BLOCK = "res{stage:2}_{block}_branch"

# The ImageNet ResNets that Detectron and Detectron2 start from, with Caffe2's names. Their batch
# norms have the statistics folded into scale and offset.
MSRA_RESNET = Family(
    name="Detectron2 ImageNet ResNet (MSRA)",
    signature="res2_0_branch2a_w",
    lines=(
        ("conv1_w", "backbone/stem/conv/kernel", conv),
        ("res_conv1_bn_s", "backbone/stem/norm/gamma", same),
        ("res_conv1_bn_b", "backbone/stem/norm/beta", same),
        *(
            line
            for theirs, ours in (
                ("1", "shortcut"),
                ("2a", "conv1"),
                ("2b", "conv2"),
                ("2c", "conv3"),
            )
            for line in (
                (f"{_MSRA_BLOCK}{theirs}_w", f"{BLOCK}{ours}/conv/kernel", conv),
                (f"{_MSRA_BLOCK}{theirs}_bn_s", f"{BLOCK}{ours}/norm/gamma", same),
                (f"{_MSRA_BLOCK}{theirs}_bn_b", f"{BLOCK}{ours}/norm/beta", same),
            )
        ),
    ),
    ignored=("conv1_b", "fc1000_w", "fc1000_b"),
    settings=CAFFE,
    channel_order="bgr",
    folded_statistics=True,
    scope=_SCOPE,
    trunk=RESNET_TRUNK,
)

_KERAS_BLOCK = "conv{stage:2}_block{block:1}_"

KERAS_RESNET = Family(
    name="Keras ResNet",
    signature="conv2_block1_1_conv/kernel",
    lines=(
        ("conv1_conv/kernel", "backbone/stem/conv/kernel", same),
        ("conv1_conv/bias", "backbone/stem/conv/folded_bias", same),
        ("conv1_bn/{keras_bn}", "backbone/stem/norm/{keras_bn}", same),
        (_KERAS_BLOCK + "0_conv/kernel", BLOCK + "shortcut/conv/kernel", same),
        (_KERAS_BLOCK + "0_conv/bias", BLOCK + "shortcut/conv/folded_bias", same),
        (_KERAS_BLOCK + "0_bn/{keras_bn}", BLOCK + "shortcut/norm/{keras_bn}", same),
        (_KERAS_BLOCK + "{n}_conv/kernel", BLOCK + "conv{n}/conv/kernel", same),
        (_KERAS_BLOCK + "{n}_conv/bias", BLOCK + "conv{n}/conv/folded_bias", same),
        (_KERAS_BLOCK + "{n}_bn/{keras_bn}", BLOCK + "conv{n}/norm/{keras_bn}", same),
    ),
    ignored=("predictions/kernel", "predictions/bias", "probs/kernel", "probs/bias"),
    settings={
        "pixel_mean": (123.68, 116.779, 103.939),
        "pixel_std": (1.0, 1.0, 1.0),
        "resnet_stride_in_1x1": True,
    },
    channel_order="bgr",
    batch_norm_epsilon=1.001e-5,
    scope=_SCOPE,
    trunk=RESNET_TRUNK,
)

EFFICIENTNET_LITE = Family(
    name="EfficientNet-Lite in PyTorch",
    signature="_blocks.0._depthwise_conv.weight",
    lines=(
        ("_conv_stem.weight", "backbone/stem/conv/kernel", conv),
        ("_bn0.{bn}", "backbone/stem/norm/{bn}", same),
        ("_blocks.{i}._expand_conv.weight", "backbone/blocks/{i}/expand/conv/kernel", conv),
        ("_blocks.{i}._bn0.{bn}", "backbone/blocks/{i}/expand/norm/{bn}", same),
        (
            "_blocks.{i}._depthwise_conv.weight",
            "backbone/blocks/{i}/depthwise/conv/kernel",
            depthwise,
        ),
        ("_blocks.{i}._bn1.{bn}", "backbone/blocks/{i}/depthwise/norm/{bn}", same),
        ("_blocks.{i}._project_conv.weight", "backbone/blocks/{i}/project/conv/kernel", conv),
        ("_blocks.{i}._bn2.{bn}", "backbone/blocks/{i}/project/norm/{bn}", same),
    ),
    ignored=(
        "_conv_head.weight",
        *(f"_bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
        "_fc.weight",
        "_fc.bias",
        "{path}.num_batches_tracked",
    ),
    settings={
        "backbone": "efficientnet_lite0",
        "pixel_mean": (127.0, 127.0, 127.0),
        "pixel_std": (128.0, 128.0, 128.0),
    },
    batch_norm_epsilon=1e-3,
    scope=_SCOPE,
    # C4 is the output of block 10.
    trunk={f"backbone/blocks/{11 + i}/": f"{TRUNK}blocks/{i}/" for i in range(5)},
)

_FC8 = ("classifier.6.weight", "classifier.6.bias")

TORCHVISION_ALEXNET = Family(
    name="torchvision AlexNet",
    signature="classifier.4.weight",
    lines=(
        *(
            (f"features.{theirs}.{{wb}}", f"backbone/convs/{ours}/conv/{{wb}}", conv)
            for ours, theirs in enumerate((0, 3, 6, 8, 10))
        ),
        ("classifier.1.{wb}", TRUNK + "fcs/0/{wb}", functools.partial(flat_dense, side=6)),
        ("classifier.4.{wb}", TRUNK + "fcs/1/{wb}", dense),
    ),
    ignored=_FC8,
    settings=RGB | {"backbone": "alexnet_torchvision", "norm": "none"},
    scope=_SCOPE,
)


def _vgg16_lines(groups: Sequence[Sequence[int]], bias: str) -> tuple[Line, ...]:
    """Lists the names of a VGG-16 whose convolutions have these numbers; norms come after them."""
    lines: list[Line] = []
    for group, numbers in enumerate(groups):
        for index, number in enumerate(numbers):
            layer = f"backbone/groups/{group}/{index}/"
            lines += [
                (f"features.{number}.weight", layer + "conv/kernel", conv),
                (f"features.{number}.bias", layer + f"conv/{bias}", same),
                (f"features.{number + 1}.{{bn}}", layer + "norm/{bn}", same),
            ]
    return (
        *lines,
        ("classifier.0.{wb}", TRUNK + "fcs/0/{wb}", flat_dense),
        ("classifier.3.{wb}", TRUNK + "fcs/1/{wb}", dense),
    )


TORCHVISION_VGG16 = Family(
    name="torchvision VGG-16",
    signature="features.26.weight",
    lines=_vgg16_lines(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), "bias"),
    ignored=_FC8,
    settings=RGB | {"backbone": "vgg16", "norm": "none"},
    scope=_SCOPE,
)

TORCHVISION_VGG16_BN = Family(
    name="torchvision VGG-16 with batch norm",
    signature="features.38.weight",
    lines=_vgg16_lines(((0, 3), (7, 10), (14, 17, 20), (24, 27, 30), (34, 37, 40)), "folded_bias"),
    ignored=(*_FC8, "{path}.num_batches_tracked"),
    settings=RGB | {"backbone": "vgg16"},
    scope=_SCOPE,
)
