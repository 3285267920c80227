"""The input pipeline on a real tf.data service: a dispatcher and two workers."""

import collections
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from sample_records import blobs, make_instance, make_record
from service_processes import running_servers, start_service

from data import data_service
from data.config import DataConfig
from data.errors import UserError
from data.examples import image_seeds
from data.input_fn import input_fn
from data.manifest import shard_name
from data.record_files import RecordFiles
from data.tfrecords import write_shard
from tools.data_service import main, start_server

ROOT = pathlib.Path(__file__).parents[2]
NUM_IMAGES, NUM_SHARDS = 21, 6
# Enough that both workers have long taken part, and what one may be ahead of the other.
EPOCHS_READ, EPOCHS_KNOWN = 12, 60
ALL_IDS = list(range(100, 100 + NUM_IMAGES))

# Reads as the estimator does, from another process: [shapes, ids] of each replica, step by step.
TWO_REPLICAS = """
import json, sys, types
import tensorflow as tf
from data.config import DataConfig
from data.input_fn import input_fn

settings = json.loads(sys.argv[1])
params = types.SimpleNamespace(
    data=DataConfig(**settings),
    model=types.SimpleNamespace(include_mask=True, include_polygons=False, has_rpn=True))
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
batches = iter(strategy.distribute_datasets_from_function(
    lambda context: input_fn("train", params, context)))
for _ in range(8):
    features, _ = next(batches)
    print(json.dumps([[list(image.shape), ids.numpy().tolist()] for image, ids in zip(
        features["image"].values, features["image_id"].values)]))
"""


def _records():
    """Images of which two in three are landscape; image i has i % 3 instances."""
    rng = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        height, width = (24, 40) if index % 3 else (40, 24)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        mask = blobs(rng, height, width)
        mask[4:20, 2:12] = 1
        yield make_record(pixels, [make_instance(mask)] * (index % 3), image_id=100 + index)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    prefix = str(tmp_path_factory.mktemp("records") / "tiny")
    records = list(_records())
    for shard in range(NUM_SHARDS):
        write_shard(shard_name(prefix, shard, NUM_SHARDS), records[shard::NUM_SHARDS])
    return f"{prefix}-*"


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("records") / "all.record")
    write_shard(path, _records())
    return path


@pytest.fixture(scope="module")
def service():
    with running_servers() as start:
        yield f"grpc://{start_service(start)[0].address}"


def _params(pattern, service="", **changes):
    config = DataConfig(
        train_file_pattern=pattern,
        eval_file_pattern=pattern,
        train_batch_size=2,
        eval_batch_size=2,
        deterministic=not service,
        data_service=service,
        canvases=("32x64", "64x32"),
        short_side=32,
        long_side=64,
        train_short_side_min=24,
        max_instances=3,
        mask_crop_size=14,
        rpn_samples_per_image=16,
    )
    return types.SimpleNamespace(
        data=dataclasses.replace(config, **changes),
        model=types.SimpleNamespace(include_mask=True, include_polygons=False, has_rpn=True),
    )


def _context(pipelines=1, index=0, replicas=1):
    return tf.distribute.InputContext(pipelines, index, replicas)


def _images(batch):
    """The structures of single images in a batch."""
    size = len(tf.nest.flatten(batch)[0])
    return [tf.nest.map_structure(lambda leaf, i=i: leaf[i], batch) for i in range(size)]


def _by_id(dataset):
    """Features of all images by id, and how many are padding."""
    images = [image for batch in dataset.as_numpy_iterator() for image in _images(batch)]
    real = [image for image in images if image["image_id"] >= 0]
    assert sorted(int(image["image_id"]) for image in real) == ALL_IDS
    return {int(image["image_id"]): image for image in real}, len(images) - len(real)


def test_evaluation_shows_what_it_shows_without_a_service(pattern, service):
    changes, context = {"eval_batch_size": 8}, _context(replicas=2)
    local, local_padding = _by_id(input_fn("eval", _params(pattern, **changes), context))
    dataset = input_fn("eval", _params(pattern, service, **changes), context)
    images, padding = _by_id(dataset)
    assert padding > 0
    assert padding == local_padding
    tf.nest.map_structure(np.testing.assert_array_equal, images, local)
    shapes = [batch["image"].shape for batch in dataset]
    assert all(shape[0] == 4 for shape in shapes)
    assert shapes[::2] == shapes[1::2]


@pytest.mark.parametrize("files, pipelines", [("pattern", 2), ("one_file", 3)])
def test_pipelines_with_jobs_of_their_own_share_the_evaluation(files, pipelines, service, request):
    params = _params(request.getfixturevalue(files), service, eval_batch_size=pipelines)
    ids = [
        int(batch["image_id"][0])
        for index in range(pipelines)
        for batch in input_fn("eval", params, _context(pipelines, index, pipelines))
    ]
    assert sorted(image_id for image_id in ids if image_id >= 0) == ALL_IDS


def test_images_lost_with_a_worker_do_not_go_unnoticed(pattern, service, monkeypatch):
    monkeypatch.setattr(RecordFiles, "count_records", lambda _: [NUM_IMAGES + 1] + [0] * 5)
    batches = iter(input_fn("eval", _params(pattern, service, eval_batch_size=1)))
    with pytest.raises(tf.errors.FailedPreconditionError, match="contain 22 .* only 21"):
        list(batches)


def _view(features, labels):
    """What tells an image as it was drawn for an epoch: its id and the seeds of its RoIs."""
    return (int(features["image_id"]), *map(int, labels["sample_seeds"]))


