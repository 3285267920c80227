"""Averaged weights: their values, where they are used, and how they are saved."""

import numpy as np
import pytest
import tensorflow as tf
from test_estimator import MANY_BATCHES, make
from toy_model import eval_input_fn, weights_of

KERNEL = "hidden/_kernel"


def saved(path, part) -> np.ndarray:
    """A weight in a checkpoint."""
    reader = tf.train.load_checkpoint(path)
    return reader.get_tensor(f"{part}/{KERNEL}/.ATTRIBUTES/VARIABLE_VALUE")


def values(estimator) -> list[float]:
    found = estimator.predict(eval_input_fn)
    return [float(each["value"][0]) for each in found if len(each["value"])]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six steps with a checkpoint after each; returns the folder, and values during training."""
    folder = tmp_path_factory.mktemp("averaged")
    settings = {"save_every_steps": 1, "keep_checkpoints": 9, "eval_every_steps": 3}
    network, estimator = make(folder, ema_decay=0.3, **settings)
    during = {}

    def evaluate(step):
        before = weights_of(network)
        during[step] = values(estimator)
        for one, two in zip(before, weights_of(network), strict=True):
            np.testing.assert_array_equal(one, two)
        estimator.checkpoints.record_evaluation(0.1 * step)

    estimator.train(MANY_BATCHES, evaluate)
    return folder, during


def test_averages_are_those_of_the_formula(run, tmp_path):
    folder, _ = run
    network, _ = make(tmp_path)
    average = network.hidden.kernel.numpy()
    for step in range(1, 7):
        weight = saved(f"{folder}/ckpt-{step}", "unaveraged")
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
        np.testing.assert_allclose(saved(f"{folder}/ckpt-{step}", "network"), average, rtol=1e-5)
    assert not np.allclose(average, weight, atol=1e-4)


def test_training_is_the_same_without_averages(run, tmp_path):
    folder, _ = run
    network, estimator = make(tmp_path)
    estimator.train(MANY_BATCHES)
    np.testing.assert_array_equal(saved(f"{folder}/ckpt-6", "unaveraged"), network.hidden.kernel)


def test_evaluation_uses_averages_in_training_and_after_it(run):
    folder, during = run
    _, estimator = make(folder, ema_decay=0.3, mode="eval")
    assert estimator.load() == 6
    assert values(estimator) == during[6] != during[3]
    best = tf.train.latest_checkpoint(folder / "best")
    np.testing.assert_array_equal(saved(best, "network"), saved(f"{folder}/ckpt-6", "network"))


def test_a_resumed_run_has_the_same_averages(run, tmp_path):
    folder, _ = run
    for steps in (4, 6):
        _, estimator = make(tmp_path, ema_decay=0.3, train_steps=steps)
        estimator.train(MANY_BATCHES)
    for part in ("network", "unaveraged"):
        expected = saved(f"{folder}/ckpt-6", part)
        np.testing.assert_array_equal(saved(f"{tmp_path}/ckpt-6", part), expected)


def test_averages_start_from_given_weights(run, tmp_path):
    folder, _ = run
    settings = {"init_checkpoint": f"{folder}/ckpt-6", "learning_rate": 1e-9, "train_steps": 1}
    _, estimator = make(tmp_path, ema_decay=0.9, **settings)
    estimator.train(MANY_BATCHES)
    given = saved(f"{folder}/ckpt-6", "network")
    np.testing.assert_allclose(saved(f"{tmp_path}/ckpt-1", "network"), given, rtol=1e-6)
