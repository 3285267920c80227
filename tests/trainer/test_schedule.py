"""Recipes at other batch sizes: the same images, the rate in proportion."""

import dataclasses

import pytest

from data.config import DataConfig
from trainer.config import Params, TrainConfig
from trainer.schedule import resolve_schedule


def recipe(batch_size, **changes) -> Params:
    """The 1x schedule, written for 16 images a step."""
    train = TrainConfig(
        learning_rate_batch_size=16,
        learning_rate=0.02,
        train_steps=90000,
        learning_rate_steps=(60000, 80000),
        warmup_steps=1000,
    )
    return Params(
        data=DataConfig(train_batch_size=batch_size), train=dataclasses.replace(train, **changes)
    )


@pytest.mark.parametrize(
    ("batch_size", "steps", "boundaries", "warmup", "rate"),
    [
        (16, 90000, (60000, 80000), 1000, 0.02),
        (2, 720000, (480000, 640000), 8000, 0.0025),
        (64, 22500, (15000, 20000), 250, 0.08),
        (7, 205714, (137143, 182857), 2286, 0.00875),  # 90000 * 16 / 7 = 205714.29 and so on
    ],
)
def test_steps_shrink_as_the_batch_grows(batch_size, steps, boundaries, warmup, rate):
    train = resolve_schedule(recipe(batch_size)).train
    assert (train.train_steps, train.learning_rate_steps) == (steps, boundaries)
    assert train.warmup_steps == warmup
    assert train.learning_rate == pytest.approx(rate)


def test_what_the_command_line_says_is_literal():
    params = recipe(2, train_steps=100)
    train = resolve_schedule(params, literal={"train_steps"}).train
    assert (train.train_steps, train.warmup_steps) == (100, 8000)


def test_a_resolved_schedule_is_not_scaled_again():
    resolved = resolve_schedule(recipe(2))
    assert resolve_schedule(resolved) == resolved
    assert resolve_schedule(recipe(2, learning_rate_batch_size=0)).train.train_steps == 90000


def test_steps_do_not_vanish():
    train = resolve_schedule(recipe(10**6, warmup_steps=0)).train
    assert (train.train_steps, train.warmup_steps) == (1, 0)
    assert train.learning_rate_steps == (1, 1)
