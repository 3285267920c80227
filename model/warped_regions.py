"""Regions of R-CNN: each box is cut from the image and goes through the backbone by itself.

Source: Girshick et al., CVPR 2014, section 2.3 and appendix A.

Axes: B images, H W pixels, N regions of all images, S cells along a side of a region's features, C
channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from model.max_pool import max_pool
from model.roi_align import roi_align
from model.scopes import in_scope

CONTEXT = 16  # pixels of a warped region on each side that lie outside the box
_MOST_AT_A_TIME = 128  # regions


class WarpedRegions:
    """Warps boxes with some of their surroundings to squares, and computes their features.

    Whatever its shape, a box becomes a square of the size that the backbone saw on ImageNet. What
    lies outside the image has the mean colour. The features are C4, halved by max-pooling, which
    for AlexNet and VGG is pool5.

    Args:
        backbone: its last map is C4.
        size: side of the squares in pixels.
    """

    def __init__(self, backbone: keras.layers.Layer, size: int):
        self.backbone = backbone
        self.size = size

    def __call__(
        self,
        maps: Sequence[tf.Tensor],
        boxes: tf.Tensor,
        image_index: tf.Tensor,
        *,
        output_size: int,
        static: bool = False,
        training: bool = False,
    ) -> tf.Tensor:
        """Computes the features of boxes float32 [N, 4]: [N, S, S, C], see `model.view.View`.

        Args:
            maps: one, the normalised pixels [B, H, W, 3].
            output_size: S.
        """

        def compute(part: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            regions = warp(maps[0], *part, self.size, static)
            c4 = self.backbone(regions, training=training, static=static)[-1]
            return max_pool(c4, c4.shape[1] - 2 * (output_size - 1), static=static)

        if training:  # of few regions, whose gradient needs all of it at once
            return compute((boxes, image_index))
        shape = [output_size, output_size, self.backbone.out_channels[-1]]
        one = tf.TensorSpec(shape, self.backbone.compute_dtype)
        return _map_in_parts(compute, boxes, image_index, one)


@in_scope("warp")
def warp(
    pixels: tf.Tensor, boxes: tf.Tensor, image_index: tf.Tensor, size: int, static: bool = False
) -> tf.Tensor:
    """Warps each box to a square, bilinearly: each pixel is the image's at its centre.

    Args:
        pixels: normalised pixels [B, H, W, 3].
        boxes: float32 [N, 4] in pixels.
        image_index: int32 [N].
        size: side of the squares, of which the box fills all but `CONTEXT` pixels on each side.
        static: see `model.roi_align.roi_align`.

    Returns:
        [N, size, size, 3], 0 outside the image.
    """
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    side *= size / (size - 2 * CONTEXT)
    return roi_align(
        [pixels],
        tf.concat([centre - side / 2, centre + side / 2], axis=1),
        image_index,
        output_size=size,
        sampling_ratio=1,
        static=static,
        training=False,
        min_level=0,
    )


def _map_in_parts(
    compute: Callable, boxes: tf.Tensor, image_index: tf.Tensor, one: tf.TensorSpec
) -> tf.Tensor:
    """Computes a few regions at a time, in equal parts, because each needs megabytes.

    Args:
        compute: of boxes and images.
        boxes, image_index: [N, 4] and [N].
        one: shape and dtype of the features of one region.
    """
    count = boxes.shape[0]
    num_parts = max(-(-count // _MOST_AT_A_TIME), 1)
    size = -(-count // num_parts)
    parts = [
        tf.reshape(
            tf.pad(values, [[0, num_parts * size - count], *[[0, 0]] * (values.shape.rank - 1)]),
            [num_parts, size, *values.shape[1:]],
        )
        for values in (boxes, image_index)
    ]
    signature = tf.TensorSpec([size, *one.shape], one.dtype)
    found = tf.map_fn(compute, tuple(parts), parallel_iterations=1, fn_output_signature=signature)
    return tf.reshape(found, [-1, *found.shape[2:]])[:count]
