"""Overlays: what is drawn where, and what stays as it was."""

import numpy as np
import pytest

from trainer.overlays import (
    Instance,
    annotation_instances,
    draw_comparison,
    draw_instances,
    prediction_instances,
)

GREY = np.full((100, 150, 3), 100, np.uint8)


def rectangle_mask():
    """A 20 x 30 rectangle at (40, 50)."""
    mask = np.zeros((100, 150), np.uint8)
    mask[40:60, 50:80] = 1
    return mask


def prediction():
    """Three detections on a network input twice as large as the picture; the last is padding."""
    return {
        "image_info": np.array([200, 300, 2, 400, 600], np.float32),
        "num_detections": 2,
        "detection_boxes": np.array(
            [[0, 0, 20, 20], [80, 100, 120, 160], [0, 0, 200, 300]], np.float32
        ),
        "detection_classes": np.array([2, 1, 1]),
        "box_scores": np.array([0.31, 0.9, 0.99], np.float32),
        "mask_ious": np.array([0.5, 0.8, 1], np.float32),
        "mask_scores": np.array([0.25, 0.72, 1], np.float32),
        "detection_masks": np.ones((3, 28, 28), np.float32),
    }


@pytest.mark.parametrize(
    "absent, label",
    [
        ((), "cat 0.90 0.80 0.72"),
        (("mask_ious",), "cat 0.90 0.72"),
        (("mask_ious", "mask_scores", "detection_masks"), "cat 0.90"),
    ],
)
def test_labels_show_the_scores_there_are(absent, label):
    shown = {name: value for name, value in prediction().items() if name not in absent}
    (best, *_) = prediction_instances(shown, {1: "cat"}, 100, 150)
    assert best.label == label
    assert (best.mask is None) == ("detection_masks" in absent)


def test_masks_are_pasted_by_the_rule_asked_for():
    shown = prediction()
    # From 40.6 to 42.4 on the picture: one row has its centre inside, three rows are touched.
    shown["detection_boxes"][1] = [81.2, 100, 84.8, 160]
    exact, integer = (
        prediction_instances(shown, {}, 100, 150, mask_paste=rule)[0].mask.any(axis=1).sum()
        for rule in ("exact", "integer")
    )
    assert (exact, integer) == (1, 3)


def test_prediction_is_scaled_to_the_picture_and_sorted():
    instances = prediction_instances(prediction(), {1: "cat"}, 100, 150)
    assert [instance.label for instance in instances] == ["cat 0.90 0.80 0.72", "2 0.31 0.50 0.25"]
    assert instances[0].box == (40, 50, 60, 80)
    np.testing.assert_array_equal(instances[0].mask, rectangle_mask())


def test_low_scores_are_left_out():
    assert len(prediction_instances(prediction(), {}, 100, 150, min_score=0.5)) == 1
    assert prediction_instances(prediction(), {}, 100, 150, min_score=0.95) == []


def test_prediction_without_masks_shows_its_box_score():
    boxes_only = {
        key: value
        for key, value in prediction().items()
        if key not in ("mask_ious", "mask_scores", "detection_masks")
    }
    instance = prediction_instances(boxes_only, {1: "cat"}, 100, 150)[0]
    assert (instance.label, instance.mask) == ("cat 0.90", None)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[50, 40, 80, 40, 80, 60, 50, 60]],
        {"size": [100, 150], "counts": [5040, *[20, 80] * 29, 20, 7040]},
    ],
)
def test_annotations_in_any_form(segmentation):
    annotation = {"bbox": [50, 40, 30, 20], "category_id": 7, "segmentation": segmentation}
    crowd = {"bbox": [0, 0, 5, 5], "category_id": 8, "iscrowd": 1}
    instances = annotation_instances([annotation, crowd], {7: "cup"}, 100, 150)
    assert [instance.label for instance in instances] == ["cup", "8 crowd"]
    assert instances[0].box == (40, 50, 60, 80)
    np.testing.assert_array_equal(instances[0].mask, rectangle_mask())
    assert instances[1].mask is None


def test_results_show_their_three_scores():
    result = {"bbox": [0, 0, 5, 5], "category_id": 7, "box_score": 0.5, "mask_iou": 0.25,
              "mask_score": 0.125}  # fmt: skip
    assert annotation_instances([result], {}, 9, 9)[0].label == "7 0.50 0.25 0.12"


def test_small_pictures_are_enlarged_and_large_ones_are_not():
    assert draw_instances(GREY, []).shape == (400, 600, 3)
    np.testing.assert_array_equal(draw_instances(GREY, []), np.full((400, 600, 3), 100))
    large = np.zeros((500, 300, 3), np.uint8)
    assert draw_instances(large, []).shape == large.shape


def test_masks_tint_their_pixels_and_nothing_else():
    drawn = draw_instances(GREY, [Instance((40, 50, 60, 80), "", rectangle_mask())])
    changed = (drawn != 100).any(axis=-1)
    box = np.zeros_like(changed)
    box[160:240, 200:320] = True
    label_rows = np.arange(400) < 160
    assert changed[box].all()
    assert not changed[~box & ~label_rows[:, None]].any()
    # Inside, 60 % of the picture shines through; the outline does not let it.
    centre, edge = drawn[200, 260].astype(int), drawn[200, 201].astype(int)
    np.testing.assert_allclose(centre, 0.6 * 100 + 0.4 * edge, atol=1)


def test_the_source_picture_is_not_changed():
    image = GREY.copy()
    draw_comparison(image, [], [Instance((40, 50, 60, 80), "cat", rectangle_mask())])
    np.testing.assert_array_equal(image, GREY)


def test_neighbouring_objects_have_their_own_colours():
    instances = [Instance((0, 10 * n, 90, 10 * n + 9), "") for n in range(8)]
    drawn = draw_instances(GREY, instances)
    colours = {tuple(drawn[200, 40 * n]) for n in range(8)}
    assert len(colours) == 8


def test_comparison_puts_two_pictures_of_one_size_side_by_side():
    many = [Instance((0, 0, 9, 9), "")] * 20
    picture = draw_comparison(GREY, many, [])
    assert picture.dtype == np.uint8
    assert picture.shape[0] - 24 == 700
    assert picture.shape[1] == 2 * 1050 + 8


def test_labels_stay_inside_the_picture_and_apart():
    # Both objects are at the very corner, so the second label has to make way for the first.
    boxes = [(0, 140, 12, 150), (0, 141, 12, 150)]
    one = draw_instances(GREY, [Instance(boxes[0], "a long label 0.90 0.80 0.72")])
    two = draw_instances(GREY, [Instance(box, "a long label 0.90 0.80 0.72") for box in boxes])
    assert (one != 100).any(axis=-1).sum() > 2500
    first_label = (slice(48, 66), slice(400, 540))
    np.testing.assert_array_equal(one[first_label], two[first_label])


def test_boxes_over_the_border_do_not_fail():
    drawn = draw_instances(
        GREY, [Instance((-20, -20, 130, 190), "cat"), Instance((5, 5, 5, 5), "x")]
    )
    assert drawn.shape == (400, 600, 3)
