"""The peers' settings, what is drawn for them, and that they load without their packages."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from data.settings import SettingError
from tools.benchmarks.peers import (
    CLASSES,
    DETECTIONS,
    PEERS,
    PeerSettings,
    expect_detections,
    model_garden,
    torchvision_openvino,
)
from tools.benchmarks.peers.model_garden import number_classes
from tools.benchmarks.peers.scenes import draw_ellipses, draw_scenes
from tools.benchmarks.synthetic import FEW_OBJECTS, draw_image


def test_settings_leave_out_what_they_do_not_know():
    settings = PeerSettings.from_dict({"image_size": 64, "seed": 3, "backbone": "resnet50"})
    assert settings == PeerSettings(image_size=64, seed=3)
    assert PeerSettings.from_dict(dataclasses.asdict(settings)) == settings


def test_precision_is_one_of_two():
    assert not PeerSettings().bfloat16
    assert PeerSettings(precision="mixed_bfloat16").bfloat16
    with pytest.raises(SettingError, match="--precision=mixed_float16: expected one of float32"):
        PeerSettings(precision="mixed_float16")


def test_too_few_detections_are_refused():
    assert expect_detections([DETECTIONS, DETECTIONS]) is None
    with pytest.raises(RuntimeError, match="99"):
        expect_detections([DETECTIONS, 99])


@pytest.mark.parametrize("name", PEERS)
def test_peers_load_without_their_packages(name, repository):
    heavy = {"tensorflow", "torch", "torchvision", "official", "mmdet", "absl"}
    code = f"import sys, tools.benchmarks.peers.{name}; print(*{heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_scenes_are_as_asked_for():
    scenes = draw_scenes(PeerSettings(image_size=96, batch_size=2, instances=5))
    assert len(scenes) == 2
    for scene in scenes:
        assert scene.image.shape == (3, 96, 96) and scene.image.dtype == np.uint8
        assert scene.boxes.shape == (5, 4) and scene.boxes.dtype == np.float32
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
        assert scene.boxes.min() >= 0 and scene.boxes.max() <= 96
        assert scene.labels.min() >= 1 and scene.labels.max() < CLASSES
        assert scene.masks.shape == (5, 96, 96)
    assert not np.array_equal(scenes[0].boxes, scenes[1].boxes)


def test_scenes_come_from_the_seed():
    settings = PeerSettings(image_size=32, seed=7)
    first, again = draw_scenes(settings)[0], draw_scenes(settings)[0]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert len(first.boxes) == FEW_OBJECTS


def test_an_ellipse_fills_its_box():
    (mask,) = draw_ellipses(np.array([[10.0, 20.0, 30.0, 60.0]]), 64)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 59, 10, 29)
    assert mask.sum() == pytest.approx(np.pi * 10 * 20, rel=0.02)


def test_classes_are_numbered_from_one():
    coco = {
        "images": [{"id": 1}, {"id": 2}, {"id": 3}, {"id": 4}],
        "categories": [{"id": 90, "name": "b"}, {"id": 7, "name": "a"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "iscrowd": 1},
            {"image_id": 2, "category_id": 90, "iscrowd": 0},
            {"image_id": 3, "category_id": 7, "iscrowd": 0},
            {"image_id": 3, "category_id": 90, "iscrowd": 1},
        ],
    }
    numbered = number_classes(coco, most=None)
    assert [image["id"] for image in numbered["images"]] == [2, 3]
    assert [entry["category_id"] for entry in numbered["annotations"]] == [2, 1, 2]
    assert [entry["id"] for entry in numbered["categories"]] == [2, 1]
    assert [image["id"] for image in number_classes(coco, most=1)["images"]] == [2]


def test_a_file_of_model_garden_gets_pixels_of_imagenets_mean_and_deviation(tmp_path):
    import tensorflow as tf

    pixels = draw_image(32)[0, 0, 0] / 255.0
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]

    @tf.function(input_signature=[tf.TensorSpec([1, 32, 32, 3], tf.float32)])
    def serve(inputs):
        differs = tf.reduce_any(tf.abs(inputs[0, 0, 0] - tf.constant(expected, tf.float32)) > 1e-5)
        return {"num_detections": tf.where(differs, 0, [DETECTIONS])}

    module = tf.Module()
    module.serve = serve
    tf.saved_model.save(module, str(tmp_path / "saved"), {"serving_default": serve})
    content = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")).convert()
    (tmp_path / "float32.tflite").write_bytes(content)
    settings = PeerSettings(image_size=32, exports=str(tmp_path / "float32.tflite"))
    assert model_garden.make_export(settings)() == 1


@pytest.mark.parametrize(("count", "fails"), [(DETECTIONS, False), (7, True)])
def test_a_file_in_openvino_must_find_all(tmp_path, count, fails):
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    image = openvino.opset13.parameter([1, 32, 32, 3], np.uint8, "image")
    image.output(0).tensor.names = {"image"}
    total = openvino.opset13.reduce_sum(openvino.opset13.convert(image, "f32"), [0, 1, 2, 3])
    boxes = openvino.opset13.multiply(total, np.ones([count, 4], np.float32))
    boxes.output(0).tensor.names = {"boxes"}
    openvino.save_model(openvino.Model([boxes], [image]), tmp_path / "model.xml")
    settings = PeerSettings(image_size=32, exports=str(tmp_path / "model.xml"))
    run = torchvision_openvino.make_export(settings)
    if fails:
        with pytest.raises(RuntimeError, match="7"):
            run()
    else:
        assert run() == 1
