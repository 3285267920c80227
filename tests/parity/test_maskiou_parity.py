"""The MaskIoU head, its targets, its loss and the mask score: g_maskiou.npz.

Every array is compared. Polygons are drawn as the bitmaps in `test_mask_target_parity`, whose file
has the same kind; here too they have to give the bitmaps, and the authors' mask targets, area
ratios and MaskIoU targets.

Deviations: with `maskiou_target_area=closed`, the default, targets are not the references' (the
two references' own differ from each other as much), see `test_closed_targets_...`. Predicted IoUs
are clipped to 0..1 before they are multiplied with class scores; the references multiply them as
they are, and so does `mask_scores` itself.
"""

import math
import re
import zlib

import numpy as np
import pytest
import tensorflow as tf
from bitmap_masks import average, check_bitmaps, whole_images
from fixtures import agree, channels_last, fixture
from polygon_rows import authors_ratios, on_grids, rows_of_rois

from model.mask_head import mask_loss, mask_targets
from model.maskiou_head import (
    MaskIoUHead,
    area_ratios,
    closed_full_areas,
    mask_scores,
    maskiou_loss,
    maskiou_targets,
    ratio_full_areas,
)
from model.polygon_masks import polygon_targets

FILE = fixture("g_maskiou.npz")
FORWARD = FILE.tolerance["forward_atol"]
TARGETS = FILE.tolerance["targets_atol"]
LOSS = FILE.tolerance["loss_rtol"]
SMALL, FULL, SCORE = FILE["small"], FILE["full"], FILE["score"]
CASES = FILE.cases_with("mm_targets", "ms_targets")
# The probability of the logit 0.5, with which mmdetection compares logits.
MM_THRESHOLD = 1 / (1 + math.exp(-0.5))

NUM_CONVS = 4
# What the authors' single precision amounts to in pycocotools' subpixels of a mask.
FLOAT_NOISE = 1e-4

cases = pytest.mark.parametrize("case", CASES, ids=str)


def conv_kernel(weight):
    """[out, in, height, width] → [height, width, in, out]."""
    return np.transpose(weight, [2, 3, 1, 0])


