"""Test-time augmentation against plain detection, mirrored photographs and a NumPy reading."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from greedy_nms import greedy_nms_by_class
from toy_batch import CANVAS, toy_features, toy_params

from data.config import DataConfig
from data.examples import lay_out, padding_example
from model.augmented_detector import AugmentedDetector, AugmentedView, make_views, mirror_images
from model.box_head import BoxDetections
from model.model_fn import model_fn
from model.systems import build_network

SYSTEMS = ("faster_rcnn", "mask_rcnn", "mask_scoring_rcnn", "pointrend_mask_scoring_rcnn")


def augmented_params(scales=(1.0,), flip=False, **model):
    params = toy_params(**({"score_threshold": 0.0} | model))
    data = dataclasses.replace(
        params.data,
        short_side=48,
        long_side=64,
        train_short_side_min=48,
        test_scales=scales,
        test_flip=flip,
    )
    return dataclasses.replace(params, data=data)


def photographs():
    """Three, of other shapes, on one canvas."""
    rng = np.random.default_rng(0)
    sizes = ((30, 40), (50, 40), (48, 63))
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def lay_out_all(params, images):
    features = [lay_out(tf.constant(image), params.data) for image in images]
    return {name: tf.stack([one[name] for one in features]) for name in features[0]}


def assert_equal(ours, theirs, atol=0.0):
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], atol=atol, rtol=0, err_msg=name)


def test_without_augmentation_there_is_a_plain_detector():
    assert not isinstance(build_network(augmented_params()), AugmentedDetector)
    assert not isinstance(build_network(augmented_params(scales=(2.0,))), AugmentedDetector)
    plain, augmented = (build_network(augmented_params(flip=flip)) for flip in (False, True))
    assert isinstance(augmented, AugmentedDetector)
    for ours, theirs in zip(augmented.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("static", [False, True])
def test_one_view_is_plain_detection(system, static):
    network = build_network(augmented_params(system=system, flip=True))
    plain = build_network(augmented_params(system=system)).detect(toy_features(), static)
    network.flip = False
    assert_equal(network.detect(toy_features(), static), plain)


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_equal_views_change_nothing(nms):
    """Each candidate's twin is suppressed, and the means are of equal values."""
    rule = {"nms": nms, "nms_iou": 0.99, "soft_nms_sigma": 0.01, "score_threshold": 1e-6}
    params = augmented_params(scales=(1.0, 1.0), **rule)
    features = lay_out_all(params, photographs())
    plain = build_network(augmented_params(**rule)).detect(features)
    assert_equal(build_network(params).detect(features), plain, atol=1e-6)


def test_mirroring_is_of_the_valid_area():
    image = np.arange(2 * 2 * 5 * 3).reshape(2, 2, 5, 3).astype(np.uint8)
    info = tf.constant([[2.0, 5, 1, 2, 5], [1.0, 3, 1, 1, 3]])
    mirrored = mirror_images(tf.constant(image), info).numpy()
    np.testing.assert_array_equal(mirrored[0], image[0, :, ::-1])
    np.testing.assert_array_equal(mirrored[1], image[1][:, [2, 1, 0, 3, 4]])


def test_boxes_by_hand():
    """From 30 × 40 to 60 × 100 pixels: twice as high, 2.5 times as wide, and mirrored."""
    infos = (tf.constant([[*sides, 1.0, 0, 0]]) for sides in ((60.0, 100.0), (30.0, 40.0)))
    view = AugmentedView(tf.zeros([]), *infos, mirrored=True)
    first, here = [[[3.0, 4, 15, 40]]], [[[6.0, 0, 30, 90]]]
    np.testing.assert_allclose(view.from_first(tf.constant(first)), here, atol=1e-5)
    np.testing.assert_allclose(view.to_first(tf.constant(here)), first, atol=1e-5)
    np.testing.assert_allclose(view.to_first(tf.constant([here])), [first], atol=1e-5)


