"""VGG-16 (Simonyan and Zisserman, ICLR 2015, table 1, column D).

Axes: B images, H W rows and columns of the input, C channels.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from model.backbones import Options, require_no_stride_in_1x1
from model.backbones.fc_trunk import FullyConnectedTrunk
from model.layers import LayerList, Part
from model.max_pool import max_pool
from model.norms import ConvNorm

WIDTH = 64
# 3×3 convolutions of each group and their channels, in multiples of the width. C2 … C4 are the
# outputs of the last three groups, C5 is that of the pooling after them.
GROUPS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
ROI_SIZE = 7
FC_WIDTH = 4096


class VGG(Part):
    """VGG-16 without its fully connected layers.

    Args:
        rng: source of the initial weights.
        width: channels of conv1; those of the other layers scale with it.
        norm: "none" for convolutions with biases, as published; any other norm follows each
            convolution and replaces its bias, see `model.norms.make_norm`.
        freeze_at: frozen groups of convolutions, which also stop gradients: 1 conv1, 2 conv1 and
            conv2 as in Fast R-CNN, 3 everything up to C2, …, 5 everything.
        last_stage: 5 for everything up to pool5 (C5), 4 up to conv5 (C4), ….
        dtype: Keras dtype policy.

    Attributes:
        out_channels: channels of C2 … C`last_stage`.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        width: int = WIDTH,
        norm: str,
        freeze_at: int = 0,
        last_stage: int = 5,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        channels, groups = 3, []
        for depth, multiple in GROUPS[: last_stage + 1]:
            convs = []
            for _ in range(depth):
                convs.append(ConvNorm(rng, channels, multiple * width, 3, norm=norm, dtype=dtype))
                channels = multiple * width
            groups.append(LayerList(convs))
        self.groups = LayerList(groups)
        for group in groups[:freeze_at]:
            group.trainable = False
        self.out_channels = tuple(width * multiple for multiple in (4, 8, 8, 8))[: last_stage - 1]
        self.freeze_at, self.last_stage = freeze_at, last_stage
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False, static: bool = False) -> list[tf.Tensor]:
        """Returns C2 … C5 (strides 4, 8, 16, 32), or up to C`last_stage`.

        Args:
            x: normalised pixels [B, H, W, 3].
            training: whether batch norms use the batch's statistics.
            static: whether to use operations that XLA can compile and differentiate.
        """
        outputs = []
        for number, convs in enumerate(self.groups, start=1):
            if number > 1:
                x = max_pool(x, 2, static=static)
            for conv in convs:
                x = tf.nn.relu(conv(x, training=training))
            if number <= self.freeze_at:
                x = tf.stop_gradient(x)
            outputs.append(x)
        if self.last_stage == 5:
            outputs.append(max_pool(x, 2, static=static))
        return outputs[2:]


def make(rng: np.random.Generator, name: str, options: Options) -> VGG:
    """Makes the backbone as `model.backbones` describes."""
    require_no_stride_in_1x1(name, options)
    return VGG(
        rng,
        width=options.width or WIDTH,
        norm=options.norm,
        freeze_at=options.freeze_at,
        last_stage=options.last_stage,
        dtype=options.dtype,
    )


def make_trunk(rng: np.random.Generator, name: str, options: Options) -> FullyConnectedTrunk:
    """Makes the trunk as `model.backbones` describes: fc6 and fc7, which are never frozen."""
    width = options.width or WIDTH
    channels, fc_width = 8 * width, FC_WIDTH * width // WIDTH
    return FullyConnectedTrunk(rng, ROI_SIZE, channels, fc_width, dtype=options.dtype)
