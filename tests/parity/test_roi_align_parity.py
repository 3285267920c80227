"""RoIAlign against torchvision's, mmcv's and Detectron2's: e_roialign.npz.

Every array is compared. The outputs of several levels are compared on the reference's own levels,
because the three put a RoI on a level by formulas that differ in an epsilon: `levels_d2` is ours
exactly, the other two within that epsilon of a boundary.
"""

import itertools
import math
import re

import numpy as np
import pytest
import tensorflow as tf
from fixtures import agree, channels_last, fixture, yx

from model.roi_align import assign_levels, roi_align

FILE = fixture("e_roialign.npz")
TOLERANCE = FILE.tolerance
ONE, MANY = FILE["one_level"], FILE["multi_level"]
# What an epsilon of 1e-6 beside a logarithm can move.
EPSILON = 1e-5

ONE_LEVEL = sorted(
    name for name in ONE.arrays("") if re.fullmatch(r"aligned[01]_sr\d+_out\d+", name)
)
ONE_LEVEL_GRADIENTS = sorted(name for name in ONE.arrays("") if name.startswith("grad_"))
MULTI_LEVEL = sorted(
    name for name in MANY.arrays("") if re.fullmatch(r"(d2|tv|mm)_out\d+_sr\d+", name)
)
# torchvision's pooler is the older variant, the other two move by half a cell.
ALIGNED = {"d2": True, "mm": True, "tv": False}


def settings(name):
    """`aligned1_sr2_out7` → the arguments of `roi_align` that it names."""
    found = dict(re.findall(r"(aligned|sr|out)(\d+)", name))
    kwargs = {"sampling_ratio": int(found["sr"]), "output_size": int(found["out"])}
    return kwargs | ({"aligned": found["aligned"] == "1"} if "aligned" in found else {})


def ways(names):
    """Each array once for each path that can compute it."""
    return [
        pytest.param(name, static, id=f"{name}-{'static' if static else 'by_level'}")
        for name, static in itertools.product(names, (False, True))
        if not (static and settings(name)["sampling_ratio"] == 0)
    ]


def run(function, static):
    """The static path is there to be compiled."""
    return tf.function(function, jit_compile=True)() if static else function()


def level_of(stride):
    """A stride's level, which has to be a power of two."""
    level = round(math.log2(stride))
    assert 2**level == stride
    return level


def pool_one_level(features, name, static):
    rois = ONE["rois"]
    return roi_align(
        [features],
        tf.constant(yx(rois[:, 1:])),
        tf.constant(rois[:, 0].astype(np.int32)),
        static=static,
        min_level=level_of(1 / ONE.params["spatial_scale"]),
        **settings(name),
    )


@pytest.mark.parametrize("name, static", ways(ONE_LEVEL))
def test_one_level(name, static):
    features = tf.constant(channels_last(ONE["features"]))
    assert list(ONE["features"].shape) == ONE.params["feature_shape"]
    pooled = run(lambda: pool_one_level(features, name, static), static)
    agree(pooled, channels_last(ONE[name]), "RoIAlign", "tv = mm", **TOLERANCE)


@pytest.mark.parametrize("name, static", ways(ONE_LEVEL_GRADIENTS))
def test_gradient_on_one_level(name, static):
    features = tf.constant(channels_last(ONE["features"]))
    above = tf.constant(channels_last(ONE["g"]))

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = pool_one_level(features, name, static)
        return tape.gradient(pooled, features, above)

    expected = channels_last(ONE[name])
    agree(run(gradient, static), expected, "RoIAlign gradient", "tv = mm", **TOLERANCE)


def test_references_agree_with_each_other():
    differences = [value for key, value in ONE.params.items() if key.startswith("mmcv_max")]
    assert len(differences) == len(ONE_LEVEL) + len(ONE_LEVEL_GRADIENTS)
    assert max(differences) <= TOLERANCE["atol"]


