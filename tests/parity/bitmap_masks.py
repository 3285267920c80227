"""Ground truth of the fixtures about masks: polygons, the bitmaps drawn of them, and RoIs."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from fixtures import Case, agree, yx

from data.segmentation import run_lengths
from model.mask_head import sample_weights


def converted(case: Case) -> list[np.ndarray]:
    """Run lengths of each instance's polygons, as the converter stores them."""
    height, width = case.params["image_hw"]
    polygons = np.split(case["poly_xy"].astype(np.float64), np.cumsum(case["poly_len"])[:-1])
    instances = [
        [polygons[k].tolist() for k in np.flatnonzero(case["poly_instance"] == instance)]
        for instance in range(len(case["bitmaps"]))
    ]
    return [run_lengths(instance, height, width) for instance in instances]


def check_bitmaps(case: Case) -> None:
    """Asserts that the converter draws the polygons as the reference does."""
    for runs, bitmap in zip(converted(case), case["bitmaps"], strict=True):
        drawn = np.repeat(np.arange(len(runs)) % 2, runs).reshape(bitmap.shape[::-1]).T
        agree(drawn, bitmap, "mask of polygons", "pc")


def whole_images(case: Case) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Each RoI's bitmap [N, H, W], the window that it covers [N, 4], and the RoI [N, 4]."""
    bitmaps, index = case["bitmaps"], case["gt_index"]
    window = np.float32([0, 0, *bitmaps.shape[1:]])
    windows = tf.constant(np.tile(window, (len(index), 1)))
    return tf.constant(bitmaps[index]), windows, tf.constant(yx(case["rois"]))


def average(case: Case, size: int) -> np.ndarray:
    """What mask targets of the rule "bitmap" compare with one half: [N, size, size]."""
    masks, _, rois = whole_images(case)
    height, width = masks.shape[1:]
    rows = sample_weights(rois[:, 0], rois[:, 2], size, height, 0.5)
    columns = sample_weights(rois[:, 1], rois[:, 3], size, width, 0.5)
    return tf.einsum("niy,nyx,njx->nij", rows, tf.cast(masks, tf.float32), columns).numpy()
