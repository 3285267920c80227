"""A training image on its canvas with its ground truths.

Axes: N instances in the record, n ground truths, C crowds, M mask side, V polygon vertices of a
ground truth after padding, H W canvas.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from data import augment
from data.augmentations import COLOURS, find_augmentations
from data.config import DataConfig
from data.decoding import decode_image
from data.masks import crop_masks, draw_union, mask_areas
from data.polygons import lay_out_polygons

# Thinner boxes, such as slivers that a crop leaves of an object, have no pixels to learn from.
MIN_SIDE = 1.0

Tensors = dict[str, tf.Tensor]


class Scene(NamedTuple):
    """An image on its canvas, its ground truths and its crowds.

    Attributes:
        image: uint8 [H, W, 3], zero outside the valid area.
        image_info: float32 [5], as `data.augment.Geometry.image_info`.
        truths: gt_boxes float32 [n, 4], gt_classes int32 [n] and, with masks, gt_masks uint8
            [n, M, M] and gt_areas float32 [n], and with polygons gt_polygons float32 [n, V, 2] and
            gt_polygon_parts int32 [n, V].
        crowds: float32 [C, 4], boxes in canvas pixels.
        proposals: float32 [p, 4], those of the record that are visible, in canvas pixels.
        draw_masks: maps indices int64 [k] of the original ground truths to bool [H, W], the canvas
            pixels that belong to any of them.
    """

    image: tf.Tensor
    image_info: tf.Tensor
    truths: Tensors
    crowds: tf.Tensor
    proposals: tf.Tensor
    draw_masks: Callable[[tf.Tensor], tf.Tensor]

    @property
    def valid(self) -> tf.Tensor:
        """Size of the image on the canvas: int64 [2]."""
        return tf.cast(self.image_info[:2], tf.int64)


def draw_scene(record: Tensors, canvas: tf.Tensor, config: DataConfig, seed: tf.Tensor) -> Scene:
    """Draws the image of a record on a canvas, augmented at random as the seed decides.

    Args:
        record: as `data.records.parse_record` gives it; perhaps with `proposals` float32 [P, 4],
            in pixels of the original image.
        canvas: int64 [2].
        config: augmentation, and the maximum number of instances.
        seed: int32 [2].

    Returns:
        Scene with at most `config.max_instances` ground truths, the largest, in their order.
    """
    size = tf.stack([record["height"], record["width"]])
    geometry = augment.draw_geometry(size, canvas, config, seed)
    colours = [
        draw(fold_seed(seed, draw.__name__))
        for draw in find_augmentations(config.augmentations, COLOURS)
    ]
    crowds = augment.clip_to_source(tf.boolean_mask(record["boxes"], record["is_crowd"]), geometry)
    instances, truths = _ground_truths(record, geometry, config)

    proposals = record.get("proposals", tf.zeros([0, 4]))

    def draw_masks(chosen: tf.Tensor) -> tf.Tensor:
        union = draw_union(*_masks_of(record), tf.gather(instances, chosen))
        return augment.render_mask(union, geometry, canvas)

    return Scene(
        image=augment.render_image(decode_image(record, config.exif), geometry, canvas, colours),
        image_info=geometry.image_info,
        truths=truths,
        crowds=augment.map_boxes(crowds, geometry),
        proposals=augment.map_visible(proposals, geometry),
        draw_masks=draw_masks,
    )


def keep_largest(truths: Tensors, count: int) -> Tensors:
    """Keeps at most `count` ground truths, those of the largest areas, in their order."""
    areas = truths["gt_areas"]
    kept = _largest(areas, tf.ones_like(areas, tf.bool), count)
    return {name: tf.gather(values, kept) for name, values in truths.items()}


def fold_seed(seed: tf.Tensor, name: str) -> tf.Tensor:
    """Derives an augmentation's own seed, int32 [2], independent of other augmentations."""
    number = tf.constant(zlib.crc32(name.encode()), tf.int64)
    return tf.random.experimental.stateless_fold_in(seed, number, alg="philox")


def _masks_of(record: Tensors) -> tuple[tf.Tensor, ...]:
    """Selects the arguments of `data.masks` from a record."""
    return record["run_lengths"], record["num_runs"], record["height"], record["width"]


def _ground_truths(
    record: Tensors, geometry: augment.Geometry, config: DataConfig
) -> tuple[tf.Tensor, Tensors]:
    """Selects the instances to learn: visible, not crowds, at most the maximum number.

    Returns:
        int64 [n], their indices in the record, and
        gt_boxes float32 [n, 4], gt_classes int32 [n] and, with masks, gt_masks uint8 [n, M, M]
        and gt_areas float32 [n], and with polygons gt_polygons float32 [n, V, 2] and
        gt_polygon_parts int32 [n, V], for the n <= G largest instances in the record's order.
    """
    windows = augment.clip_to_source(record["boxes"], geometry)
    boxes = augment.map_boxes(windows, geometry)
    kept = ~record["is_crowd"] & tf.reduce_all(boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE, axis=1)
    sizes = tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    if "run_lengths" in record:
        masks = _masks_of(record)
        areas = mask_areas(*masks, geometry.source_box)
        sizes = tf.cast(areas, tf.float32)
    kept = _largest(sizes, kept & (sizes > 0), config.max_instances)

    truths = {
        "gt_boxes": tf.gather(boxes, kept),
        "gt_classes": tf.gather(record["classes"], kept),
    }
    if "run_lengths" in record:
        truths["gt_masks"] = crop_masks(
            *masks,
            tf.gather(windows, kept),
            kept,
            config.mask_crop_size,
            flip_vertical=geometry.flips[0],
            flip_horizontal=geometry.flips[1],
        )
        canvas_pixels = tf.reduce_prod(geometry.scale)
        truths["gt_areas"] = tf.cast(tf.gather(areas, kept), tf.float32) * canvas_pixels
    if "points" in record:
        truths["gt_polygons"], truths["gt_polygon_parts"] = lay_out_polygons(
            augment.map_points(record["points"], geometry),
            record["num_points"],
            record["num_polygons"],
            kept,
            config.max_polygon_vertices,
        )
    return kept, truths


def _largest(sizes: tf.Tensor, kept: tf.Tensor, count: int) -> tf.Tensor:
    """Finds the indices of the `count` largest instances that are kept, ascending: int64 [n]."""
    candidates = tf.where(kept)[:, 0]
    order = tf.argsort(tf.gather(sizes, candidates), direction="DESCENDING", stable=True)
    return tf.sort(tf.gather(candidates, order[:count]))
