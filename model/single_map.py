"""The neck of systems without a feature pyramid: heads pool from one map of the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from model.layers import Part


class SingleMap(Part):
    """Selects the coarsest map; it has no variables.

    Args:
        out_channels: channels of this map.
    """

    def __init__(self, out_channels: int):
        super().__init__(autocast=False)
        self.out_channels = out_channels
        self.built = True

    def call(self, maps: Sequence[tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """Selects [C4] from [C2, C3, C4], each [B, H, W, C]."""
        return [maps[-1]]
