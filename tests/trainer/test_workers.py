"""Several workers, each a process of its own, train and predict like one."""

import json

import numpy as np
import pytest
from worker_processes import ROOT, start_workers

NUM_WORKERS = 2

# Every worker prints what it did in each run.
PROGRAM = """
import json, os, pathlib, signal, sys
import numpy as np
import tensorflow as tf
from toy_model import (ToyNetwork, make_train_input_fn, toy_images, toy_model_fn, toy_params,
                       weights_of)
from data.errors import UserError
from trainer.cluster import find_cluster
from trainer.estimator import Estimator
from trainer.exchange import Workers
from trainer.stopping import Stopped
from trainer.strategy import make_strategy, prepare_runtime

folder = sys.argv[1]
TARGETS = [3.0, -1.0, 2.0, 5.0, 0.0, 1.0, -7.0, 4.0]
cluster = find_cluster("auto")

def params_of(name, **settings):
    return toy_params(f"{folder}/{name}", **{"gradient_clip_norm": 0.5, **settings})

def make(name, **settings):
    with strategy.scope():
        network = ToyNetwork()
    return network, Estimator(toy_model_fn, network, params_of(name, **settings), strategy, cluster)

def shared_input_fn(mode, params, context=None, start_step=0):
    # Each worker takes its part of the images of a step, as `data.input_fn` does.
    per_worker = params.data.train_batch_size // context.num_input_pipelines
    whole = make_train_input_fn(TARGETS)(mode, params, None, start_step).unbatch()
    places = whole.enumerate().filter(
        lambda place, _: place // per_worker % context.num_input_pipelines
        == context.input_pipeline_id)
    return places.map(lambda _, image: image).batch(
        context.get_per_replica_batch_size(params.data.train_batch_size), drop_remainder=True)

def uneven_input_fn(mode, params, context):
    # The first worker has three batches and the second has one.
    ids = [[1, 2], [3, 4], [5, -1], [7, 8]]
    first = context.input_pipeline_id == 0
    ids = ids if context.num_input_pipelines == 1 else ids[:3] if first else ids[3:]
    image = toy_images(2)
    return tf.data.Dataset.from_tensor_slices(
        {"image": [image] * len(ids), "image_id": np.array(ids, np.int64)})

class Ids:
    def __init__(self):
        self.ids = []
    def add(self, prediction):
        self.ids.append(int(prediction["image_id"]))
    def dump(self):
        return json.dumps(self.ids).encode()
    def extend(self, dumped):
        self.ids += json.loads(dumped)
    def evaluate(self):
        return {"count": len(self.ids)}

prepare_runtime(params_of("sgd"))
strategy = make_strategy(params_of("sgd"), cluster)
contents = [bytes(range(n)) for n in (0, 8, 13)]
workers = Workers(strategy, cluster)
gathered = [workers.gather(content * cluster.index) for content in contents]

network, estimator = make("sgd")
estimator.train(shared_input_fn)
ids = Ids()
metrics = estimator.evaluate(uneven_input_fn, ids)

def stop_one(step):
    if step == 2 and cluster.index == cluster.num_workers - 1:
        os.kill(os.getpid(), signal.SIGTERM)
try:
    make("stopped", train_steps=50, eval_every_steps=1)[1].train(shared_input_fn, stop_one)
    stopped = ""
except Stopped as stop:
    stopped = str(stop)
_, continued = make("stopped", train_steps=5)
steps_left = continued.train(shared_input_fn)

_, diverging = make("diverging", nonfinite_retries=9, gradient_clip_norm=0.0, warmup_steps=0,
                    learning_rate=400.0, train_steps=12, log_every_steps=1)
steps_diverging = diverging.train(shared_input_fn)

try:
    make("other", learning_rate=0.1 + cluster.index)[1].train(shared_input_fn)
    refusal = ""
except UserError as error:
    refusal = str(error)

print(json.dumps({
    "weights": [weight.tolist() for weight in weights_of(network)],
    "ids": sorted(ids.ids), "metrics": metrics, "stopped": stopped, "steps_left": steps_left,
    "steps_diverging": steps_diverging, "refusal": refusal,
    "gathered": [[part.hex() for part in parts] for parts in gathered],
}))
"""


def run_program(folder, num_workers: int) -> list[dict]:
    """Runs the program in every worker and returns what each printed."""
    path = f"{ROOT}:{ROOT / 'tests' / 'trainer'}"
    results = []
    for worker in start_workers(["-c", PROGRAM, folder], num_workers, PYTHONPATH=path):
        status, output, errors = worker.finish()
        assert status == 0, errors[-3000:]
        results.append(json.loads(output.splitlines()[-1]))
    return results


def read_log(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return [tmp_path_factory.mktemp(f"workers_{count}") for count in (1, NUM_WORKERS)]


@pytest.fixture(scope="module")
def results(folders):
    """What one worker printed, and what each of two printed."""
    (alone,) = run_program(folders[0], 1)
    return alone, run_program(folders[1], NUM_WORKERS)


def test_workers_train_like_one(results, folders):
    alone, workers = results
    for worker in workers:
        for weight, other in zip(alone["weights"], worker["weights"], strict=True):
            np.testing.assert_allclose(weight, other, rtol=1e-5, atol=1e-7)
    one, two = (read_log(folder / "sgd") for folder in folders)
    for line, other in zip(one, two, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert line["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
        assert line["seen"] == other["seen"] == 4.0


def test_the_chief_gets_every_prediction_once(results):
    alone, (chief, other) = results
    assert alone["ids"] == chief["ids"] == [1, 2, 3, 4, 5, 7, 8]
    assert other["ids"] == [7, 8]
    assert alone["metrics"] == chief["metrics"] == {"step": 6, "count": 7}
    assert other["metrics"] == {}


def test_a_signal_to_one_worker_stops_all_at_one_step(results, folders):
    _, (chief, other) = results
    assert chief["stopped"].startswith("Stopped by another worker after step 4, which is saved in")
    assert other["stopped"].startswith("Stopped by SIGTERM after step 4,")
    assert [line["step"] for line in read_log(folders[1] / "stopped")] == [2, 4, 5]
    assert chief["steps_left"] == other["steps_left"] == 1


def test_workers_go_back_together_after_a_loss_that_is_not_finite(results, folders):
    alone, (chief, other) = results
    assert alone["steps_diverging"] == chief["steps_diverging"] == other["steps_diverging"] == 12
    one, two = (read_log(folder / "diverging") for folder in folders)
    assert [line["step"] for line in one] == [line["step"] for line in two] == [*range(1, 13)]
    assert one[-1]["learning_rate"] == two[-1]["learning_rate"] < 400


def test_workers_with_other_flags_are_refused(results):
    alone, workers = results
    assert alone["refusal"] == ""
    for worker in workers:
        assert worker["refusal"].startswith("Worker 1 and the chief differ in their flags:")


def test_contents_of_any_length_are_gathered(results):
    _, workers = results
    expected = [["", bytes(range(length)).hex()] for length in (0, 8, 13)]
    assert [worker["gathered"] for worker in workers] == [expected, expected]
