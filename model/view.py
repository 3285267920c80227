"""The view of a batch that the heads work on.

Axes: B images, H W pixels, L maps, N RoIs of all images, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from model.static import Static


@dataclasses.dataclass(frozen=True)
class View:
    """The maps of a batch, and a way to pool boxes from them.

    Attributes:
        maps: L tensors [B, H_l, W_l, C], finest first.
        image_info: float32 [B, 5]; its first two columns are the valid height and width.
        regions: pools boxes from the maps, as `model.roi_align.RoIAlign` does.
        static: whether, and for which runtime, all shapes have to be static, see
            `model.static.Static`. The mask branch then processes a fixed number of slots, some of
            them empty; losses and detections are the same.
        training: whether gradients will be computed.
    """

    maps: Sequence[tf.Tensor]
    image_info: tf.Tensor
    regions: Callable
    static: bool | Static = False
    training: bool = False

    def pool(self, boxes: tf.Tensor, image_index: tf.Tensor, output_size: int) -> tf.Tensor:
        """Pools boxes, float32 [N, 4] in pixels, to [N, output_size, output_size, C]."""
        return self.regions(
            self.maps,
            boxes,
            image_index,
            output_size=output_size,
            static=self.static,
            training=self.training,
        )
