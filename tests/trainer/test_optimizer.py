"""Schedules by hand; SGD and AdamW against NumPy; clipping and loss scaling."""

import math

import numpy as np
import pytest
import tensorflow as tf
from toy_model import ToyNetwork, toy_params

from trainer.config import TrainConfig
from trainer.optimizer import LossScale, Updater, WarmupSchedule, peak_learning_rate


def rate(step: int, **settings) -> float:
    return float(WarmupSchedule(1.0, TrainConfig(**settings))(tf.constant(step, tf.int64)))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.001),
        (500, 0.5005),
        (999, 0.001 + 0.999 * 0.999),
        (1000, 1.0),
        (59999, 1.0),
        (60000, 0.1),
        (79999, 0.1),
        (80000, 0.01),
    ],
)
def test_step_schedule_of_the_1x_recipe(step, expected):
    assert rate(step) == pytest.approx(expected, rel=1e-5)


def test_cosine_falls_from_the_peak_to_zero():
    settings = dict(
        learning_rate_schedule="cosine", warmup_steps=10, warmup_factor=0.0, train_steps=110
    )
    assert rate(5, **settings) == pytest.approx(0.5)
    assert rate(10, **settings) == pytest.approx(1.0)
    assert rate(60, **settings) == pytest.approx(0.5, abs=1e-6)
    assert rate(35, **settings) == pytest.approx((1 + math.sqrt(0.5)) / 2, rel=1e-6)
    assert rate(110, **settings) == pytest.approx(0.0, abs=1e-6)
    assert rate(500, **settings) == pytest.approx(0.0, abs=1e-6)


def test_constant_and_no_warmup():
    settings = dict(learning_rate_schedule="constant", warmup_steps=0)
    assert rate(0, **settings) == rate(10**6, **settings) == 1.0
    assert rate(5, warmup_steps=0, learning_rate_steps=()) == 1.0


def test_rate_scales_with_the_batch_only_when_asked(tmp_path):
    params = toy_params(tmp_path, train_batch_size=4, learning_rate=0.02)
    assert peak_learning_rate(params) == 0.02
    params = toy_params(
        tmp_path, train_batch_size=4, learning_rate=0.02, learning_rate_batch_size=16
    )
    assert peak_learning_rate(params) == pytest.approx(0.005)


def make_updater(tmp_path, **settings):
    defaults = dict(warmup_steps=0, learning_rate_schedule="step", learning_rate_steps=(2,))
    network = ToyNetwork()
    return network, Updater(network, toy_params(tmp_path, **{**defaults, **settings}))


def run_updates(network, updater, steps):
    """Applies gradients `c * (step + 1)` for variable number c + 1 and returns the norms."""
    strategy = tf.distribute.get_strategy()
    norms = []
    for step in range(steps):
        with tf.GradientTape() as tape:
            loss = updater.scaled(
                tf.add_n(
                    [
                        tf.reduce_sum(variable) * (index + 1.0) * (step + 1.0)
                        for index, variable in enumerate(network.trainable_variables)
                    ]
                )
            )
        gradients, norm = updater.combine(updater.differentiate(tape, loss))
        updater.apply(strategy, gradients, norm)
        norms.append(float(norm))
    return norms


def numpy_gradients(network, step):
    return [
        np.full(variable.shape, (index + 1.0) * (step + 1.0))
        for index, variable in enumerate(network.trainable_variables)
    ]


def is_decayed(index: int) -> bool:
    """hidden kernel, hidden bias, out kernel, out bias."""
    return index in (0, 2)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_decays_like_torch(tmp_path, momentum):
    network, updater = make_updater(tmp_path, learning_rate=0.1, momentum=momentum)
    weights = [variable.numpy().astype(np.float64) for variable in network.trainable_variables]
    buffers = [np.zeros_like(weight) for weight in weights]
    run_updates(network, updater, 4)
    for step in range(4):
        learning_rate = 0.1 if step < 2 else 0.01
        for index, gradient in enumerate(numpy_gradients(network, step)):
            decay = 0.01 if is_decayed(index) else 0.0
            buffers[index] = momentum * buffers[index] + gradient + decay * weights[index]
            weights[index] = weights[index] - learning_rate * buffers[index]
    for variable, weight in zip(network.trainable_variables, weights, strict=True):
        np.testing.assert_allclose(variable.numpy(), weight, rtol=1e-5)
    assert updater.latest_learning_rate() == pytest.approx(0.01)


