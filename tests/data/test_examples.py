"""One record becomes one example: pixels, boxes, masks and anchors stay together."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sample_records import blobs, encode_png, make_instance, make_record

from data.anchors import AnchorGrid
from data.config import DataConfig
from data.conversion import Conversion, convert
from data.examples import (
    eval_example,
    image_seeds,
    lay_out,
    padding_example,
    train_example,
)
from data.manifest import expand_pattern
from data.records import parse_record

# A 32 x 48 image fills the canvas at scale 2. There, bilinear interpolation gives the original
# pixel under a canvas pixel at least 9/16 of the weight, so thresholding recovers it exactly.
CONFIG = DataConfig(
    canvases=("64x96",),
    short_side=64,
    long_side=96,
    train_short_side_min=64,
    horizontal_flip=0.0,
    max_instances=5,
)


def _train(record, include_masks=True, epoch=0, include_polygons=False, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    features, labels = train_example(
        record, tf.constant(epoch, tf.int64), config, include_masks, include_polygons
    )
    return (
        {name: value.numpy() for name, value in features.items()},
        {name: value.numpy() for name, value in labels.items()},
    )


def _picture(mask):
    return np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2)


def _sample(picture, box, size):
    """Thresholded canvas pixels under the cell centres of a box on the canvas."""
    centres = (np.arange(size) + 0.5) / size
    rows = np.floor(box[0] + centres * (box[2] - box[0])).astype(int)
    columns = np.floor(box[1] + centres * (box[3] - box[1])).astype(int)
    return picture[rows[:, None], columns[None, :], 0] > 127


@pytest.mark.parametrize("flips", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_masks_are_what_the_canvas_shows_in_the_boxes(flips, seed):
    rng = np.random.default_rng(seed)
    mask = blobs(rng, 32, 48)
    # Sides of the box in canvas pixels share no factor with 112 cells that would put a cell's
    # centre on the edge of a pixel.
    instance = make_instance(mask, box=(3, 4, 30, 45))
    features, labels = _train(
        make_record(_picture(mask), [instance]), vertical_flip=flips[0], horizontal_flip=flips[1]
    )
    picture, box = features["image"], labels["gt_boxes"][0]
    y1, y2 = (64 - 60, 64 - 6) if flips[0] else (6, 60)
    x1, x2 = (96 - 90, 96 - 8) if flips[1] else (8, 90)
    np.testing.assert_allclose(box, (y1, x1, y2, x2), rtol=1e-5)
    np.testing.assert_array_equal(labels["gt_masks"][0], _sample(picture, box, 112))
    assert labels["gt_areas"][0] == (picture[..., 0] > 127).sum() == 4 * mask.sum()


@pytest.mark.parametrize("seed", range(6))
def test_masks_follow_a_crop(seed):
    """Jitter 2 and a canvas of the image's size: a quarter of the image, enlarged twice."""
    rng = np.random.default_rng(seed)
    mask = blobs(rng, 64, 96)
    # No cell centre of 29 lies on a pixel edge unless the box is a multiple of 58 pixels long.
    features, labels = _train(
        make_record(_picture(mask), [make_instance(mask)], image_id=seed),
        scale_jitter_min=2.0,
        scale_jitter_max=2.0,
        horizontal_flip=0.5,
        vertical_flip=0.5,
        mask_crop_size=29,
    )
    np.testing.assert_allclose(features["image_info"], (64, 96, 2, 64, 96))
    shown = features["image"][..., 0] > 127
    assert labels["gt_areas"][0] == shown.sum() < 4 * mask.sum()
    box = labels["gt_boxes"][0]
    assert shown.any() == (labels["gt_classes"][0] == 1)
    if shown.any():
        np.testing.assert_array_equal(labels["gt_masks"][0], _sample(features["image"], box, 29))


def _closed(polygon):
    return np.concatenate([polygon, polygon[:1]])


