"""Chooses an image's canvas and the affine map from the image to the canvas.

One `Geometry` is drawn for an image and applied to its pixels, boxes and masks alike, so that they
stay aligned: a window of whole source pixels is resized to the valid area, mirrored within it and
padded at the bottom and the right. The window is the whole image unless scale jitter makes the
image larger than the canvas; cropping before resizing costs nothing and keeps the map exactly
affine.

Axes: H W canvas, N boxes; pairs are (height, width) or (vertical, horizontal).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data.config import DataConfig
from data.photometric import ColourMap, recolour


class Geometry(NamedTuple):
    """The map from original pixels to canvas pixels.

    y_canvas = (y - offset_y) * scale_y, and valid_height - that if mirrored vertically; x likewise.

    Attributes:
        original: int64 [2], size of the original image.
        offset: int64 [2], first source row and column that are shown.
        source: int64 [2], size of the part of the original that is visible.
        valid: int64 [2], size it takes on the canvas, at the top left.
        flips: bool [2], whether it is mirrored vertically and horizontally.
    """

    original: tf.Tensor
    offset: tf.Tensor
    source: tf.Tensor
    valid: tf.Tensor
    flips: tf.Tensor

    @property
    def scale(self) -> tf.Tensor:
        """Canvas pixels per original pixel: float32 [2]."""
        return tf.cast(self.valid / self.source, tf.float32)

    @property
    def source_box(self) -> tf.Tensor:
        """The part of the original that is visible, [y1, x1, y2, x2]: int64 [4]."""
        return tf.concat([self.offset, self.offset + self.source], axis=0)

    @property
    def image_info(self) -> tf.Tensor:
        """float32 [5]: valid height, valid width, vertical scale, original height and width."""
        return tf.concat(
            [
                tf.cast(self.valid, tf.float32),
                self.scale[:1],
                tf.cast(self.original, tf.float32),
            ],
            axis=0,
        )


def choose_canvas(size: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """Chooses the canvas on which an image can be largest; among equals, the one of least area.

    Depends on the image's size alone, never on random draws.

    Args:
        size: int64 [..., 2], height and width of the image.
        config: canvases, short and long side.

    Returns:
        int64 [...], an index into `config.canvas_sizes`.
    """
    canvases = np.array(config.canvas_sizes, np.int64)
    by_area = np.argsort(canvases.prod(axis=1), kind="stable")
    scales = _rule_scale(size[..., None, :], canvases[by_area], config.short_side, config.long_side)
    best = tf.math.top_k(scales).indices[..., 0]  # of equal ones the first
    return tf.gather(tf.constant(by_area, tf.int64), best)


def fit_geometry(
    size: tf.Tensor, canvas: tf.Tensor, config: DataConfig, factor: float = 1.0
) -> Geometry:
    """Returns the map of evaluation, which resizes by the short and long side.

    Args:
        size: int64 [2], height and width of the image.
        canvas: int64 [2].
        config: short and long side.
        factor: scales both sides.

    Returns:
        Geometry in which the whole image is visible.
    """
    scale = _rule_scale(size, canvas, config.short_side * factor, config.long_side * factor)
    return Geometry(
        original=size,
        offset=tf.zeros([2], tf.int64),
        source=size,
        valid=tf.minimum(_scaled(size, scale), canvas),
        flips=tf.zeros([2], tf.bool),
    )


def draw_geometry(
    size: tf.Tensor, canvas: tf.Tensor, config: DataConfig, seed: tf.Tensor
) -> Geometry:
    """Draws the map of training: random short side, scale jitter, random crop and mirroring.

    Scale jitter and crop are those of Ghiasi et al., Simple Copy-Paste, section 3 (LSJ).

    Args:
        size: int64 [2], height and width of the image.
        canvas: int64 [2].
        config: ranges and probabilities.
        seed: int32 or int64 [2]; equal seeds draw equal maps.

    Returns:
        Geometry.
    """
    draws = tf.random.stateless_uniform([6], seed, alg="philox")
    short_sides = config.short_side - config.train_short_side_min + 1
    short_side = config.train_short_side_min + tf.floor(draws[0] * short_sides)
    jitter_range = config.scale_jitter_max - config.scale_jitter_min
    jitter = config.scale_jitter_min + draws[1] * jitter_range
    scale = _rule_scale(size, canvas, tf.cast(short_side, tf.float64), config.long_side)
    resized = _scaled(size, scale * tf.cast(jitter, tf.float64))
    source = tf.where(resized > canvas, _scaled(size, canvas / resized), size)
    room = tf.cast(size - source + 1, tf.float32)
    return Geometry(
        original=size,
        offset=tf.minimum(tf.cast(draws[2:4] * room, tf.int64), size - source),
        source=source,
        valid=tf.minimum(resized, canvas),
        flips=draws[4:6] < [config.vertical_flip, config.horizontal_flip],
    )


def render_image(
    image: tf.Tensor, geometry: Geometry, canvas: tf.Tensor, colours: Sequence[ColourMap] = ()
) -> tf.Tensor:
    """Draws an image on its canvas: bilinear between pixel centres, without antialiasing.

    Mirroring comes first because it commutes with resizing and there are fewer pixels to move.

    Args:
        image: uint8 [original height, original width, 3].
        geometry: where it goes.
        canvas: int64 [2], H and W.
        colours: maps of its colours, applied one after another.

    Returns:
        uint8 [H, W, 3], zero outside the valid area.
    """
    resized = _resize(_shown(image, geometry), geometry, colours)
    # Quantising the range 0..255 rounds half up in one pass over the pixels instead of two.
    pixels = tf.raw_ops.QuantizeV2(input=resized, min_range=0.0, max_range=255.0, T=tf.quint8)
    pixels = tf.bitcast(pixels.output, tf.uint8)
    return _pad_to_canvas(pixels, geometry, canvas)


def render_mask(mask: tf.Tensor, geometry: Geometry, canvas: tf.Tensor) -> tf.Tensor:
    """Draws a mask on the canvas of its image: each pixel as the original one under its centre.

    Args:
        mask: uint8 [original height, original width] of 0 and 1.
        geometry: where it goes.
        canvas: int64 [2], H and W.

    Returns:
        bool [H, W], False outside the valid area.
    """
    shown = _shown(mask[:, :, None], geometry)
    resized = tf.image.resize(shown, tf.cast(geometry.valid, tf.int32), "nearest")
    return _pad_to_canvas(resized, geometry, canvas)[:, :, 0] > 0


def _shown(image: tf.Tensor, geometry: Geometry) -> tf.Tensor:
    """Crops an image to the visible part and mirrors it: [h, w, c] -> [source, c]."""
    top, left, bottom, right = tf.unstack(geometry.source_box)
    image = image[top:bottom, left:right]
    return tf.cond(
        tf.reduce_any(geometry.flips),
        lambda: tf.reverse(image, tf.where(geometry.flips)[:, 0]),
        lambda: image,
    )


def _pad_to_canvas(pixels: tf.Tensor, geometry: Geometry, canvas: tf.Tensor) -> tf.Tensor:
    """Zeros below and to the right: uint8 [valid, c] -> uint8 [H, W, c]."""
    # Padding rows of c W bytes is three times as fast as padding pixels of 3 bytes.
    height, width = tf.unstack(canvas)
    channels = pixels.shape[2]
    rows = tf.reshape(pixels, [geometry.valid[0], channels * geometry.valid[1]])
    missing = (canvas - geometry.valid) * [1, channels]
    rows = tf.pad(rows, [[0, missing[0]], [0, missing[1]]])
    return tf.reshape(rows, [height, width, channels])


def _resize(image: tf.Tensor, geometry: Geometry, colours: Sequence[ColourMap]) -> tf.Tensor:
    """Resizes to the valid area and maps colours: uint8 [h, w, 3] -> float32 [valid, 3].

    Mapping colours and converting to float happen before or after resizing, whichever has fewer
    pixels; resizing bytes takes longer than converting them first.
    """

    def recoloured(pixels: tf.Tensor) -> tf.Tensor:
        if not colours:
            return tf.cast(pixels, tf.float32)
        return recolour(pixels, functools.reduce(lambda first, then: then.after(first), colours))

    size = tf.cast(geometry.valid, tf.int32)
    return tf.cond(
        tf.reduce_prod(geometry.source) <= tf.reduce_prod(geometry.valid),
        lambda: tf.image.resize(recoloured(image), size),
        lambda: recoloured(tf.image.resize(image, size)),
    )


def clip_to_source(boxes: tf.Tensor, geometry: Geometry) -> tf.Tensor:
    """Clips boxes float32 [N, 4] to the visible part, both in original pixels."""
    top, left, bottom, right = tf.unstack(tf.cast(geometry.source_box, tf.float32))
    return tf.clip_by_value(boxes, [top, left, top, left], [bottom, right, bottom, right])


def map_boxes(boxes: tf.Tensor, geometry: Geometry) -> tf.Tensor:
    """Maps boxes, clipped to the visible part, to the canvas.

    Args:
        boxes: float32 [N, 4] in original pixels.
        geometry: the map to the canvas.

    Returns:
        float32 [N, 4] in canvas pixels, within the valid area.
    """
    offset, valid = (
        tf.tile(tf.cast(pair, tf.float32), [2]) for pair in (geometry.offset, geometry.valid)
    )
    mapped = tf.minimum((boxes - offset) * tf.tile(geometry.scale, [2]), valid)
    mirrored = valid - tf.roll(mapped, 2, axis=1)
    return tf.where(tf.tile(geometry.flips, [2]), mirrored, mapped)


def map_visible(boxes: tf.Tensor, geometry: Geometry) -> tf.Tensor:
    """Maps the visible parts of boxes to the canvas, without those that have none.

    Args:
        boxes: float32 [N, 4] in original pixels.
        geometry: the map to the canvas.

    Returns:
        float32 [n, 4] in canvas pixels, in their order.
    """
    mapped = map_boxes(clip_to_source(boxes, geometry), geometry)
    return tf.boolean_mask(mapped, tf.reduce_all(mapped[:, 2:] > mapped[:, :2], axis=1))


def map_points(points: tf.Tensor, geometry: Geometry) -> tf.Tensor:
    """Maps points to the canvas: float32 [..., 2], y, x in original pixels -> in canvas pixels.

    Points outside a crop end up outside the valid area.
    """
    offset, valid = tf.cast(geometry.offset, tf.float32), tf.cast(geometry.valid, tf.float32)
    mapped = (points - offset) * geometry.scale
    return tf.where(geometry.flips, valid - mapped, mapped)


def _rule_scale(
    size: tf.Tensor, canvas: tf.Tensor, short_side: float | tf.Tensor, long_side: float
) -> tf.Tensor:
    """Scale that gives the short side its length, unless the long side or the canvas limits it.

    Args:
        size, canvas: int64 [..., 2], in shapes that agree by broadcasting.
        short_side: float or float64 scalar, pixels.
        long_side: pixels.

    Returns:
        float64 [...].
    """
    size = tf.cast(size, tf.float64)
    shorter, longer = tf.reduce_min(size, axis=-1), tf.reduce_max(size, axis=-1)
    by_sides = tf.minimum(short_side / shorter, long_side / longer)
    return tf.minimum(by_sides, tf.reduce_min(tf.cast(canvas, tf.float64) / size, axis=-1))


def _scaled(size: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Size times scale, rounded half up, at least one pixel: int64 [2]."""
    return tf.cast(tf.maximum(tf.floor(tf.cast(size, tf.float64) * scale + 0.5), 1.0), tf.int64)
