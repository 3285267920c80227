"""Converts a trained network to LiteRT (TensorFlow Lite) files."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from data.errors import UserError
from model.quantisation import is_quantised
from trainer.serving import Serving

# Operations with kernels for 8 bits that `is_quantised` may allow.
_QUANTISED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "PAD", "MAX_POOL_2D")


def convert(function: Callable, serving: Serving, kind: str) -> bytes:
    """Converts a network to a .tflite file of built-in operations alone.

    Args:
        function: the concrete function of a signature.
        serving: the network, which has the weights.
        kind: "float32"; "float16" and "dynamic" store the weights in 16 and 8 bits.

    Returns:
        The content of the file.
    """
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], serving)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


def quantise(float32: bytes, images: Sequence[np.ndarray]) -> bytes:
    """Converts a float32 file to one that computes in 8 bits as far as `model.quantisation` says.

    Not by TensorFlow's own quantiser: where it is told to leave operations in float32, it still
    rounds some of their inputs, such as the positions of RoIAlign's samples.

    Args:
        float32: content of the file.
        images: uint8 [1, H, W, 3] each, whose activations give the ranges.

    Raises:
        UserError: the package that it needs is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_quantizer import qtyping, quantizer
    except ImportError:
        raise UserError(
            "int8 files need ai-edge-quantizer: pip install 'mask-scoring-rcnn[litert]'."
        ) from None
    tensors = Interpreter(model_content=float32).get_tensor_details()
    chosen = [re.escape(tensor["name"]) for tensor in tensors if is_quantised(tensor["name"])]
    # It reports its progress on both streams.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        quantiser = quantizer.Quantizer(float32)
        for operation in _QUANTISED:
            quantiser.add_static_config(
                # The name that it matches ends with a semicolon.
                regex=f"^({'|'.join(chosen)});?$",
                operation_name=qtyping.TFLOperationName[operation],
                activation_num_bits=8,
                weight_num_bits=8,
            )
        return bytes(quantiser.quantize(_calibrate(quantiser, images)).quantized_model)


def _calibrate(quantiser, images: Sequence[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The range of each tensor over all images; the quantiser's own average favours the last."""
    each = [quantiser.calibrate({"serving_default": [{"image": image}]}) for image in images]
    return {
        name: {
            key: (np.min if key == "min" else np.max)([seen[name][key] for seen in each], axis=0)
            for key in values
        }
        for name, values in each[0].items()
    }
