"""A step in parts and several steps in a call give the results of plain steps."""

import numpy as np
import pytest
import tensorflow as tf
from toy_model import ToyNetwork, make_train_input_fn, toy_model_fn, toy_params, weights_of

from trainer.optimizer import Updater
from trainer.steps import TrainStep

TARGETS = [3.0, -1.0, 2.0, 5.0, 0.0, 1.0, -7.0, 4.0, 2.5, -2.0, 0.5, 6.0]
PLAIN = {"gradient_clip_norm": 0.5, "train_steps": 6}


def run(tmp_path, model_fn=toy_model_fn, **settings):
    """Takes six steps; returns each step's values and the weights."""
    params = toy_params(tmp_path, **{**PLAIN, **settings})
    network = ToyNetwork()
    strategy = tf.distribute.get_strategy()
    step = TrainStep(model_fn, network, Updater(network, params), strategy, params)
    calls = make_train_input_fn(TARGETS)("train", params).take(6 // params.data.steps_per_call)
    results = [each for batch in calls for each in step(*batch).fetch()]
    return results, weights_of(network)


def check_equal(found, expected, **tolerance):
    (results, weights), (expected_results, expected_weights) = found, expected
    assert len(results) == len(expected_results) == 6
    for one, other in zip(results, expected_results, strict=True):
        assert one.metrics == other.metrics == {"seen": 4.0}
        for name in ("loss", "losses", "gradient_norm"):
            np.testing.assert_allclose(
                tf.nest.flatten(getattr(one, name)),
                tf.nest.flatten(getattr(other, name)),
                **tolerance,
            )
    for one, other in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    found = run(tmp_path_factory.mktemp("plain"))
    assert found[0][0].loss != found[0][5].loss
    return found


@pytest.mark.parametrize("count", [2, 3, 6])
def test_several_steps_in_a_call_are_the_same_steps(tmp_path, plain, count):
    check_equal(run(tmp_path, steps_per_call=count), plain, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_steps": 2},
        {"accumulate_steps": 4},
        {"accumulate_steps": 2, "jit_compile": True},
        {"steps_per_call": 2, "jit_compile": True},
    ],
)
def test_parts_and_compiled_loops_give_the_same_batch(tmp_path, plain, settings):
    check_equal(run(tmp_path, **settings), plain, rtol=1e-5, atol=1e-6)


def test_loss_scaling_with_parts(tmp_path):
    settings = {"precision": "mixed_float16"}
    found = run(tmp_path / "a", accumulate_steps=2, **settings)
    check_equal(found, run(tmp_path / "b", **settings), rtol=1e-5, atol=1e-6)


def test_variables_without_gradient_stay_with_parts(tmp_path):
    def loss_of_first_layer(features, labels, mode, params, network):
        spec = toy_model_fn(features, labels, mode, params, network)
        return spec._replace(loss=tf.reduce_sum(network.hidden.kernel))

    _, weights = run(tmp_path, loss_of_first_layer, accumulate_steps=2)
    network = ToyNetwork()
    moved = [not np.array_equal(*pair) for pair in zip(weights, weights_of(network), strict=True)]
    assert moved == [True, False, False, False]
