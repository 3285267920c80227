"""Calibration of scores in the graph, against NumPy's interpolation."""

import numpy as np
import pytest
import tensorflow as tf

from model.score_calibration import IDENTITY, ScoreCalibration, ScoreMap

BENT = ScoreMap(np.array([0.0, 0.2, 0.5, 1.0]), np.array([0.0, 0.6, 0.7, 0.75]))
STEEP = ScoreMap(np.array([0.0, 0.45, 0.55, 0.6, 0.7, 1.0]), np.array([0, 0.1, 0.8, 0.81, 0.9, 1]))
CLASSES = np.array([[3, 1, 2, 1, 0], [2, 2, 3, 0, 0]], np.int32)
SCORES = np.array([[0.95, 0.6, 0.5, 0.1, 0.0], [1.0, 0.2, 0.35, 0.0, 0.0]], np.float32)


@pytest.fixture(scope="module")
def calibration():
    return ScoreCalibration({"box_scores": [BENT, STEEP, IDENTITY], "mask_ious": [BENT] * 3})


def expected(scores):
    maps = [BENT, STEEP, IDENTITY]
    rows = [
        [np.interp(s, *maps[c - 1]) if c else 0.0 for s, c in zip(*row, strict=True)]
        for row in zip(scores, CLASSES, strict=True)
    ]
    return np.array(rows)


def test_scores_are_interpolated_between_the_knots_of_their_class(calibration):
    boxes = tf.ones([2, 5, 4])
    given = {"detection_classes": CLASSES, "box_scores": SCORES, "detection_boxes": boxes}
    found = calibration({name: tf.convert_to_tensor(value) for name, value in given.items()})
    assert found.keys() == given.keys() and found["detection_boxes"] is boxes
    np.testing.assert_allclose(found["box_scores"], expected(SCORES), atol=1e-6)
    # 0.1 / 0.2 of the way to 0.6, and the middle between 0.1 and 0.8.
    assert float(found["box_scores"][0, 3]) == pytest.approx(0.3)
    assert float(found["box_scores"][0, 2]) == pytest.approx(0.45, abs=1e-6)


def test_any_score_keeps_its_order(calibration):
    scores = np.sort(np.random.default_rng(0).uniform(0, 1, (1, 2000)).astype(np.float32))
    for label, of_class in ((1, BENT), (2, STEEP), (3, IDENTITY)):
        given = {"detection_classes": tf.fill([1, 2000], label), "box_scores": scores}
        found = calibration(given)["box_scores"].numpy()[0]
        np.testing.assert_allclose(found, np.interp(scores[0], *of_class), atol=2e-5)
        assert (np.diff(found) >= 0).all() and found[0] >= 0 and found[-1] <= 1


def graph(calibration):
    def run(scores):
        found = calibration({"detection_classes": tf.constant(CLASSES), "box_scores": scores})
        return {"calibrated": found["box_scores"]}

    return run, tf.TensorSpec(SCORES.shape, tf.float32, "scores")


def test_it_compiles_with_xla(calibration):
    run, spec = graph(calibration)
    found = tf.function(run, [spec], autograph=False, jit_compile=True)(SCORES)
    np.testing.assert_allclose(found["calibrated"], expected(SCORES), atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_litert_has_all_operations(calibration):
    run, spec = graph(calibration)
    module = tf.Module()
    function = tf.function(run, [spec], autograph=False).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    names = {each["op_name"] for each in interpreter._get_ops_details()}
    assert not names & {"WHILE", "IF"}
    found = interpreter.get_signature_runner()(scores=SCORES)
    np.testing.assert_allclose(found["calibrated"], expected(SCORES), atol=1e-6)


def test_openvino_has_all_operations(calibration, tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO, the extra `openvino`")
    run, spec = graph(calibration)
    module = tf.Module()
    signature = tf.function(run, [spec], autograph=False).get_concrete_function()
    tf.saved_model.save(module, str(tmp_path), signatures=signature)
    compiled = openvino.Core().compile_model(openvino.convert_model(str(tmp_path)), "CPU")
    (found,) = compiled({"scores": SCORES}).values()
    np.testing.assert_allclose(found, expected(SCORES), atol=1e-5)
