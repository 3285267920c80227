"""Feature Pyramid Network (Lin et al., CVPR 2017, section 3).

Axes: B images, H W rows and columns, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from model.layers import LayerList, Part, kaiming_uniform
from model.norms import ConvNorm


class FPN(Part):
    """Turns C2 … C5 into P2 … P6 of `channels` channels each.

    Args:
        rng: source of the initial weights.
        in_channels: channels of C2 … C5.
        channels: channels of every output.
        norm: normalisation after each convolution, or "none".
        separable: whether the 3×3 convolutions are `SeparableConv`s.
        dtype: Keras dtype policy.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        in_channels: Sequence[int],
        channels: int,
        *,
        norm: str = "none",
        separable: bool = False,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        self.out_channels = channels
        kwargs = {"norm": norm, "kernel_init": kaiming_uniform, "dtype": dtype}
        self.laterals = LayerList([ConvNorm(rng, n, channels, 1, **kwargs) for n in in_channels])
        self.outputs = LayerList(
            [
                ConvNorm(rng, channels, channels, 3, separable=separable, **kwargs)
                for _ in in_channels
            ]
        )
        self.built = True

    def call(self, features: Sequence[tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """Returns [P2, …, P6]; P6 takes every second cell of P5."""
        merged = [
            lateral(x, training=training)
            for lateral, x in zip(self.laterals, features, strict=True)
        ]
        for fine in range(len(merged) - 2, -1, -1):
            merged[fine] += _upsample(merged[fine + 1])
        pyramid = [
            output(x, training=training) for output, x in zip(self.outputs, merged, strict=True)
        ]
        return [*pyramid, pyramid[-1][:, ::2, ::2, :]]


@tf.custom_gradient
def _upsample(x: tf.Tensor):
    """Doubles [B, H, W, C] by nearest neighbours; pooling sums the gradient fastest."""

    def gradient(dy: tf.Tensor) -> tf.Tensor:
        return 4.0 * tf.nn.avg_pool2d(dy, 2, 2, "VALID")

    return tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2), gradient
