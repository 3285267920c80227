"""calibration.json: whose scores it changes, once, in every form of a model."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from small_model import CANVAS, DATA, photograph

from data.errors import UserError
from data.examples import lay_out
from model.score_calibration import ScoreMap
from trainer.calibration_file import (
    FILE,
    FittedMap,
    calibrate_network,
    fingerprint,
    write_calibration,
)
from trainer.export import open_for_export
from trainer.litert import convert
from trainer.predictor import Predictor, load_trained, open_checkpoint
from trainer.run_record import load_params
from trainer.runtimes import run_tflite

HALF = ScoreMap(np.array([0.0, 1.0]), np.array([0.0, 0.5]))
BENT = ScoreMap(np.array([0.0, 0.3, 0.6, 1.0]), np.array([0.0, 0.6, 0.7, 0.9]))
FLAT = ScoreMap(np.array([0.0, 0.2, 1.0]), np.array([0.0, 0.15, 0.2]))
# Cats have a map of their own; dogs that of all classes.
MAPS = {
    "box_score": [FittedMap(None, 90, HALF), FittedMap(1, 50, BENT)],
    "mask_iou": [FittedMap(None, 90, BENT)],
    "mask_score": [FittedMap(None, 90, FLAT), FittedMap(1, 50, HALF)],
}
BY_LABEL = {
    "box_scores": {1: BENT, 2: HALF},
    "mask_ious": {1: BENT, 2: BENT},
    "mask_scores": {1: HALF, 2: FLAT},
}


def calibrate(trained):
    return write_calibration(trained.checkpoint, trained.network, MAPS, rescore=True, method="hand")


@pytest.fixture(scope="module")
def model_dir(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(small_model, folder)
    calibrate(load_trained(str(folder)))
    return folder


def features(size=(64, 96)):
    return {name: value[None] for name, value in lay_out(photograph(*size), DATA).items()}


def detect(trained):
    """The outputs of a network for one image, by slot."""
    return {name: value.numpy()[0] for name, value in trained.network.detect(features()).items()}


def apply(trained):
    """Calibrates a network; returns what `calibrate_network` does."""
    return calibrate_network(trained.network, trained.checkpoint, trained.params)


def expected(raw):
    """Scores that are mapped once."""
    mapped = dict(raw)
    for name, maps in BY_LABEL.items():
        pairs = zip(raw["detection_classes"], raw[name], strict=True)
        mapped[name] = np.array([np.interp(s, *maps[c]) if c else 0.0 for c, s in pairs])
    return mapped


def assert_same(found, wanted, atol=1e-6):
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def raw(small_model):
    found = detect(load_trained(str(small_model)))
    assert {1, 2} <= {*found["detection_classes"].tolist()}
    return found


@pytest.fixture(scope="module")
def opened(model_dir):
    return open_checkpoint(str(model_dir))


def test_a_checkpoint_is_calibrated_once(opened, raw):
    found = {name: value.numpy()[0] for name, value in opened.detect(features()).items()}
    assert_same(found, expected(raw))
    assert np.abs(found["mask_scores"] - raw["mask_scores"]).max() > 0.01
    # A mask score has a map of its own; it is not the product of calibrated scores.
    assert not np.allclose(found["mask_scores"], found["box_scores"] * found["mask_ious"])


def test_detections_are_sorted_by_calibrated_scores(opened):
    found = Predictor(*opened)(photograph())
    assert (np.diff(found.mask_scores) <= 0).all()
    (first, *_) = found.to_coco()
    assert first["mask_score"] == pytest.approx(found.mask_scores[0])


def test_it_can_be_turned_off(model_dir):
    trained = load_trained(str(model_dir), settings={"calibrate_scores": False})
    assert apply(trained) == "" and trained.network.calibration is None


def test_averages_over_views_are_calibrated(model_dir):
    trained = load_trained(str(model_dir), settings={"test_flip": True})
    plain = detect(trained)
    assert apply(trained) == str(model_dir / FILE)
    assert_same(detect(trained), expected(plain))


def slots(found):
    """Classes and scores of an export's outputs, by the network's names."""
    names = {"detection_classes": "classes"} | {name: name for name in BY_LABEL}
    return {inner: np.array(found[outer])[0] for inner, outer in names.items()}


def test_exports_are_calibrated_once(model_dir, raw):
    given = {"mode": "export", "canvas": CANVAS}
    serving, _, metadata = open_for_export(load_params(str(model_dir), given))
    assert metadata["settings"]["calibrate_scores"] is True
    image = features()["image"].numpy()
    function = serving.signature("serving_default")
    wanted = {name: expected(raw)[name] for name in ("detection_classes", *BY_LABEL)}
    assert_same(slots(function(tf.constant(image))), wanted, atol=1e-5)
    litert = run_tflite(convert(function, serving, "float32"))
    assert_same(slots(litert(image)), wanted, atol=1e-5)


def test_metadata_say_whether_an_export_is_calibrated(small_model):
    given = {"mode": "export", "canvas": CANVAS}
    _, params, metadata = open_for_export(load_params(str(small_model), given))
    assert metadata["settings"]["calibrate_scores"] is False
    assert not params.model.calibrate_scores


def test_weights_that_have_changed_are_not_calibrated(model_dir, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(model_dir, folder)
    network = load_trained(str(folder)).network
    before = fingerprint(network)
    network.maskiou_head.maskiou.bias.assign_add([0.0, 1e-3, 0.0])
    assert fingerprint(network) != before
    checkpoint = tf.train.Checkpoint(network=network)
    manager = tf.train.CheckpointManager(checkpoint, str(folder), 1, checkpoint_name="ckpt")
    manager.save(checkpoint_number=7)
    capsys.readouterr()
    trained = load_trained(str(folder))
    assert apply(trained) == "" and trained.network.calibration is None
    warning = capsys.readouterr().err
    assert warning.startswith(f"Warning: {folder / FILE} is ignored, because it was made for other")
    assert "ckpt-1" in warning and "ckpt-7" in warning and "tools/calibrate.py" in warning
    calibrate(trained)
    assert apply(trained) and trained.network.calibration
    assert not capsys.readouterr().err


def test_another_kind_of_mask_score_is_not_calibrated(model_dir, capsys):
    trained = load_trained(str(model_dir), settings={"rescore": False})
    assert apply(trained) == "" and trained.network.calibration is None
    assert "was made with --rescore" in capsys.readouterr().err


def test_the_file_says_what_it_belongs_to(model_dir):
    content = json.loads((model_dir / FILE).read_text())
    assert content["checkpoint"] == "ckpt-1" and content["step"] == 0
    assert content["method"] == "hand" and content["rescore"] is True
    assert [entry["label"] for entry in content["maps"]["box_score"]] == [None, 1]


@pytest.fixture(scope="module")
def trained(model_dir):
    return load_trained(str(model_dir))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: "{",
        lambda content: "[]",
        lambda content: json.dumps({**content, "maps": {"speed": []}}),
        lambda content: json.dumps({key: content[key] for key in content if key != "weights"}),
        lambda content: json.dumps(content).replace("0.6, 0.7", "0.7, 0.6"),
    ],
)
def test_what_is_no_calibration_is_refused(model_dir, trained, tmp_path, damage):
    content = json.loads((model_dir / FILE).read_text())
    (tmp_path / FILE).write_text(damage(content))
    with pytest.raises(UserError, match="is not a calibration .*--nocalibrate_scores"):
        calibrate_network(trained.network, str(tmp_path / "ckpt-1"), trained.params)