def pyramid():
    """The features of the manifest's recipe, [2, H, W, C] a level."""
    height, width = MANY.params["image_hw"]
    levels = []
    for coefficients, stride in zip(MANY["coef"], MANY.params["strides"], strict=True):
        a = [coefficients[:, None, None, :, k].astype(np.float64) for k in range(6)]
        y = np.arange(height // stride)[None, :, None, None]
        x = np.arange(width // stride)[None, None, :, None]
        channel = np.arange(MANY.params["channels"])
        field = a[0] * np.sin(0.37 * x * (1 + 0.1 * channel) + a[1])
        field = field + a[2] * np.cos(0.29 * y + a[3]) + a[4] * np.sin(0.11 * x * y / 16 + a[5])
        levels.append(tf.constant(field.astype(np.float32)))
    return levels


def our_levels():
    strides = MANY.params["strides"]
    finest = level_of(strides[0])
    assert strides == [2 ** (finest + k) for k in range(len(strides))]
    boxes = tf.constant(yx(MANY["boxes"]))
    return assign_levels(boxes, finest, finest + len(strides) - 1).numpy() - finest


def test_levels_of_detectron2():
    agree(our_levels(), MANY["levels_d2"], "RoI level", "d2")


@pytest.mark.parametrize("reference", ["tv", "mm"])
def test_levels_of_the_others_away_from_boundaries(reference):
    boxes = MANY["boxes"].astype(np.float64)
    size = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    level = np.log2(np.maximum(size, 1e-8) / 224)
    clear = np.abs(level - np.round(level)) > EPSILON
    assert clear.mean() > 0.5
    expected = MANY[f"levels_{reference}"]
    agree(our_levels()[clear], expected[clear], "RoI level", reference)


def pool_levels(levels, name, static):
    reference = name[:2]
    return roi_align(
        levels,
        tf.constant(yx(MANY["boxes"])),
        tf.constant(MANY["image_index"]),
        levels=tf.constant(MANY[f"levels_{reference}"]),
        static=static,
        aligned=ALIGNED[reference],
        min_level=level_of(MANY.params["strides"][0]),
        **settings(name),
    )


@pytest.mark.parametrize("name, static", ways(MULTI_LEVEL))
def test_several_levels(name, static):
    pooled = run(lambda: pool_levels(pyramid(), name, static), static)
    agree(pooled, channels_last(MANY[name]), "RoIAlign over levels", name[:2], **TOLERANCE)


@pytest.mark.parametrize("static", [False, True], ids=["by_level", "static"])
def test_gradient_of_several_levels(static):
    levels, above = pyramid(), tf.constant(channels_last(MANY["g"]))
    (suffix,) = {name.rsplit("_", 1)[1] for name in MANY.arrays("d2_grad_")}
    name = f"d2_out{above.shape[1]}_{suffix}"

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(levels)
            pooled = pool_levels(levels, name, static)
        return tape.gradient(pooled, levels, above)

    gradients = [tf.convert_to_tensor(one).numpy() for one in run(gradient, static)]
    operator = "RoIAlign gradient over levels"
    found = [re.fullmatch(r"level(\d+)_(.*)", key) for key in MANY.arrays("d2_grad_")]
    for index in sorted(int(match[1]) for match in found if match):
        expected = channels_last(MANY[f"d2_grad_level{index}_{suffix}"])
        agree(gradients[index], expected, operator, "d2", **TOLERANCE)
    for one, expected in zip(gradients, MANY[f"d2_grad_sums_{suffix}"], strict=True):
        sums = [one.sum(dtype=np.float64), np.abs(one).sum(dtype=np.float64)]
        # A sum that cancels is as exact as the sum of magnitudes that it is made of.
        allowed = TOLERANCE["atol"] + TOLERANCE["rtol"] * float(expected[1])
        agree(sums, expected, operator + ", sums", "d2", atol=allowed)


def test_no_array_is_passed_over():
    compared = {"features", "rois", "g", *ONE_LEVEL, *ONE_LEVEL_GRADIENTS}
    assert set(ONE.arrays("")) == compared
    levels = {"levels_d2", "levels_tv", "levels_mm"}
    compared = {"coef", "boxes", "image_index", "g", *levels, *MULTI_LEVEL}
    assert set(MANY.arrays("")) == compared | {f"d2_grad_{k}" for k in MANY.arrays("d2_grad_")}
    assert set(FILE.cases) == {"one_level", "multi_level"}
