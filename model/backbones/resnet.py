"""ResNets (He et al., CVPR 2016, table 1) and ResNeXts (Xie et al., CVPR 2017, table 1).

Axes: B images (or RoIs), H W rows and columns of the input, C channels.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from data.settings import require
from model.backbones import Options, require_norm_of_rois
from model.layers import LayerList, Part
from model.max_pool import max_pool
from model.norms import ConvNorm

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnet50_dcn": (3, 4, 6, 3),
    "resnet101_dcn": (3, 4, 23, 3),
    "resnext50_32x4d": (3, 4, 6, 3),
    "resnext101_32x4d": (3, 4, 23, 3),
    "resnext101_32x8d": (3, 4, 23, 3),
    "resnext101_64x4d": (3, 4, 23, 3),
}
BASIC = ("resnet18", "resnet34")
# Groups of the 3×3 convolutions and the channels of each group in res2.
GROUPS = {
    "resnext50_32x4d": (32, 4),
    "resnext101_32x4d": (32, 4),
    "resnext101_32x8d": (32, 8),
    "resnext101_64x4d": (64, 4),
}
# Their 3×3 convolutions are deformable from res3 on, as in Dai et al., ICCV 2017.
DEFORMABLE = ("resnet50_dcn", "resnet101_dcn")
WIDTH = 64


class BasicBlock(keras.layers.Layer):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self,
        rng: np.random.Generator,
        in_channels: int,
        width: int,
        stride: int,
        *,
        norm: str,
        dtype: str,
    ):
        super().__init__(dtype=dtype, autocast=False)
        self.conv1 = ConvNorm(rng, in_channels, width, 3, stride=stride, norm=norm, dtype=dtype)
        self.conv2 = ConvNorm(rng, width, width, 3, norm=norm, dtype=dtype)
        self.shortcut = _shortcut(rng, in_channels, width, stride, norm, dtype)
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [B, H, W, in_channels] → [B, H / stride, W / stride, width]."""
        y = tf.nn.relu(self.conv1(x, training=training))
        y = self.conv2(y, training=training)
        shortcut = x if self.shortcut is None else self.shortcut(x, training=training)
        return tf.nn.relu(y + shortcut)


class Bottleneck(keras.layers.Layer):
    """1×1, 3×3 and 1×1 convolutions and a shortcut; the output is 4 × `width` channels.

    With `groups`, each group of the 3×3 convolution has `group_width` channels for every 64 of
    `width`. With `deformable`, it is a `DeformableConv`.
    """

    expansion = 4

    def __init__(
        self,
        rng: np.random.Generator,
        in_channels: int,
        width: int,
        stride: int,
        *,
        groups: int = 1,
        group_width: int = WIDTH,
        deformable: bool = False,
        stride_in_1x1: bool = False,
        norm: str,
        dtype: str,
    ):
        super().__init__(dtype=dtype, autocast=False)
        out, inner = width * self.expansion, width * group_width // WIDTH * groups
        strides = (stride, 1) if stride_in_1x1 else (1, stride)
        kwargs = {"norm": norm, "dtype": dtype}
        self.conv1 = ConvNorm(rng, in_channels, inner, 1, stride=strides[0], **kwargs)
        middle = {"groups": groups, "deformable": deformable}
        self.conv2 = ConvNorm(rng, inner, inner, 3, stride=strides[1], **middle, **kwargs)
        self.conv3 = ConvNorm(rng, inner, out, 1, **kwargs)
        self.shortcut = _shortcut(rng, in_channels, out, stride, norm, dtype)
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [B, H, W, in_channels] → [B, H / stride, W / stride, 4 width]."""
        y = tf.nn.relu(self.conv1(x, training=training))
        y = tf.nn.relu(self.conv2(y, training=training))
        y = self.conv3(y, training=training)
        shortcut = x if self.shortcut is None else self.shortcut(x, training=training)
        return tf.nn.relu(y + shortcut)


def _shortcut(rng, in_channels, out_channels, stride, norm, dtype) -> ConvNorm | None:
    if in_channels == out_channels and stride == 1:
        return None
    return ConvNorm(rng, in_channels, out_channels, 1, stride=stride, norm=norm, dtype=dtype)


class ResNet(Part):
    """A ResNet without its classifier.

    Args:
        rng: source of the initial weights.
        name: a key of `DEPTHS`.
        width: channels of the stem and of res2's 3×3 convolutions, doubled each stage.
        stride_in_1x1: whether the first 1×1 convolution of a bottleneck has the stride, as in
            weights from Caffe and Keras, instead of the 3×3, as in torchvision's.
        norm: see `model.norms.make_norm`.
        freeze_at: frozen stages, which also stop gradients: 1 the stem, 2 also res2, …. Their batch
            norms use the moving statistics, as in Keras for layers that are not trainable.
        last_stage: 5 for everything up to res5, 4 up to res4, ….
        dtype: Keras dtype policy.

    Attributes:
        out_channels: channels of C2 … C`last_stage`.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        name: str,
        *,
        width: int = WIDTH,
        stride_in_1x1: bool = False,
        norm: str,
        freeze_at: int = 0,
        last_stage: int = 5,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        kwargs = {"norm": norm, "dtype": dtype}
        self.stem = ConvNorm(rng, 3, width, 7, stride=2, **kwargs)
        kwargs |= {"width": width, "stride_in_1x1": stride_in_1x1}
        numbers = range(2, last_stage + 1)
        self.stages = LayerList(
            [_make_stage(rng, name, n, stride=1 if n == 2 else 2, **kwargs) for n in numbers]
        )
        self.out_channels = tuple(_channels(name, number, width) for number in numbers)
        self.freeze_at = freeze_at
        for frozen in [self.stem, *self.stages][:freeze_at]:
            frozen.trainable = False
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False, static: bool = False) -> list[tf.Tensor]:
        """Returns C2 … C5 (strides 4, 8, 16, 32), or up to C`last_stage`.

        Args:
            x: normalised pixels [B, H, W, 3].
            training: whether batch norms use the batch's statistics.
            static: whether to use operations that XLA can compile and differentiate.
        """
        x = pool_stem(tf.nn.relu(self.stem(x, training=training)), static)
        outputs = []
        for stage, blocks in enumerate(self.stages, start=2):
            for block in blocks:
                x = block(x, training=training)
            if stage <= self.freeze_at:
                x = tf.stop_gradient(x)
            outputs.append(x)
        return outputs


