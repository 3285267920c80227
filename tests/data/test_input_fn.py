"""The input pipeline as a whole: every image once, equal runs, shares of pipelines and replicas."""

import collections
import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from sample_records import make_foreign_record, make_instance, make_record

from data.config import DataConfig
from data.errors import UserError
from data.input_fn import input_fn
from data.manifest import Manifest, manifest_name, shard_name, write_manifest
from data.record_files import RecordFiles
from data.tfrecords import write_shard

ROOT = pathlib.Path(__file__).parents[2]
COCO_TINY = ROOT.parent / "shared" / "data" / "coco_tiny"
NUM_IMAGES = 11
PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "GeneratorDataset"}


def _records():
    """Eleven images, two in three landscape; image i has i % 3 instances."""
    for index in range(NUM_IMAGES):
        height, width = (24, 40) if index % 3 else (40, 24)
        pixels = np.full((height, width, 3), 10 * index, np.uint8)
        mask = np.zeros((height, width), np.uint8)
        mask[4:20, 2 : 10 + index] = 1
        yield make_record(pixels, [make_instance(mask)] * (index % 3), image_id=100 + index)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    prefix = str(tmp_path_factory.mktemp("records") / "tiny")
    records = list(_records())
    for shard in range(3):
        write_shard(shard_name(prefix, shard, 3), records[shard::3])
    return f"{prefix}-*"


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("records") / "all.record")
    write_shard(path, _records())
    return path


