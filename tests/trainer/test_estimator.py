"""The verbs on a toy: resuming, logging, actions, the guard, evaluation, XLA."""

import json
import os
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from toy_model import (
    ToyNetwork,
    eval_input_fn,
    make_train_input_fn,
    toy_model_fn,
    toy_params,
    weights_of,
)

from data.errors import UserError
from trainer.estimator import Estimator
from trainer.steps import group_batches, split_images
from trainer.stopping import Stopped

ONE_BATCH = make_train_input_fn([3.0, -1.0, 2.0, 5.0])
# Seven batches and a half, so that no two of the first fourteen are equal.
MANY_BATCHES = make_train_input_fn([float(number % 11) - 4 for number in range(30)])


def make(tmp_path, model_fn=toy_model_fn, **settings):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        network = ToyNetwork()
    return network, Estimator(model_fn, network, toy_params(tmp_path, **settings), strategy)


def read_log(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]


def test_training_learns_and_logs(tmp_path, capsys):
    _, estimator = make(tmp_path, train_steps=40, log_every_steps=10, learning_rate=0.1)
    assert estimator.train(ONE_BATCH) == 40
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert {
        "step",
        "loss",
        "half_loss",
        "learning_rate",
        "images_per_second",
        "input_wait_share",
        "peak_memory_gb",
        "seen",
    } <= lines[0].keys()
    assert lines[0]["half_loss"] == pytest.approx(lines[0]["loss"] / 2)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert 0 <= lines[0]["input_wait_share"] <= 1
    assert "step 40/40" in capsys.readouterr().err
    assert list((tmp_path / "summaries" / "train").glob("events.*"))


