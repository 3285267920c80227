"""ResNets (He et al., CVPR 2016, table 1).

Axes: B images, H W rows and columns of the input, C channels.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from data.settings import require
from model.backbones import Options
from model.layers import LayerList, Part
from model.norms import ConvNorm

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BASIC = ("resnet18", "resnet34")
NUM_STAGES = 4


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
    """1×1, 3×3 and 1×1 convolutions and a shortcut; the output is 4 × `width` channels."""

    expansion = 4

    def __init__(
        self,
        rng: np.random.Generator,
        in_channels: int,
        width: int,
        stride: int,
        *,
        stride_in_1x1: bool = False,
        norm: str,
        dtype: str,
    ):
        super().__init__(dtype=dtype, autocast=False)
        out = width * self.expansion
        strides = (stride, 1) if stride_in_1x1 else (1, stride)
        kwargs = {"norm": norm, "dtype": dtype}
        self.conv1 = ConvNorm(rng, in_channels, width, 1, stride=strides[0], **kwargs)
        self.conv2 = ConvNorm(rng, width, width, 3, stride=strides[1], **kwargs)
        self.conv3 = ConvNorm(rng, width, out, 1, **kwargs)
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
        width: channels of the stem and of the first stage's 3×3 convolutions, doubled each stage.
        stride_in_1x1: whether the first 1×1 convolution of a bottleneck has the stride, as in
            weights from Caffe and Keras, instead of the 3×3, as in torchvision's.
        norm: see `model.norms.make_norm`.
        freeze_at: frozen stages, which also stop gradients: 1 the stem, 2 also res2, …. Their batch
            norms use the moving statistics, as in Keras for layers that are not trainable.
        dtype: Keras dtype policy.

    Attributes:
        out_channels: channels of C2 … C5.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        name: str,
        *,
        width: int = 64,
        stride_in_1x1: bool = False,
        norm: str,
        freeze_at: int = 0,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        require(
            not (stride_in_1x1 and name in BASIC),
            "resnet_stride_in_1x1",
            True,
            f"false for {name}, which has no bottlenecks",
        )
        kwargs = {"norm": norm, "dtype": dtype}
        self.stem = ConvNorm(rng, 3, width, 7, stride=2, **kwargs)
        stages = []
        block = BasicBlock if name in BASIC else Bottleneck
        kwargs |= {} if name in BASIC else {"stride_in_1x1": stride_in_1x1}
        channels, widths = width, [width * 2**stage for stage in range(NUM_STAGES)]
        for index, (depth, width) in enumerate(zip(DEPTHS[name], widths, strict=True)):
            blocks = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(block(rng, channels, width, stride, **kwargs))
                channels = width * block.expansion
            stages.append(LayerList(blocks))
        self.stages = LayerList(stages)
        self.out_channels = tuple(width * block.expansion for width in widths)
        self.freeze_at = freeze_at
        for frozen in [self.stem, *self.stages][:freeze_at]:
            frozen.trainable = False
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False, static: bool = False) -> list[tf.Tensor]:
        """Returns C2 … C5 (strides 4, 8, 16, 32).

        Args:
            x: normalised pixels [B, H, W, 3].
            training: whether batch norms use the batch's statistics.
            static: whether to use operations that XLA can compile and differentiate.
        """
        x = tf.nn.relu(self.stem(x, training=training))
        x = _pool_by_slices(x) if static else _pool(x)
        outputs = []
        for stage, blocks in enumerate(self.stages, start=2):
            for block in blocks:
                x = block(x, training=training)
            if stage <= self.freeze_at:
                x = tf.stop_gradient(x)
            outputs.append(x)
        return outputs


def make(rng: np.random.Generator, name: str, options: Options) -> ResNet:
    """Makes the backbone as `model.backbones` describes."""
    return ResNet(
        rng,
        name,
        width=options.width or 64,
        stride_in_1x1=options.stride_in_1x1,
        norm=options.norm,
        freeze_at=options.freeze_at,
        dtype=options.dtype,
    )


def _pad_border(x: tf.Tensor) -> tf.Tensor:
    """Pads with zeros, which equal minus infinity for max-pooling after a ReLU."""
    return tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])


def _pool(x: tf.Tensor) -> tf.Tensor:
    """Applies 3×3 max-pooling with stride 2 and one pixel of padding on every side."""
    return tf.nn.max_pool2d(_pad_border(x), 3, 2, "VALID")


def _pool_by_slices(x: tf.Tensor) -> tf.Tensor:
    """Does the same by elementwise maxima, because XLA has no deterministic gradient of MaxPool."""
    x = _pad_border(x)
    for axis in (1, 2):
        size = (x.shape[axis] - 1) // 2
        parts = []
        for offset in range(3):
            span = [slice(None)] * 4
            span[axis] = slice(offset, offset + 2 * size, 2)
            parts.append(x[tuple(span)])
        x = tf.maximum(tf.maximum(parts[0], parts[1]), parts[2])
    return x