def _params(pattern, **changes):
    config = DataConfig(
        train_file_pattern=pattern,
        eval_file_pattern=pattern,
        train_batch_size=2,
        eval_batch_size=2,
        deterministic=True,
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


ALL_IDS = list(range(100, 100 + NUM_IMAGES))
ONE_CANVAS = {"canvases": ("64x64",), "train_batch_size": 1}


def _take(dataset, num_batches):
    """(features, labels) of the first batches as arrays."""
    return list(dataset.take(num_batches).as_numpy_iterator())


def _ids(batches):
    return [int(image_id) for features, _ in batches for image_id in features["image_id"]]


@pytest.fixture(scope="module")
def three_epochs(pattern):
    """Training batches of one image."""
    return _take(input_fn("train", _params(pattern, **ONE_CANVAS)), 3 * NUM_IMAGES)


def test_training_shows_every_image_once_an_epoch_in_a_fresh_order(three_epochs):
    ids = np.reshape(_ids(three_epochs), (3, NUM_IMAGES))
    np.testing.assert_array_equal(np.sort(ids), [ALL_IDS] * 3)
    assert len({tuple(epoch) for epoch in ids}) == 3


@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_a_fraction_is_shown_once_an_epoch_and_evaluation_shows_all(pattern, fraction):
    params = _params(pattern, **ONE_CANVAS, train_fraction=fraction)
    count = sum(RecordFiles.find(pattern, fraction=fraction).count_records())
    assert 0 < count < NUM_IMAGES
    batches = _take(input_fn("train", params), 3 * count)
    epochs = np.sort(np.reshape(_ids(batches), (3, count)))
    assert len(set(epochs[0])) == count
    np.testing.assert_array_equal(epochs, [epochs[0]] * 3)
    shown = _ids((features, None) for features in input_fn("eval", params).as_numpy_iterator())
    assert sorted(set(shown) - {-1}) == ALL_IDS


def test_an_image_is_drawn_anew_each_epoch(three_epochs):
    by_image = collections.defaultdict(set)
    for features, labels in three_epochs:
        by_image[int(features["image_id"][0])].add(tuple(labels["sample_seeds"][0]))
    assert all(len(seeds) == 3 for seeds in by_image.values())
    assert len(set.union(*by_image.values())) == 3 * NUM_IMAGES


def test_two_runs_are_equal_bit_for_bit_whatever_the_threads(pattern, three_epochs):
    tf.random.set_seed(1234)
    params = _params(pattern, **ONE_CANVAS, input_threads=1)
    again = _take(input_fn("train", params), 3 * NUM_IMAGES)
    for one, other in zip(three_epochs, again, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def test_another_seed_is_another_run(pattern, three_epochs):
    params = _params(pattern, **ONE_CANVAS, seed=1)
    ids = _ids(_take(input_fn("train", params), NUM_IMAGES))
    assert sorted(ids) == ALL_IDS
    assert ids != _ids(three_epochs)[:NUM_IMAGES]


TWO_CANVASES = {"deterministic": False, "horizontal_flip": 0.5, "shuffle_megabytes": 1}


@pytest.fixture(scope="module")
def eleven_steps(pattern):
    """Training batches of two images on two canvases."""
    return _take(input_fn("train", _params(pattern, **TWO_CANVASES)), 11)


def test_a_run_that_starts_later_sees_the_same_batches(pattern, eleven_steps):
    rest = _take(input_fn("train", _params(pattern, **TWO_CANVASES), None, 7), 4)
    tf.nest.map_structure(np.testing.assert_array_equal, rest, eleven_steps[7:])
    # Eleven steps of two images are two epochs, whatever the canvases.
    assert collections.Counter(_ids(eleven_steps)) == dict.fromkeys(ALL_IDS, 2)


ALL_AUGMENTATIONS = {"augmentations": ("photometric_distort", "copy_paste")}


def test_a_run_that_starts_later_pastes_the_same_objects(pattern, eleven_steps):
    params = _params(pattern, **TWO_CANVASES, **ALL_AUGMENTATIONS)
    whole = _take(input_fn("train", params), 11)
    rest = _take(input_fn("train", params, None, 7), 4)
    tf.nest.map_structure(np.testing.assert_array_equal, rest, whole[7:])
    assert _ids(whole) == _ids(eleven_steps)
    more = [
        np.count_nonzero(labels["gt_classes"]) - np.count_nonzero(without["gt_classes"])
        for (_, labels), (_, without) in zip(whole, eleven_steps, strict=True)
    ]
    assert max(more) > 0, "nothing was pasted"


def test_pipelines_paste_what_one_alone_pastes(pattern):
    params = _params(pattern, **TWO_CANVASES, **ALL_AUGMENTATIONS, train_batch_size=4)
    alone = _take(input_fn("train", params), 2)
    shares = [_take(input_fn("train", params, _context(2, index, 2)), 2) for index in range(2)]
    for (_, whole), *halves in zip(alone, *shares, strict=True):
        joined = np.concatenate([labels["gt_boxes"] for _, labels in halves])
        np.testing.assert_array_equal(joined, whole["gt_boxes"])


def test_pasting_needs_masks(tmp_path):
    prefix = str(tmp_path / "boxes")
    write_shard(shard_name(prefix, 0, 1), _records())
    shards = ({"name": "boxes-00000-of-00001.tfrecord", "num_images": NUM_IMAGES, "bytes": 4000},)
    manifest = Manifest(NUM_IMAGES, 11, 0, 1, False, (), {}, shards)
    write_manifest(manifest_name(prefix), manifest)
    params = _params(f"{prefix}-*", **ALL_AUGMENTATIONS)
    with pytest.raises(UserError, match="copy_paste needs masks, but the records"):
        input_fn("train", params)


def test_images_passed_over_are_not_decoded(tmp_path):
    records = list(_records())
    path = str(tmp_path / "broken.record")
    params = _params(path, **ONE_CANVAS)
    write_shard(path, records)
    dataset = input_fn("train", params)
    first = _ids(_take(dataset, 1))[0] - 100
    records[first] = make_record(np.zeros((40, 24, 3), np.uint8), image_id=100, encoded=b"\xff\xd8")
    write_shard(path, records)
    assert len(_take(input_fn("train", params, None, 1), 3)) == 3
    with pytest.raises(tf.errors.InvalidArgumentError):
        _take(dataset, 1)


def test_pipelines_are_on_one_canvas_in_a_step_and_share_its_images(pattern):
    params = _params(pattern, **TWO_CANVASES, train_batch_size=4)
    alone = _take(input_fn("train", params), 6)
    shares = [_take(input_fn("train", params, _context(2, index, 2)), 6) for index in range(2)]
    for whole, *halves in zip(alone, *shares, strict=True):
        tf.nest.map_structure(
            lambda all_of_it, *parts: np.testing.assert_array_equal(
                np.concatenate(parts), all_of_it
            ),
            whole,
            *halves,
        )


def test_calls_take_every_image_once_an_epoch_and_start_anywhere(pattern):
    params = _params(pattern, canvases=("64x64",), steps_per_call=3)
    calls = _take(input_fn("train", params), 11)
    assert {features["image"].shape for features, _ in calls} == {(6, 64, 64, 3)}
    assert sorted(_ids(calls)) == sorted(ALL_IDS * 6)
    later = _take(input_fn("train", params, None, 6), 9)
    tf.nest.map_structure(np.testing.assert_array_equal, later, calls[2:])


def test_a_call_has_one_canvas(pattern):
    params = _params(pattern, steps_per_call=2, train_batch_size=2)
    shapes = [features["image"].shape for features, _ in _take(input_fn("train", params), 12)]
    assert set(shapes) == {(4, 32, 64, 3), (4, 64, 32, 3)}


def test_without_order_every_image_still_appears(pattern):
    params = _params(pattern, deterministic=False, train_batch_size=11, canvases=("64x64",))
    assert set(_ids(_take(input_fn("train", params), 3))) == set(ALL_IDS)


def test_the_replicas_of_a_step_share_a_canvas_and_batches_keep_the_contract(pattern):
    params = _params(pattern, train_batch_size=4)
    batches = _take(input_fn("train", params, _context(replicas=2)), 12)
    shapes = [features["image"].shape for features, _ in batches]
    assert set(shapes) == {(2, 32, 64, 3), (2, 64, 32, 3)}
    assert shapes[::2] == shapes[1::2]
    for features, labels in batches:
        assert {name: (value.dtype.name, *value.shape) for name, value in labels.items()} == {
            "gt_boxes": ("float32", 2, 3, 4),
            "gt_classes": ("int32", 2, 3),
            "gt_masks": ("uint8", 2, 3, 14, 14),
            "gt_areas": ("float32", 2, 3),
            "rpn_indices": ("int32", 2, 16),
            "rpn_labels": ("int32", 2, 16),
            "rpn_deltas": ("float32", 2, 16, 4),
            "sample_seeds": ("int32", 2, 2),
        }
        counts = np.count_nonzero(labels["gt_classes"], axis=1)
        np.testing.assert_array_equal(counts, (features["image_id"] - 100) % 3)


@pytest.mark.parametrize("mode", ["train", "eval", "predict"])
def test_one_canvas_makes_all_shapes_static(pattern, mode):
    spec = input_fn(mode, _params(pattern, canvases=("64x64",))).element_spec
    assert all(leaf.shape.is_fully_defined() for leaf in tf.nest.flatten(spec))
    features = spec[0] if mode == "train" else spec
    assert features["image"] == tf.TensorSpec([2, 64, 64, 3], tf.uint8)
    assert features["image_id"] == tf.TensorSpec([2], tf.int64)
    assert features["image_info"] == tf.TensorSpec([2, 5], tf.float32)


@pytest.mark.parametrize(
    "batch_size, replicas, canvases",
    [
        (1, 1, ("64x64",)),
        (4, 1, ("64x64",)),
        (3, 2, ("64x64",)),
        (16, 1, ("32x64", "64x32")),
        (2, 2, ("32x64", "64x32")),
        (3, 2, ("32x64", "64x32")),
    ],
)
def test_evaluation_shows_every_image_once(pattern, batch_size, replicas, canvases):
    params = _params(pattern, eval_batch_size=batch_size * replicas, canvases=canvases)
    batches = list(input_fn("eval", params, _context(replicas=replicas)))
    assert len(batches) % replicas == 0
    assert all(len(batch["image_id"]) == batch_size for batch in batches)
    ids = np.concatenate([batch["image_id"] for batch in batches])
    assert sorted(ids[ids >= 0]) == ALL_IDS
    assert (ids < 0).sum() < batch_size * replicas * len(canvases)
    for batch in batches:
        shown = batch["image"].numpy()
        for image_id, image in zip(batch["image_id"].numpy(), shown, strict=True):
            assert image.max() == max(0, 10 * (image_id - 100))


@pytest.mark.parametrize(
    "files, pipelines, sizes", [("pattern", 2, [4, 7]), ("one_file", 3, [3, 4, 4])]
)
def test_pipelines_share_the_evaluation_by_files_or_by_records(files, pipelines, sizes, request):
    params = _params(request.getfixturevalue(files), eval_batch_size=pipelines, canvases=("64x64",))
    shares = [
        [int(batch["image_id"][0]) for batch in input_fn("eval", params, context)]
        for context in (_context(pipelines, index, pipelines) for index in range(pipelines))
    ]
    assert sorted(map(len, shares)) == sizes
    assert sorted(sum(shares, [])) == ALL_IDS


def test_polygons_come_where_targets_are_made_of_them(tmp_path, pattern):
    mask, outline = np.ones((24, 40), np.uint8), [np.float64([0, 0, 40, 0, 40, 24])]
    instance = make_instance(mask)._replace(polygons=outline)
    path = str(tmp_path / "polygons.record")
    write_shard(path, [make_record(np.zeros((24, 40, 3), np.uint8), [instance])] * 2)
    params = _params(path, **ONE_CANVAS, max_polygon_vertices=6)
    assert "gt_polygons" not in input_fn("train", params).element_spec[1]
    params.model.include_polygons = True
    ((_, labels),) = _take(input_fn("train", params), 1)
    assert labels["gt_polygons"].shape == (1, 3, 6, 2)
    np.testing.assert_array_equal(labels["gt_polygon_parts"][:, 0], [[1, 1, 1, 1, 0, 0]])
    params.model.include_mask = False
    assert "gt_polygons" not in input_fn("train", params).element_spec[1]
    params = _params(pattern, **ONE_CANVAS)
    params.model.include_polygons = True
    with pytest.raises(tf.errors.InvalidArgumentError, match="without polygons"):
        _take(input_fn("train", params), 1)


def test_a_network_without_masks_gets_none_and_needs_none(tmp_path, pattern):
    box = ([(0.25, 0.1, 0.75, 0.9)], [37])
    path = str(tmp_path / "boxes.record")
    write_shard(path, [make_foreign_record(np.zeros((24, 40, 3), np.uint8), *box)] * 4)
    for files, label in ((path, 37), (pattern, 1)):
        params = _params(files, **ONE_CANVAS)
        params.model.include_mask = False
        ((_, labels),) = _take(input_fn("train", params), 1)
        assert not {"gt_masks", "gt_areas"} & labels.keys()
        assert set(labels["gt_classes"].ravel()) <= {0, label}
    with pytest.raises(tf.errors.InvalidArgumentError, match="boxes and masks differ"):
        _take(input_fn("train", _params(path)), 1)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_graph_calls_no_python(pattern, mode):
    @tf.function
    def build():
        input_fn(mode, _params(pattern, **ALL_AUGMENTATIONS))

    definition = build.get_concrete_function().graph.as_graph_def()
    ops = {node.op for node in definition.node}
    for function in definition.library.function:
        ops |= {node.op for node in function.node_def}
    # The functions inside the dataset were looked into.
    assert ops >= ({"DecodeImage", "DecodePng"} if mode == "train" else {"DecodeImage"})
    assert not ops & PYTHON_OPS


def test_the_manifest_says_whether_there_are_masks(tmp_path):
    prefix = str(tmp_path / "boxes")
    pixels, mask = np.zeros((32, 64, 3), np.uint8), np.ones((32, 64), np.uint8)
    record = make_record(pixels, [make_instance(mask)], include_masks=False)
    write_shard(shard_name(prefix, 0, 1), [record] * 4)
    shards = ({"name": "boxes-00000-of-00001.tfrecord", "num_images": 4, "bytes": 4000},)
    manifest = Manifest(4, 4, 0, 1, False, (), {}, shards)
    write_manifest(manifest_name(prefix), manifest)

    params = _params(f"{prefix}-*")
    labels = input_fn("train", params).element_spec[1]
    assert "gt_masks" not in labels and "gt_areas" not in labels
    assert "gt_boxes" in labels


def test_bad_requests_are_refused(pattern):
    with pytest.raises(ValueError, match="'test'.*train, eval, predict"):
        input_fn("test", _params(pattern))
    with pytest.raises(
        UserError, match="--train_batch_size=3 cannot be split evenly over 2 replicas"
    ):
        input_fn("train", _params(pattern, train_batch_size=3), _context(replicas=2))
    with pytest.raises(
        UserError, match="--eval_batch_size=3 cannot be split evenly over 2 replicas"
    ):
        input_fn("eval", _params(pattern, eval_batch_size=3), _context(replicas=2))
    with pytest.raises(UserError, match="nothing-here"):
        input_fn("train", _params("nothing-here"))


def test_files_that_hold_no_records_are_refused(tmp_path):
    empty, text = str(tmp_path / "empty.record"), tmp_path / "text.record"
    write_shard(empty, [])
    with pytest.raises(UserError, match="empty.record and its sibling shards contain no images"):
        input_fn("train", _params(empty))
    text.write_text("this is no TFRecord file")
    with pytest.raises(UserError, match="text.record is truncated .* not an uncompressed TFRecord"):
        input_fn("train", _params(str(text)))


@pytest.mark.skipif(not COCO_TINY.exists(), reason=f"{COCO_TINY} is absent")
@pytest.mark.skipif(
    importlib.util.find_spec("tools.create_coco_tfrecord") is None, reason="no converter"
)
def test_real_photographs_from_the_converter_to_batches(tmp_path):
    annotations = json.loads((COCO_TINY / "annotations/instances_val2017.json").read_text())
    images = sorted(annotations["images"], key=lambda image: image["id"])[:12]
    ids = {image["id"] for image in images}
    annotations["images"] = images
    annotations["annotations"] = [
        annotation for annotation in annotations["annotations"] if annotation["image_id"] in ids
    ]
    annotation_file = tmp_path / "twelve.json"
    annotation_file.write_text(json.dumps(annotations))
    subprocess.run(
        [
            sys.executable,
            "tools/create_coco_tfrecord.py",
            f"--image_dir={COCO_TINY / 'val2017'}",
            f"--object_annotations_file={annotation_file}",
            f"--output_file_prefix={tmp_path / 'twelve'}",
            "--num_shards=2",
        ],
        cwd=ROOT,
        check=True,
    )
    params = _params(
        f"{tmp_path / 'twelve'}-*",
        canvases=("160x256", "256x160", "192x192"),
        short_side=160,
        long_side=256,
        train_short_side_min=128,
        max_instances=100,
    )
    shown = [int(one) for batch in input_fn("eval", params) for one in batch["image_id"]]
    assert sorted(one for one in shown if one >= 0) == sorted(ids)
    for features, labels in input_fn("train", params).take(6):
        valid = tf.tile(features["image_info"][:, None, :2], [1, 1, 2])
        assert tf.reduce_all((labels["gt_boxes"] >= 0) & (labels["gt_boxes"] <= valid))
        assert tf.reduce_all((labels["gt_classes"] > 0) == (labels["gt_areas"] > 0))
        assert tf.reduce_all(labels["rpn_labels"] >= 0)
