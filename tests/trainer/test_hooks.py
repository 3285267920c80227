"""train.jsonl, the progress line, the summaries, the stopwatch and the non-finite guard."""

import io
import json
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

from data.errors import UserError
from trainer.hooks import FiniteGuard, Progress, Stopwatch, Summaries, TrainLog
from trainer.steps import StepResult


def result(loss=1.0, norm=1.0) -> StepResult:
    return StepResult(tf.constant(loss), {}, {}, tf.constant(0.0), tf.constant(norm))


def make_guard(overflows_endured=0) -> FiniteGuard:
    return FiniteGuard(tf.distribute.get_strategy(), overflows_endured)


def test_guard_names_the_first_bad_step_and_its_images():
    guard = make_guard()
    guard.keep(7, result(), tf.constant([1, 2], tf.int64))
    guard.keep(8, result(loss=float("nan")), tf.constant([30, 40], tf.int64))
    guard.keep(9, result(loss=float("inf")), tf.constant([5, 6], tf.int64))
    with pytest.raises(UserError) as refused:
        guard.check()
    assert "loss of step 8 is nan (image ids 30, 40)" in str(refused.value)


def test_guard_forgets_what_it_has_checked():
    guard = make_guard()
    guard.keep(1, result(), tf.constant([1]))
    guard.check()
    assert guard._kept == []


def test_guard_refuses_gradients_that_are_not_finite():
    strict = make_guard()
    strict.keep(1, result(norm=float("inf")), tf.constant([1]))
    with pytest.raises(UserError, match="gradient of step 1 is inf"):
        strict.check()


def test_guard_endures_overflows_that_loss_scaling_skips_but_not_for_ever():
    guard = make_guard(overflows_endured=3)
    for step in range(1, 8):  # three overflows, a good step, three more
        guard.keep(step, result(norm=1.0 if step == 4 else float("inf")), tf.constant([step]))
        guard.check()
    guard.keep(8, result(norm=float("nan")), tf.constant([80, 81]))
    with pytest.raises(UserError) as refused:
        guard.check()
    assert "each of the last 4 steps, up to step 8 (image ids 80, 81)" in str(refused.value)
    assert "--precision=mixed_bfloat16" in str(refused.value)


def test_train_log_drops_what_a_cut_off_run_left(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"st')
    TrainLog(str(tmp_path), first_step=4).write({"step": 6, "loss": 0.5, "norm": float("inf")})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 2}, {"step": 4}, {"step": 6, "loss": 0.5, "norm": None}]


def test_train_log_of_a_fresh_run_replaces_leftovers(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"step": 2}\n')
    TrainLog(str(tmp_path), first_step=0)
    assert (tmp_path / "train.jsonl").read_text() == ""


def test_progress_line():
    stream = io.StringIO()
    record = {
        "step": 40,
        "loss": 1.25,
        "box_loss": 0.5,
        "images_per_second": 3.0,
        "input_wait_share": 0.125,
    }
    Progress(100, stream).write(record, ["box_loss"], speed=0.5)
    line = stream.getvalue()
    for words in ("step 40/100", "loss 1.2500", "box_loss 0.5000", "3.00 images/s", "left 0:02:00"):
        assert words in line
    assert "input wait 12 %" in line


def test_stopwatch_counts_images_and_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    stopwatch = Stopwatch(images_per_step=4)
    for _ in range(5):
        stopwatch.count(waited=0.5)
        now[0] += 2.0

    def evaluate(step):
        now[0] += 30.0

    stopwatch.untimed(evaluate)(5)
    report = stopwatch.report()
    assert report == {
        "images_per_second": 2.0,
        "input_wait_share": 0.25,
        "steps_per_second": 0.5,
    }
    stopwatch.restart()
    now[0] += 1.0
    assert stopwatch.report()["images_per_second"] == 0.0


def test_summaries_write_scalars_and_images_as_tensorboard_reads_them(tmp_path):
    summaries = Summaries(str(tmp_path / "train"))
    assert not (tmp_path / "train").exists()
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    summaries.write_scalars(3, {"loss": 0.5})
    summaries.write_images(3, {"picture": picture})
    (events,) = (tmp_path / "train").glob("events.*")
    records = [
        event_pb2.Event.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(events))
    ]
    values = {v.tag: (r.step, v) for r in records for v in r.summary.value}
    assert values.keys() == {"loss", "picture"}
    step, loss = values["loss"]
    assert (step, loss.metadata.plugin_data.plugin_name) == (3, "scalars")
    assert tf.make_ndarray(loss.tensor) == 0.5
    _, image = values["picture"]
    assert image.metadata.plugin_data.plugin_name == "images"
    width, height, png = tf.make_ndarray(image.tensor)
    assert (width, height) == (b"5", b"4")
    np.testing.assert_array_equal(tf.io.decode_png(png), picture)
