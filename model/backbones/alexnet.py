"""AlexNet (Krizhevsky et al., NIPS 2012), the network of R-CNN, and torchvision's variant of it.

Torchvision's (Krizhevsky, 2014) has other widths, no response normalisation, and no groups.

The first convolution has stride 4 and a kernel of 11×11. Sides that are multiples of 4 are padded
so that C2 has exactly a quarter of their cells; the published crops of 227×227 are not, and C2 has
55×55. Before pooling, maps with an even side get a row or column of zeros at their end, as by
Caffe, so that pooling halves them. So C2 … C5 of a canvas have strides of exactly 4, 8, 16 and 32,
and pool5 of 227×227 pixels has 6×6 cells. The windows of `alexnet_torchvision` begin where
torchvision's do: its features differ only at the bottom and right of a canvas, where torchvision
drops a cell, and not at all for 227×227 pixels.

Axes: B images, H W rows and columns of the input, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data.settings import require
from model.backbones import Options, require_no_stride_in_1x1
from model.backbones.fc_trunk import FullyConnectedTrunk
from model.layers import LayerList, Part
from model.max_pool import max_pool
from model.norms import ConvNorm

SIZES = (11, 5, 3, 3, 3)
FIRST_STRIDE = 4
ROI_SIZE = 6
FC_WIDTH = 4096


class Variant(NamedTuple):
    """What the two networks differ in.

    Attributes:
        channels: of conv1 … conv5.
        groups: of the same.
        normalises_responses: whether conv1 and conv2 are followed by response normalisation.
        canvas_padding: zeros before the first row and column if sides are multiples of 4.
        crop_padding: the same for other sides.
    """

    channels: tuple[int, ...]
    groups: tuple[int, ...]
    normalises_responses: bool
    canvas_padding: int
    crop_padding: int


VARIANTS = {
    "alexnet": Variant((96, 256, 384, 384, 256), (1, 2, 1, 2, 2), True, 3, 0),
    "alexnet_torchvision": Variant((64, 192, 384, 256, 256), (1,) * 5, False, 2, 2),
}


class AlexNet(Part):
    """AlexNet without its fully connected layers.

    C2 is the output of conv1, C3 that of conv2, C4 that of conv5, and C5 that of pool5.

    Args:
        rng: source of the initial weights.
        name: a key of `VARIANTS`.
        width: channels of conv1; those of the other layers scale with it.
        norm: "none" for convolutions with biases, as published, where `alexnet` normalises the
            responses of conv1 and conv2 after the ReLU and before pooling (Caffe pools first); any
            other norm follows each convolution instead, see `model.norms.make_norm`.
        freeze_at: frozen convolutions, which also stop gradients: 1 conv1, 2 also conv2, …, 5
            everything.
        last_stage: 5 for everything up to C5, 4 up to C4, ….
        dtype: Keras dtype policy.

    Attributes:
        out_channels: channels of C2 … C`last_stage`.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        name: str,
        *,
        width: int = 0,
        norm: str,
        freeze_at: int = 0,
        last_stage: int = 5,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        self.variant = variant = VARIANTS[name]
        channels = _scale(variant, width)
        depth = {2: 1, 3: 2}.get(last_stage, 5)
        self.convs = LayerList(
            [
                ConvNorm(
                    rng,
                    (3, *channels)[index],
                    channels[index],
                    SIZES[index],
                    stride=FIRST_STRIDE if index == 0 else 1,
                    padding="valid" if index == 0 else "symmetric",
                    groups=variant.groups[index],
                    norm=norm,
                    dtype=dtype,
                )
                for index in range(depth)
            ]
        )
        for conv in list(self.convs)[:freeze_at]:
            conv.trainable = False
        self.normalises_responses = variant.normalises_responses and norm == "none"
        self.out_channels = (*channels[:2], channels[4], channels[4])[: last_stage - 1]
        self.freeze_at, self.last_stage = freeze_at, last_stage
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False, static: bool = False) -> list[tf.Tensor]:
        """Returns C2 … C5 (strides 4, 8, 16, 32), or up to C`last_stage`.

        Args:
            x: normalised pixels [B, H, W, 3].
            training: whether batch norms use the batch's statistics.
            static: whether to use operations that XLA can compile and differentiate.
        """
        x = _pad_input(x, self.variant)
        outputs = []
        for number, conv in enumerate(self.convs, start=1):
            if number in (2, 3):
                x = _pool(x, static)
            x = tf.nn.relu(conv(x, training=training))
            if number <= 2 and self.normalises_responses:
                x = normalise_responses(x)
            if number <= self.freeze_at:
                x = tf.stop_gradient(x)
            if number in (1, 2, 5):
                outputs.append(x)
        if self.last_stage == 5:
            outputs.append(_pool(x, static))
        return outputs


def normalise_responses(x: tf.Tensor) -> tf.Tensor:
    """Divides by (2 + 1e-4 · the sum of squares of five neighbouring channels)^0.75."""
    y = tf.nn.local_response_normalization(
        tf.cast(x, tf.float32), depth_radius=2, bias=2.0, alpha=1e-4, beta=0.75
    )
    return tf.cast(y, x.dtype)


def _pad_input(x: tf.Tensor, variant: Variant) -> tf.Tensor:
    """Pads sides that are multiples of 4 by what makes conv1 divide them by 4."""
    before = variant.canvas_padding
    canvas = [before, SIZES[0] - FIRST_STRIDE - before]
    crop = [variant.crop_padding, 0]
    pads = [canvas if side % FIRST_STRIDE == 0 else crop for side in x.shape[1:3]]
    return tf.pad(x, [[0, 0], *pads, [0, 0]])


def _pool(x: tf.Tensor, static: bool) -> tf.Tensor:
    """Applies 3×3 max-pooling with stride 2; zeros equal minus infinity after a ReLU."""
    pads = [[0, 1 - side % 2] for side in x.shape[1:3]]
    return max_pool(tf.pad(x, [[0, 0], *pads, [0, 0]]), 3, static=static)


def _scale(variant: Variant, width: int) -> tuple[int, ...]:
    """Scales the channels so that conv1 has `width`, in even numbers because of the groups."""
    first, *others = variant.channels
    width = width or first
    return (width, *(channels * width // first // 2 * 2 for channels in others))


def make(rng: np.random.Generator, name: str, options: Options) -> AlexNet:
    """Makes the backbone as `model.backbones` describes."""
    require_no_stride_in_1x1(name, options)
    require(
        options.width % max(VARIANTS[name].groups) == 0,
        "backbone_width",
        options.width,
        f"an even number for {name}, whose convolutions have two groups",
    )
    return AlexNet(
        rng,
        name,
        width=options.width,
        norm=options.norm,
        freeze_at=options.freeze_at,
        last_stage=options.last_stage,
        dtype=options.dtype,
    )


def make_trunk(rng: np.random.Generator, name: str, options: Options) -> FullyConnectedTrunk:
    """Makes the trunk as `model.backbones` describes: fc6 and fc7, which are never frozen."""
    variant = VARIANTS[name]
    channels = _scale(variant, options.width)
    fc_width = FC_WIDTH * channels[0] // variant.channels[0]
    return FullyConnectedTrunk(rng, ROI_SIZE, channels[4], fc_width, dtype=options.dtype)