@pytest.fixture(scope="module")
def epochs():
    """The epoch of each view."""
    pairs = [(image_id, epoch) for image_id in ALL_IDS for epoch in range(EPOCHS_KNOWN)]
    ids, numbers = np.transpose(pairs)

    @tf.function
    def draw_seeds():
        return tf.map_fn(
            lambda pair: image_seeds(0, pair[1], pair[0])[2],
            (tf.constant(ids, tf.int64), tf.constant(numbers, tf.int64)),
            fn_output_signature=tf.int32,
        )

    views = zip(ids.tolist(), *draw_seeds().numpy().T.tolist(), strict=True)
    return dict(zip(views, numbers.tolist(), strict=True))


def test_training_makes_every_image_once_for_each_epoch(pattern, service, epochs):
    """Read from two pipelines until epochs are complete, however far ahead one worker may be."""
    seen = collections.defaultdict(list)
    params = _params(pattern, service, canvases=("64x64",))
    iterators = [
        input_fn("train", params, _context(2, index, 2)).as_numpy_iterator() for index in range(2)
    ]
    while any(len(seen[epoch]) < NUM_IMAGES for epoch in range(EPOCHS_READ)):
        for batches in iterators:
            (image,) = _images(next(batches))
            seen[epochs[_view(*image)]].append(int(image[0]["image_id"]))
    assert all(sorted(seen[epoch]) == ALL_IDS for epoch in range(EPOCHS_READ))
    assert all(len(set(ids)) == len(ids) for ids in seen.values())
    assert len({tuple(seen[epoch]) for epoch in range(EPOCHS_READ)}) == EPOCHS_READ


def test_training_batches_are_the_local_images_grouped_by_canvas(pattern, service):
    local = input_fn("train", _params(pattern))
    batches = local.take(2 * NUM_IMAGES).as_numpy_iterator()
    expected = {_view(*image): image for batch in batches for image in _images(batch)}
    params = _params(pattern, service, train_batch_size=4)
    dataset = input_fn("train", params, _context(replicas=2))
    assert dataset.element_spec == local.element_spec
    # So many because the workers' turns at delivering are long.
    batches = list(dataset.take(400).as_numpy_iterator())
    shapes = [features["image"].shape for features, _ in batches]
    assert set(shapes) == {(2, 32, 64, 3), (2, 64, 32, 3)}
    assert shapes[::2] == shapes[1::2]
    images = [image for batch in batches for image in _images(batch)]
    compared = [image for image in images if _view(*image) in expected]
    for image in compared:
        tf.nest.map_structure(np.testing.assert_array_equal, image, expected[_view(*image)])
    assert len(compared) > 12


def test_one_canvas_makes_all_shapes_static(pattern, service):
    spec = input_fn("eval", _params(pattern, service, canvases=("64x64",))).element_spec
    assert spec["image"] == tf.TensorSpec([2, 64, 64, 3], tf.uint8)


def test_mirrored_replicas_of_another_process_take_batches_of_one_canvas(pattern, service):
    settings = dataclasses.asdict(_params(pattern, service, train_batch_size=4).data)
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS, json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(steps) == 8
    for (shape, ids), (other_shape, other_ids) in steps:
        assert shape == other_shape
        assert shape[0] == 2 and {*ids, *other_ids} <= set(ALL_IDS)


def _free_port():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def test_a_service_that_cannot_be_used_is_refused_at_once(pattern, service, monkeypatch):
    monkeypatch.setattr(data_service, "SECONDS_TO_ANSWER", 0.5)
    nothing = f"grpc://localhost:{_free_port()}"
    for mode in ("train", "eval", "predict"):
        with pytest.raises(UserError, match=f"no .* answers at --data_service={nothing} .*refused"):
            input_fn(mode, _params(pattern, nothing))
    with socket.socket() as silent:
        silent.bind(("localhost", 0))
        silent.listen()
        address = f"grpc://localhost:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--data_service={address} .*Deadline"):
            input_fn("eval", _params(pattern, address))
    idle = start_server("dispatcher", 0)
    with pytest.raises(
        UserError, match=f"--data_service={idle.target} has no workers; start at least one"
    ):
        input_fn("eval", _params(pattern, idle.target))
    worker = start_server("worker", 0, idle.target.removeprefix("grpc://"), "localhost")
    with pytest.raises(UserError, match="no .* dispatcher answers .*UNIMPLEMENTED"):
        input_fn("eval", _params(pattern, f"grpc://{worker._address}"))


def test_settings_that_a_service_cannot_follow_are_refused():
    for address in ("localhost:5050", "grpc://localhost", "http://localhost:5050"):
        with pytest.raises(ValueError, match=f"--data_service={address}: expected grpc://HOST"):
            DataConfig(data_service=address)
    with pytest.raises(
        ValueError, match="--data_service=grpc://a:1: .*an empty value with --deterministic"
    ):
        DataConfig(data_service="grpc://a:1", deterministic=True)


def test_the_tool_refuses_what_cannot_be_started(capsys):
    assert main(["--role=worker", f"--dispatcher=localhost:{_free_port()}"]) == 1
    assert "error: no tf.data service dispatcher answers" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        for port in (taken.getsockname()[1], 70000):
            assert main(["--role=dispatcher", f"--port={port}"]) == 1
            assert f"error: --port={port} cannot be used" in capsys.readouterr().err
    for arguments in (["--role=worker"], ["--role=dispatcher", "--dispatcher=a:1"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "required for a worker" in capsys.readouterr().err