class ResNetTrunk(Part):
    """A ResNet's res5 with stride 1 on RoIs, and the mean of its output.

    A RoI's 7×7 cells are as many as res5 has on the 224×224 pixels of ImageNet.

    Args:
        rng, name, width, stride_in_1x1, norm, freeze_at, dtype: as for `ResNet`; the blocks are
            frozen if `freeze_at` is 5.

    Attributes:
        roi_size: side of the RoIs.
        out_channels: length of the vectors.
    """

    roi_size = 7

    def __init__(
        self,
        rng: np.random.Generator,
        name: str,
        *,
        width: int = WIDTH,
        stride_in_1x1: bool = False,
        norm: str,
        freeze_at: int = 0,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        kwargs = {"width": width, "stride_in_1x1": stride_in_1x1, "norm": norm, "dtype": dtype}
        self.blocks = _make_stage(rng, name, 5, stride=1, **kwargs)
        self.out_channels = _channels(name, 5, width)
        self.blocks.trainable = freeze_at < 5
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps features of RoIs, [N, 7, 7, C4 channels], to vectors [N, out_channels]."""
        for block in self.blocks:
            x = block(x, training=training)
        return tf.reduce_mean(x, axis=[1, 2])


def make(rng: np.random.Generator, name: str, options: Options) -> ResNet:
    """Makes the backbone as `model.backbones` describes."""
    return ResNet(rng, name, last_stage=options.last_stage, **_read(name, options))


def make_trunk(rng: np.random.Generator, name: str, options: Options) -> ResNetTrunk:
    """Makes the trunk as `model.backbones` describes."""
    require_norm_of_rois(options.norm)
    return ResNetTrunk(rng, name, **_read(name, options))


def _read(name: str, options: Options) -> dict:
    """Returns the options that the backbone and the trunk share, as arguments."""
    width = options.width or WIDTH
    require(
        not (options.stride_in_1x1 and name in BASIC),
        "resnet_stride_in_1x1",
        True,
        f"false for {name}, which has no bottlenecks",
    )
    _, group_width = GROUPS.get(name, (1, WIDTH))
    require(
        width * group_width % WIDTH == 0,
        "backbone_width",
        width,
        f"a multiple of {WIDTH // group_width} for {name}",
    )
    return {
        "width": width,
        "stride_in_1x1": options.stride_in_1x1,
        "norm": options.norm,
        "freeze_at": options.freeze_at,
        "dtype": options.dtype,
    }


def _make_stage(rng, name, number, *, width, stride, stride_in_1x1, norm, dtype) -> LayerList:
    """Makes the blocks of res2 … res5, of which the first has the stride."""
    kwargs = {"norm": norm, "dtype": dtype}
    if name not in BASIC:
        groups, group_width = GROUPS.get(name, (1, WIDTH))
        kwargs |= {"groups": groups, "group_width": group_width, "stride_in_1x1": stride_in_1x1}
        kwargs["deformable"] = name in DEFORMABLE and number > 2
    block, out_channels = _block(name), _channels(name, number, width)
    in_channels = width if number == 2 else out_channels // 2
    planes = out_channels // block.expansion
    return LayerList(
        [
            block(
                rng,
                in_channels if position == 0 else out_channels,
                planes,
                stride if position == 0 else 1,
                **kwargs,
            )
            for position in range(DEPTHS[name][number - 2])
        ]
    )


def _block(name: str) -> type[BasicBlock | Bottleneck]:
    return BasicBlock if name in BASIC else Bottleneck


def _channels(name: str, number: int, width: int) -> int:
    """Returns the channels of C2 … C5."""
    return width * 2 ** (number - 2) * _block(name).expansion


def pool_stem(x: tf.Tensor, static: bool = False) -> tf.Tensor:
    """Applies 3×3 max-pooling with stride 2 and one pixel of padding on every side.

    Zeros equal minus infinity after a ReLU.
    """
    return max_pool(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, static=static)