def first_fc_kernel(weight, channels, width=None):
    """[out, C · H · W] → [H · W · C, out], of `width` channels if there are to be more."""
    side = math.isqrt(weight.shape[1] // channels)
    maps = np.transpose(weight.reshape(-1, channels, side, side), [2, 3, 1, 0])
    return filled_up(maps, [side, side, width or channels, len(weight)]).reshape(-1, len(weight))


def filled_up(values, shape):
    """An array with zeros behind it along each axis, up to a larger shape."""
    return np.pad(
        values, [(0, most - side) for side, most in zip(values.shape, shape, strict=True)]
    )


def build_head(weights, num_classes, mask_size):
    """The head with weights of mmdetection's names; class 0, which they lack, predicts 0.

    Our convolutions have as many channels as the features. Where the reference's have more or
    fewer, all are as wide as the widest, and channels that it does not have are zeros throughout.
    """
    hidden = len(weights["fcs.0.bias"])
    kernels = [conv_kernel(weights[f"convs.{index}.weight"]) for index in range(NUM_CONVS)]
    width = max(kernels[0].shape[2] - 1, *(kernel.shape[3] for kernel in kernels))
    head = MaskIoUHead(np.random.default_rng(0), width, hidden, num_classes + 1, mask_size)
    # The mask is the last channel that the first convolution sees.
    missing = np.zeros([3, 3, width + 1 - kernels[0].shape[2], kernels[0].shape[3]])
    kernels[0] = np.concatenate([kernels[0][:, :, :-1], missing, kernels[0][:, :, -1:]], axis=2)
    for index, (conv, kernel) in enumerate(zip(head.convs, kernels, strict=True)):
        conv.kernel.assign(filled_up(kernel, conv.kernel.shape))
        conv.bias.assign(filled_up(weights[f"convs.{index}.bias"], [width]))
    channels = kernels[-1].shape[3]
    head.fcs[0].kernel.assign(first_fc_kernel(weights["fcs.0.weight"], channels, width))
    head.fcs[1].kernel.assign(weights["fcs.1.weight"].T)
    for index, fc in enumerate(head.fcs):
        fc.bias.assign(weights[f"fcs.{index}.bias"])
    head.maskiou.kernel.assign(np.pad(weights["fc_mask_iou.weight"], ((1, 0), (0, 0))).T)
    head.maskiou.bias.assign(np.pad(weights["fc_mask_iou.bias"], (1, 0)))
    return head


def predict_all(head, features, mask_logits, num_classes):
    """The prediction of every class, [N, num_classes]: the head looks at one class a RoI."""
    missing = head.convs[0].kernel.shape[2] - 1 - features.shape[-1]
    features = tf.pad(features, [[0, 0], [0, 0], [0, 0], [0, missing]])
    predicted = head(
        tf.repeat(features, num_classes, axis=0),
        tf.repeat(mask_logits, num_classes, axis=0),
        tf.tile(tf.range(1, num_classes + 1), [features.shape[0]]),
    )
    return tf.reshape(predicted, [-1, num_classes])


def test_small_head_and_its_gradients():
    weights, num_classes = SMALL.arrays("weights/"), SMALL.params["num_classes"]
    features = tf.constant(channels_last(SMALL["mask_feat"]))
    mask_logits = tf.constant(SMALL["mask_logits"])
    head = build_head(weights, num_classes, mask_logits.shape[1])
    kernels = [head.fcs[0].kernel.value, head.convs[-1].kernel.value]
    with tf.GradientTape() as tape:
        tape.watch([features, mask_logits])
        predicted = predict_all(head, features, mask_logits, num_classes)
        loss = tf.reduce_sum(predicted * SMALL["g"])
    of_features, of_logits, *of_kernels = tape.gradient(loss, [features, mask_logits, *kernels])

    agree(predicted, SMALL["pred"], "MaskIoU head", "mm", atol=FORWARD)
    last = NUM_CONVS - 1
    channels, width = len(weights[f"convs.{last}.bias"]), head.convs[0].kernel.shape[3]
    of_last_conv = conv_kernel(SMALL[f"grad_convs{last}_weight"])
    of_first_fc = first_fc_kernel(SMALL["grad_fcs0_weight"], channels)
    # Of channels that are zeros no weight matters.
    maps = tf.reshape(of_kernels[0], [-1, width, of_first_fc.shape[1]])[:, :channels]
    rows, columns = of_last_conv.shape[2:]
    for ours, theirs in (
        (of_logits, SMALL["grad_mask_logits"]),
        (of_features, channels_last(SMALL["grad_mask_feat"])),
        (tf.reshape(maps, of_first_fc.shape), of_first_fc),
        (of_kernels[1][:, :, :rows, :columns], of_last_conv),
    ):
        # Gradients are smaller than predictions, and as exact for their size.
        allowed = FORWARD * min(1.0, float(np.abs(theirs).max()))
        agree(ours, theirs, "MaskIoU head, gradient", "mm", atol=allowed)


def full_inputs():
    """Features [N, H, W, C] and mask logits by the manifest's recipe, of which it tells the seed,
    the shapes and the scale of the logits."""
    text = FULL.params["input_recipe"]
    draw = np.random.RandomState(int(re.search(r"RandomState\((\d+)\)", text)[1]))
    shapes = [eval_shape(found) for found in re.findall(r"standard_normal\(\(([\d,]+)\)\)", text)]
    scale = float(re.search(r"\)\)\*([\d.]+)\)", text)[1])
    features = np.maximum(draw.standard_normal(shapes[0]), 0).astype(np.float32)
    mask_logits = (draw.standard_normal(shapes[1]) * scale).astype(np.float32)
    return tf.constant(channels_last(features)), tf.constant(mask_logits)


def eval_shape(text):
    """`3,28,28` → (3, 28, 28)."""
    return tuple(int(side) for side in text.split(","))


def full_weight(name, shape):
    """The recipe's weight of a name, whose checksum and an offset are its seed."""
    offset = int(re.search(r"encode\(\)\) \+ (\d+)", FULL.params["weight_recipe"])[1])
    seed = (zlib.crc32(f"maskiou.{name}".encode()) + offset) & 0x7FFFFFFF
    scale = 0.05 if len(shape) == 1 else math.sqrt(2 / math.prod(shape[1:]))
    draw = np.random.RandomState(seed)
    return (draw.standard_normal(tuple(shape)) * scale).astype(np.float32)


def test_full_width_head():
    params = FULL.params
    weights = {name: full_weight(name, shape) for name, shape in params["names"].items()}
    features, mask_logits = full_inputs()
    head = build_head(weights, params["num_classes"], mask_logits.shape[1])
    predicted = predict_all(head, features, mask_logits, params["num_classes"])
    agree(predicted, FULL["pred"], "MaskIoU head, full width", "mm = ms", atol=FORWARD)


@cases
def test_polygons_are_the_bitmaps(case):
    check_bitmaps(case)


def targets_of_ratios(case, kind, ratios, threshold=0.5):
    """MaskIoU targets of the case's logits and one of its kinds of mask targets."""
    masks = tf.constant(case[kind], tf.float32)
    logits = tf.constant(case["mask_logits"])
    return maskiou_targets(logits, masks, ratio_full_areas(masks, ratios), threshold)


@cases
def test_mask_targets(case):
    expected = case["mask_targets"]
    ours = mask_targets(*whole_images(case), expected.shape[1]).numpy()
    decided = np.abs(average(case, expected.shape[1]) - 0.5) > TARGETS
    assert decided.mean() > 0.99
    agree(ours[decided], expected[decided], "mask target, bitmap", "mm = d2")


@cases
def test_area_ratios(case):
    agree(area_ratios(*whole_images(case)), case["mm_area_ratio"], "area ratio", "mm", atol=TARGETS)


@cases
def test_targets_of_mmdetection(case):
    ratios = area_ratios(*whole_images(case))
    operator = "MaskIoU target, ratio"
    ours = targets_of_ratios(case, "mask_targets", ratios)
    agree(ours, case["mm_targets_thr0"], operator, "mm, logit > 0", atol=TARGETS)
    ours = targets_of_ratios(case, "mask_targets", ratios, MM_THRESHOLD)
    agree(ours, case["mm_targets"], operator, "mm, logit > 0.5", atol=TARGETS)
    assert np.count_nonzero(case["mm_targets_thr0"] > 0) == case.params["num_positive_targets"]


@cases
def test_mask_targets_of_the_authors(case, tied_columns):
    expected = case["ms_mask_targets"]
    size = expected.shape[1]
    vertices, parts, rois = rows_of_rois(case)
    ours = polygon_targets(tf.constant(vertices), tf.constant(parts), tf.constant(rois), size)
    grids = on_grids(vertices, parts, rois, size)
    decided = ~np.array([tied_columns(polygons, size, FLOAT_NOISE) for polygons in grids])
    # The authors' RoIs have sides of at least a pixel.
    decided &= (np.min(rois[:, 2:] - rois[:, :2], axis=1) >= 1)[:, None]
    assert decided.mean() > 0.9
    columns = [np.swapaxes(masks, 1, 2)[decided] for masks in (ours, expected)]
    agree(*columns, "mask target, polygon", "ms")


@cases
def test_area_ratios_of_the_authors(case):
    ours = authors_ratios(*rows_of_rois(case), case.params["image_hw"])
    agree(ours, case["ms_mask_ratio"], "polygon area ratio", "ms", atol=TARGETS)


@cases
def test_targets_of_the_authors(case):
    ours = targets_of_ratios(case, "ms_mask_targets", tf.constant(case["ms_mask_ratio"]))
    agree(ours, case["ms_targets"], "MaskIoU target, ratio", "ms", atol=TARGETS)


@cases
def test_closed_targets_are_as_near_as_the_references_to_each_other(case):
    masks, windows, rois = whole_images(case)
    cells = tf.constant(case["mask_targets"], tf.float32)
    areas = tf.reduce_sum(tf.cast(masks, tf.float32), axis=[1, 2])
    full = closed_full_areas(cells, areas, rois)
    ours = maskiou_targets(tf.constant(case["mask_logits"]), cells, full).numpy()
    # Measured: 0.16 at worst, on a RoI of 4 pixels, and 0.017 to 0.023 on average; the authors'
    # and mmdetection's differ by 0.13 to 0.15 and by 0.025.
    agree(ours, case["mm_targets_thr0"], "MaskIoU target, closed", "mm, logit > 0", atol=0.25)
    references = np.abs(case["ms_targets"] - case["mm_targets_thr0"])
    assert references.max() == pytest.approx(case.params["ms_vs_thr0_max"], abs=TARGETS)
    assert np.abs(ours - case["mm_targets_thr0"]).mean() < 1.5 * references.mean()


@cases
def test_head_sees_the_probabilities(case):
    """The authors' input, after the 2 × 2 max-pooling that follows in theirs and ours."""
    probabilities = case["ms_head_mask_input"][:, 0]
    count, side = probabilities.shape[:2]
    head = MaskIoUHead(np.random.default_rng(0), 1, 2, 2, side)
    seen, conv = [], head.convs[0].call
    head.convs[0].call = lambda x: seen.append(x) or conv(x)
    logits = tf.constant(case["mask_logits"][:count])
    head(tf.zeros([count, side // 2, side // 2, 1]), logits, tf.ones([count], tf.int32))
    pooled = probabilities.reshape(count, side // 2, 2, side // 2, 2).max((2, 4))
    agree(seen[0][..., -1], pooled, "MaskIoU head, mask input", "ms", atol=FORWARD)


@cases
def test_loss_and_its_gradient(case):
    predicted = tf.constant(case["pred_iou"])
    targets = tf.constant(case["mm_targets_thr0"])
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        loss = maskiou_loss(predicted, targets, tf.ones(predicted.shape[0], tf.bool))
    agree(loss, case["loss_thr0"], "MaskIoU loss", "mm = ms", rtol=LOSS)
    for name in ("mm_loss", "ms_loss"):
        agree(loss, case.params[name], "MaskIoU loss", name[:2], rtol=LOSS)
    gradient = tape.gradient(loss, predicted)
    expected = case["loss_thr0_grad"]
    # Errors near 0 are differences of numbers near 1.
    allowed = LOSS * float(np.abs(expected).max())
    agree(gradient, expected, "MaskIoU loss, gradient", "mm = ms", rtol=LOSS, atol=allowed)


@cases
def test_mask_loss_of_the_authors(case):
    masks = tf.constant(case["ms_mask_targets"], tf.float32)
    loss = mask_loss(tf.constant(case["mask_logits"]), masks, tf.ones(len(masks), tf.bool))
    agree(loss, case["ms_loss_mask"], "mask loss", "ms", rtol=LOSS)


def test_mask_scores():
    chosen = np.take_along_axis(SCORE["pred_iou"], SCORE["labels"][:, None], axis=1)[:, 0]
    scores = mask_scores(tf.constant(SCORE["box_scores"]), tf.constant(chosen), True)
    agree(scores, SCORE["mask_scores"], "mask score", "mm = ms", rtol=LOSS)


def test_no_array_is_passed_over():
    weights = {f"weights/{name}" for name in SMALL.arrays("weights/")}
    gradients = {"grad_mask_logits", "grad_mask_feat", "grad_fcs0_weight", "grad_convs3_weight"}
    compared = {"mask_feat", "mask_logits", "pred", "g"} | weights | gradients
    assert set(SMALL.arrays("")) == compared
    assert set(FULL.arrays("")) == {"pred"}
    assert set(SCORE.arrays("")) == {"pred_iou", "labels", "box_scores", "mask_scores"}
    inputs = {"poly_xy", "poly_len", "poly_instance", "bitmaps", "rois", "gt_index", "pred_iou"}
    of_mm = {"mask_targets", "mask_logits", "mm_area_ratio", "mm_targets", "mm_targets_thr0"}
    of_ms = {"ms_mask_targets", "ms_mask_ratio", "ms_targets", "ms_loss_mask"}
    losses = {"loss_thr0", "loss_thr0_grad", "ms_head_mask_input"}
    for case in CASES:
        assert set(case.arrays("")) == inputs | of_mm | of_ms | losses
    assert set(FILE.cases) == {"small", "full", "score", *(case.name for case in CASES)}
