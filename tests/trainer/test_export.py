"""Exported models: what they find against the checkpoint, in our code and without it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as coco_mask
from small_model import CANVAS, CATEGORIES, photograph, save

import msrcnn
from data.errors import UserError
from trainer.export import export
from trainer.run_record import load_params

SERVING_API = "needs tensorflow-serving-api (make install-extras)"


@pytest.fixture(scope="module")
def saved_model(small_exports):
    return str(small_exports / "saved_model")


@pytest.fixture(scope="module")
def checkpoint(small_model):
    return msrcnn.load(small_model, canvases=[CANVAS])


@pytest.fixture(scope="module")
def signatures(saved_model):
    model = tf.saved_model.load(saved_model)
    return model, model.signatures


def assert_found(ours, theirs, atol=0.0):
    assert ours.names == theirs.names and len(ours) > 0
    for name in ("boxes", "box_scores", "mask_ious", "mask_scores", "probabilities"):
        np.testing.assert_allclose(
            getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=atol, err_msg=name
        )


def test_load_opens_an_export_behind_the_same_call(saved_model, checkpoint, tmp_path):
    exported = msrcnn.load(saved_model)
    path = save(tmp_path, "a.png", photograph(60, 40))
    for image in (photograph(), photograph(64, 96, seed=1), path):
        assert_found(exported(image), checkpoint(image), atol=1e-5)
    assert [len(found) for found in exported([photograph(), path])] == [6, 6]


def test_files_of_all_sizes_make_a_batch(signatures, checkpoint, tmp_path):
    tag = Image.Exif()
    tag[0x0112] = 6
    paths = [
        save(tmp_path, "a.png", photograph(60, 40)),
        save(tmp_path, "b.jpg", photograph(seed=1), exif=tag, quality=100, subsampling=0),
    ]
    encoded = tf.constant([path.read_bytes() for path in paths])
    for name, key, batch in (
        ("serve_bytes", "images", encoded),
        ("serve_examples", "examples", tf.stack([_example(file) for file in encoded])),
    ):
        outputs = signatures[1][name](**{key: batch})
        np.testing.assert_array_equal(outputs["sizes"], [[60, 40], [60, 40]])
        for row, path in enumerate(paths):
            expected = checkpoint(path)
            order = np.argsort(-outputs["mask_scores"][row].numpy(), kind="stable")
            found = {name: value[row].numpy()[order] for name, value in outputs.items()
                     if name not in ("num_detections", "sizes")}  # fmt: skip
            np.testing.assert_allclose(found["boxes"], expected.boxes, rtol=1e-4, atol=1e-3)
            np.testing.assert_allclose(found["mask_scores"], expected.mask_scores, atol=1e-5)
            np.testing.assert_allclose(found["masks"], expected.probabilities, atol=1e-4)
            assert [entry.decode() for entry in found["names"]] == expected.names


def _example(encoded):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded.numpy()]))
    features = tf.train.Features(feature={"image/encoded": feature})
    return tf.constant(tf.train.Example(features=features).SerializeToString())


def test_masks_are_pasted_on_request(signatures, tmp_path):
    encoded = save(tmp_path, "a.png", photograph(60, 40)).read_bytes()
    pasted = signatures[1]["serve_masks"](images=tf.constant([encoded]))["pasted_masks"][0]
    counts = signatures[1]["serve_rle"](images=tf.constant([encoded]))["rle_counts"][0]
    assert pasted.shape == (6, 60, 40) and pasted.numpy().any()
    for mask, text in zip(pasted.numpy(), counts.numpy(), strict=True):
        decoded = coco_mask.decode({"size": [60, 40], "counts": text})
        np.testing.assert_array_equal(mask, decoded > 0)


def test_the_default_signature_has_no_loops_and_one_static_input(signatures, checkpoint):
    default = signatures[1]["serving_default"]
    (image,) = default.structured_input_signature[1].values()
    assert image.shape == (1, 64, 96, 3) and image.dtype == tf.uint8
    operations = {operation.type for operation in default.graph.get_operations()}
    assert not any("While" in name or "If" in name or "Crop" in name for name in operations)
    pixels = photograph(64, 96, seed=3)
    outputs = {name: value[0] for name, value in default(image=tf.constant(pixels[None])).items()}
    expected = checkpoint(pixels)
    order = np.argsort(-outputs["mask_scores"].numpy(), kind="stable")
    np.testing.assert_allclose(outputs["boxes"].numpy()[order], expected.boxes, atol=1e-3)


def test_plain_tensorflow_runs_it_without_this_project(saved_model, tmp_path):
    path = save(tmp_path, "a.png", photograph(60, 40))
    program = (
        "import sys, tensorflow as tf\n"
        "model = tf.saved_model.load(sys.argv[1])\n"
        "image = open(sys.argv[2], 'rb').read()\n"
        "found = model.signatures['serve_bytes'](images=tf.constant([image]))\n"
        "print(int(found['num_detections'][0]), found['names'][0, 0].numpy().decode())\n"
        "assert not {'data', 'model', 'trainer'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, saved_model, str(path)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    count, name = done.stdout.split()
    assert count == "6" and name in ("cat", "dog")


def test_classes_and_settings_travel_with_it(small_exports):
    path = small_exports / "saved_model" / "assets.extra" / "metadata.json"
    metadata = json.loads(path.read_text())
    assert metadata["categories"] == CATEGORIES
    assert (metadata["input"]["height"], metadata["input"]["width"]) == (64, 96)
    assert metadata["settings"]["canvases"] == [CANVAS]
    assert metadata["settings"]["detections_per_image"] == 6
    assert not [name for name in metadata["settings"] if name.endswith("file_pattern")]


def test_tensorflow_serving_finds_a_warm_up_request_that_runs(saved_model, signatures):
    log = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2", reason=SERVING_API)
    path = f"{saved_model}/assets.extra/tf_serving_warmup_requests"
    (record,) = tf.data.TFRecordDataset(path).as_numpy_iterator()
    found = _answer(signatures[1], log.PredictionLog.FromString(record).predict_log.request)
    np.testing.assert_array_equal(found["sizes"], [[64, 96]])


def test_a_request_of_a_client_is_answered(signatures, checkpoint, tmp_path):
    predict = pytest.importorskip("tensorflow_serving.apis.predict_pb2", reason=SERVING_API)
    paths = [save(tmp_path, f"{seed}.jpg", photograph(seed=seed), quality=100) for seed in (1, 2)]
    request = predict.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "mask_rcnn", "serve_bytes"
    images = tf.make_tensor_proto([path.read_bytes() for path in paths])
    request.inputs["images"].CopyFrom(images)
    found = _answer(signatures[1], predict.PredictRequest.FromString(request.SerializeToString()))
    response = predict.PredictResponse()
    for name, value in found.items():
        response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
    received = predict.PredictResponse.FromString(response.SerializeToString())
    outputs = {name: tf.make_ndarray(value) for name, value in received.outputs.items()}
    for row, path in enumerate(paths):
        names = sorted(name.decode() for name in outputs["names"][row])
        assert names == sorted(checkpoint(path).names)


def _answer(signatures, request):
    """What TensorFlow Serving does with a `PredictRequest`."""
    serve = signatures[request.model_spec.signature_name]
    return serve(
        **{name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
    )


def test_without_a_checkpoint_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match="There is no checkpoint in --model_dir"):
        export(load_params(str(tmp_path), {"mode": "export"}))
    assert not list(tmp_path.iterdir())


def test_a_saved_model_of_others_is_refused(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"other cannot be opened .*metadata.json.*not an export"):
        msrcnn.load(tmp_path / "other")


def test_settings_of_an_export_are_fixed(saved_model):
    with pytest.raises(UserError, match="saved_model is an exported model, whose settings"):
        msrcnn.load(saved_model, score_threshold=0.5)
