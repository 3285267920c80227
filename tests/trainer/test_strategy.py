"""Devices and replicas; what needs its own devices runs in a process of its own."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from toy_model import toy_params

from data.errors import UserError
from trainer.strategy import describe_devices, make_strategy

ROOT = pathlib.Path(__file__).parents[2]

# Trains with each optimizer, and under loss scaling with an overflow in the last image alone.
PROGRAM = """
import json, pathlib, sys
import numpy as np
import tensorflow as tf
from toy_model import (ToyNetwork, eval_input_fn, make_train_input_fn, toy_model_fn, toy_params,
                       weights_of)
from trainer.estimator import Estimator
from trainer.strategy import make_strategy, prepare_runtime

folder = sys.argv[1]
TARGETS = [3.0, -1.0, 2.0, 5.0, 0.0, 1.0, -7.0, 4.0]
RUNS = {
    "sgd": (TARGETS, {"gradient_clip_norm": 0.5}),
    "adamw": (TARGETS, {"optimizer": "adamw", "precision": "mixed_float16"}),
    "accumulated": (TARGETS, {"gradient_clip_norm": 0.5, "accumulate_steps": 2, "ema_decay": 0.9}),
    "overflow": (TARGETS[:4], {"precision": "mixed_float16", "train_steps": 2}),
}

def overflowing(features, labels, mode, params, network):
    spec = toy_model_fn(features, labels, mode, params, network)
    if mode == "train":  # Adds 0, whose gradient is NaN on the replica that has image 4.
        last = network(tf.boolean_mask(features["image"], features["image_id"] == 4))
        spec = spec._replace(loss=spec.loss + tf.reduce_sum(tf.sqrt(last * 0)))
    return spec

def train(devices, name, targets, settings):
    model_dir = f"{folder}/{name}-{devices}"
    params = toy_params(model_dir, num_logical_cpus=devices, distribution=(
        "mirrored" if devices > 1 else "one_device"), **settings)
    if devices not in strategies:
        prepare_runtime(params)
        strategies[devices] = make_strategy(params)
    strategy = strategies[devices]
    assert strategy.num_replicas_in_sync == devices
    with strategy.scope():
        network = ToyNetwork()
    model_fn = overflowing if name == "overflow" else toy_model_fn
    estimator = Estimator(model_fn, network, params, strategy)
    before = weights_of(network)
    estimator.train(make_train_input_fn(targets))
    saved = tf.train.load_checkpoint(model_dir)
    names = sorted(name for name in saved.get_variable_to_shape_map() if "network" in name)
    return {
        "weights": [weight.tolist() for weight in weights_of(network)]
        + [saved.get_tensor(name).tolist() for name in names],
        "changed": any((a != b).any() for a, b in zip(before, weights_of(network))),
        "predictions": sorted([int(p["image_id"]), float(p["image_info"][0]),
                               len(p["box_scores"])] for p in estimator.predict(eval_input_fn)),
        "log": [json.loads(line) for line in
                pathlib.Path(model_dir, "train.jsonl").read_text().splitlines()],
    }

strategies = {}
for name, (targets, settings) in RUNS.items():
    # Two first, because the CPU cannot be split any more once it is in use.
    print(json.dumps([train(devices, name, targets, settings) for devices in (2, 1)]))
"""

RUNS = ("sgd", "adamw", "accumulated", "overflow")


def test_two_replicas_train_and_predict_like_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'trainer'}", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = map(json.loads, done.stdout.splitlines())
    for name, (two, one) in zip(RUNS, results, strict=True):
        for weight, other in zip(one["weights"], two["weights"], strict=True):
            np.testing.assert_allclose(weight, other, rtol=1e-5, atol=1e-7)
        assert one["changed"] == two["changed"] == (name != "overflow")
        assert one["predictions"] == two["predictions"]
        assert [image_id for image_id, _, _ in one["predictions"]] == [1, 2, 3, 4, 5, 6, 7]
        for line, other in zip(one["log"], two["log"], strict=True):
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert line["seen"] == other["seen"] == 4.0
            if name == "overflow":
                assert line["gradient_norm"] is other["gradient_norm"] is None
            else:
                assert line["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)


def test_one_device_by_default(tmp_path):
    strategy = make_strategy(toy_params(tmp_path))
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"jit_compile": True}, "--jit_compile cannot be used over 2 replicas"),
        ({"steps_per_call": 2}, "--steps_per_call=2 cannot be used over 2"),
        ({"train_batch_size": 3}, "--train_batch_size=3 cannot be split over 2"),
        ({"accumulate_steps": 4}, "--accumulate_steps=4 cannot split the 2 images of a replica"),
        ({"eval_batch_size": 1, "mode": "predict"}, "--eval_batch_size=1 cannot be split over 2"),
        ({"eval_batch_size": 1, "mode": "train_and_eval"}, "--eval_batch_size=1 cannot be split"),
    ],
)
def test_what_two_replicas_cannot_do_is_refused(tmp_path, monkeypatch, settings, words):
    monkeypatch.setattr("trainer.strategy.find_devices", lambda count: ["CPU:0", "CPU:1"])
    with pytest.raises(UserError, match=words):
        make_strategy(toy_params(tmp_path, **settings))


@pytest.mark.parametrize(("mode", "unused"), [("eval", "train"), ("train", "eval")])
def test_a_batch_size_that_is_not_used_refuses_nothing(tmp_path, monkeypatch, mode, unused):
    monkeypatch.setattr("trainer.strategy.find_devices", lambda count: ["CPU:0", "CPU:1"])
    params = toy_params(tmp_path, mode=mode, **{f"{unused}_batch_size": 3})
    assert make_strategy(params).num_replicas_in_sync == 2


def test_devices_are_described(tmp_path):
    assert describe_devices(make_strategy(toy_params(tmp_path))) == "the CPU"


def test_a_missing_tpu_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="^There is no usable TPU --tpu=nowhere .*docs/TPU.md"):
        make_strategy(toy_params(tmp_path, distribution="tpu", tpu="nowhere"))