@pytest.mark.parametrize("flips", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_polygons_follow_scale_and_mirroring(flips):
    mask = np.ones((32, 48), np.uint8)
    triangle, square = (
        np.float64([[1, 2], [30, 4.5], [7, 31]]),
        np.float64([[1, 1], [2, 1], [2, 2]]),
    )
    instances = [
        make_instance(mask, is_crowd=True)._replace(polygons=[square.ravel()]),
        make_instance(mask, label=2)._replace(polygons=[triangle.ravel(), square.ravel()]),
        make_instance(mask, label=3)._replace(polygons=[square.ravel()]),
    ]
    labels = _train(
        make_record(_picture(mask), instances),
        include_polygons=True,
        vertical_flip=flips[0],
        horizontal_flip=flips[1],
        max_polygon_vertices=10,
    )[1]
    np.testing.assert_array_equal(labels["gt_classes"], [2, 3, 0, 0, 0])
    parts = labels["gt_polygon_parts"]
    np.testing.assert_array_equal(parts[0], [1, 1, 1, 1, 2, 2, 2, 2, 0, 0])
    np.testing.assert_array_equal(parts[1:], [[1, 1, 1, 1] + 6 * [0]] + 3 * [10 * [0]])

    def on_canvas(polygon):
        x, y = 2 * _closed(polygon).T
        return np.stack([64 - y if flips[0] else y, 96 - x if flips[1] else x], axis=1)

    expected = np.concatenate([on_canvas(triangle), on_canvas(square)])
    np.testing.assert_allclose(labels["gt_polygons"][0, :8], expected, rtol=1e-6)
    np.testing.assert_allclose(labels["gt_polygons"][1, :4], on_canvas(square), rtol=1e-6)
    assert not labels["gt_polygons"][parts == 0].any()


@pytest.mark.parametrize("seed", range(4))
def test_polygons_follow_a_crop_with_their_box(seed):
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 24:72] = 1
    outline = np.float64([24, 16, 72, 16, 72, 48, 24, 48])
    instance = make_instance(mask)._replace(polygons=[outline])
    features, labels = _train(
        make_record(_picture(mask), [instance], image_id=seed),
        include_polygons=True,
        scale_jitter_min=2.0,
        scale_jitter_max=2.0,
        horizontal_flip=0.5,
        vertical_flip=0.5,
    )
    polygon = labels["gt_polygons"][0][labels["gt_polygon_parts"][0] > 0]
    assert polygon.shape == (5, 2)
    corners = np.stack([polygon.min(axis=0), polygon.max(axis=0)])
    np.testing.assert_allclose(corners[1] - corners[0], [64, 96], rtol=1e-6)
    clipped = np.clip(corners, 0, features["image_info"][:2])
    np.testing.assert_allclose(clipped.ravel(), labels["gt_boxes"][0], atol=1e-4)


def test_instances_kept_are_visible_no_crowds_and_limited_in_number():
    whole, nothing = np.ones((32, 48), np.uint8), np.zeros((32, 48), np.uint8)
    instances = [
        make_instance(whole, box=(0, 0, 32, 48), label=1, is_crowd=True),
        make_instance(whole, box=(1, 1, 1, 9), label=2),  # no height
        make_instance(whole, box=(1, 1, 1.25, 9), label=3),  # half a pixel on the canvas
        make_instance(nothing, box=(1, 1, 9, 9), label=4),  # no mask pixels
        *(make_instance(whole, box=(1, 1, 9, label), label=label) for label in range(5, 12)),
    ]
    labels = _train(make_record(_picture(whole), instances))[1]
    np.testing.assert_array_equal(labels["gt_classes"], [5, 6, 7, 8, 9])
    np.testing.assert_allclose(labels["gt_boxes"][:, 3], [10, 12, 14, 16, 18], rtol=1e-6)
    labels = _train(make_record(_picture(whole), instances), max_instances=20)[1]
    np.testing.assert_array_equal(labels["gt_classes"], [*range(5, 12), *[0] * 13])
    assert not labels["gt_boxes"][7:].any() and not labels["gt_masks"][7:].any()


def test_an_image_without_instances_teaches_background():
    labels = _train(make_record(np.zeros((32, 48, 3), np.uint8)))[1]
    assert not labels["gt_classes"].any() and not labels["gt_areas"].any()
    assert (labels["rpn_labels"] == 0).all()
    assert len(set(labels["rpn_indices"])) == 256


