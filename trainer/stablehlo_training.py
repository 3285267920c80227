"""A training step as a StableHLO module, which JAX and other users of XLA run without TensorFlow.

The function `main` takes a batch (features, then labels), `stop`, and the variables of network and
optimizer; it returns the step's scalars and the variables that the step changes. Variables have the
names that checkpoints give them.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from data import files
from model.model_fn import model_fn
from model.systems import build_network
from model.variables import named_variables, native
from trainer.checkpoint_files import find_checkpoint, load_network, read_shapes, restore
from trainer.config import Params
from trainer.optimizer import Updater
from trainer.run_record import require_checkpoint
from trainer.stablehlo import compile_module, serialize
from trainer.steps import StepResult, TrainStep

Arrays = dict[str, np.ndarray]
_WRITES = ("Assign", "ResourceApply")
_FILE = "train_step"


class LoweredStep(NamedTuple):
    """A module, its inputs and outputs in order, and the current values of its variables.

    An input or output is described by "name", "dtype" and "shape"; `variables` has the names of
    those that are variables, which contain a slash.
    """

    content: bytes
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    variables: Arrays


def open_step(params: Params) -> tuple[TrainStep, dict[str, tf.Variable], Params]:
    """Makes the training step of a model_dir, compiled by XLA, for the canvas of `--canvas`.

    Returns:
        The step; the variables of network and optimizer by name, with the values of the latest
        checkpoint; and the settings.

    Raises:
        UserError: there is no checkpoint, or it does not fit.
    """
    require_checkpoint(params)
    canvas = params.train.canvas or params.data.canvases[0]
    params = dataclasses.replace(
        params,
        data=dataclasses.replace(params.data, canvases=(canvas,), steps_per_call=1),
        model=dataclasses.replace(params.model, jit_compile=True),
        train=dataclasses.replace(
            params.train, mode="train", accumulate_steps=1, ema_decay=0.0, nonfinite_retries=0
        ),
    )
    network = build_network(params)
    updater = Updater(network, params)
    checkpoint = tf.train.Checkpoint(network=network, optimizer=updater.state())
    path = find_checkpoint(params.train.init_checkpoint or params.train.model_dir)
    if any(name.startswith("optimizer/") for name in read_shapes(path)):
        restore(checkpoint, path)
    else:
        load_network(network, path)
    step = TrainStep(model_fn, network, updater, tf.distribute.get_strategy(), params)
    return step, named_variables(checkpoint), params


def lower_step(
    step: TrainStep, variables: Mapping[str, tf.Variable], features: Mapping, labels: Mapping
) -> LoweredStep:
    """Lowers the training step for batches of these shapes.

    Args:
        step: one that is compiled by XLA (`--jit_compile`), on one device.
        variables: those of network and optimizer, by name.
        features, labels: a batch, as from `data.input_fn`.

    """
    arguments = dict(features), dict(labels), tf.constant(0.0)
    function = step.function.get_concrete_function(*arguments)
    names = {id(native(variable).handle): name for name, variable in variables.items()}
    used = [names[id(handle)] for handle in function.captured_inputs]
    values = {name: variables[name].numpy() for name in used}
    batch = {**_in_order(arguments[0]), **_in_order(arguments[1]), "stop": arguments[2]}
    scalars = _name_scalars(function.structured_outputs)
    written = [
        name
        for name, argument in zip(used, function.graph.internal_captures, strict=True)
        if any(reader.type.startswith(_WRITES) for reader in argument.consumers())
    ]
    return LoweredStep(
        serialize(step.function, *arguments),
        [_describe(name, value) for name, value in (batch | values).items()],
        [_describe(name, value) for name, value in scalars.items()]
        + [_describe(name, values[name]) for name in written],
        values,
    )


def write_step(folder: str, lowered: LoweredStep, batch: Mapping[str, tf.Tensor]) -> str:
    """Writes the module, its inputs and outputs as JSON, and batch and variables as .npz.

    Returns:
        The path of the module.
    """
    arrays = {name: value.numpy() for name, value in batch.items()}
    packed = io.BytesIO()
    np.savez(packed, **arrays, **lowered.variables)
    description = {"inputs": lowered.inputs, "outputs": lowered.outputs}
    files.make_folder(folder)
    path = os.path.join(folder, f"{_FILE}.stablehlo")
    if files.exists(path):  # A module never lies beside the description of another.
        files.remove(path)
    for name, content in (
        ("json", json.dumps(description, indent=1).encode()),
        ("npz", packed.getvalue()),
        ("stablehlo", lowered.content),
    ):
        with files.whole_file(os.path.join(folder, f"{_FILE}.{name}"), "wb") as file:
            file.write(content)
    return path


def read_step(folder: str) -> tuple[LoweredStep, Arrays]:
    """Reads what `write_step` wrote: the step, and the batch by name."""
    with files.open_file(os.path.join(folder, f"{_FILE}.json")) as file:
        description = json.load(file)
    with files.open_file(os.path.join(folder, f"{_FILE}.npz"), "rb") as file:
        arrays = dict(np.load(io.BytesIO(file.read())))
    with files.open_file(os.path.join(folder, f"{_FILE}.stablehlo"), "rb") as file:
        content = file.read()
    variables = {name: value for name, value in arrays.items() if "/" in name}
    batch = {name: value for name, value in arrays.items() if "/" not in name}
    return LoweredStep(content, **description, variables=variables), batch


def make_step_runner(
    lowered: LoweredStep,
) -> Callable[[Mapping[str, np.ndarray], Arrays], tuple[dict[str, float], Arrays]]:
    """Compiles a step for JAX's default device.

    Returns:
        A function of the batch and of all variables, each by name, to the step's scalars and the
        variables after it. `stop` need not be given.

    Raises:
        UserError, ValueError: as `compile_module`.
    """
    run = compile_module(lowered.content, lowered.inputs, lowered.outputs)
    names = [each["name"] for each in lowered.inputs]
    results = [each["name"] for each in lowered.outputs]

    def take_step(batch: Mapping[str, np.ndarray], variables: Arrays):
        arguments = {"stop": np.float32(0.0), **batch, **variables}
        found = dict(zip(results, run(*(arguments[name] for name in names)), strict=True))
        scalars = {name: float(value) for name, value in found.items() if name not in variables}
        return scalars, {name: found.get(name, value) for name, value in variables.items()}

    return take_step


def _in_order(tensors: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns a dict in the order in which TensorFlow passes its values."""
    return dict(sorted(tensors.items()))


def _name_scalars(result: StepResult) -> dict[str, tf.Tensor]:
    return {
        "loss": result.loss,
        **_in_order(result.losses),
        **_in_order(result.metrics),
        "stops": result.stops,
        "gradient_norm": result.gradient_norm,
    }


def _describe(name: str, value) -> dict[str, Any]:
    return {"name": name, "dtype": tf.as_dtype(value.dtype).name, "shape": list(value.shape)}
