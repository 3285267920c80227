"""The layers with parameters that all parts consist of: convolution and dense.

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

# Dtype of each head's last layer at any precision: bfloat16 has 128 numbers between 1 and 2, so
# that most scores would tie.
OUTPUT_DTYPE = "float32"

# Groups of fewer channels are convolved together: the products with zeros cost less than many small
# convolutions.
JOINED_CHANNELS = 64


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


class Part(keras.layers.Layer):
    """A layer that declares which of its variables weight decay applies to."""

    @property
    def kernels(self) -> list[keras.Variable]:
        """The kernels of all layers below, at any depth."""
        return [layer.kernel for layer in self._flatten_layers() if hasattr(layer, "kernel")]

    @property
    def decayed_variables(self) -> list[keras.Variable]:
        """The trainable kernels; weight decay does not apply to norms and biases."""
        return [kernel for kernel in self.kernels if kernel.trainable]


class LayerList(keras.layers.Layer):
    """A list of layers that is saved in checkpoints; Keras does not save those in plain lists.

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


class Parameterised(keras.layers.Layer):
    """A layer that casts its float32 variables where it uses them, instead of Keras."""

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


class Conv(Parameterised):
    """2-D convolution.

    Args:
        rng: source of the initial weights.
        in_channels: C of the input.
        out_channels: C of the output.
        size: side of the square kernel, odd.
        stride: of both axes.
        padding: "symmetric", (size - 1) / 2 on every side as in PyTorch's networks, "same" as in
            TensorFlow, which pads the bottom and right more if the stride is above 1, or "valid"
            for none.
        groups: parts of the channels that are convolved on their own.
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
        padding: str = "symmetric",
        groups: int = 1,
        bias: bool = True,
        kernel_init: Initializer = kaiming_normal,
        dtype: str = "float32",
    ):
        super().__init__(dtype)
        shape = (size, size, in_channels // groups, out_channels)
        self.kernel = self._variable("kernel", kernel_init(rng, shape))
        self.bias = self._variable("bias", np.zeros(out_channels, np.float32)) if bias else None
        self.stride, self.groups = stride, groups
        # With stride 1, "symmetric" and "same" are equal.
        is_symmetric = stride > 1 and padding == "symmetric"
        self.border = (size - 1) // 2 if is_symmetric else 0
        self.padding = "VALID" if is_symmetric or padding == "valid" else "SAME"

    def call(self, x: tf.Tensor, scale: tf.Tensor | None = None, offset: tf.Tensor | None = None):
        """Convolves [B, H, W, in_channels]; `scale`, `offset` [out_channels] fold a norm in."""
        kernel = self.kernel if scale is None else self.kernel * scale
        offset = self.bias if offset is None else offset
        x = self._cast(x)
        if self.border:
            # Not by conv2d's explicit padding, because oneDNN has no bfloat16 kernel for it.
            pad = [self.border, self.border]
            x = tf.pad(x, [[0, 0], pad, pad, [0, 0]])
        y = self._convolve(x, self._cast(kernel))
        return y if offset is None else tf.nn.bias_add(y, self._cast(offset))

    def _convolve(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        if self.groups == 1 or _has_kernels_for_groups():
            return tf.nn.conv2d(x, kernel, self.stride, self.padding)
        joined = _groups_to_join(self.groups, x.shape[-1] // self.groups)
        parts = self.groups // joined
        pairs = zip(tf.split(x, parts, -1), tf.split(kernel, parts, -1), strict=True)
        return tf.concat(
            [
                tf.nn.conv2d(y, _block_diagonal(k, joined), self.stride, self.padding)
                for y, k in pairs
            ],
            -1,
        )


def _has_kernels_for_groups() -> bool:
    """Whether the devices convolve groups well: on a CPU there is no gradient, or a slow one."""
    has_gpu = tf.config.list_physical_devices("GPU")
    return bool(has_gpu or tf.config.list_logical_devices("TPU"))


def _groups_to_join(groups: int, channels: int) -> int:
    """Finds how many groups to convolve at once so that they have about `JOINED_CHANNELS`."""
    wanted = max(JOINED_CHANNELS // channels, 1)
    return max(count for count in range(1, groups + 1) if groups % count == 0 and count <= wanted)


def _block_diagonal(kernel: tf.Tensor, groups: int) -> tf.Tensor:
    """Spreads a kernel of groups, [h, w, I, O], to one with zeros between them, [h, w, G I, O]."""
    height, width, inputs, outputs = kernel.shape
    diagonal = tf.eye(groups, dtype=kernel.dtype)[:, None, :, None]
    blocks = tf.reshape(kernel, [height, width, 1, inputs, groups, outputs // groups]) * diagonal
    return tf.reshape(blocks, [height, width, groups * inputs, outputs])


class DepthwiseConv(Parameterised):
    """Depthwise convolution with TensorFlow's "SAME" padding.

    Args:
        rng: source of the initial weights.
        channels: C.
        size: side of the square kernel.
        stride: of both axes.
        kernel_init: draws the kernel.
        dtype: Keras dtype policy.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        channels: int,
        size: int,
        *,
        stride: int = 1,
        kernel_init: Initializer = kaiming_normal,
        dtype: str = "float32",
    ):
        super().__init__(dtype)
        self.kernel = self._variable("kernel", kernel_init(rng, (size, size, channels, 1)))
        self.stride = stride

    def call(self, x: tf.Tensor, scale: tf.Tensor | None = None, offset: tf.Tensor | None = None):
        """Convolves [B, H, W, C]; `scale`, `offset` [C] fold a norm in."""
        kernel = self.kernel if scale is None else self.kernel * scale[:, None]
        strides = [1, self.stride, self.stride, 1]
        y = tf.nn.depthwise_conv2d(self._cast(x), self._cast(kernel), strides, "SAME")
        return y if offset is None else tf.nn.bias_add(y, self._cast(offset))


