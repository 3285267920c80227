"""A model_dir called on photographs: pixels, paths and lists of them."""

import concurrent.futures
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as coco_mask
from small_model import DATA, make_model_dir, photograph, save

import msrcnn
from data.examples import eval_example
from data.records import encode_example


@pytest.fixture(scope="module")
def predictor(small_model):
    return msrcnn.load(small_model)


def assert_equal(ours, theirs, atol=0.0):
    assert ours.names == theirs.names and (ours.height, ours.width) == (theirs.height, theirs.width)
    for name in ("boxes", "box_scores", "mask_ious", "mask_scores", "probabilities"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=atol)


def test_what_is_found_in_a_photograph(predictor):
    image = photograph()
    found = predictor(image)
    assert len(found) == 6 and (found.height, found.width) == (40, 60)
    assert found.boxes.shape == (6, 4) and found.boxes.max() > 1
    assert (found.boxes >= 0).all() and (found.boxes <= [40, 60, 40, 60]).all()
    assert found.names == [{1: "cat", 2: "dog"}[label] for label in found.classes]
    np.testing.assert_allclose(found.mask_scores, found.box_scores * found.mask_ious)
    assert (np.diff(found.mask_scores) <= 0).all() and (np.diff(found.box_scores) > 0).any()
    assert found.masks.shape == (6, 40, 60) and found.masks.dtype == bool and found.masks.any()
    assert found.draw(image, min_score=0.0).shape == image.shape
    assert (found.draw(image, min_score=1.0) == image).all()


