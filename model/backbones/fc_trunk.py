"""The two fully connected layers that VGG and AlexNet have behind their convolutions.

Axes: N RoIs, C channels.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from model.layers import Dense, LayerList, Part


class FullyConnectedTrunk(Part):
    """fc6 and fc7, with ReLUs and without dropout.

    Args:
        rng: source of the initial weights.
        roi_size: side of the RoIs, as many cells as pool5 has on the images of ImageNet.
        in_channels: C of the features.
        out_channels: width of both layers.
        dtype: Keras dtype policy.

    Attributes:
        roi_size, out_channels: the arguments.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        roi_size: int,
        in_channels: int,
        out_channels: int,
        *,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        self.roi_size, self.out_channels = roi_size, out_channels
        in_dim = roi_size**2 * in_channels
        self.fcs = LayerList(
            [Dense(rng, dim, out_channels, dtype=dtype) for dim in (in_dim, out_channels)]
        )
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps features of RoIs, [N, roi_size, roi_size, C], to vectors [N, out_channels]."""
        x = tf.reshape(x, [-1, self.roi_size**2 * x.shape[-1]])
        for fc in self.fcs:
            x = tf.nn.relu(fc(x))
        return x
