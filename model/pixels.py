"""Normalises pixels to a backbone's input."""

from __future__ import annotations

import tensorflow as tf

from model.backbones import Pixels


def normalise(image: tf.Tensor, image_info: tf.Tensor, pixels: Pixels, dtype: str) -> tf.Tensor:
    """Subtracts the mean and divides by the scale; padding gets the value of the mean colour.

    Args:
        image: uint8 [B, H, W, 3].
        image_info: float32 [B, 5]; its first two columns are the valid height and width.
        pixels: mean and standard deviation.
        dtype: dtype of the result.

    Returns:
        [B, H, W, 3].
    """
    rows = tf.range(image.shape[1], dtype=tf.float32)[None, :, None, None]
    columns = tf.range(image.shape[2], dtype=tf.float32)[None, None, :, None]
    height, width = image_info[:, 0], image_info[:, 1]
    inside = (rows < height[:, None, None, None]) & (columns < width[:, None, None, None])
    values = (tf.cast(image, tf.float32) - pixels.mean) / pixels.std
    return tf.cast(tf.where(inside, values, 0.0), dtype)