@pytest.mark.parametrize(
    ("area", "height", "width"), [("image", 48, 40), ("padded", 64, 64), ("canvas", 64, 96)]
)
def test_negatives_are_drawn_from_the_picture_unless_told_otherwise(area, height, width):
    record = make_record(np.zeros((48, 40, 3), np.uint8))
    changes = {} if area == "image" else {"rpn_negative_area": area}
    features, labels = _train(
        record, short_side=40, train_short_side_min=40, rpn_samples_per_image=4000, **changes
    )
    np.testing.assert_array_equal(features["image_info"][:2], [48, 40])
    drawn = labels["rpn_indices"][labels["rpn_labels"] == 0]
    centres = AnchorGrid.from_config(CONFIG, (64, 96)).boxes().reshape(-1, 2, 2).mean(1)
    within = (centres < [height, width]).all(1)
    np.testing.assert_array_equal(np.sort(drawn), np.flatnonzero(within))


def test_anchors_are_matched_on_the_canvas_and_crowds_shield_them():
    whole = np.ones((32, 48), np.uint8)
    thing = make_instance(whole, box=(0, 0, 16, 16))
    crowd = make_instance(whole, box=(0, 0, 32, 48), is_crowd=True)
    record = make_record(_picture(whole), [thing, crowd])
    changes = {"rpn_samples_per_image": 2000, "rpn_positive_fraction": 1.0}
    labels = _train(record, **changes)[1]
    assert (labels["rpn_labels"] == 1).sum() >= 1
    shielded = _train(record, rpn_ignore_crowds=True, **changes)[1]
    assert (shielded["rpn_labels"] == 0).sum() < (labels["rpn_labels"] == 0).sum()


def test_anchors_are_forced_and_rounded_as_the_settings_say():
    whole = np.ones((32, 48), np.uint8)
    thin = make_record(_picture(whole), [make_instance(whole, box=(0, 0, 32, 1))])
    assert (_train(thin)[1]["rpn_labels"] == 1).any()
    # No anchor's IoU with 64 x 2 pixels reaches 0.3.
    assert not (_train(thin, rpn_forced_match="reassign")[1]["rpn_labels"] == 1).any()
    # 22 x 46 pixels on the canvas: the rounded anchor of 22.6 x 45.3 in row 3 and column 6.
    wide = make_record(_picture(whole), [make_instance(whole, box=(0.5, 0.5, 11.5, 23.5))])
    for rounding in (False, True):
        labels = _train(wide, anchor_rounding=rounding)[1]
        deltas = labels["rpn_deltas"][labels["rpn_labels"] == 1]
        assert (np.abs(deltas) < 1e-6).all(1).any() == rounding


def test_records_without_masks_give_labels_without_masks():
    mask = np.ones((32, 48), np.uint8)
    record = make_record(_picture(mask), [make_instance(mask)], include_masks=False)
    labels = _train(record, include_masks=False)[1]
    assert set(labels) == {
        "gt_boxes", "gt_classes", "rpn_indices", "rpn_labels", "rpn_deltas", "sample_seeds"
    }  # fmt: skip
    assert labels["gt_classes"][0] == 1


def _jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def _palette(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).convert("P").save(file, "PNG")
    return file.getvalue()


GRAY = np.full((64, 96), 100, np.uint8)


