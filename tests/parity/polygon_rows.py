"""Polygons of the fixtures as labels hold them, and as pycocotools is given them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from fixtures import Case, yx
from pycocotools import mask as coco_mask

from data.polygons import count_vertices, lay_out_polygons


def polygon_rows(arrays, prefix: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Closed polygons of all instances: float32 [G, V, 2] and int32 [G, V]."""
    xy, lengths = arrays[f"{prefix}poly_xy"], arrays[f"{prefix}poly_len"]
    owners = arrays[f"{prefix}poly_instance"]
    assert (np.diff(owners) >= 0).all(), "polygons of one instance lie side by side"
    points = tf.constant(xy.reshape(-1, 2)[:, ::-1].astype(np.float32))
    counts = tf.constant(lengths // 2, tf.int64), tf.constant(np.bincount(owners), tf.int64)
    most = int(tf.reduce_max(count_vertices(*counts)))
    everyone = tf.range(len(counts[1]), dtype=tf.int64)
    vertices, parts = lay_out_polygons(points, *counts, everyone, most)
    return vertices.numpy(), parts.numpy()


def on_grids(vertices: np.ndarray, parts: np.ndarray, rois: np.ndarray, size: int) -> list[list]:
    """Open polygons of each RoI's object in cells of its grid: y, x in double precision."""
    found = []
    for points, numbers, roi in zip(vertices, parts, np.float64(rois), strict=True):
        scale = size / (roi[2:] - roi[:2])
        grid = (points - roi[:2]) * scale
        found.append([grid[numbers == part][:-1] for part in range(1, numbers.max() + 1)])
    return found


def rows_of_rois(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each RoI its object's rows, and itself: [N, V, 2], [N, V] and [N, 4]."""
    return *(values[case["gt_index"]] for values in polygon_rows(case)), yx(case["rois"])


def authors_ratios(
    vertices: np.ndarray, parts: np.ndarray, rois: np.ndarray, image_hw: tuple[int, int]
) -> np.ndarray:
    """The share of each object that lies in its RoI, as the authors' code has it: float32 [N].

    Both areas are of the polygons drawn one pixel a cell, on grids whose sides are cut to whole
    pixels: the RoI's, and that of the box around the RoI, its corners truncated and the lower right
    one a pixel further, and the object, but not beyond the image's last pixel.
    """
    rois, last = np.float64(rois), np.array(image_hw) - 1
    there = (parts > 0)[..., None]
    low = np.where(there, vertices, np.inf).min(axis=1)
    high = np.where(there, vertices, -np.inf).max(axis=1)
    around = np.concatenate(
        [
            np.maximum(np.minimum(np.trunc(rois[:, :2]), low), 0),
            np.minimum(np.maximum(np.trunc(rois[:, 2:]) + 1, high), last),
        ],
        axis=1,
    )
    inside, whole = (pixel_areas(vertices, parts, boxes) for boxes in (rois, around))
    return np.maximum(inside / whole, 1e-10)


def pixel_areas(vertices: np.ndarray, parts: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Areas of the polygons of each object, one by one, on the whole pixels of its box.

    pycocotools draws them, as there, from the box's corner on in single precision.
    """
    areas = np.zeros(len(boxes))
    for index, box in enumerate(boxes):
        size = [int(side) for side in box[2:] - box[:2]]
        moved = np.float64(vertices[index] - np.float32(box[:2]))[:, ::-1]
        polygons = [moved[parts[index] == part][:-1] for part in range(1, parts[index].max() + 1)]
        drawn = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], *size)
        areas[index] = coco_mask.area(drawn).sum()
    return areas
