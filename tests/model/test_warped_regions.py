"""R-CNN's regions: what is cut from the image, and that each is seen by itself."""

import numpy as np
import pytest
import tensorflow as tf

from model.backbones import Options, make_backbone
from model.warped_regions import CONTEXT, WarpedRegions, warp

SIZE = 227
INNER = SIZE - 2 * CONTEXT


def picture(height=40, width=60):
    """An image whose channels are its coordinates at the centres of pixels, and 1."""
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    return tf.constant(np.stack([y, x, np.ones_like(y)], axis=-1)[None], tf.float32)


@pytest.mark.parametrize("static", [False, True])
def test_a_box_fills_all_but_its_context(static):
    box = np.array([12.0, 20.0, 26.0, 47.0])
    (region,) = warp(picture(), tf.constant([box], tf.float32), tf.constant([0]), SIZE, static)
    centres = (np.arange(SIZE) + 0.5 - CONTEXT) / INNER
    rows = box[0] + centres * (box[2] - box[0])
    columns = box[1] + centres * (box[3] - box[1])
    # Linear interpolation of coordinates gives the coordinate itself.
    np.testing.assert_allclose(region[:, :, 0], np.tile(rows[:, None], (1, SIZE)), atol=1e-3)
    np.testing.assert_allclose(region[:, :, 1], np.tile(columns[None], (SIZE, 1)), atol=1e-3)
    np.testing.assert_allclose(region[:, :, 2], 1, atol=1e-5)


def test_what_is_outside_the_image_has_the_mean_colour():
    (region,) = warp(picture(), tf.constant([[0.0, 0.0, 40.0, 60.0]]), tf.constant([0]), SIZE)
    ones = region[:, :, 2].numpy()
    assert (ones[CONTEXT : SIZE - CONTEXT, CONTEXT : SIZE - CONTEXT] > 0.999).all()
    assert (ones[: CONTEXT - 6] == 0).all() and (ones[:, 6 - CONTEXT :] == 0).all()


def test_regions_do_not_depend_on_their_number_and_images():
    backbone = make_backbone(
        np.random.default_rng(0), "alexnet", Options(norm="none", width=8, last_stage=4)
    )
    regions = WarpedRegions(backbone, SIZE)
    rng = np.random.default_rng(1)
    images = tf.constant(rng.normal(size=(2, 64, 64, 3)), tf.float32)
    corners = rng.uniform(0, 40, (130, 2))
    boxes = tf.constant(np.concatenate([corners, corners + 20], axis=1), tf.float32)
    index = tf.constant(rng.integers(0, 2, 130), tf.int32)
    pool = tf.function(lambda *a: regions([images], *a, output_size=6))
    found = pool(boxes, index)  # in two parts of 65
    assert found.shape == (130, 6, 6, 256 * 8 // 96 // 2 * 2)
    for row in (0, 64, 65, 129):
        alone = regions(
            [images[int(index[row])][None]], boxes[row : row + 1], tf.zeros([1], tf.int32),
            output_size=6, training=True,
        )  # fmt: skip
        np.testing.assert_allclose(found[row], alone[0], atol=1e-4)


def test_features_of_alexnet_are_pool5():
    options = Options(norm="none", width=8)
    whole = make_backbone(np.random.default_rng(0), "alexnet", options)
    cut = make_backbone(np.random.default_rng(0), "alexnet", options._replace(last_stage=4))
    images = tf.constant(np.random.default_rng(1).normal(size=(1, 90, 90, 3)), tf.float32)
    boxes, index = tf.constant([[10.0, 12.0, 60.0, 70.0]]), tf.constant([0])
    found = WarpedRegions(cut, SIZE)([images], boxes, index, output_size=6, training=True)
    np.testing.assert_allclose(found, whole(warp(images, boxes, index, SIZE))[-1], atol=1e-5)