@pytest.mark.parametrize(
    "encoded, tolerance",
    [
        (encode_png(GRAY), 0),
        (encode_png(np.stack([GRAY, GRAY // 2], axis=2)), 0),  # gray with alpha
        (encode_png(np.stack([GRAY, GRAY, GRAY, GRAY // 2], axis=2)), 0),  # RGBA
        (_palette(GRAY), 0),
        (_jpeg(GRAY), 2),
        (_jpeg(np.stack([GRAY] * 3, axis=2)), 2),
    ],
)
def test_all_encodings_become_rgb(encoded, tolerance):
    features = eval_example(make_record(GRAY, encoded=encoded, image_id=9), CONFIG)
    assert features["image_id"] == 9
    assert features["image"].dtype == tf.uint8
    np.testing.assert_allclose(features["image"], np.full((64, 96, 3), 100), atol=tolerance)


def test_evaluation_shows_the_whole_image_upright_at_the_rule_s_size():
    picture = np.zeros((40, 20, 3), np.uint8)
    picture[:20, :10] = 200
    features = eval_example(make_record(picture), CONFIG)
    np.testing.assert_array_equal(features["image_info"], np.float32([64, 32, 1.6, 40, 20]))
    assert (features["image"][:31, :15].numpy() == 200).all()
    assert not features["image"][33:].numpy().any() and not features["image"][:, 17:].numpy().any()


def test_views_at_other_scales_are_laid_out_from_the_original_pixels():
    """At twice the size of a 64 × 96 canvas a picture of 128 × 192 is itself."""
    pixels = np.random.default_rng(0).integers(0, 256, (128, 180, 3), np.uint8)
    config = dataclasses.replace(CONFIG, test_scales=(1.0, 2.0, 0.5))
    features = lay_out(tf.constant(pixels), config)
    assert features.keys() == {
        *("image", "image_1", "image_2", "image_info", "image_info_1", "image_info_2")
    }
    np.testing.assert_array_equal(features["image_1"][:, :180], pixels)
    np.testing.assert_array_equal(features["image_info_1"], np.float32([128, 180, 1, 128, 180]))
    np.testing.assert_array_equal(features["image_info_2"], np.float32([32, 45, 0.25, 128, 180]))
    assert (
        features["image_2"].shape == (32, 64, 3) and not features["image_2"][:, 45:].numpy().any()
    )
    plain = lay_out(tf.constant(pixels), CONFIG)
    assert plain.keys() == {"image", "image_info"}
    for name, values in plain.items():
        np.testing.assert_array_equal(features[name], values)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoded": b"no picture"}, "it does not contain a JPEG"),
        ({"encoded": b""}, "does not contain a JPEG"),
        ({"width": 95}, "size it states differs"),
    ],
)
def test_a_broken_record_is_named(changes, message):
    record = make_record(GRAY, image_id=4711, **changes)
    dataset = tf.data.Dataset.from_tensors(record).map(lambda one: eval_example(one, CONFIG))
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s){message}.*4711"):
        next(iter(dataset))


def _by_image(parsed):
    return {int(example[0]["image_id"]): example for example in parsed.as_numpy_iterator()}


def test_masks_of_others_train_like_our_own(shared_data, tmp_path):
    """Records of Google's converter and ours, of the same 24 photographs of COCO."""
    source = shared_data / "records" / "coco_val24_src" / "instances.json"
    images = shared_data / "coco_tiny" / "val2017"
    ours = convert(Conversion(str(images), str(source), str(tmp_path / "own"), 1))
    ids_by_label = {0: 0} | {entry["label"]: entry["id"] for entry in ours.categories}
    config = DataConfig(
        canvases=("256x256",),
        short_side=200,
        long_side=256,
        train_short_side_min=128,
        scale_jitter_min=0.8,
        scale_jitter_max=1.6,
    )

    def examples(pattern):
        records = tf.data.TFRecordDataset(expand_pattern(pattern))
        parsed = records.map(lambda one: (parse_record(one, True), {}))
        trained = records.map(
            lambda one: train_example(one, tf.constant(3, tf.int64), config, True)
        )
        return _by_image(parsed), _by_image(trained)

    theirs = examples(f"{shared_data}/records/tpu_masks/*.tfrecord")
    own = examples(f"{tmp_path}/own-*")
    assert theirs[0].keys() == own[0].keys() and len(own[0]) == 24
    assert sum(len(record["num_runs"]) for record, _ in own[0].values()) == 220
    for image_id in own[0]:
        their_record, own_record = theirs[0][image_id][0], own[0][image_id][0]
        for key in ("run_lengths", "num_runs", "is_crowd", "areas", "encoded", "height", "width"):
            np.testing.assert_array_equal(their_record[key], own_record[key], key)
        (features, labels), (own_features, own_labels) = theirs[1][image_id], own[1][image_id]
        tf.nest.map_structure(np.testing.assert_array_equal, features, own_features)
        for key in ("gt_masks", "gt_areas", "sample_seeds"):
            np.testing.assert_array_equal(labels[key], own_labels[key], key)
        np.testing.assert_allclose(labels["gt_boxes"], own_labels["gt_boxes"], rtol=1e-6, atol=1e-4)
        classes = [ids_by_label[int(label)] for label in own_labels["gt_classes"]]
        np.testing.assert_array_equal(labels["gt_classes"], classes)
    assert sum((labels["gt_areas"] > 0).sum() for _, labels in own[1].values()) > 150


def test_draws_depend_on_seed_epoch_and_image_alone():
    def seeds(seed, epoch, image_id):
        numbers = image_seeds(seed, tf.constant(epoch, tf.int64), tf.constant(image_id, tf.int64))
        return tuple(numbers.numpy().ravel())

    places = [(s, e, i) for s in (0, 1, 2**40) for e in (0, 1, 2) for i in (0, 1, 2, 2**62)]
    assert len({seeds(*place) for place in places}) == len(places)
    assert seeds(5, 6, 7) == seeds(5, 6, 7)


# Of image ids 0 to 3 in epoch 3 with seed 7: valid size, box, sample_seeds, the sum of the pixels
# and the first RPN indices.
DRAWN = [
    ((45, 68), (15.46875, 9.916666, 37.96875, 46.75), (17174382, -281449835), 1078920, (528, 525)),
    ((56, 84), (19.25, 12.25, 47.25, 57.75), (452229622, -446623003), 1659168, (675, 603)),
    ((34, 52), (5.3125, 16.25, 22.3125, 44.4167), (-1400229540, -1764175866), 623424, (312, 237)),
    ((64, 96), (22.1538, 35.3684, 61.5385, 96), (-1800099081, -961984866), 2534400, (1357, 1356)),
]  # fmt: skip


@pytest.mark.parametrize("image_id", range(4))
def test_a_seed_means_the_same_picture_for_ever(image_id):
    mask = np.zeros((32, 48), np.uint8)
    mask[5:21, 7:33] = 1
    ramp = np.broadcast_to(5 * np.arange(48, dtype=np.uint8)[:, None], (32, 48, 3))
    features, labels = _train(
        make_record(ramp, [make_instance(mask)], image_id=image_id),
        epoch=3,
        seed=7,
        canvases=("64x96", "96x64"),
        train_short_side_min=40,
        scale_jitter_min=0.5,
        scale_jitter_max=2.0,
        horizontal_flip=0.5,
        vertical_flip=0.5,
        mask_crop_size=28,
    )
    valid, box, seeds, total, rpn_indices = DRAWN[image_id]
    np.testing.assert_array_equal(features["image_info"][:2], valid)
    np.testing.assert_allclose(labels["gt_boxes"][0], box, rtol=1e-5)
    np.testing.assert_array_equal(labels["sample_seeds"], seeds)
    assert features["image"].sum() == pytest.approx(total, rel=1e-4)
    np.testing.assert_array_equal(labels["rpn_indices"][:2], rpn_indices)
    assert labels["gt_masks"].sum() == 28 * 28


def test_colours_change_pixels_alone():
    mask = np.ones((32, 48), np.uint8)
    record = make_record(np.full((32, 48, 3), 100, np.uint8), [make_instance(mask)], image_id=2)
    plain, plain_labels = _train(record)
    drawn, labels = _train(record, augmentations=("photometric_distort",))
    tf.nest.map_structure(np.testing.assert_array_equal, labels, plain_labels)
    assert (drawn.pop("image") != plain.pop("image")).any()
    tf.nest.map_structure(np.testing.assert_array_equal, drawn, plain)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.3)])
def test_padding_has_the_shape_of_an_example(scales):
    config = dataclasses.replace(CONFIG, canvases=("96x64", "64x96"), test_scales=scales)
    example = eval_example(make_record(GRAY), config)
    sides = tf.unstack(tf.shape(example["image"], tf.int64)[:2])
    padding = padding_example(*sides, config)
    assert padding["image_id"] == -1
    assert not padding["image"].numpy().any()
    assert padding.keys() == example.keys()
    for name, value in example.items():
        assert (padding[name].shape, padding[name].dtype) == (value.shape, value.dtype)
