"""Describes the weight files of a program: its tensor names and this project's.

Each line of a table has: name in the file, path of the variable here, layout. In names, `{i}`
stands for a number, `{i:1}` for one that counts from 1 in the file and from 0 here, `{path}` for
anything, `{bn}` for the four vectors of a batch norm, `{wb}` for a weight (kernel here) or bias. A
path that ends in `folded_bias` is the bias of a convolution that has a norm here, see `translate`.
"""

from __future__ import annotations

import dataclasses

from model.importers.layouts import Layout, conv, same

Line = tuple[str, str, Layout]

BLOCK = "backbone/stages/{stage}/{block}/"
# The layers behind C4 in detectors that apply them to RoIs.
TRUNK = "box_head/trunk/"
RESNET_TRUNK = {"backbone/stages/3/": TRUNK + "blocks/"}
RGB = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}
CAFFE = {
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (1.0, 1.0, 1.0),
    "resnet_stride_in_1x1": True,
}


@dataclasses.dataclass(frozen=True)
class Family:
    """The weight files of one program.

    Attributes:
        name: its name in messages.
        signature: a tensor name that only its files have, in the notation of the tables.
        lines: the table.
        ignored: tensor names that are left out on purpose.
        settings: settings that the weights were trained with; other settings work but change the
            outputs.
        channel_order: of its input images, "rgb" or "bgr".
        batch_norm_epsilon: epsilon that the program adds to variances.
        folded_statistics: whether its batch norms consist of scale and offset only.
        scope: path prefixes of the variables that the files should contain.
        trunk: prefixes of paths in the backbone, and of the same layers in a trunk.
        note: a note for everybody who imports its files.
    """

    name: str
    signature: str
    lines: tuple[Line, ...]
    ignored: tuple[str, ...] = ()
    settings: dict = dataclasses.field(default_factory=dict)
    channel_order: str = "rgb"
    batch_norm_epsilon: float = 1e-5
    folded_statistics: bool = False
    scope: tuple[str, ...] = ("",)
    trunk: dict[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""


def resnet_lines(prefix: str, stem: str = "") -> tuple[Line, ...]:
    """Lists PyTorch's names of a ResNet; files with folded batch norms have conv biases."""
    block = prefix + "layer{stage:1}.{block}."
    return (
        (prefix + stem + "conv1.weight", "backbone/stem/conv/kernel", conv),
        (prefix + stem + "conv1.bias", "backbone/stem/conv/folded_bias", same),
        (prefix + stem + "bn1.{bn}", "backbone/stem/norm/{bn}", same),
        (block + "conv{n}.weight", BLOCK + "conv{n}/conv/kernel", conv),
        (block + "conv{n}.bias", BLOCK + "conv{n}/conv/folded_bias", same),
        (block + "conv2.conv_offset.{wb}", BLOCK + "conv2/conv/offsets/{wb}", conv),
        (block + "bn{n}.{bn}", BLOCK + "conv{n}/norm/{bn}", same),
        (block + "downsample.0.weight", BLOCK + "shortcut/conv/kernel", conv),
        (block + "downsample.0.bias", BLOCK + "shortcut/conv/folded_bias", same),
        (block + "downsample.1.{bn}", BLOCK + "shortcut/norm/{bn}", same),
    )