def test_logged_rate_is_the_one_of_the_step(tmp_path):
    _, estimator = make(tmp_path, log_every_steps=1, train_steps=3, warmup_steps=2)
    estimator.train(ONE_BATCH)
    rates = [line["learning_rate"] / 0.05 for line in read_log(tmp_path)]
    assert rates == pytest.approx([0.001, 0.5005, 1.0])


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, estimator = make(tmp_path / "whole", train_steps=8, log_every_steps=1)
    estimator.train(MANY_BATCHES)
    _, first = make(tmp_path / "parts", train_steps=5, log_every_steps=1)
    first.train(MANY_BATCHES)
    resumed, second = make(tmp_path / "parts", train_steps=8, log_every_steps=1)
    assert second.train(MANY_BATCHES) == 3
    for one, two in zip(weights_of(whole), weights_of(resumed), strict=True):
        np.testing.assert_array_equal(one, two)
    losses = [[line["loss"] for line in read_log(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 8


class Cut(Exception):
    """Stands for the end of the process."""


def cut_at(last):
    """An evaluation that does not come to its end at one step."""

    def evaluate(step):
        if step == last:
            raise Cut

    return evaluate


def test_cut_off_run_is_resumed_from_its_last_checkpoint(tmp_path):
    whole, estimator = make(tmp_path / "whole", train_steps=6, log_every_steps=1)
    estimator.train(MANY_BATCHES)
    _, first = make(tmp_path / "cut", log_every_steps=1, eval_every_steps=1)
    with pytest.raises(Cut):
        first.train(MANY_BATCHES, evaluate=cut_at(4))
    resumed, second = make(tmp_path / "cut", log_every_steps=1)
    assert second.train(MANY_BATCHES) == 3
    for one, two in zip(weights_of(whole), weights_of(resumed), strict=True):
        np.testing.assert_array_equal(one, two)
    assert [line["step"] for line in read_log(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("finished", "evaluated"), [(False, [3, 6]), (True, [6])])
def test_an_evaluation_that_was_cut_off_is_made_up_for(tmp_path, finished, evaluated):
    settings = {"save_every_steps": 3, "eval_every_steps": 3}
    _, first = make(tmp_path, **settings)

    def evaluate(step):
        if finished:
            first.checkpoints.record_evaluation(0.5)
        raise Cut

    with pytest.raises(Cut):
        first.train(MANY_BATCHES, evaluate=evaluate)
    steps = []
    make(tmp_path, **settings)[1].train(MANY_BATCHES, evaluate=steps.append)
    assert steps == evaluated


def test_training_ends_when_ap_does_not_become_better(tmp_path, capsys):
    measured = {1: 0.3, 2: 0.5, 3: 0.4, 4: float("nan"), 5: 0.45, 6: 0.6}

    def train(patience):
        settings = {"patience": patience, "eval_every_steps": 1, "save_every_steps": 100}
        _, estimator = make(tmp_path, **settings)
        return estimator.train(
            MANY_BATCHES,
            lambda step: estimator.checkpoints.record_evaluation(measured[step]),
        )

    assert train(patience=2) == 4
    words = "at step 4: for --patience=2 evaluations, AP has not become better than at step 2."
    assert f"Training ends {words}" in capsys.readouterr().out
    assert train(patience=2) == 0
    assert "Raise --patience to continue." in capsys.readouterr().out
    assert train(patience=3) == 1
    assert train(patience=0) == 1
    assert [line["step"] for line in read_log(tmp_path)] == [2, 4, 6]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_the_step_that_it_comes_in(tmp_path, name):
    def send(step):
        if step == 4:
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(0.5)

    _, first = make(tmp_path, save_every_steps=100, eval_every_steps=1)
    handler = signal.getsignal(getattr(signal, name))
    with pytest.raises(Stopped, match=f"by {name} after step 4, which is saved in .*ckpt-4;"):
        first.train(MANY_BATCHES, evaluate=send)
    assert signal.getsignal(getattr(signal, name)) == handler
    assert make(tmp_path)[1].train(MANY_BATCHES) == 2


def test_a_signal_cuts_an_evaluation_off(tmp_path):
    _, estimator = make(tmp_path, save_every_steps=100, eval_every_steps=2)
    predicted = []

    def evaluate(step):
        for prediction in estimator.predict(eval_input_fn):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
            predicted.append(prediction)

    with pytest.raises(Stopped, match="after step 2"):
        estimator.train(MANY_BATCHES, evaluate=evaluate)
    assert len(predicted) <= 4, "no batch but the one under way was predicted"


def test_minutes_make_a_checkpoint_due(tmp_path):
    _, estimator = make(tmp_path, save_every_steps=100, save_every_minutes=1e-9, train_steps=3)
    estimator.train(MANY_BATCHES)
    assert {path.stem for path in tmp_path.glob("ckpt-*.index")} == {"ckpt-1", "ckpt-2", "ckpt-3"}
    _, estimator = make(tmp_path / "off", save_every_steps=100, save_every_minutes=0.0)
    estimator.train(MANY_BATCHES)
    assert {path.stem for path in (tmp_path / "off").glob("ckpt-*.index")} == {"ckpt-6"}


def test_complete_run_says_so(tmp_path, capsys):
    make(tmp_path)[1].train(ONE_BATCH)
    assert make(tmp_path)[1].train(ONE_BATCH) == 0
    assert "nothing is left to train" in capsys.readouterr().out


def test_actions_come_when_due_and_at_the_end(tmp_path):
    _, estimator = make(tmp_path, train_steps=7, save_every_steps=3, eval_every_steps=4)
    evaluated = []
    estimator.train(ONE_BATCH, evaluate=evaluated.append)
    assert evaluated == [4, 7]
    assert {path.stem for path in tmp_path.glob("ckpt-*.index")} == {"ckpt-3", "ckpt-6", "ckpt-7"}
    assert [line["step"] for line in read_log(tmp_path)] == [2, 4, 6, 7]


@pytest.mark.parametrize(
    ("target", "what"), [(float("nan"), "loss of step 2"), (1e38, "of step 2 is inf")]
)
def test_non_finite_stops_with_step_and_images_and_saves_nothing(tmp_path, target, what):
    targets = [1.0, 2.0, 3.0, 4.0, 5.0, target, 7.0, 8.0]
    _, estimator = make(tmp_path, log_every_steps=5, save_every_steps=1)
    with pytest.raises(UserError) as refused:
        estimator.train(make_train_input_fn(targets))
    assert what in str(refused.value)
    assert "image ids 5, 6, 7, 8" in str(refused.value)
    assert [path.stem for path in tmp_path.glob("ckpt-*.index")] == ["ckpt-1"]


def test_input_that_ends_is_a_sentence(tmp_path):
    def ending(mode, params, context=None, start_step=0):
        return ONE_BATCH(mode, params, context).take(1)

    with pytest.raises(UserError, match="ended before step 2"):
        make(tmp_path)[1].train(ending)


def test_predictions_are_cut_and_padding_is_dropped(tmp_path):
    network, estimator = make(tmp_path)
    predictions = {int(p["image_id"]): p for p in estimator.predict(eval_input_fn)}
    assert sorted(predictions) == [1, 2, 3, 4, 5, 6, 7]
    for image_id, prediction in predictions.items():
        assert len(prediction["detection_boxes"]) == image_id % 4
        assert prediction["image_info"].shape == (5,)
        expected = float(network(np.full((1, 4, 6, 3), image_id, np.uint8))[0])
        np.testing.assert_allclose(prediction["value"], expected, rtol=1e-5)


def test_images_come_with_the_first_predictions_only(tmp_path):
    _, estimator = make(tmp_path)
    shown = list(estimator.predict(eval_input_fn, mode="eval", num_images_shown=3))
    assert len(shown) == 3
    assert shown[0]["image"].shape == (4, 6, 3)
    assert (shown[2]["image"] == int(shown[2]["image_id"])).all()


def test_evaluate_feeds_every_image_once(tmp_path):
    class Counter:
        def __init__(self):
            self.ids = []

        def add(self, prediction):
            self.ids.append(int(prediction["image_id"]))

        def evaluate(self):
            return {"images": len(self.ids)}

    _, estimator = make(tmp_path)
    estimator.train(ONE_BATCH)
    counter = Counter()
    assert estimator.evaluate(eval_input_fn, counter) == {"step": 6, "images": 7}
    assert sorted(counter.ids) == [1, 2, 3, 4, 5, 6, 7]


def test_xla_trains_the_same(tmp_path):
    plain, estimator = make(tmp_path / "plain")
    estimator.train(ONE_BATCH)
    compiled, compiled_estimator = make(tmp_path / "xla", jit_compile=True)
    compiled_estimator.train(ONE_BATCH)
    for one, two in zip(weights_of(plain), weights_of(compiled), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)
    results = [list(e.predict(eval_input_fn)) for e in (estimator, compiled_estimator)]
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one["value"], two["value"], rtol=1e-5)


def test_each_canvas_gets_one_trace(tmp_path):
    traced = []

    def model_fn(features, labels, mode, params, network):
        traced.append(tuple(features["image"].shape))
        return toy_model_fn(features, labels, mode, params, network)

    def two_canvases(mode, params, context=None, start_step=0):
        datasets = []
        for height in (4, 8):
            image = np.zeros((4, height, 6, 3), np.uint8)
            features = {"image": image, "image_id": np.arange(4)}
            dataset = tf.data.Dataset.from_tensors((features, {"target": np.zeros(4, np.float32)}))
            datasets.append(dataset.repeat())
        return tf.data.Dataset.sample_from_datasets(datasets, seed=1)

    make(tmp_path, model_fn, train_steps=12)[1].train(two_canvases)
    assert sorted(traced) == [(4, 4, 6, 3), (4, 8, 6, 3)]


def test_group_batches_by_shape_and_pad_the_rest():
    def batch(height, *ids):
        return {
            "image": tf.zeros([2, height, 4, 3], tf.uint8),
            "image_id": tf.constant(ids, tf.int64),
        }

    batches = [batch(4, 1, 2), batch(8, 3, 4), batch(4, 5, 6), batch(4, 7, -1)]
    groups = list(group_batches(batches, 2))
    ids = [[b["image_id"].numpy().tolist() for b in group] for group in groups]
    assert ids == [[[1, 2], [5, 6]], [[3, 4], [-1, -1]], [[7, -1], [-1, -1]]]
    assert all(group[0]["image"].shape == group[1]["image"].shape for group in groups)


def test_split_images_by_hand():
    predictions = {
        "image_id": np.array([9, -1]),
        "image_info": np.zeros((2, 5), np.float32),
        "num_detections": np.array([1, 2]),
        "box_scores": np.array([[0.5, 0.0], [0.9, 0.8]]),
    }
    (image,) = split_images({}, predictions)
    assert image["image_id"] == 9
    assert image["box_scores"].tolist() == [0.5]
