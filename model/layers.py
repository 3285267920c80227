"""The parameterised layers every organ is made of: convolution, dense, and the normalisations.

Axes: B images (or RoIs), H W rows and columns, C channels. Layouts are NHWC and HWIO.

Layers create their variables when they are constructed, from NumPy draws, so that weights depend
on the seed alone and not on the device. A layer computes in the compute dtype of the policy it was
given (`float32`, `mixed_bfloat16`, `mixed_float16`); its variables are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

Initializer = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

BATCH_NORM_EPSILON = 1e-5
GROUP_NORM_EPSILON = 1e-5
MAX_GROUPS = 32
# Of each head's last layer, whatever the precision: bfloat16 has 128 numbers between 1 and 2, so
# that most scores would tie.
OUTPUT_DTYPE = "float32"


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    receptive = int(np.prod(shape[:-2]))
    return receptive * shape[-2], receptive * shape[-1]


def kaiming_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """N(0, 2 / fan_out), for layers followed by a ReLU (He et al., ICCV 2015)."""
    _, fan_out = _fans(shape)
    return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2.0 / fan_out))


def kaiming_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """U(-b, b) with b = sqrt(3 / fan_in): the "a = 1" variant that Caffe2 calls Xavier."""
    fan_in, _ = _fans(shape)
    bound = np.float32(np.sqrt(3.0 / fan_in))
    return (rng.random(shape, np.float32) * 2 - 1) * bound


def normal(std: float) -> Initializer:
    """N(0, std²)."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(std)

    return draw


class LayerList(keras.layers.Layer):
    """A list of layers that checkpoints know: those in plain lists Keras leaves out of them.

    Args:
        layers: the items, in order; `LayerList`s may nest.
    """

    def __init__(self, layers: Sequence[keras.layers.Layer]):
        super().__init__(autocast=False)
        self._size = len(layers)
        for index, layer in enumerate(layers):
            setattr(self, str(index), layer)
        self.built = True

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> keras.layers.Layer:
        return getattr(self, str(range(self._size)[index]))

    def __iter__(self) -> Iterator[keras.layers.Layer]:
        return (self[index] for index in range(self._size))


class _Parameterised(keras.layers.Layer):
    """A layer whose float32 variables are cast where they are used, not by Keras."""

    def __init__(self, dtype: str):
        super().__init__(dtype=dtype, autocast=False)
        self.built = True

    def _variable(self, name: str, value: np.ndarray, trainable: bool = True):
        return self.add_weight(
            name=name,
            shape=value.shape,
            dtype="float32",
            trainable=trainable,
            autocast=False,
            initializer=lambda shape, dtype: tf.constant(value, dtype),
        )

    def _cast(self, tensor) -> tf.Tensor:
        return tf.cast(tensor, self.compute_dtype)


class Conv(_Parameterised):
    """2-D convolution with the symmetric padding of the reference implementations.

    Args:
        rng: source of the initial weights.
        in_channels: C of the input.
        out_channels: C of the output.
        size: side of the square kernel, odd.
        stride: of both axes. TF's "SAME" pads strided convolutions asymmetrically, so theirs is
            written out: (size - 1) / 2 on every side.
        bias: whether to add one (initially zero).
        kernel_init: draws the kernel.
        dtype: Keras dtype policy.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        bias: bool = True,
        kernel_init: Initializer = kaiming_normal,
        dtype: str = "float32",
    ):
        super().__init__(dtype)
        shape = (size, size, in_channels, out_channels)
        self.kernel = self._variable("kernel", kernel_init(rng, shape))
        self.bias = self._variable("bias", np.zeros(out_channels, np.float32)) if bias else None
        self.stride = stride
        self.padding = (size - 1) // 2

    def call(self, x: tf.Tensor, scale: tf.Tensor | None = None, offset: tf.Tensor | None = None):
        """Convolves [B, H, W, in_channels]; `scale`, `offset` [out_channels] fold a norm in."""
        kernel = self.kernel if scale is None else self.kernel * scale
        offset = self.bias if offset is None else offset
        x = self._cast(x)
        if self.stride > 1 and self.padding > 0:
            # Not conv2d's own explicit padding: oneDNN has no bfloat16 kernel for it.
            pad = [self.padding, self.padding]
            x = tf.pad(x, [[0, 0], pad, pad, [0, 0]])
        padding = "SAME" if self.stride == 1 else "VALID"
        y = tf.nn.conv2d(x, self._cast(kernel), self.stride, padding)
        return y if offset is None else tf.nn.bias_add(y, self._cast(offset))


class ConvTranspose(_Parameterised):
    """2×2 transposed convolution with stride 2, its output not yet interleaved.

    With the stride equal to the kernel's side no two output cells share an input cell, so the
    layer is a matrix product. Its four output cells a cell stay together on an axis of their own:
    pointwise layers may follow before `interleave` puts them in place, when channels are few.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        in_channels: int,
        out_channels: int,
        *,
        dtype: str = "float32",
    ):
        super().__init__(dtype)
        shape = (2, 2, in_channels, out_channels)
        self.kernel = self._variable("kernel", kaiming_normal(rng, shape))
        self.bias = self._variable("bias", np.zeros(out_channels, np.float32))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B, H, W, in_channels] → [B, 4 H W, out_channels], the 2×2 cells innermost."""
        in_channels, out_channels = self.kernel.shape[2:]
        cells = x.shape[1] * x.shape[2]
        matrix = tf.transpose(self._cast(self.kernel), [2, 0, 1, 3])
        matrix = tf.reshape(matrix, [in_channels, 4 * out_channels])
        y = tf.matmul(tf.reshape(self._cast(x), [-1, in_channels]), matrix)
        y = tf.reshape(y, [-1, 4 * cells, out_channels])
        return tf.nn.bias_add(y, self._cast(self.bias))


def interleave(x: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Puts one channel of `ConvTranspose` in place: [B, 4 H W] → [B, 2 H, 2 W]."""
    x = tf.transpose(tf.reshape(x, [-1, height, width, 2, 2]), [0, 1, 3, 2, 4])
    return tf.reshape(x, [-1, 2 * height, 2 * width])


