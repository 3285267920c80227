"""Box algebra (`data.boxes`) against Detectron2, torchvision, mmdetection and the authors' code.

The authors' inclusive boxes are compared too: with 1 added to x2 and y2 they are continuous ones.

Deviations:
- IoU of two boxes without area is 0 as in Detectron2 and mmdetection; torchvision's is 0 / 0.
- The authors clip to the last pixel, [0, W - 1]; boxes wholly outside end up one pixel wide there
  and without area here. Compared where box and image meet.
- torchvision's RPN drops boxes with a side below 1e-3 pixels; here only those without area go.
"""

import re

import numpy as np
import pytest
import tensorflow as tf
from fixtures import agree, fixture, yx

from data import boxes as box_ops

FILE = fixture("b_boxes.npz")
TOLERANCE = {key: FILE.tolerance[key] for key in ("atol", "rtol")}
IOU_ATOL = float(re.search(r"IoU atol ([\d.e-]+)", FILE.tolerance["note"])[1])

ious = pytest.mark.parametrize("case", FILE.cases_with("a", "b"), ids=repr)
deltas = pytest.mark.parametrize("case", FILE.cases_with("proposals", "deltas"), ids=repr)


def continuous(inclusive):
    """Inclusive boxes [..., 4], y1, x1, y2, x2 → continuous ones."""
    return inclusive + np.float32([0, 0, 1, 1])


def weights_of(case):
    return tuple(float(weight) for weight in yx(np.array(case.params["weights"])))


@ious
@pytest.mark.parametrize("reference", ["d2", "tv", "mm", "ms"])
def test_iou(case, reference):
    a, b = yx(case["a"]), yx(case["b"])
    if reference == "ms":
        a, b = continuous(a), continuous(b)
    ours = box_ops.pairwise_iou(a, b).numpy()
    defined = np.isfinite(case[reference])
    agree(ours[defined], case[reference][defined], "box IoU", reference, atol=IOU_ATOL)
    pointless = (box_ops.area(a).numpy()[:, None] == 0) & (box_ops.area(b).numpy()[None] == 0)
    np.testing.assert_array_equal(~defined, pointless & (reference == "tv"))
    assert not ours[pointless].any()


@ious
def test_intersection_over_one_of_the_areas(case):
    a, b = yx(case["a"]), yx(case["b"])
    iou = box_ops.pairwise_iou(a, b).numpy()
    areas = box_ops.area(a).numpy()[:, None], box_ops.area(b).numpy()[None]
    intersection = iou / (1 + iou) * (areas[0] + areas[1])
    for name, reference, area in (("mm_iof", "mm", areas[0]), ("d2_ioa", "d2", areas[1])):
        share = intersection / np.where(area > 0, area, 1)
        agree(share, case[name], "intersection over one area", reference, atol=IOU_ATOL)


@deltas
@pytest.mark.parametrize("reference", ["d2", "tv", "mm", "ms"])
def test_encode(case, reference):
    boxes, references = yx(case["gt"]), yx(case["proposals"])
    if reference == "ms":
        boxes, references = continuous(boxes), continuous(references)
    ours = box_ops.encode(boxes, references, weights_of(case))
    agree(ours, yx(case[f"encode_{reference}"]), "box encode", reference, **TOLERANCE)


def decoded(case, reference):
    """Boxes from the case's deltas, continuous, float32 [K, 4]."""
    references = yx(case["proposals"])
    return box_ops.decode(
        yx(case["deltas"]),
        continuous(references) if reference == "ms" else references,
        weights_of(case),
        max_log_scale=case.params["clip"],
        clip_below=reference == "mm",
    )


@deltas
@pytest.mark.parametrize("reference", ["d2", "tv", "mm", "ms"])
def test_decode(case, reference):
    expected = yx(case[f"decode_{reference}"])
    if reference == "ms":
        expected = continuous(expected)
    agree(decoded(case, reference), expected, "box decode", reference, **TOLERANCE)


@deltas
def test_default_bound_of_the_log_scales(case):
    agree(box_ops.MAX_LOG_SCALE, case.params["clip"], "bound of log scales", "d2", rtol=1e-12)


@deltas
def test_bounding_small_scales_too_makes_a_difference(case):
    one, other = yx(case["decode_d2"]), yx(case["decode_mm"])
    sides = [boxes[:, 2:] - boxes[:, :2] for boxes in (one, other)]
    assert (sides[1] > 2 * sides[0]).any(), "the case does not exercise the lower bound"


@deltas
def test_decode_of_a_box_for_every_class(case):
    per_class = yx(case["deltas_per_class"].reshape(len(case["proposals"]), -1, 4))
    expected = yx(case["decode_per_class_d2"].reshape(per_class.shape))
    references = yx(case["proposals"])[:, None]
    ours = box_ops.decode(per_class, references, weights_of(case), case.params["clip"])
    agree(ours, expected, "box decode", "d2", **TOLERANCE)


@deltas
@pytest.mark.parametrize(
    ("array", "reference"),
    [("clipped_d2", "d2"), ("clipped_tv", "tv"), ("decode_mm_clipped", "mm")],
)
def test_clip(case, array, reference):
    ours = box_ops.clip(decoded(case, reference), *case.params["clip_image_hw"])
    agree(ours, yx(case[array]), "box clip", reference, **TOLERANCE)


@deltas
def test_clip_of_inclusive_boxes_that_meet_the_image(case):
    size = np.tile(case.params["clip_image_hw"], 2)
    boxes = decoded(case, "ms").numpy()
    # A pixel inside, in the first and the last row and column at the latest.
    meet = (boxes[:, :2] <= size[:2] - 1).all(1) & (boxes[:, 2:] >= 1).all(1)
    assert meet.any()
    ours = tf.boolean_mask(box_ops.clip(boxes, *case.params["clip_image_hw"]), meet)
    agree(ours, continuous(yx(case["clipped_ms"]))[meet], "box clip", "ms", **TOLERANCE)


@deltas
def test_boxes_without_area(case):
    clipped = box_ops.clip(decoded(case, "d2"), *case.params["clip_image_hw"])
    agree(box_ops.area(clipped) > 0, case["nonempty_d2_t0"], "boxes that have an area", "d2")


@deltas
def test_torchvision_drops_slivers_that_are_kept_here(case):
    smallest = 1e-3
    clipped = box_ops.clip(decoded(case, "tv"), *case.params["clip_image_hw"]).numpy()
    sides = (clipped[:, 2:] - clipped[:, :2]).min(1)
    sliver = (sides > 0) & (sides < smallest)
    kept = case["not_small_tv_1e-3"]
    agree((sides > 0)[~sliver], kept[~sliver], "boxes that have an area", "tv")
    assert not kept[sliver].any()
