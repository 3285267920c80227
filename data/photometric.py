"""Changes the colours of an image by one affine map of red, green and blue.

Just as one `data.augment.Geometry` describes all geometric changes, one `ColourMap` describes all
changes of colours; the maps of several augmentations are composed before they are applied.

Axes: h w image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# From red, green, blue to luma and two axes of chroma (NTSC's YIQ); grays have no chroma.
_RGB_TO_YIQ = np.float32([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ).astype(np.float32)
# Pixels that one row of a matrix product holds, because rows of three numbers are slow.
_PIXELS_A_ROW = 8
# A smaller coefficient of another channel changes no level by one.
_LEAST_MIXING = 0.5 / 255.0


class ColourMap(NamedTuple):
    """A pixel [red, green, blue] becomes `matrix @ pixel + offset`, finally clipped to 0..255.

    Attributes:
        matrix: float32 [3, 3].
        offset: float32 scalar, in levels of 0..255.
    """

    matrix: tf.Tensor
    offset: tf.Tensor

    def after(self, other: ColourMap) -> ColourMap:
        """Returns the map that applies `other` first; `other` must keep grays gray."""
        return ColourMap(
            self.matrix @ other.matrix,
            tf.reduce_sum(self.matrix[0]) * other.offset + self.offset,
        )


def photometric_distort(seed: tf.Tensor) -> ColourMap:
    """Draws random brightness, contrast, saturation and hue, each with probability 1/2.

    The ranges are those of Liu et al., SSD, section 3.6 (Howard 2013), which Detectron2's
    ColorAugSSDTransform, mmdetection's PhotoMetricDistortion and torchvision's
    RandomPhotometricDistort also use: up to 32 levels are added, contrast (about black) and
    saturation are multiplied by 0.5 to 1.5, and hues are rotated by up to 18 degrees. Saturation
    and hue scale and rotate the chroma of YIQ, because HSV would need a branch for each pixel.

    Args:
        seed: int32 [2].

    Returns:
        ColourMap.
    """
    draws = tf.random.stateless_uniform([2, 4], seed, minval=-1.0, alg="philox")
    brightness, contrast, saturation, hue = tf.unstack(tf.where(draws[0] < 0.0, draws[1], 0.0))
    contrast, saturation = 1.0 + 0.5 * contrast, 1.0 + 0.5 * saturation
    turn = hue * math.radians(18.0)
    cosine, sine = saturation * tf.cos(turn), saturation * tf.sin(turn)
    zero = tf.zeros([])
    turned = tf.stack([[1.0, zero, zero], [zero, cosine, -sine], [zero, sine, cosine]])
    return ColourMap(contrast * (_YIQ_TO_RGB @ turned @ _RGB_TO_YIQ), contrast * 32.0 * brightness)


def recolour(pixels: tf.Tensor, colours: ColourMap) -> tf.Tensor:
    """Maps the colours of an image without clipping.

    Args:
        pixels: uint8 or float32 [h, w, 3], levels of 0..255.
        colours: the map.

    Returns:
        float32 [h, w, 3].
    """
    scale = colours.matrix[0, 0]
    mixing = tf.reduce_max(tf.abs(colours.matrix - scale * np.eye(3)))
    return tf.cond(
        mixing > _LEAST_MIXING,
        lambda: _mix_channels(pixels, colours),
        lambda: tf.cast(pixels, tf.float32) * scale + colours.offset,
    )


def _mix_channels(pixels: tf.Tensor, colours: ColourMap) -> tf.Tensor:
    """Maps several pixels by one row of a matrix product: [h, w, 3] -> float32 [h, w, 3]."""
    length, count = 3 * _PIXELS_A_ROW, tf.size(pixels)
    padded = tf.pad(tf.reshape(pixels, [-1]), [[0, -count % length]])
    rows = tf.cast(tf.reshape(padded, [-1, length]), tf.float32)
    identity = np.eye(_PIXELS_A_ROW, dtype=np.float32)[:, None, :, None]
    blocks = tf.reshape(identity * tf.transpose(colours.matrix)[:, None, :], [length, length])
    mapped = tf.nn.bias_add(rows @ blocks, tf.fill([length], colours.offset))
    return tf.reshape(tf.reshape(mapped, [-1])[:count], tf.shape(pixels))
