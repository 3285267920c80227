"""Whole networks against mmdetection, Detectron2, torchvision and the authors' code: inference.

The weights come through the importer, so its reorderings (kernels, flattened features, classes,
deltas, anchors, colours) are proved here as well. Stages are compared one by one: what comes after
the proposals is computed from the reference's own boxes, and then once more from end to end.

Not covered, being in the authors' inclusive coordinates: i_ms_full's anchors, proposals, decoded
boxes and pasted masks. Its maps and RPN outputs, its heads on the reference's own boxes and its
scores are free of conventions and compared.
"""

import re

import numpy as np
import pytest
import tensorflow as tf
from fixtures import FOLDER, agree, fixture, yx
from pycocotools import mask as coco_mask
from reference_networks import box_tolerance, image_features, load

from data.anchors import AnchorGrid
from model.box_head import ROI_SIZE
from model.paste import paste_rle
from model.pixels import normalise

fixture("i_mm_tiny.npz")
FILES = sorted(path.name for path in FOLDER.glob("i_*.npz"))
# Their files say where the picture is: in their own, or in another's.
CONTINUOUS = [file for file in FILES if not file.startswith("i_ms")]
LEVELS = ("P2", "P3", "P4", "P5", "P6")
STAT = (np.mean, np.std, np.min, np.max, lambda values: np.abs(values).mean())


def picture(reference):
    """The image and its canvas."""
    named = reference.fixture["config"].params.get("image", f"{reference.fixture.file}: image_rgb")
    file, array = named.split(": ")
    image = fixture(file)[""][array]
    params = reference.fixture["infer"].params if "infer" in reference.fixture.cases else {}
    return image, tuple(params.get("input_shape", (1, 3, *image.shape[:2]))[2:])


@pytest.fixture(scope="module", params=FILES)
def run(request):
    """Everything up to the RPN's outputs, computed once for each file."""
    reference = load(request.param)
    features = image_features(*picture(reference))
    network = reference.network
    pixels = normalise(features["image"], features["image_info"], network.pixels, "float32")
    stages = network.backbone(pixels)
    pyramid = network.fpn(stages)
    return reference, features, pixels, stages, pyramid, network.rpn_head(pyramid)


def close(run, actual, array, what, kind="features"):
    """Compares with an array of the case "infer" within the file's tolerance."""
    reference = run[0]
    tolerance = reference.fixture.tolerance
    expected = reference.fixture["infer"][array]
    assert np.size(expected), array
    agree(
        actual,
        expected,
        f"network: {what}",
        reference.library,
        atol=tolerance[f"{kind}_atol"],
        rtol=tolerance.get(f"{kind}_rtol", 0.0),
    )


def sliced(run, values, array):
    """Our [C, H, W] as the manifest says that an array was cut from theirs."""
    steps = [int(step) for step in re.findall(r"::(\d+)", run[0].fixture["infer"].doc(array))]
    assert len(steps) in (2, 3), array
    return values[tuple(slice(None, None, step) for step in [1, *steps][-3:])]


def statistics(values):
    return np.array([function(values.astype(np.float64)) for function in STAT])


def test_the_input_is_the_same(run):
    reference, _, pixels, *_ = run
    values = pixels.numpy()[0].transpose(2, 0, 1)
    values = values[::-1] if reference.is_bgr else values
    if "input_stat_f64" in reference.fixture["infer"]:
        close(run, statistics(values), "input_stat_f64", "input")
    if "input_slice" in reference.fixture["infer"]:
        close(run, sliced(run, values, "input_slice"), "input_slice", "input")


