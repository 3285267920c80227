"""EfficientNet-Lite0 (Tan and Le, ICML 2019, in the Lite variant: ReLU6, no squeeze-excitation).

Axes: B images (or RoIs), H W rows and columns of the input, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from model.backbones import Options, require_no_stride_in_1x1, require_norm_of_rois
from model.layers import LayerList, Part
from model.norms import ConvNorm

STEM_WIDTH = 32
# Numbers of channels are rounded to multiples of this in wider and narrower networks.
DIVISOR = 8


class Stage(NamedTuple):
    """Consecutive blocks with the same settings; only the first has the stride."""

    depth: int
    size: int  # side of the depthwise kernel
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
OUTPUTS = (1, 2, 4, 6)  # stages whose outputs are C2 … C5
# The last block of each.
ENDS = tuple(sum(stage.depth for stage in STAGES[: index + 1]) - 1 for index in OUTPUTS)


class InvertedBottleneck(keras.layers.Layer):
    """MBConv: 1×1 expansion, depthwise k×k, 1×1 projection, and a shortcut if shapes agree."""

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
        """Maps [B, H, W, in_channels] → [B, ⌈H / stride⌉, ⌈W / stride⌉, channels]."""
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
        width: channels of the stem; those of the stages scale with it.
        norm: see `model.norms.make_norm`.
        freeze_at: frozen stages, which also stop gradients: 1 the stem, 2 everything up to C2, ….
        last_stage: 5 for everything up to C5, 4 up to C4, ….
        dtype: Keras dtype policy.

    Attributes:
        out_channels: channels of C2 … C`last_stage`.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        width: int = STEM_WIDTH,
        norm: str,
        freeze_at: int = 0,
        last_stage: int = 5,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        kwargs = {"norm": norm, "dtype": dtype}
        self.stem = ConvNorm(rng, 3, width, 3, stride=2, padding="same", **kwargs)
        outputs = OUTPUTS[: last_stage - 1]
        stages = STAGES[: outputs[-1] + 1]
        self.blocks = LayerList(_make_blocks(rng, stages, width, width, **kwargs))
        self.out_channels = tuple(_scaled(STAGES[index].channels, width) for index in outputs)
        self.freeze_at = freeze_at
        num_frozen = (0, 1, *(end + 2 for end in ENDS))[freeze_at]  # stage 1 is the stem
        for layer in [self.stem, *self.blocks][:num_frozen]:
            layer.trainable = False
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False, static: bool = False) -> list[tf.Tensor]:
        """Returns C2 … C5 (strides 4, 8, 16, 32) of normalised pixels [B, H, W, 3]."""
        x = tf.nn.relu6(self.stem(x, training=training))
        outputs = []
        for index, block in enumerate(self.blocks):
            x = block(x, training=training)
            if index in ENDS:
                if len(outputs) + 2 <= self.freeze_at:
                    x = tf.stop_gradient(x)
                outputs.append(x)
        return outputs


class EfficientNetLiteTrunk(Part):
    """The blocks between C4 and C5, with stride 1 on RoIs, and the mean of their output.

    Args:
        rng, width, norm, freeze_at, dtype: as for `EfficientNetLite`; the blocks are frozen if
            `freeze_at` is 5.

    Attributes:
        roi_size: side of the RoIs, as many cells as C5 has on the 224×224 pixels of ImageNet.
        out_channels: length of the vectors.
    """

    roi_size = 7

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
        stages = [stage._replace(stride=1) for stage in STAGES[OUTPUTS[2] + 1 :]]
        in_channels = _scaled(STAGES[OUTPUTS[2]].channels, width)
        self.blocks = LayerList(
            _make_blocks(rng, stages, in_channels, width, norm=norm, dtype=dtype)
        )
        self.blocks.trainable = freeze_at < 5
        self.out_channels = _scaled(STAGES[-1].channels, width)
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps features of RoIs, [N, 7, 7, C4 channels], to vectors [N, out_channels]."""
        for block in self.blocks:
            x = block(x, training=training)
        return tf.reduce_mean(x, axis=[1, 2])


def _make_blocks(rng, stages, in_channels, width, *, norm, dtype) -> list[InvertedBottleneck]:
    """Makes the blocks of stages in order; only a stage's first has its stride."""
    blocks = []
    for stage in stages:
        channels = _scaled(stage.channels, width)
        for position in range(stage.depth):
            stride = stage.stride if position == 0 else 1
            block = InvertedBottleneck(
                rng, in_channels, channels, stage, stride, norm=norm, dtype=dtype
            )
            blocks.append(block)
            in_channels = channels
    return blocks


def _scaled(channels: int, width: int) -> int:
    """Scales a number of channels and rounds it to the nearest multiple of `DIVISOR`."""
    halves_up = channels * width // STEM_WIDTH + DIVISOR // 2
    return max(DIVISOR, halves_up // DIVISOR * DIVISOR)


def make(rng: np.random.Generator, name: str, options: Options) -> EfficientNetLite:
    """Makes the backbone as `model.backbones` describes."""
    return EfficientNetLite(rng, last_stage=options.last_stage, **_read(name, options))


def make_trunk(rng: np.random.Generator, name: str, options: Options) -> EfficientNetLiteTrunk:
    """Makes the trunk as `model.backbones` describes."""
    require_norm_of_rois(options.norm)
    return EfficientNetLiteTrunk(rng, **_read(name, options))


def _read(name: str, options: Options) -> dict:
    """Returns the options that the backbone and the trunk share, as arguments."""
    require_no_stride_in_1x1(name, options)
    return {
        "width": options.width or STEM_WIDTH,
        "norm": options.norm,
        "freeze_at": options.freeze_at,
        "dtype": options.dtype,
    }
