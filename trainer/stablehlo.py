"""A trained network as a StableHLO module, which JAX and other users of XLA run without TensorFlow.

The module is a file of MLIR bytecode that contains the weights. Its function `main` takes uint8
[1, H, W, 3], an image that fills the canvas, and returns what metadata.json beside it lists under
"outputs", in that order.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from data.errors import UserError
from model.detector import Detector
from model.static import Static
from trainer.serving import serve_filled


def lower(network: Detector, canvas: Sequence[int]) -> tuple[bytes, list[dict]]:
    """Lowers prediction on one canvas to StableHLO.

    Returns:
        The module, and {"name", "dtype", "shape"} of each output.
    """
    weights = [(variable, variable.numpy()) for variable in network.variables]

    def predict(image: tf.Tensor) -> dict[str, tf.Tensor]:
        # Variables would become arguments of the module, and constants become part of it.
        constants = [(variable, tf.constant(value)) for variable, value in weights]
        with keras.StatelessScope(constants):
            return serve_filled(network.detect, image, Static.XLA)

    image = tf.TensorSpec([1, *canvas, 3], tf.uint8, "image")
    function = tf.function(predict, [image], autograph=False, jit_compile=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Its argument is deprecated, but without it TensorFlow finds the device by a random number,
        # which fails without a seed where operations are deterministic.
        content = function.experimental_get_compiler_ir(image)(
            stage="stablehlo_serialized", device_name=tf.zeros([]).device
        )
    outputs = function.get_concrete_function().structured_outputs
    return content, [
        # TensorFlow orders the values of a dict by their keys.
        {"name": name, "dtype": value.dtype.name, "shape": value.shape.as_list()}
        for name, value in sorted(outputs.items())
    ]


def make_runner(
    content: bytes, metadata: Mapping[str, Any]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Compiles a module, and returns what runs it on an image on JAX's default device.

    Raises:
        UserError: JAX is not installed.
        ValueError: `content` is not a StableHLO module that this version of JAX can read.
    """
    try:
        import jax.export
    except ImportError:
        raise UserError("StableHLO files are run by JAX; pip install jax.") from None
    sides = metadata["input"]
    image = jax.ShapeDtypeStruct([1, sides["height"], sides["width"], 3], np.uint8)
    outputs = metadata["outputs"]

    def same_signature(image):
        return [jax.numpy.zeros(output["shape"], output["dtype"]) for output in outputs]

    # JAX's way of reading a module is to export one: that of another function is exchanged.
    exported = jax.export.export(jax.jit(same_signature, keep_unused=True))(image)
    exported = dataclasses.replace(exported, mlir_module_serialized=content)
    try:
        compiled = jax.jit(exported.call).lower(image).compile()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"JAX {jax.__version__} cannot read it: {reason}") from None

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        names = [output["name"] for output in outputs]
        return dict(zip(names, map(np.asarray, compiled(image)), strict=True))

    return run