@pytest.mark.parametrize("size", [(48, 64), (64, 37), (48, 51)])
def test_the_mirrored_view_is_the_mirrored_photograph(size):
    """Of photographs that keep their size, as resizing rounds."""
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    params = augmented_params(flip=True)
    here, there = (lay_out_all(params, [pixels]) for pixels in (image, image[:, ::-1].copy()))
    plain, mirrored = make_views(here, 1, True)
    np.testing.assert_array_equal(plain.image, here["image"])
    np.testing.assert_array_equal(mirrored.image, there["image"])
    network = build_network(params)
    seen = network.detect(there)
    network.flip = False
    ours = network.detect({"image": mirrored.image, "image_info": mirrored.image_info})
    assert_equal(ours, network.detect(there))
    # Both see both, so they find the same, mirrored.
    network.flip = True
    found = network.detect(here)
    np.testing.assert_allclose(found["box_scores"], seen["box_scores"], atol=1e-5)
    assert found["num_detections"] == seen["num_detections"] > 0


def test_an_image_that_is_its_own_mirror_image_has_symmetric_detections():
    params = augmented_params(flip=True, nms_iou=1.0)
    half = np.random.default_rng(2).integers(0, 256, (48, 25, 3), np.uint8)
    features = lay_out_all(params, [np.concatenate([half, half[:, ::-1]], axis=1)])
    found = {name: v.numpy()[0] for name, v in build_network(params).detect(features).items()}
    assert found["num_detections"] == 6
    for here in range(6):
        y1, x1, y2, x2 = found["detection_boxes"][here]
        distance = np.abs(found["detection_boxes"] - [y1, 50 - x2, y2, 50 - x1]).max(axis=1)
        same = found["detection_classes"] == found["detection_classes"][here]
        there = np.flatnonzero(same)[distance[same].argmin()]
        assert distance[there] < 1e-3
        for name in ("box_scores", "mask_ious", "mask_scores"):
            assert found[name][there] == pytest.approx(found[name][here], abs=1e-5)
        masks = found["detection_masks"]
        np.testing.assert_allclose(masks[there], masks[here][:, ::-1], atol=1e-4)


@pytest.mark.parametrize("system", SYSTEMS[1:])
def test_equals_a_reading_in_numpy(system):
    """Candidates of four views mapped and suppressed, and each view's masks averaged."""
    params = augmented_params(scales=(1.0, 1.5), flip=True, system=system)
    network = build_network(params)
    features = lay_out_all(params, photographs())
    assert features["image_1"].shape == (3, 96, 96, 3)
    found = {name: values.numpy() for name, values in network.detect(features).items()}
    infos = [features["image_info"].numpy(), features["image_info_1"].numpy()]
    images = [features["image"].numpy(), features["image_1"].numpy()]
    scores, boxes, sights = [], [], []
    for info, batch in zip(infos, images, strict=True):
        for mirrored in (False, True):
            batch = batch.copy()
            for image, width in zip(batch, info[:, 1].astype(int), strict=True):
                if mirrored:
                    image[:, :width] = image[:, :width][:, ::-1].copy()
            seen = {"image": tf.constant(batch), "image_info": tf.constant(info)}
            view, _, proposals = network.propose(seen, training=False)
            candidates = network.box_head.find_candidates(view, proposals)
            scores.append(candidates.scores.numpy())
            boxes.append(np.stack([
                map_boxes(*each, mirrored)
                for each in zip(candidates.boxes.numpy(), info, infos[0], strict=True)
            ]))  # fmt: skip
            sights.append((view, info, mirrored))
    scores, boxes = np.concatenate(scores, 1), np.concatenate(boxes, 1)
    for image in range(3):
        expected = greedy_nms_by_class(
            boxes[image], scores[image], iou_threshold=0.5, score_threshold=0.0, most=6
        )
        assert found["num_detections"][image] == len(expected) == 6
        for name, column in (("box_scores", 0), ("detection_boxes", 2)):
            np.testing.assert_allclose(found[name][image], [e[column] for e in expected], atol=1e-4)
    masks, ious = [], []
    for view, info, mirrored in sights:
        there = np.stack([
            map_boxes(*each, mirrored, back=True)
            for each in zip(found["detection_boxes"], info, infos[0], strict=True)
        ])  # fmt: skip
        slots = BoxDetections(
            tf.constant(there, tf.float32),
            tf.constant(found["detection_classes"]),
            tf.constant(found["box_scores"]),
            tf.ones([3, 6], tf.bool),
        )
        found_there, outputs = slots, {}
        for head in network.heads[1:]:
            found_there, more = head.detect(view, found_there)
            outputs |= more
        values = outputs["detection_masks"].numpy()
        masks.append(values[..., ::-1] if mirrored else values)
        if "mask_ious" in outputs:
            ious.append(outputs["mask_ious"].numpy())
    np.testing.assert_allclose(found["detection_masks"], np.mean(masks, 0), atol=1e-5)
    if ious:
        np.testing.assert_allclose(found["mask_ious"], np.mean(ious, 0), atol=1e-5)
    expected = found["box_scores"] * (np.mean(ious, 0) if ious else 1.0)
    np.testing.assert_allclose(found["mask_scores"], expected, atol=1e-5)