def test_maps_of_the_backbone_and_the_pyramid(run):
    _, _, _, stages, pyramid, _ = run
    maps = dict(zip(("C2", "C3", "C4", "C5", *LEVELS), [*stages, *pyramid], strict=True))
    compared = set()
    for stage, level in maps.items():
        values = level.numpy()[0].transpose(2, 0, 1)
        what = "backbone" if stage[0] == "C" else "pyramid"
        if f"{stage}_slice" in run[0].fixture["infer"]:
            close(run, sliced(run, values, f"{stage}_slice"), f"{stage}_slice", what)
            compared.add(stage)
        if f"{stage}_stat_f64" in run[0].fixture["infer"]:
            close(run, statistics(values), f"{stage}_stat_f64", what)
            compared.add(stage)
    assert compared >= {"P2", "P6"}


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_rpn_outputs(run, level):
    reference, features, *_, rpn = run
    grid = AnchorGrid.from_config(reference.data, tuple(features["image"].shape[1:3]))
    rows, columns = grid.level_shapes[level]
    first = sum(grid.level_sizes[:level])
    here = slice(first, first + grid.level_sizes[level])
    logits = rpn.logits.numpy()[0, here].reshape(rows, columns, -1).transpose(2, 0, 1)
    deltas = yx(rpn.deltas.numpy()[0, here]).reshape(rows, columns, -1).transpose(2, 0, 1)
    for name, values in (("logits", logits), ("deltas", deltas)):
        array = f"rpn_{name}_{LEVELS[level]}"
        close(run, sliced(run, values, array), array, f"RPN {name}")
    array = f"rpn_stat_{LEVELS[level]}_f64"
    if array in reference.fixture["infer"]:
        close(run, np.stack([statistics(logits), statistics(deltas)]), array, "RPN statistics")


def reference_boxes(run, array, count=None):
    """Some of the reference's boxes as ours, with the image each lies in."""
    boxes = yx(run[0].fixture["infer"][array])[:count]
    return tf.constant(boxes), tf.zeros([len(boxes)], tf.int32)


def test_box_head_on_the_reference_s_proposals(run):
    reference, _, _, _, pyramid, _ = run
    infer = reference.fixture["infer"]
    boxes, image_index = reference_boxes(run, "proposals")
    pooled = reference.network.regions(pyramid, boxes, image_index, output_size=ROI_SIZE)
    outputs = reference.network.box_head(pooled)
    count = len(infer["cls_logits"])
    logits = reference.class_columns(outputs.class_logits.numpy()[:count])
    close(run, logits, "cls_logits", "class logits")
    deltas = outputs.box_deltas.numpy()[:count].reshape(count, -1)
    tolerance = reference.fixture.tolerance
    agree(
        reference.class_columns(deltas, 4),
        reference.reference_deltas(infer["box_deltas"]),
        "network: box deltas",
        reference.library,
        atol=tolerance["features_atol"],
        rtol=tolerance["features_rtol"],
    )
    if "box_feats_slice" in infer:
        expected = infer["box_feats_slice"]
        step = int(re.search(r"::(\d+)", infer.doc("box_feats_slice")).group(1))
        ours = pooled.numpy()[: len(expected), :, :, ::step].transpose(0, 3, 1, 2)
        close(run, ours, "box_feats_slice", "box RoIAlign")


def test_mask_and_maskiou_heads_on_the_reference_s_detections(run):
    reference, _, _, _, pyramid, _ = run
    network, infer = reference.network, reference.fixture["infer"]
    boxes, image_index = reference_boxes(run, "det_boxes")
    classes = tf.constant(reference.to_classes(infer["det_labels"]))
    pooled = network.regions(
        pyramid, boxes, image_index, output_size=reference.config.mask_size // 2
    )
    logits = network.mask_head(pooled, classes)
    close(run, logits.numpy(), "mask_logits", "mask logits", "mask_logits")
    if "mask_feats_slice" in infer:
        expected = infer["mask_feats_slice"]
        step = int(re.search(r"::(\d+)", infer.doc("mask_feats_slice")).group(1))
        ours = pooled.numpy()[: len(expected), :, :, ::step].transpose(0, 3, 1, 2)
        close(run, ours, "mask_feats_slice", "mask RoIAlign")
    if "maskiou_head" in network.head_names:
        predicted = network.maskiou_head.predict_all_classes(pooled, logits).numpy()
        columns = predicted if reference.library == "ms" else predicted[:, 1:]
        close(run, columns, "mask_iou_pred", "MaskIoU", "scores")
        scores = infer["det_scores"] * predicted[np.arange(len(predicted)), classes.numpy()]
        close(run, scores, "mask_scores", "mask scores", "scores")


def overlaps(ours, theirs):
    """IoU of every pair of boxes x1, y1, x2, y2."""
    pair = [
        boxes.astype(np.float64) - np.tile(boxes[:, :2], 2) * [0, 0, 1, 1]
        for boxes in (ours, theirs)
    ]
    return coco_mask.iou(*pair, [0] * len(theirs))