def test_entries_of_coco_say_the_same(predictor):
    found = predictor(photograph())
    entries = json.loads(json.dumps(found.to_coco(image_id=3, file_name="a.jpg")))
    for index, entry in enumerate(entries):
        y1, x1, y2, x2 = found.boxes[index]
        assert entry["image_id"] == 3 and entry["file_name"] == "a.jpg"
        assert entry["category_id"] == {"cat": 7, "dog": 9}[found.names[index]]
        np.testing.assert_allclose(entry["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=1e-3)
        assert np.float32(entry["score"]) == found.mask_scores[index]
        assert np.float32(entry["box_score"]) == found.box_scores[index]
        np.testing.assert_array_equal(
            coco_mask.decode(entry["segmentation"]).astype(bool), found.masks[index]
        )


def test_a_file_gives_what_its_pixels_give(predictor, tmp_path):
    pixels = photograph()
    path = save(tmp_path, "a.png", pixels)
    np.testing.assert_array_equal(predictor.read(path), pixels)
    assert_equal(predictor(path), predictor(pixels))
    assert_equal(predictor(str(path)), predictor(pixels))


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_files_are_turned_as_in_training(small_model, tmp_path, exif):
    predictor = msrcnn.load(small_model, exif=exif)
    told = Image.Exif()
    told[0x0112] = 6
    pixels = photograph()
    path = save(tmp_path, "a.png", pixels, exif=told)
    expected = np.rot90(pixels, -1) if exif == "apply" else pixels
    np.testing.assert_array_equal(predictor.read(path), expected)
    found = predictor(path)
    assert (found.height, found.width) == expected.shape[:2]


def test_the_network_sees_what_it_sees_in_evaluation(predictor, tmp_path):
    pixels = photograph(50, 36)
    path = save(tmp_path, "a.jpg", pixels, quality=90)
    record = encode_example(
        encoded=path.read_bytes(), image_format="jpeg", height=50 // 4 * 4, width=36,
        file_name="a.jpg", image_id=1, instances=(), include_masks=False,
    )  # fmt: skip
    features = eval_example(tf.constant(record), DATA)
    ours = predictor._lay_out(predictor.read(path))
    assert features["image"].shape == (96, 64, 3)
    for name, values in ours.items():
        np.testing.assert_array_equal(values, features[name], err_msg=name)


def test_settings_of_the_test_are_taken(small_model, predictor):
    image = photograph()
    scores = np.sort(predictor(image).box_scores)[::-1]
    found = msrcnn.load(small_model, detections_per_image=3, rescore=False)(image)
    np.testing.assert_array_equal(found.mask_scores, scores[:3])
    least = float(scores[2])
    found = msrcnn.load(small_model, nms="soft", nms_iou=0.0, score_threshold=least)(image)
    assert len(found) and found.box_scores.max() == scores[0] and found.box_scores.min() > least


def test_augmented_detections_are_in_pixels_of_the_photograph(small_model):
    """What fills the canvas fills it at twice the scale, where it is seen alone or with others."""
    augmented = msrcnn.load(small_model, batch_size=2, test_scales=(1.0, 2.0), nms_iou=1.0)
    small, large = photograph(40, 60), photograph(120, 200)
    *together, alone = augmented([small, large, small])
    for found, image in zip(together, (small, large), strict=True):
        assert len(found) == 6 and found.masks.shape == (6, *image.shape[:2])
        assert (found.boxes <= np.tile(image.shape[:2], 2) + 1e-3).all()
    assert together[1].boxes.max() > 60
    assert_equal(together[0], alone, atol=1e-4)


def test_lists_keep_their_order_and_canvases_do_not_mix(predictor, small_model):
    images = [photograph(*size, seed=seed) for seed, size in enumerate([(40, 60), (60, 40)] * 3)]
    alone = [predictor(image) for image in images]
    for batch_size in (1, 2):
        together = msrcnn.load(small_model, batch_size=batch_size)(images)
        assert [found.height for found in together] == [40, 60] * 3
        for ours, theirs in zip(together, alone, strict=True):
            assert_equal(ours, theirs, atol=1e-4)
    assert predictor([]) == []


def test_threads_share_it_and_a_canvas_is_traced_once(small_model):
    predictor = msrcnn.load(small_model)
    images = [photograph(seed=seed) for seed in range(4)] * 3
    expected = [predictor(image) for image in images[:4]] * 3
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(predictor, images), expected, strict=True):
            assert_equal(ours, theirs)
    predictor(photograph(44, 60))  # another size on the same canvas
    assert predictor._detect.experimental_get_tracing_count() == 1
    assert predictor._lay_out.experimental_get_tracing_count() == 1


def test_settings_can_be_given(small_model, predictor):
    few = msrcnn.load(small_model, detections_per_image=2, rescore=False)(photograph())
    assert len(few) == 2
    np.testing.assert_array_equal(few.mask_scores, few.box_scores)
    assert few.box_scores.max() == predictor(photograph()).box_scores.max()


@pytest.mark.parametrize("system", ["faster_rcnn", "mask_rcnn"])
def test_systems_without_all_heads(tmp_path, system):
    found = msrcnn.load(make_model_dir(tmp_path / "run", system=system))(photograph())
    assert found.mask_ious is None and (np.diff(found.box_scores) <= 0).all()
    assert (found.masks is None) == (found.mask_scores is None) == (system == "faster_rcnn")
    entry = found.to_coco()[0]
    assert ("segmentation" in entry) == (system == "mask_rcnn") and "mask_iou" not in entry
    assert found.draw(photograph(), min_score=0.0).shape == (40, 60, 3)


def test_what_is_no_photograph_is_refused(predictor, tmp_path):
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"a uint8 array \[height, width, 3\]"):
            predictor(array)
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(
        msrcnn.UserError, match=r"a.jpg: cannot be read as an image \(the file is neither"
    ):
        predictor(tmp_path / "a.jpg")
    with pytest.raises(msrcnn.UserError, match=r"b.jpg: cannot be read as an image \(No such file"):
        predictor([tmp_path / "b.jpg"])


def test_what_is_no_model_is_refused(small_model, tmp_path):
    with pytest.raises(msrcnn.UserError, match="There is no trained model in"):
        msrcnn.load(tmp_path)
    with pytest.raises(TypeError, match="there is no setting colour"):
        msrcnn.load(small_model, colour="red")
    with pytest.raises(ValueError, match="^--score_threshold=2.0: expected 0 to 1"):
        msrcnn.load(small_model, score_threshold=2.0)


def test_a_stream_keeps_keys_and_computes_ahead(predictor):
    sizes = [(40, 60), (60, 40), (44, 60)]
    images = {f"{h}x{w}": photograph(h, w) for h, w in sizes}
    taken = []

    def pictures():
        for key, image in images.items():
            taken.append(key)
            yield key, image

    stream = predictor.stream(pictures())
    key, found = next(stream)
    assert key == "40x60" and len(taken) > 1
    assert_equal(found, predictor(images[key]))
    rest = {key: (found.height, found.width) for key, found in stream}
    assert rest == {"60x40": (60, 40), "44x60": (44, 60)}