def map_boxes(boxes, info, first_info, mirrored, back=False):
    """Boxes of a view in the first one, or back: by scale and shift along each axis."""
    sign = -1.0 if mirrored else 1.0
    scale = first_info[:2] / info[:2] * [1.0, sign]
    shift = np.array([0.0, first_info[1] if mirrored else 0.0])
    ends = boxes.astype(np.float64).reshape(*boxes.shape[:-1], 2, 2)
    ends = (ends - shift) / scale if back else ends * scale + shift
    return np.concatenate([ends.min(-2), ends.max(-2)], -1)


@pytest.mark.parametrize("system", SYSTEMS)
def test_static_shapes_find_the_same(system):
    params = augmented_params(scales=(1.0, 0.5), flip=True, system=system)
    network = build_network(params)
    if "maskiou_head" in network.head_names:
        network.maskiou_head.maskiou.bias.assign(np.full(4, 0.5, np.float32))
    features = lay_out_all(params, photographs()[:2])
    plain = network.detect(features)
    assert_equal(network.detect(features, static=True), plain, atol=2e-5)


def test_views_compile_to_the_same():
    params = augmented_params(scales=(1.0, 1.5), flip=True)
    features = lay_out_all(params, photographs())
    boxes = tf.constant(np.random.default_rng(0).uniform(0, 40, (3, 5, 4)), tf.float32)

    def see():
        seen = make_views(features, 2, True)
        return [(one.image, one.to_first(boxes), one.from_first(boxes)) for one in seen]

    compiled = tf.function(see, jit_compile=True)()
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), see(), compiled)


def test_images_of_a_batch_do_not_see_each_other():
    """Of other valid areas, and an image that is none."""
    params = augmented_params(scales=(1.0, 1.5), flip=True)
    network = build_network(params)
    features = lay_out_all(params, photographs())
    side = tf.constant(CANVAS[0], tf.int64)
    padding = padding_example(side, side, params.data)
    padded = {
        name: tf.concat([values, padding[name][None]], axis=0) for name, values in features.items()
    }
    padded["image_id"] = tf.constant([1, 2, 3, -1], tf.int64)
    together = model_fn(padded, None, "eval", params, network).predictions
    for index in range(3):
        alone = network.detect(
            {name: values[index : index + 1] for name, values in features.items()}
        )
        ours = {name: together[name][index : index + 1] for name in alone}
        assert_equal(ours, alone, atol=1e-4)
    assert all(np.isfinite(values).all() for values in together.values())


def test_nothing_found_is_zeros():
    params = augmented_params(scales=(1.0, 1.5), flip=True, score_threshold=0.99)
    found = build_network(params).detect(lay_out_all(params, photographs()))
    assert not found["num_detections"].numpy().any()
    assert not any(np.any(values) for values in found.values())


def test_scaled_canvases_are_those_of_the_first_scale():
    config = DataConfig(canvases=("64x96", "96x64"), test_scales=(1.0, 1.5, 0.4))
    assert config.test_canvas_sizes == (
        ((64, 96), (96, 64)),
        ((96, 160), (160, 96)),
        ((32, 64), (64, 32)),
    )
