"""A training step under JAX: the scalars and the variables are TensorFlow's."""

import dataclasses
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from model.model_fn import model_fn
from model.systems import build_network
from model.variables import named_variables
from trainer.config import TrainConfig
from trainer.optimizer import Updater
from trainer.stablehlo_training import lower_step, make_step_runner
from trainer.steps import TrainStep

pytest.importorskip("jax", minversion="0.10", reason="needs JAX 0.10, the extra `stablehlo`")

sys.path.append(str(pathlib.Path(__file__).parents[1] / "model"))
from toy_batch import toy_features, toy_labels, toy_params  # noqa: E402


def values_of(variables):
    return {name: variable.numpy() for name, variable in variables.items()}


def test_two_steps_under_jax_are_tensorflows():
    # Frozen norms and a frozen backbone keep the compilation short; the heads all train.
    params = toy_params(jit_compile=True, norm="frozen_bn", freeze_at=5)
    params = dataclasses.replace(params, train=TrainConfig(warmup_steps=0))
    plain = dataclasses.replace(params, model=dataclasses.replace(params.model, jit_compile=False))
    network, strategy = build_network(params), tf.distribute.get_strategy()
    updater = Updater(network, params)
    step = TrainStep(model_fn, network, updater, strategy, params)
    variables = named_variables(tf.train.Checkpoint(network=network, optimizer=updater.state()))
    batch = toy_features(), toy_labels()
    lowered = lower_step(step, variables, *batch)
    changed = {each["name"] for each in lowered.outputs} & lowered.variables.keys()
    assert {name for name in lowered.variables if name.startswith("network/")} - changed
    take_step = make_step_runner(lowered)
    step = TrainStep(model_fn, network, updater, strategy, plain)
    given = {name: value.numpy() for part in batch for name, value in part.items()}
    found = lowered.variables
    for _ in range(2):
        before = values_of(variables)
        scalars, found = take_step(given, found)
        expected = step(*batch).fetch()[0]
        assert scalars["loss"] == pytest.approx(expected.loss, rel=1e-4)
        assert scalars["gradient_norm"] == pytest.approx(expected.gradient_norm, rel=1e-3)
        for name, value in expected.losses.items():
            assert scalars[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
        after = values_of(variables)
        moved = {name for name in before if not np.array_equal(before[name], after[name])}
        assert moved <= changed
        for name in found:
            distance = np.abs(after[name] - before[name]).max() + 1e-6
            assert np.abs(found[name] - after[name]).max() < 0.01 * distance, name
