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
    content = serialize(function, image)
    outputs = function.get_concrete_function().structured_outputs
    return content, [
        # TensorFlow orders the values of a dict by their keys.
        {"name": name, "dtype": value.dtype.name, "shape": value.shape.as_list()}
        for name, value in sorted(outputs.items())
    ]


def serialize(function, *arguments) -> bytes:
    """Lowers a `tf.function` that is compiled by XLA to a module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Its argument is deprecated, but without it TensorFlow finds the device by a random number,
        # which fails without a seed where operations are deterministic.
        return function.experimental_get_compiler_ir(*arguments)(
            stage="stablehlo_serialized", device_name=tf.zeros([]).device
        )


def make_runner(
    content: bytes, metadata: Mapping[str, Any]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Compiles a module, and returns what runs it on an image on JAX's default device.

    Raises:
        UserError, ValueError: as `compile_module`.
    """
    sides, outputs = metadata["input"], metadata["outputs"]
    image = {"dtype": "uint8", "shape": [1, sides["height"], sides["width"], 3]}
    compiled = compile_module(content, [image], outputs)

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        names = [output["name"] for output in outputs]
        return dict(zip(names, compiled(image), strict=True))

    return run


def compile_module(
    content: bytes, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
) -> Callable[..., list[np.ndarray]]:
    """Compiles a module for JAX's default device, and returns what runs it.

    Args:
        content: the module, which has a function `main`.
        inputs, outputs: "dtype" and "shape" of each, in order.

    Raises:
        UserError: JAX is not installed.
        ValueError: `content` is not a StableHLO module that this version of JAX can read.
    """
    try:
        import jax.export
    except ImportError:
        raise UserError("StableHLO files are run by JAX; pip install jax.") from None

    def same_signature(*arguments):
        return [jax.numpy.zeros(output["shape"], output["dtype"]) for output in outputs]

    with jax.enable_x64(True):  # for arguments in 64 bits
        arguments = [jax.ShapeDtypeStruct(each["shape"], each["dtype"]) for each in inputs]
        # JAX's way of reading a module is to export one: that of another function is exchanged.
        exported = jax.export.export(jax.jit(same_signature, keep_unused=True))(*arguments)
        exported = dataclasses.replace(exported, mlir_module_serialized=content)
        try:
            compiled = jax.jit(exported.call).lower(*arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"JAX {jax.__version__} cannot read it: {reason}") from None

    def run(*arguments: np.ndarray) -> list[np.ndarray]:
        with jax.enable_x64(True):
            return list(map(np.asarray, compiled(*arguments)))

    return run
