"""The learning-rate range test: its schedule, when it stops, and what it suggests."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from toy_model import ToyNetwork, make_train_input_fn, toy_model_fn, toy_params

from trainer.optimizer import Updater
from trainer.rate_range import ExponentialSchedule, Suggestion, Trial, run_trials, suggest
from trainer.steps import TrainStep


def trials_of(losses):
    """Trials whose step takes its loss from a list, with the rates 1, 2, 4, ..."""
    results = iter(losses)
    taken = []

    def step(features, labels):
        taken.append(features)
        return SimpleNamespace(fetch=lambda: [SimpleNamespace(loss=next(results))])

    updater = SimpleNamespace(latest_learning_rate=lambda: 2.0 ** (len(taken) - 1))
    return list(run_trials(step, updater, [({}, {})] * len(losses)))


def test_the_rate_grows_by_a_constant_factor():
    schedule = ExponentialSchedule(1e-3, 10.0, 5)
    rates = [float(schedule(tf.constant(step, tf.int64))) for step in range(5)]
    np.testing.assert_allclose(rates, [1e-3, 1e-2, 1e-1, 1.0, 10.0], rtol=1e-5)


def test_the_first_average_is_the_first_loss_and_later_ones_weigh_all():
    first, second = trials_of([2.0, 5.0])
    assert (first.learning_rate, first.loss) == (1.0, 2.0)
    assert first.smoothed == pytest.approx(2.0)
    # (0.95 * 0.05 * 2 + 0.05 * 5) / (1 - 0.95 ** 2)
    assert second == pytest.approx((2.0, 5.0, 0.345 / 0.0975))


@pytest.mark.parametrize("last", [math.nan, math.inf, 9.0])
def test_it_ends_where_the_average_is_not_finite_or_above_four_times_its_lowest(last):
    # (0.0475 + 0.05 x) / 0.0975 exceeds 4 if x exceeds 6.85.
    assert len(trials_of([1.0, last, 1.0])) == 1
    assert len(trials_of([1.0, 6.8, 1.0])) == 3


def test_nothing_is_left_of_a_loss_that_is_not_finite_from_the_start():
    assert trials_of([math.nan]) == []
    assert suggest([]) is None


def test_the_steepest_fall_and_the_lowest_loss_are_read_from_the_average():
    # The first of ten is ignored. Slopes are half of the difference between both neighbours.
    smoothed = [50.0, 10.0, 10.0, 9.0, 5.0, 3.0, 2.0, 2.5, 6.0, 0.0][:9]
    trials = [Trial(10.0**place, 0.0, value) for place, value in enumerate(smoothed)]
    found = suggest(trials)
    # From 10 to 5 around the place 3 and from 9 to 3 around 4.
    assert found == Suggestion(1e4, 1e6)
    assert found.tenth == 1e5


def test_a_fall_after_the_lowest_loss_does_not_count():
    smoothed = [9.0, 8.0, 7.0, 30.0, 20.0, 10.0]
    trials = [Trial(10.0**place, 0.0, value) for place, value in enumerate(smoothed)]
    assert suggest(trials) == Suggestion(1e1, 1e2)


def test_a_loss_that_only_grows_suggests_nothing():
    assert suggest([Trial(1.0, 1.0, value) for value in (1.0, 1.0, 2.0, 3.0)]) is None


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw"}, {"accumulate_steps": 2}])
def test_training_diverges_at_high_rates_only(tmp_path, settings):
    targets = [3.0, -1.0, 2.0, 5.0]
    params = toy_params(tmp_path, **settings)
    network, strategy = ToyNetwork(), tf.distribute.get_strategy()
    updater = Updater(network, params, ExponentialSchedule(1e-5, 1e3, 60))
    step = TrainStep(toy_model_fn, network, updater, strategy, params)
    batches = make_train_input_fn(targets)("train", params).take(60)
    trials = list(run_trials(step, updater, batches))
    assert 20 < len(trials) < 60
    assert trials[0].learning_rate == pytest.approx(1e-5)
    found = suggest(trials)
    assert 1e-3 < found.steepest <= found.lowest_loss < 10.0
