"""MobileNetV3 (Howard et al., ICCV 2019) from `keras.applications`.

Axes: B images, N RoIs, H W rows and columns of the input, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from data.settings import require
from model.backbones import Options, require_no_stride_in_1x1, require_norm_of_rois
from model.layers import Part, kaiming_normal

MODELS = {
    "mobilenet_v3_small": keras.applications.MobileNetV3Small,
    "mobilenet_v3_large": keras.applications.MobileNetV3Large,
}
STRIDES = (4, 8, 16, 32)
# Side of a symbolic image that reveals each layer's stride.
_PROBE = 64


class MobileNetV3(Part):
    """MobileNetV3 up to its last block, without the classifier.

    Args:
        rng: source of the initial weights.
        name: a key of `MODELS`.
        norm: "bn", or "frozen_bn" for norms that keep their statistics, scale and offset.
        freeze_at: frozen stages, which also stop gradients: 1 everything up to stride 2, 2
            everything up to C2, ….
        last_stage: 5 for everything up to C5, 4 up to C4, ….
        dtype: Keras dtype policy.

    Attributes:
        out_channels: channels of C2 … C`last_stage`.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        name: str,
        *,
        norm: str,
        freeze_at: int = 0,
        last_stage: int = 5,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        whole = _build(rng, MODELS[name], dtype)
        ends = _ends_of_strides(whole)
        outputs = [whole.layers[end].output for end in ends[1:last_stage]]
        self.model = keras.Model(whole.input, outputs)
        self.out_channels = tuple(output.shape[-1] for output in outputs)
        self.freeze_at = freeze_at
        _freeze(self.model, norm, whole.layers[: ends[freeze_at - 1] + 1] if freeze_at else ())
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False, static: bool = False) -> list[tf.Tensor]:
        """Returns C2 … C5 (strides 4, 8, 16, 32) of normalised pixels [B, H, W, 3]."""
        outputs = self.model(x, training=training)
        return [
            tf.stop_gradient(output) if level <= self.freeze_at else output
            for level, output in enumerate(_as_list(outputs), start=2)
        ]


class MobileNetV3Trunk(Part):
    """The blocks between C4 and C5 on RoIs, with their stride of 2, and the mean of their output.

    Args:
        rng, name, norm, freeze_at, dtype: as for `MobileNetV3`; the blocks are frozen if
            `freeze_at` is 5.

    Attributes:
        roi_size: side of the RoIs, as many cells as C4 has on the 224×224 pixels of ImageNet.
        out_channels: length of the vectors.
    """

    roi_size = 14

    def __init__(
        self,
        rng: np.random.Generator,
        name: str,
        *,
        norm: str,
        freeze_at: int = 0,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        whole = _build(rng, MODELS[name], dtype)
        c4 = whole.layers[_ends_of_strides(whole)[-2]].output
        self.model = keras.Model(c4, whole.output)
        self.out_channels = whole.output.shape[-1]
        _freeze(self.model, norm, self.model.layers if freeze_at == 5 else ())
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps features of RoIs, [N, 14, 14, C4 channels], to vectors [N, out_channels]."""
        return tf.reduce_mean(self.model(x, training=training), axis=[1, 2])


def _freeze(model: keras.Model, norm: str, frozen: Sequence[keras.layers.Layer]) -> None:
    """Freezes layers and, for "frozen_bn", all norms."""
    for layer in model.layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = not (layer in frozen or (is_norm and norm == "frozen_bn"))


def _as_list(outputs) -> list[tf.Tensor]:
    """Returns a list also of the outputs of a Keras model that has one."""
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _build(rng, model, dtype: str) -> keras.Model:
    """Builds the whole network under a dtype policy, which its layers take from the process."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        whole = model(
            input_shape=(None, None, 3),
            include_top=False,
            weights=None,
            include_preprocessing=False,
        )
    finally:
        keras.config.set_dtype_policy(before)
    for layer in whole.layers:
        if hasattr(layer, "kernel"):
            layer.kernel.assign(kaiming_normal(rng, tuple(layer.kernel.shape)))
    return whole


def _ends_of_strides(model: keras.Model) -> list[int]:
    """Finds the last layer of the last block of each stride, 2 to 16, and the last layer."""
    outputs = [layer.output for layer in model.layers]
    shapes = keras.Model(model.input, outputs).compute_output_shape((1, _PROBE, _PROBE, 3))
    names = [layer.name for layer in model.layers]
    first = next(index for index, name in enumerate(names) if name.startswith("expanded_conv"))
    strides = {
        index: _PROBE // shapes[index][1]
        for index, name in enumerate(names)
        if index < first or name.endswith(("project_bn", "_add"))
    }
    ends = [max(i for i in strides if strides[i] == stride) for stride in (2, *STRIDES[:-1])]
    return [*ends, len(names) - 1]


def make(rng: np.random.Generator, name: str, options: Options) -> MobileNetV3:
    """Makes the backbone as `model.backbones` describes."""
    return MobileNetV3(rng, name, last_stage=options.last_stage, **_read(name, options))


def make_trunk(rng: np.random.Generator, name: str, options: Options) -> MobileNetV3Trunk:
    """Makes the trunk as `model.backbones` describes."""
    require_norm_of_rois(options.norm)
    return MobileNetV3Trunk(rng, name, **_read(name, options))


def _read(name: str, options: Options) -> dict:
    """Returns the options that the backbone and the trunk share, as arguments."""
    norm, width = options.norm, options.width
    require_no_stride_in_1x1(name, options)
    require(norm in ("bn", "frozen_bn"), "norm", norm, f"bn or frozen_bn for {name}")
    require(
        width == 0, "backbone_width", width, f"0 for {name}, which has only its published width"
    )
    return {"norm": norm, "freeze_at": options.freeze_at, "dtype": options.dtype}