class Dense(_Parameterised):
    """Fully connected layer: [B, in_dim] → [B, out_dim]."""

    def __init__(
        self,
        rng: np.random.Generator,
        in_dim: int,
        out_dim: int,
        *,
        kernel_init: Initializer = kaiming_uniform,
        dtype: str = "float32",
    ):
        super().__init__(dtype)
        self.kernel = self._variable("kernel", kernel_init(rng, (in_dim, out_dim)))
        self.bias = self._variable("bias", np.zeros(out_dim, np.float32))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Multiplies [B, in_dim]."""
        return tf.nn.bias_add(
            tf.matmul(self._cast(x), self._cast(self.kernel)), self._cast(self.bias)
        )


class FrozenBatchNorm(_Parameterised):
    """Batch normalisation whose four vectors never change: an affine map of the channels.

    It is not called: `ConvNorm` folds its `scale` and `offset` into the convolution before it.
    """

    def __init__(self, channels: int, *, dtype: str = "float32"):
        super().__init__(dtype)
        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        self.gamma = self._variable("gamma", ones, trainable=False)
        self.beta = self._variable("beta", zeros, trainable=False)
        self.moving_mean = self._variable("moving_mean", zeros, trainable=False)
        self.moving_variance = self._variable("moving_variance", ones, trainable=False)

    def affine(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scale and offset, float32 [C] each, of y = x * scale + offset."""
        scale = self.gamma * tf.math.rsqrt(self.moving_variance + BATCH_NORM_EPSILON)
        return scale, self.beta - self.moving_mean * scale


class GroupNorm(_Parameterised):
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
    """y = x · scale + offset with a scale and an offset for each image and channel.

    The gradient is written out so that both directions touch the activations as rarely as the
    algebra allows: sums over rows and columns, then one multiply-add with [B, C] coefficients.
    """
    batch, channels = tf.shape(x)[0], x.shape[-1]
    cells = x.shape[1] * x.shape[2]
    count = tf.cast(cells * channels // groups, tf.float32)

    def sum_cells(tensor: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(tensor, tf.float32), axis=[1, 2])

    def over_group(per_channel: tf.Tensor) -> tf.Tensor:
        """Mean over each group of values summed over cells, for every channel of the group."""
        grouped = tf.reshape(per_channel, [batch, groups, channels // groups])
        mean = tf.reduce_sum(grouped, -1, keepdims=True) / count
        return tf.reshape(tf.broadcast_to(mean, tf.shape(grouped)), [batch, channels])

    def affine(tensor: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        return tensor * tf.cast(scale, x.dtype)[:, None, None, :]

    @tf.custom_gradient
    def normalise(x, gamma, beta):
        mean = over_group(sum_cells(x))
        # E[(x - mean)²] as E[x²] - mean² would cancel; the shifted form does not.
        centred = tf.cast(x, tf.float32) - mean[:, None, None, :]
        inverse = tf.math.rsqrt(over_group(sum_cells(tf.square(centred))) + GROUP_NORM_EPSILON)
        scale = gamma * inverse
        y = affine(tf.cast(centred, x.dtype), scale) + tf.cast(beta, x.dtype)

        def gradient(dy):
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
    """The normalisation layer that `--norm` names, with variables for `channels` channels."""
    if norm == "frozen_bn":
        return FrozenBatchNorm(channels, dtype=dtype)
    if norm == "gn":
        return GroupNorm(channels, dtype=dtype)
    layer = keras.layers.BatchNormalization(
        momentum=0.9,
        epsilon=BATCH_NORM_EPSILON,
        synchronized=norm == "sync_bn",
        dtype=dtype,
    )
    layer.build((None, None, None, channels))
    return layer


class ConvNorm(keras.layers.Layer):
    """A convolution and the normalisation after it, which takes the place of a bias.

    Args:
        rng, in_channels, out_channels, size, stride, kernel_init, dtype: as of `Conv`.
        norm: see `make_norm`; "none" leaves it out and gives the convolution a bias.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        norm: str,
        kernel_init: Initializer = kaiming_normal,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        kwargs = {"stride": stride, "kernel_init": kernel_init, "dtype": dtype}
        self.conv = Conv(rng, in_channels, out_channels, size, bias=norm == "none", **kwargs)
        self.norm = None if norm == "none" else make_norm(norm, out_channels, dtype)
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B, H, W, in_channels] → [B, H / stride, W / stride, out_channels]."""
        if isinstance(self.norm, FrozenBatchNorm):
            scale, offset = self.norm.affine()
            return self.conv(x, scale=scale, offset=offset)
        x = self.conv(x)
        if self.norm is None or isinstance(self.norm, GroupNorm):
            return x if self.norm is None else self.norm(x)
        return self.norm(x, training=training)