class SeparableConv(keras.layers.Layer):
    """A depthwise and a 1×1 convolution in place of a `Conv` (Howard et al., MobileNets, 2017).

    Args:
        rng, in_channels, out_channels, size, stride, bias, dtype: as for `Conv`; the padding is
            TensorFlow's "SAME".
        kernel_init: draws the 1×1 kernel; the depthwise one preserves the variance.
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
        super().__init__(dtype=dtype, autocast=False)
        self.depthwise = DepthwiseConv(
            rng, in_channels, size, stride=stride, kernel_init=normal(1 / size), dtype=dtype
        )
        self.pointwise = Conv(
            rng, in_channels, out_channels, 1, bias=bias, kernel_init=kernel_init, dtype=dtype
        )
        self.built = True

    def call(self, x: tf.Tensor, scale: tf.Tensor | None = None, offset: tf.Tensor | None = None):
        """Convolves [B, H, W, in_channels]; `scale`, `offset` [out_channels] fold a norm in."""
        return self.pointwise(self.depthwise(x), scale=scale, offset=offset)


class ConvTranspose(Parameterised):
    """2×2 transposed convolution with stride 2, its output not yet interleaved.

    Because the stride equals the kernel's side, every output cell depends on one input cell, and
    the layer is a matrix product. The four output cells of an input cell stay together on an own
    axis: pointwise layers may follow before `interleave` moves them into place, when channels are
    few.
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
        """Maps [B, H, W, in_channels] → [B, 4 H W, out_channels], the 2×2 cells innermost."""
        in_channels, out_channels = self.kernel.shape[2:]
        cells = x.shape[1] * x.shape[2]
        matrix = tf.transpose(self._cast(self.kernel), [2, 0, 1, 3])
        matrix = tf.reshape(matrix, [in_channels, 4 * out_channels])
        y = tf.matmul(tf.reshape(self._cast(x), [-1, in_channels]), matrix)
        y = tf.reshape(y, [-1, 4 * cells, out_channels])
        return tf.nn.bias_add(y, self._cast(self.bias))


def interleave(x: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Moves one channel of `ConvTranspose` into place: [B, 4 H W] → [B, 2 H, 2 W]."""
    x = tf.transpose(tf.reshape(x, [-1, height, width, 2, 2]), [0, 1, 3, 2, 4])
    return tf.reshape(x, [-1, 2 * height, 2 * width])


class Dense(Parameterised):
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
