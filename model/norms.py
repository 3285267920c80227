"""Normalisation layers, and the convolution followed by one.

Axes: B images (or RoIs), H W rows and columns, C channels.
"""

from __future__ import annotations

import functools

import keras
import numpy as np
import tensorflow as tf

from model.deformable import DeformableConv
from model.layers import (
    Conv,
    DepthwiseConv,
    Initializer,
    Parameterised,
    SeparableConv,
    kaiming_normal,
)

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9
GROUP_NORM_EPSILON = 1e-5
MAX_GROUPS = 32


class FrozenBatchNorm(Parameterised):
    """Batch normalisation whose four vectors never change: an affine map of the channels.

    It is never called: `ConvNorm` folds its `scale` and `offset` into the preceding convolution.
    """

    def __init__(self, channels: int, *, trainable: bool = False, dtype: str = "float32"):
        super().__init__(dtype)
        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        self.gamma = self._variable("gamma", ones, trainable=trainable)
        self.beta = self._variable("beta", zeros, trainable=trainable)
        self.moving_mean = self._variable("moving_mean", zeros, trainable=False)
        self.moving_variance = self._variable("moving_variance", ones, trainable=False)

    def affine(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scale and offset, float32 [C] each, of y = x * scale + offset."""
        scale = self.gamma * tf.math.rsqrt(self.moving_variance + BATCH_NORM_EPSILON)
        return scale, self.beta - self.moving_mean * scale


class BatchNorm(FrozenBatchNorm):
    """Batch normalisation (Ioffe and Szegedy, ICML 2015), statistics in float32.

    It is called in training only, and only where it is trainable. Then it normalises by the batch
    and moves its statistics.

    Args:
        channels, dtype: as for `make_norm`.
        synchronised: whether the batch is that of all replicas.
    """

    def __init__(self, channels: int, *, synchronised: bool = False, dtype: str = "float32"):
        super().__init__(channels, trainable=True, dtype=dtype)
        self.synchronised = synchronised

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Normalises [B, H, W, C] over images, rows and columns."""
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        y, mean, variance = _batch_norm(x, gamma, beta, self.synchronised)
        for moving, current in ((self.moving_mean, mean), (self.moving_variance, variance)):
            kept = BATCH_NORM_MOMENTUM * tf.convert_to_tensor(moving)
            moving.assign(kept + (1.0 - BATCH_NORM_MOMENTUM) * tf.stop_gradient(current))
        return y


def _batch_norm(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, synchronised: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes y = x · scale + offset, and the mean and the variance of each channel.

    The gradient is written explicitly, because TensorFlow would keep a float32 copy of 16-bit
    activations for it.
    """
    channels = x.shape[-1]
    count = tf.cast(tf.size(x) // channels, tf.float32)

    def average(tensor: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tensor, axis=[0, 1, 2]) / count

    def over_replicas(*vectors: tf.Tensor) -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        if not synchronised or context is None or context.num_replicas_in_sync == 1:
            return list(vectors)
        return tf.unstack(context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.stack(vectors)))

    def affine(tensor: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
        return tensor * tf.cast(scale, x.dtype) + tf.cast(offset, x.dtype)

    @tf.custom_gradient
    def normalise(x, gamma, beta):
        own_mean = average(tf.cast(x, tf.float32))
        own_variance = average(tf.square(tf.cast(x, tf.float32) - own_mean))
        mean, variance, square = over_replicas(own_mean, own_variance, tf.square(own_mean))
        variance += tf.maximum(square - tf.square(mean), 0.0)  # that of the replicas' means
        inverse = tf.math.rsqrt(variance + BATCH_NORM_EPSILON)
        y = affine(tf.cast(tf.cast(x, tf.float32) - mean, x.dtype), gamma * inverse, beta)

        def gradient(dy, *_):
            centred = tf.cast(x, tf.float32) - mean
            own_mean_dy = average(tf.cast(dy, tf.float32))
            own_mean_dy_centred = average(tf.cast(dy, tf.float32) * centred)
            mean_dy, mean_dy_centred = over_replicas(own_mean_dy, own_mean_dy_centred)
            scale = gamma * inverse
            slope = -scale * inverse * inverse * mean_dy_centred
            dx = affine(dy, scale, -scale * mean_dy) + tf.cast(centred * slope, x.dtype)
            return dx, count * own_mean_dy_centred * inverse, count * own_mean_dy

        return (y, mean, variance), gradient

    return normalise(x, gamma, beta)


class GroupNorm(Parameterised):
    """Group normalisation (Wu and He, ECCV 2018, section 3.1), statistics in float32."""

    def __init__(self, channels: int, *, dtype: str = "float32"):
        super().__init__(dtype)
        self.gamma = self._variable("gamma", np.ones(channels, np.float32))
        self.beta = self._variable("beta", np.zeros(channels, np.float32))
        self.groups = next(g for g in range(MAX_GROUPS, 0, -1) if channels % g == 0)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Normalises [B, H, W, C] over rows, columns and the channels of each group."""
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        return _group_norm(x, gamma, beta, self.groups)


def _group_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, groups: int) -> tf.Tensor:
    """Computes y = x · scale + offset with a scale and an offset for each image and channel.

    The gradient is written explicitly so that both directions read the activations as rarely as
    possible: sums over rows and columns, then one multiply-add with [B, C] coefficients.
    """
    batch, channels = tf.shape(x)[0], x.shape[-1]
    cells = x.shape[1] * x.shape[2]
    count = tf.cast(cells * channels // groups, tf.float32)

    def sum_cells(tensor: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(tensor, tf.float32), axis=[1, 2])

    def over_group(per_channel: tf.Tensor) -> tf.Tensor:
        """Averages sums over cells within each group, for every channel of the group."""
        grouped = tf.reshape(per_channel, [batch, groups, channels // groups])
        mean = tf.reduce_sum(grouped, -1, keepdims=True) / count
        return tf.reshape(tf.broadcast_to(mean, tf.shape(grouped)), [batch, channels])

    def affine(tensor: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        return tensor * tf.cast(scale, x.dtype)[:, None, None, :]

    @tf.custom_gradient
    def normalise(x, gamma, beta):
        mean = over_group(sum_cells(x))
        # E[x²] - mean² would lose precision by cancellation; the shifted form does not.
        centred = tf.cast(x, tf.float32) - mean[:, None, None, :]
        inverse = tf.math.rsqrt(over_group(sum_cells(tf.square(centred))) + GROUP_NORM_EPSILON)
        scale = gamma * inverse
        y = affine(tf.cast(centred, x.dtype), scale) + tf.cast(beta, x.dtype)

        def gradient(dy):
            # Computed again, so that only x is kept, which may have 16 bits.
            centred = tf.cast(x, tf.float32) - mean[:, None, None, :]
            sum_dy = sum_cells(dy)
            sum_dy_centred = sum_cells(tf.cast(dy, tf.float32) * centred)
            mean_g = over_group(gamma * sum_dy)
            mean_gc = over_group(gamma * sum_dy_centred)
            slope = -inverse * inverse * inverse * mean_gc
            dx = (
                affine(dy, scale)
                + affine(tf.cast(centred, x.dtype), slope)
                - tf.cast(inverse * mean_g, x.dtype)[:, None, None, :]
            )
            dgamma = tf.reduce_sum(sum_dy_centred * inverse, 0)
            return dx, dgamma, tf.reduce_sum(sum_dy, 0)

        return y, gradient

    return normalise(x, gamma, beta)


def make_norm(norm: str, channels: int, dtype: str) -> keras.layers.Layer:
    """Makes the normalisation layer that `--norm` names, with variables for `channels` channels."""
    if norm == "frozen_bn":
        return FrozenBatchNorm(channels, dtype=dtype)
    if norm == "gn":
        return GroupNorm(channels, dtype=dtype)
    return BatchNorm(channels, synchronised=norm == "sync_bn", dtype=dtype)


class ConvNorm(keras.layers.Layer):
    """A convolution followed by a normalisation, which replaces the bias.

    Args:
        rng, in_channels, out_channels, size, stride, padding, groups, kernel_init, dtype: as for
            `Conv`.
        norm: see `make_norm`; "none" leaves it out and gives the convolution a bias.
        depthwise: whether the convolution is a `DepthwiseConv`.
        separable: whether it is a `SeparableConv`, which has no choice of `padding` or `groups`.
        deformable: whether it is a `DeformableConv`, which has none either, nor of `size`.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        padding: str = "symmetric",
        groups: int = 1,
        norm: str,
        kernel_init: Initializer = kaiming_normal,
        depthwise: bool = False,
        separable: bool = False,
        deformable: bool = False,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        if depthwise:
            self.conv = DepthwiseConv(rng, in_channels, size, stride=stride, dtype=dtype)
        else:
            make = functools.partial(Conv, size=size, padding=padding, groups=groups)
            if separable:
                make = functools.partial(SeparableConv, size=size)
            elif deformable:
                make = DeformableConv
            self.conv = make(
                rng,
                in_channels,
                out_channels,
                stride=stride,
                bias=norm == "none",
                kernel_init=kernel_init,
                dtype=dtype,
            )
        self.norm = None if norm == "none" else make_norm(norm, out_channels, dtype)
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [B, H, W, in_channels] → [B, H / stride, W / stride, out_channels]."""
        is_trained = training and isinstance(self.norm, BatchNorm) and self.norm.trainable
        if isinstance(self.norm, FrozenBatchNorm) and not is_trained:
            scale, offset = self.norm.affine()
            return self.conv(x, scale=scale, offset=offset)
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)