@pytest.fixture(scope="module", params=CONTINUOUS)
def detected(request):
    reference = load(request.param)
    features = image_features(*picture(reference))
    _, _, proposals = reference.network.propose(features, training=False)
    return reference, features, proposals, reference.network.detect(features)


def test_proposals(detected):
    reference, _, proposals, _ = detected
    infer, tolerance = reference.fixture["infer"], reference.fixture.tolerance
    ours = yx(proposals.boxes.numpy()[0])
    logits = proposals.scores.numpy()[0]
    assert proposals.valid.numpy()[0][: len(infer["proposals"])].all()
    ious = overlaps(ours, infer["proposals"])
    match = ious.argmax(axis=0)
    found = ious.max(axis=0) > 0.99
    share = (
        float(re.search(r">= (\d+) %", tolerance["boxes"]).group(1)) / 100
        if ("%" in tolerance["boxes"])
        else 1.0
    )
    assert found.mean() >= share
    theirs = "proposal_logits" if "proposal_logits" in infer else "proposal_scores"
    scores = logits if theirs == "proposal_logits" else 1 / (1 + np.exp(-logits))
    agree(
        scores[match[found]],
        infer[theirs][found],
        "network: proposal scores",
        reference.library,
        atol=tolerance["scores_atol"],
    )
    agree(
        ours[match[found]],
        infer["proposals"][found],
        "network: proposals, pixels",
        reference.library,
        atol=box_tolerance(tolerance),
    )


def test_detections_from_end_to_end(detected):
    reference, features, _, detections = detected
    infer, tolerance = reference.fixture["infer"], reference.fixture.tolerance
    count = int(detections["num_detections"][0])
    assert count == len(infer["det_boxes"])
    ours = {name: value.numpy()[0][:count] for name, value in detections.items() if value.ndim > 1}
    boxes = yx(ours["detection_boxes"])
    classes = reference.to_classes(infer["det_labels"])
    ious = overlaps(boxes, infer["det_boxes"]) * (ours["detection_classes"][:, None] == classes)
    match = ious.argmax(axis=0)
    assert (ious.max(axis=0) > 0.99).all()
    assert len(set(match)) == count

    def compare(values, array, what, **limits):
        agree(values[match], infer[array], f"network: {what}", reference.library, **limits)

    compare(boxes, "det_boxes", "detected boxes, pixels", atol=box_tolerance(tolerance))
    compare(ours["box_scores"], "det_scores", "class scores", atol=tolerance["scores_atol"])
    if "mask_scores" in infer and "maskiou_head" in reference.network.head_names:
        agree(
            ours["mask_scores"][match],
            clipped_mask_scores(infer),
            "network: mask scores, end to end",
            reference.library,
            atol=tolerance["scores_atol"],
        )
    height, width = (int(side) for side in features["image_info"][0, 3:])
    rles = [
        paste_rle(
            ours["detection_masks"][index],
            ours["detection_boxes"][index],
            height,
            width,
            rule=reference.config.mask_paste,
        )
        for index in match
    ]
    expected = [{"size": [height, width], "counts": bytes(rle)} for rle in infer["mask_rle"]]
    # Where a probability lies within float noise of the threshold, one pixel may differ.
    same = np.diag(coco_mask.iou(rles, expected, [0] * count))
    unions = coco_mask.area([coco_mask.merge(pair) for pair in zip(rles, expected, strict=True)])
    agree(
        np.where((1.0 - same) * unions < 1.5, 0.0, 1.0 - same),
        np.zeros(count),
        "network: pasted masks, 1 - IoU",
        reference.library,
        atol=mask_tolerance(tolerance),
    )
    areas = coco_mask.area(rles).astype(np.float64)
    assert np.allclose(areas, infer["mask_area"], rtol=2 * mask_tolerance(tolerance), atol=1)


def mask_tolerance(tolerance):
    """1 - the IoU that the manifest asks for; the full networks' logits have more room."""
    stated = re.search(r">= (\S+)", tolerance.get("masks", ""))
    return 1.0 - float(stated.group(1)) + 1e-9 if stated else 0.01


def clipped_mask_scores(infer):
    """The reference's mask scores with its predicted IoUs clipped to 0..1, as ours are."""
    labels = infer["det_labels"]
    predicted = infer["mask_iou_pred"][np.arange(len(labels)), labels]
    return infer["det_scores"] * np.clip(predicted, 0.0, 1.0)