def test_adamw_decays_kernels_apart_from_the_gradient(tmp_path):
    network, updater = make_updater(
        tmp_path, optimizer="adamw", learning_rate=0.1, weight_decay=0.5
    )
    weights = [variable.numpy().astype(np.float64) for variable in network.trainable_variables]
    first, second = ([np.zeros_like(weight) for weight in weights] for _ in range(2))
    run_updates(network, updater, 3)
    for step in range(3):
        learning_rate = 0.1 if step < 2 else 0.01
        for index, gradient in enumerate(numpy_gradients(network, step)):
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.999 * second[index] + 0.001 * gradient**2
            if is_decayed(index):
                weights[index] *= 1 - learning_rate * 0.5
            mean = first[index] / (1 - 0.9 ** (step + 1))
            spread = np.sqrt(second[index] / (1 - 0.999 ** (step + 1)))
            weights[index] = weights[index] - learning_rate * mean / (spread + 1e-8)
    for variable, weight in zip(network.trainable_variables, weights, strict=True):
        np.testing.assert_allclose(variable.numpy(), weight, rtol=1e-4)


def test_gradients_are_clipped_to_the_global_norm(tmp_path):
    network, updater = make_updater(
        tmp_path, gradient_clip_norm=2.0, momentum=0.0, weight_decay=0.0, learning_rate=1.0
    )
    before = [variable.numpy() for variable in network.trainable_variables]
    (norm,) = run_updates(network, updater, 1)
    gradients = numpy_gradients(network, 0)
    expected = math.sqrt(sum(float(np.sum(gradient**2)) for gradient in gradients))
    assert norm == pytest.approx(expected, rel=1e-6)
    for variable, old, gradient in zip(network.trainable_variables, before, gradients, strict=True):
        np.testing.assert_allclose(variable.numpy(), old - gradient * 2 / norm, rtol=1e-5)


def test_variables_without_gradient_stay(tmp_path):
    network, updater = make_updater(tmp_path)
    before = network.out.kernel.numpy()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network.hidden.kernel)
    gradients, norm = updater.combine(updater.differentiate(tape, loss))
    updater.apply(tf.distribute.get_strategy(), gradients, norm)
    np.testing.assert_array_equal(network.out.kernel.numpy(), before)


def test_loss_scaling_does_not_show_in_the_update(tmp_path):
    plain, scaled = (
        make_updater(tmp_path, precision=precision) for precision in ("float32", "mixed_float16")
    )
    assert run_updates(*plain, 3) == pytest.approx(run_updates(*scaled, 3))
    for one, other in zip(plain[0].variables, scaled[0].variables, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6)


def test_overflowing_step_is_skipped_and_halves_the_scale(tmp_path):
    network, updater = make_updater(tmp_path, precision="mixed_float16")
    run_updates(network, updater, 1)
    before = [v.numpy() for v in [*network.variables, *updater.optimizer.variables]]
    with tf.GradientTape() as tape:
        loss = updater.scaled(tf.reduce_sum(network.hidden.kernel) * np.inf)
    gradients, norm = updater.combine(updater.differentiate(tape, loss))
    updater.apply(tf.distribute.get_strategy(), gradients, norm)
    after = [v.numpy() for v in [*network.variables, *updater.optimizer.variables]]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert float(updater.loss_scale.scale) == 2.0**14


def test_loss_scale_doubles_after_a_quiet_spell():
    loss_scale = LossScale(growth_steps=2)
    scales = []
    for finite in (True, True, True, False, True, True):
        loss_scale.update(tf.constant(finite))
        scales.append(float(loss_scale.scale) / 2.0**15)
    assert scales == [1, 2, 2, 1, 1, 2]
