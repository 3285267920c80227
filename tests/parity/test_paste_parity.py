"""Pasting, run lengths and mask IoU: h_paste.npz.

Every array is compared. The soft maps are stored as float16, whose rounding is allowed on top of
the manifest's tolerance.
"""

import json
import re

import numpy as np
import pytest
from fixtures import FOLDER, agree, fixture, yx
from pycocotools import mask as coco_mask

from model.paste import encode_rle, paste_mask, paste_probabilities, paste_rle

FILE = fixture("h_paste.npz")
NOTE = FILE.tolerance["note"]
ATOL = float(re.search(r"soft maps atol ([\d.e-]+)", NOTE)[1])
UNDECIDED = float(re.search(r"within ([\d.e-]+) of", NOTE)[1])
HALF_ULP = float(np.finfo(np.float16).eps) / 2
CASES = FILE.cases_with("probs", "boxes")
RULES = {"d2": "exact", "tv": "integer"}
# mmdetection pastes as Detectron2 does and the authors as torchvision: the masks are the same.
REFERENCES = {"d2": "d2 = mm", "tv": "tv"}

cases = pytest.mark.parametrize("case", CASES, ids=str)
references = pytest.mark.parametrize("reference", RULES)


def unpack(case, name):
    """Binary masks [N, H, W] of packed bits."""
    width = case.params["image_hw"][1]
    return np.unpackbits(case[name], axis=-1)[..., :width]


def detections(case):
    """The mask, box and image size of each paste."""
    boxes = yx(case["boxes"])
    assert len(boxes) == case.params["N"]
    return [
        (mask, box, *case.params["image_hw"])
        for mask, box in zip(case["probs"], boxes, strict=True)
    ]


def soft_maps(case, rule):
    height, width = case.params["image_hw"]
    return np.stack([
        paste_probabilities(*arguments, rule).in_image(height, width)
        for arguments in detections(case)
    ])  # fmt: skip


def binary_maps(case, rule):
    return np.stack([paste_mask(*arguments, rule=rule) for arguments in detections(case)])


def decided(case, rule):
    """Pixels that float noise cannot move over the threshold."""
    return np.abs(soft_maps(case, rule) - 0.5) > UNDECIDED


@references
@cases
def test_soft_maps(case, reference):
    rule = RULES[reference]
    theirs = case[f"{reference}_soft"].astype(np.float32)
    operator = f"mask paste, {rule}, before the threshold"
    agree(soft_maps(case, rule), theirs, operator, reference, atol=ATOL, rtol=HALF_ULP)


@references
@cases
def test_binary_masks(case, reference):
    rule = RULES[reference]
    names = {"d2": ["d2_mask"], "tv": ["tv_mask", "ms_mask"]}[reference]
    ours, clear = binary_maps(case, rule), decided(case, rule)
    for name in names:
        theirs = unpack(case, name)
        source = REFERENCES[reference] if name.startswith(reference) else name[:2]
        agree(ours[clear], theirs[clear], f"mask paste, {rule}", source)
    if reference == "d2":
        differing = np.count_nonzero(ours != unpack(case, "d2_mask"))
        assert differing <= case["d2_near_half"]


@references
@cases
def test_run_lengths_and_areas(case, reference):
    rule, height_width = RULES[reference], case.params["image_hw"]
    theirs = unpack(case, f"{reference}_mask")
    ours = binary_maps(case, rule)
    same = (ours == theirs).all((1, 2))
    assert same[decided(case, rule).all((1, 2))].all()
    for index, counts in enumerate(case[f"{reference}_rle"]):
        expected = {"size": list(height_width), "counts": counts.decode("ascii")}
        assert encode_rle(theirs[index]) == expected
        assert not same[index] or paste_rle(*detections(case)[index], rule=rule) == expected
    rles = [encode_rle(mask) for mask in theirs]
    areas = coco_mask.area(rles).astype(np.int64)
    agree(areas, case[f"{reference}_area"].astype(np.int64), "area of run lengths", reference)


@cases
def test_tight_boxes_of_pastes(case):
    theirs = unpack(case, "d2_mask")
    boxes = coco_mask.toBbox([encode_rle(mask) for mask in theirs])
    agree(boxes, case["d2_tight_box_xywh"], "tight box of run lengths", "pc")


def crowds_of_the_manifest():
    """The ground truths' crowd flags, which only the array's description tells."""
    with open(FOLDER / "manifest.json", encoding="utf-8") as file:
        entry = json.load(file)["files"]["h_paste.npz"]["arrays"]["rle/iou"]
    return json.loads(re.search(r"iscrowd of the gts (\[[01, ]+\])", entry["doc"])[1])


def test_run_lengths_and_iou():
    case = FILE["rle"]
    rles = [encode_rle(mask) for mask in case["masks"]]
    assert [rle["counts"].encode() for rle in rles] == case["counts"].tolist()
    agree(coco_mask.area(rles).astype(np.int64), case["area"], "area of run lengths", "pc")
    ious = coco_mask.iou(rles, rles, crowds_of_the_manifest())
    agree(ious, case["iou"], "mask IoU, crowds", "pc", rtol=float(np.finfo(np.float32).eps))


def test_no_array_is_passed_over():
    of_d2 = {"d2_soft", "d2_mask", "d2_near_half", "d2_rle", "d2_area", "d2_tight_box_xywh"}
    of_tv = {"tv_soft", "tv_mask", "ms_mask", "tv_rle", "tv_area"}
    for case in CASES:
        assert set(case.arrays("")) == {"probs", "boxes"} | of_d2 | of_tv
    assert set(FILE["rle"].arrays("")) == {"masks", "counts", "iou", "area"}
    assert set(FILE.cases) == {"rle", *(case.name for case in CASES)}
