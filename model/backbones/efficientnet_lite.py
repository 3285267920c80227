"""EfficientNet-Lite0 (Tan and Le, ICML 2019, in the Lite variant: ReLU6, no squeeze-excitation).

Axes: B images, H W rows and columns of the input, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from data.settings import require
from model.layers import LayerList, Part
from model.norms import ConvNorm

STEM_WIDTH = 32
# Wider and narrower networks keep their channels at multiples of this.
DIVISOR = 8


class Stage(NamedTuple):
    """Blocks of one size; the first of them strides."""

    depth: int
    size: int  # of the depthwise kernel
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),  # C2
    Stage(2, 5, 2, 6, 40),  # C3
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),  # C4
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),  # C5
)
OUTPUTS = (1, 2, 4, 6)  # stages that end with C2 … C5


class InvertedBottleneck(keras.layers.Layer):
    """MBConv: 1×1 to more channels, depthwise k×k, 1×1 to fewer, and the input added if it fits."""

    def __init__(
        self,
        rng: np.random.Generator,
        in_channels: int,
        channels: int,
        stage: Stage,
        stride: int,
        *,
        norm: str,
        dtype: str,
    ):
        super().__init__(dtype=dtype, autocast=False)
        kwargs = {"norm": norm, "dtype": dtype, "padding": "same"}
        width = in_channels * stage.expansion
        self.expand = None
        if stage.expansion > 1:
            self.expand = ConvNorm(rng, in_channels, width, 1, **kwargs)
        self.depthwise = ConvNorm(
            rng, width, width, stage.size, stride=stride, depthwise=True, **kwargs
        )
        self.project = ConvNorm(rng, width, channels, 1, **kwargs)
        self.adds = stride == 1 and in_channels == channels
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B, H, W, in_channels] → [B, ⌈H / stride⌉, ⌈W / stride⌉, channels]."""
        y = x
        if self.expand is not None:
            y = tf.nn.relu6(self.expand(y, training=training))
        y = tf.nn.relu6(self.depthwise(y, training=training))
        y = self.project(y, training=training)
        return x + y if self.adds else y


class EfficientNetLite(Part):
    """EfficientNet-Lite0 without its last 1×1 convolution and classifier.

    Args:
        rng: source of the initial weights.
        width: channels of the stem; the stages' grow with it.
        norm: see `model.norms.make_norm`.
        freeze_at: stages that neither train nor pass gradients on: 1 the stem, 2 all up to C2, ….
        dtype: Keras dtype policy.

    Attributes:
        out_channels: of C2 … C5.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        width: int = STEM_WIDTH,
        norm: str,
        freeze_at: int = 0,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        kwargs = {"norm": norm, "dtype": dtype}
        self.stem = ConvNorm(rng, 3, width, 3, stride=2, padding="same", **kwargs)
        blocks, last, in_channels, self.ends, out_channels = [], -1, width, [], []
        for index, stage in enumerate(STAGES):
            channels = _scaled(stage.channels, width)
            for position in range(stage.depth):
                stride = stage.stride if position == 0 else 1
                blocks.append(
                    InvertedBottleneck(rng, in_channels, channels, stage, stride, **kwargs)
                )
                in_channels = channels
            last += stage.depth
            if index in OUTPUTS:
                self.ends.append(last)
                out_channels.append(channels)
        self.blocks = LayerList(blocks)
        self.out_channels = tuple(out_channels)
        self.freeze_at = freeze_at
        for frozen in self._parts()[:freeze_at]:
            for layer in frozen:
                layer.trainable = False
        self.built = True

    def _parts(self) -> list[list[keras.layers.Layer]]:
        """The layers that `freeze_at` counts: the stem, and those up to each output."""
        blocks, starts = list(self.blocks), [0, *(end + 1 for end in self.ends)]
        return [
            [self.stem],
            *(blocks[start : end + 1] for start, end in zip(starts, self.ends, strict=False)),
        ]

    def call(self, x: tf.Tensor, training: bool = False, static: bool = False) -> list[tf.Tensor]:
        """C2 … C5 of strides 4, 8, 16, 32 for normalised pixels [B, H, W, 3]."""
        x = tf.nn.relu6(self.stem(x, training=training))
        outputs = []
        for index, block in enumerate(self.blocks):
            x = block(x, training=training)
            if index in self.ends:
                if len(outputs) + 2 <= self.freeze_at:
                    x = tf.stop_gradient(x)
                outputs.append(x)
        return outputs


def _scaled(channels: int, width: int) -> int:
    """Channels of a network of another width: the nearest multiple of `DIVISOR`."""
    halves_up = channels * width // STEM_WIDTH + DIVISOR // 2
    return max(DIVISOR, halves_up // DIVISOR * DIVISOR)


def make(
    rng: np.random.Generator,
    name: str,
    *,
    norm: str,
    freeze_at: int,
    width: int,
    stride_in_1x1: bool,
    dtype: str,
) -> EfficientNetLite:
    """See `model.backbones`."""
    require(not stride_in_1x1, "resnet_stride_in_1x1", True, f"a ResNet, not {name}")
    return EfficientNetLite(
        rng, width=width or STEM_WIDTH, norm=norm, freeze_at=freeze_at, dtype=dtype
    )
