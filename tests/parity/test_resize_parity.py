"""Resized sizes and pixels (`data.augment`) against mmdetection, torchvision and Detectron2.

Deviations:
- torchvision rounds the sides down: 17 of 40 sizes are a pixel smaller than here. Detectron2 scales
  twice where the longer side is too long, which may round otherwise, but does in none of the 40.
  The authors round the shorter side and derive the longer from it: 22 of 40 differ, by up to half
  the ratio of the sides. `pytest -rP` prints the counts of another folder.
- Detectron2 and the authors resize with Pillow, which antialiases when it shrinks. Enlarged pixels
  are compared, shrunk ones are not.
- torchvision interpolates normalised floats; here pixels are rounded to whole levels, so they are
  compared within half a level.
"""

import re

import numpy as np
import pytest
import tensorflow as tf
from fixtures import agree, fixture

from data.augment import Geometry, fit_geometry, render_image
from data.config import DataConfig

FILE = fixture("k_resize.npz")
FLOAT_ATOL = float(re.search(r"tv atol ([\d.e-]+)", FILE.tolerance["pixels"])[1])
LEVELS, OF = map(int, re.search(r"atol (\d+) of (\d+)", FILE.tolerance["pixels"]).groups())
HALF_A_LEVEL = 0.5 / OF + FLOAT_ATOL

sizes = pytest.mark.parametrize("case", FILE.cases_with("input_hw"), ids=repr)
pixels = pytest.mark.parametrize("case", FILE.cases_with("image_rgb"), ids=repr)


def resized(case):
    """Height and width that our rule gives to each of the case's images, [n, 2]."""
    # The fixture's rule, 800 and 1333, is the default; the canvas leaves it room.
    config = DataConfig()
    canvas = tf.fill([2], tf.constant(2 * config.long_side, tf.int64))
    fit = tf.function(lambda size: fit_geometry(size, canvas, config).valid)
    return np.stack([fit(tf.constant(size, tf.int64)) for size in case["input_hw"]])


@sizes
def test_sizes(case):
    agree(resized(case), case["mm"], "resized sizes", "mm")


@sizes
@pytest.mark.parametrize("reference", ["d2", "tv", "ms"])
def test_sizes_that_round_otherwise(case, reference):
    ours, theirs = resized(case), case[reference]
    print(f"{reference}: {(ours != theirs).any(1).sum()} of {len(ours)} sizes differ from ours")
    agree(ours.min(1), theirs.min(1), "shorter resized side", reference, atol=1)
    longer = np.abs(ours.max(1) - theirs.max(1))
    # Half a pixel of the shorter side is worth half the ratio in pixels of the longer.
    allowed = 1 + 0.5 * ours.max(1) / ours.min(1) * (reference == "ms")
    excess = np.maximum(longer - allowed, 0)
    agree(excess, 0 * excess, "longer resized side, beyond the rounding", reference)


def rendered(case, hw):
    image = case["image_rgb"]
    original, valid = tf.constant(image.shape[:2], tf.int64), tf.constant(hw, tf.int64)
    geometry = Geometry(
        original=original,
        offset=tf.zeros([2], tf.int64),
        source=original,
        valid=valid,
        flips=tf.zeros([2], tf.bool),
    )
    return render_image(tf.constant(image), geometry, valid).numpy()


@pixels
@pytest.mark.parametrize(
    ("way", "library", "reference"),
    [("down", "cv2", "mm"), ("up", "cv2", "mm"), ("up", "pil", "d2"), ("up", "pil", "ms")],
)
def test_whole_levels(case, way, library, reference):
    ours = rendered(case, case.params[f"{way}_hw"]).astype(int)
    agree(ours, case[f"{way}_{library}"], f"pixels, {way}, of {OF}", reference, atol=LEVELS)


@pixels
@pytest.mark.parametrize("way", ["down", "up"])
def test_float_levels(case, way):
    ours = rendered(case, case.params[f"{way}_hw"]) / OF
    agree(ours, case[f"{way}_torch"], f"pixels, {way}, of 1", "tv", atol=HALF_A_LEVEL)


@pixels
def test_pillow_antialiases_when_it_shrinks(case):
    ours = rendered(case, case.params["down_hw"]).astype(int)
    assert np.abs(ours - case["down_pil"]).max() > LEVELS
