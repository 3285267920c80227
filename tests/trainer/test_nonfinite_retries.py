"""Going back to a checkpoint with half the learning rate after a loss that is not finite."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from test_estimator import MANY_BATCHES, make, read_log
from toy_model import make_train_input_fn, weights_of

from data.errors import UserError
from trainer.checkpoint_files import read_variable
from trainer.optimizer import HalvedSchedule

# The losses of the toy overflow within twelve steps at rates above about 60.
DIVERGING = {"learning_rate": 400.0, "train_steps": 12, "warmup_steps": 0, "log_every_steps": 1}


def rates(folder) -> list[float]:
    return [line["learning_rate"] for line in read_log(folder)]


def test_halved_schedule_by_hand():
    halvings = tf.Variable(0)
    schedule = HalvedSchedule(lambda step: 0.5 + tf.cast(step, tf.float32), halvings)
    assert float(schedule(tf.constant(2))) == 2.5
    halvings.assign(3)
    assert float(schedule(tf.constant(2))) == 2.5 / 8


def test_a_run_that_diverges_ends_without_the_option(tmp_path):
    _, estimator = make(tmp_path, **DIVERGING)
    with pytest.raises(UserError, match=r"step \d+ is (inf|nan) .*--nonfinite_retries"):
        estimator.train(MANY_BATCHES)


def test_a_run_that_diverges_goes_back_to_its_checkpoint(tmp_path, capsys):
    _, estimator = make(tmp_path, nonfinite_retries=9, **DIVERGING)
    assert estimator.train(MANY_BATCHES) == 12
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert np.isfinite([line["loss"] for line in lines]).all()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "Warning" in line]
    count = len(warnings)
    assert 1 < count < 9
    steps = [int(line.split("going back to step ")[1].split(",")[0]) for line in warnings]
    assert steps[0] == 6 and steps[-1] < 6  # step 6 had diverged already
    assert "(retry 1 of --nonfinite_retries=9)" in warnings[0]
    assert "the learning rate times 0.5 " in warnings[0]
    assert rates(tmp_path)[-1] == 400 / 2**count
    assert int(read_variable(str(tmp_path / "ckpt-12"), "halvings")) == count
    recorded = tf.train.get_checkpoint_state(str(tmp_path)).all_model_checkpoint_paths
    assert {path.stem for path in tmp_path.glob("ckpt-*.index")} == set(
        map(os.path.basename, recorded)
    )


def test_what_follows_equals_a_run_of_the_lower_rate(tmp_path):
    """Weights, momentum and batches are those of the checkpoint's step."""
    _, first = make(tmp_path / "run", nonfinite_retries=1, train_steps=3, warmup_steps=0)
    first.train(MANY_BATCHES)
    once = {"number": 0}

    def nan_once(mode, params, context=None, start_step=0):
        once["number"] += 1
        batches = MANY_BATCHES(mode, params, context, start_step)
        if once["number"] > 1:
            return batches
        nan = tf.constant(float("nan"))
        return batches.enumerate().map(
            lambda place, batch: (
                batch[0],
                {"target": batch[1]["target"] + tf.where(place == 2, nan, 0.0)},
            )
        )

    retried, second = make(tmp_path / "run", nonfinite_retries=1, train_steps=9, warmup_steps=0)
    assert second.train(nan_once) == 6
    _, plain = make(tmp_path / "plain", train_steps=3, warmup_steps=0)
    plain.train(MANY_BATCHES)
    lower, plain = make(tmp_path / "plain", train_steps=9, warmup_steps=0, learning_rate=0.025)
    plain.train(MANY_BATCHES)
    for one, two in zip(weights_of(retried), weights_of(lower), strict=True):
        np.testing.assert_array_equal(one, two)


def test_without_a_checkpoint_it_starts_again(tmp_path):
    _, estimator = make(tmp_path, nonfinite_retries=9, save_every_steps=100, **DIVERGING)
    estimator.train(MANY_BATCHES)
    assert len(set(rates(tmp_path))) == 1
    assert (tmp_path / "ckpt-0.index").exists()


def test_retries_end_and_are_counted_over_restarts(tmp_path):
    settings = {"nonfinite_retries": 2, "log_every_steps": 1, "save_every_steps": 1}
    targets = [1.0, 2.0, 3.0, 4.0, 5.0, float("nan"), 7.0, 8.0]
    _, estimator = make(tmp_path, **settings)
    with pytest.raises(UserError, match="loss of step 2 is nan"):
        estimator.train(make_train_input_fn(targets))
    # Step 1 was of no help, so the second retry was from step 0 and has saved step 1 again.
    assert int(read_variable(str(tmp_path / "ckpt-1"), "halvings")) == 2
    assert read_log(tmp_path)[0]["learning_rate"] == pytest.approx(0.05 * 0.001 / 4)
    _, estimator = make(tmp_path, **settings)
    with pytest.raises(UserError, match="loss of step 2 is nan"):
        estimator.train(make_train_input_fn(targets))
    assert int(read_variable(str(tmp_path / "ckpt-1"), "halvings")) == 2


def test_the_option_can_be_added_to_a_run_and_taken_away(tmp_path):
    _, estimator = make(tmp_path, train_steps=2)
    estimator.train(MANY_BATCHES)
    _, estimator = make(tmp_path, train_steps=4, nonfinite_retries=3)
    assert estimator.train(MANY_BATCHES) == 2
    _, estimator = make(tmp_path, train_steps=6)
    assert estimator.train(MANY_BATCHES) == 2
    assert json.loads((tmp_path / "train.jsonl").read_text().splitlines()[-1])["step"] == 6
