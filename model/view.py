"""A batch as the heads see it.

Axes: B images, H W pixels, L maps, N RoIs of all images, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class View:
    """The maps of a batch, and how boxes are pooled from them.

    Attributes:
        maps: L tensors [B, H_l, W_l, C], finest first.
        image_info: float32 [B, 5]; its first two columns are the valid height and width.
        regions: pools boxes from the maps, as `model.roi_align.RoIAlign` does.
        static: whether all shapes have to be static, as XLA and exported graphs need them. Then
            the mask branch works on a fixed number of slots, some of them empty; the losses and
            the detections are the same.
        training: whether gradients will be asked for.
    """

    maps: Sequence[tf.Tensor]
    image_info: tf.Tensor
    regions: Callable
    static: bool = False
    training: bool = False

    def pool(self, boxes: tf.Tensor, image_index: tf.Tensor, output_size: int) -> tf.Tensor:
        """The content of boxes, float32 [N, 4] in pixels: [N, output_size, output_size, C]."""
        return self.regions(
            self.maps,
            boxes,
            image_index,
            output_size=output_size,
            static=self.static,
            training=self.training,
        )
