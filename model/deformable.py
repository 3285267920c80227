"""Deformable convolution: each tap of the kernel reads where a second convolution says.

Source: Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.1.

Axes: B images, H W rows and columns of the input, h w of the output, T = 9 taps, C channels.
"""

from __future__ import annotations

import itertools

import numpy as np
import tensorflow as tf

from model.layers import Conv, normal

SIZE = 3
TAPS = np.array(list(itertools.product((-1, 0, 1), repeat=2)), np.float32)


class DeformableConv(Conv):
    """3×3 convolution whose taps are moved by learnt offsets, which begin at 0.

    Args:
        rng, in_channels, out_channels, stride, options: as for `Conv`; padding is symmetric.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dtype: str = "float32",
        **options,
    ):
        super().__init__(
            rng, in_channels, out_channels, SIZE, stride=stride, dtype=dtype, **options
        )
        num_offsets = 2 * len(TAPS)  # y and x of each tap in turn
        kwargs = {"stride": stride, "kernel_init": normal(0.0), "dtype": dtype}
        self.offsets = Conv(rng, in_channels, num_offsets, SIZE, **kwargs)

    def call(self, x: tf.Tensor, scale: tf.Tensor | None = None, offset: tf.Tensor | None = None):
        """Convolves [B, H, W, in_channels]; `scale`, `offset` [out_channels] fold a norm in."""
        kernel = self.kernel if scale is None else self.kernel * scale
        bias = self.bias if offset is None else offset
        x = self._cast(x)
        taps = sample_taps(x, tf.cast(self.offsets(x), tf.float32), self.stride)
        kernel = self._cast(tf.reshape(kernel, [1, 1, -1, kernel.shape[-1]]))
        y = tf.nn.conv2d(taps, kernel, 1, "VALID")
        return y if bias is None else tf.nn.bias_add(y, self._cast(bias))


def sample_taps(x: tf.Tensor, offsets: tf.Tensor, stride: int) -> tf.Tensor:
    """Samples the input bilinearly at each tap's place; outside of it, cells count 0.

    Args:
        x: [B, H, W, C].
        offsets: float32 [B, h, w, 2 T], y and x of each tap in turn, in cells.
        stride: cells of the input between neighbouring outputs.

    Returns:
        [B, h, w, T C] in the dtype of `x`.
    """
    height, width, channels = x.shape[1:]
    batch, (rows, columns) = tf.shape(x)[0], offsets.shape[1:3]
    cells = stride * np.stack(np.indices([rows, columns]), axis=-1)[:, :, None]
    places = tf.reshape(offsets, [batch, rows, columns, len(TAPS), 2]) + (cells + TAPS)
    first = tf.floor(places)
    fraction = places - first
    limits = tf.constant([height - 1.0, width - 1.0])
    start = tf.range(batch)[:, None, None, None] * height * width
    flat = tf.reshape(x, [-1, channels])
    total = tf.zeros([], x.dtype)
    for corner in itertools.product((0.0, 1.0), repeat=2):
        cell = first + corner
        is_inside = tf.reduce_all((cell >= 0.0) & (cell <= limits), axis=-1)
        shares = tf.where(tf.constant(corner) > 0, fraction, 1.0 - fraction)
        weight = tf.where(is_inside, tf.reduce_prod(shares, axis=-1), 0.0)
        row, column = tf.unstack(tf.cast(tf.clip_by_value(cell, 0.0, limits), tf.int32), axis=-1)
        total += tf.gather(flat, start + row * width + column) * tf.cast(weight, x.dtype)[..., None]
    return tf.reshape(total, [batch, rows, columns, len(TAPS) * channels])
