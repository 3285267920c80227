"""From one serialised record to the tensors of one image.

Axes: N instances in the record, G ground truths of an image after padding, M mask side, V polygon
vertices of a ground truth after padding, S sampled anchors, H W canvas.
"""

from __future__ import annotations

import tensorflow as tf

from data import augment
from data.anchor_matching import RpnTargets, match_and_sample
from data.anchors import AnchorGrid
from data.config import DataConfig
from data.decoding import decode_image
from data.masks import crop_masks, mask_areas
from data.polygons import lay_out_polygons
from data.records import parse_record

# What mmdetection pads the sides of an image to multiples of.
PADDING_MULTIPLE = 32
# Shorter sides leave no pixel to learn from, such as slivers that a crop leaves of an object.
MIN_SIDE = 1.0

Tensors = dict[str, tf.Tensor]


# Without Python control flow AutoGraph has nothing to convert, which takes it seconds to find out.
@tf.autograph.experimental.do_not_convert
def eval_example(serialized: tf.Tensor, config: DataConfig) -> Tensors:
    """Features of one image for evaluation.

    Args:
        serialized: string scalar, a record.
        config: canvases, short and long side.

    Returns:
        image uint8 [H, W, 3], image_id int64 [], image_info float32 [5].
    """
    record = parse_record(serialized, include_masks=False)
    features = lay_out(decode_image(record, config.exif), config)
    return features | {"image_id": record["image_id"]}


def lay_out(pixels: tf.Tensor, config: DataConfig) -> Tensors:
    """Puts a picture on its canvas as evaluation does.

    Args:
        pixels: uint8 [h, w, 3].
        config: canvases, short and long side.

    Returns:
        image uint8 [H, W, 3], image_info float32 [5].
    """
    size = tf.shape(pixels, tf.int64)[:2]
    canvas_index = augment.choose_canvas(size, config)
    canvas = tf.gather(tf.constant(config.canvas_sizes, tf.int64), canvas_index)
    geometry = augment.fit_geometry(size, canvas, config)
    image = augment.render_image(pixels, geometry, canvas)
    return {"image": _set_canvas_shape(image, config), "image_info": geometry.image_info}


def padding_example(height: tf.Tensor, width: tf.Tensor, config: DataConfig) -> Tensors:
    """Features of no image, with image_id -1, to complete a batch of evaluation.

    Args:
        height, width: int64 scalars, the canvas.
        config: canvases.

    Returns:
        As `eval_example`; image_info says that the black canvas itself is the image.
    """
    sides = tf.cast([height, width], tf.float32)
    return {
        "image": _set_canvas_shape(tf.zeros([height, width, 3], tf.uint8), config),
        "image_id": tf.constant(-1, tf.int64),
        "image_info": tf.concat([sides, [1.0], sides], axis=0),
    }


@tf.autograph.experimental.do_not_convert
def train_example(
    serialized: tf.Tensor,
    epoch: tf.Tensor,
    config: DataConfig,
    include_masks: bool,
    include_polygons: bool = False,
) -> tuple[Tensors, Tensors]:
    """Features and labels of one image, augmented by draws that its id and the epoch decide.

    Args:
        serialized: string scalar, a record.
        epoch: int64 scalar.
        config: augmentation, anchors, sampling, seed.
        include_masks: whether the record has to hold masks and the labels shall.
        include_polygons: the same of polygons, beside masks.

    Returns:
        The features of `eval_example` and the labels gt_boxes float32 [G, 4], gt_classes int32 [G]
        (0 is padding), gt_masks uint8 [G, M, M] and gt_areas float32 [G] if masks are included,
        gt_polygons float32 [G, V, 2] (y, x in canvas pixels) and gt_polygon_parts int32 [G, V] (0
        is padding; see `data.polygons.lay_out_polygons`) if polygons are,
        rpn_indices int32 [S], rpn_labels int32 [S], rpn_deltas float32 [S, 4] and sample_seeds
        int32 [2].
    """
    max_vertices = config.max_polygon_vertices if include_masks and include_polygons else 0
    record = parse_record(serialized, include_masks, max_vertices)
    seeds = image_seeds(config.seed, epoch, record["image_id"])
    size = tf.stack([record["height"], record["width"]])
    canvas_index = augment.choose_canvas(size, config)
    canvas = tf.gather(tf.constant(config.canvas_sizes, tf.int64), canvas_index)
    geometry = augment.draw_geometry(size, canvas, config, seeds[0])

    truths = _ground_truths(record, geometry, config)
    crowds = augment.clip_to_source(tf.boolean_mask(record["boxes"], record["is_crowd"]), geometry)
    crowds = augment.map_boxes(crowds, geometry)
    rpn = _rpn_targets(truths["gt_boxes"], crowds, canvas_index, geometry.valid, config, seeds[1])
    labels = {name: _pad(values, config.max_instances) for name, values in truths.items()}
    labels |= {
        "rpn_indices": rpn.indices,
        "rpn_labels": rpn.labels,
        "rpn_deltas": rpn.deltas,
        "sample_seeds": seeds[2],
    }
    return _features(record, geometry, canvas, config), labels


def image_seeds(seed: int, epoch: tf.Tensor, image_id: tf.Tensor) -> tf.Tensor:
    """Seeds for the geometry, the anchors and the RoIs of one image: int32 [3, 2].

    They depend on the arguments alone, neither on the order nor on the number of threads.
    """
    key = tf.random.experimental.stateless_fold_in(
        tf.constant([seed, 0], tf.int64), epoch, alg="philox"
    )
    key = tf.random.experimental.stateless_fold_in(key, image_id, alg="philox")
    return tf.random.stateless_uniform(
        [3, 2], key, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )


def _features(
    record: Tensors, geometry: augment.Geometry, canvas: tf.Tensor, config: DataConfig
) -> Tensors:
    image = augment.render_image(decode_image(record, config.exif), geometry, canvas)
    return {
        "image": _set_canvas_shape(image, config),
        "image_id": record["image_id"],
        "image_info": geometry.image_info,
    }


def _set_canvas_shape(image: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """Makes the shape static, as far as there is one canvas only."""
    canvases = set(config.canvas_sizes)
    return tf.ensure_shape(image, [*(canvases.pop() if len(canvases) == 1 else (None, None)), 3])


def _ground_truths(record: Tensors, geometry: augment.Geometry, config: DataConfig) -> Tensors:
    """The instances to learn: no crowds, visible, as many as there is room for.

    Returns:
        gt_boxes float32 [n, 4], gt_classes int32 [n] and, with masks, gt_masks uint8 [n, M, M]
        and gt_areas float32 [n], and with polygons gt_polygons float32 [n, V, 2] and
        gt_polygon_parts int32 [n, V], for the n <= G largest instances in the record's order.
    """
    windows = augment.clip_to_source(record["boxes"], geometry)
    boxes = augment.map_boxes(windows, geometry)
    kept = ~record["is_crowd"] & tf.reduce_all(boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE, axis=1)
    sizes = tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    if "run_lengths" in record:
        masks = (record["run_lengths"], record["num_runs"], record["height"], record["width"])
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
    return truths


def _largest(sizes: tf.Tensor, kept: tf.Tensor, count: int) -> tf.Tensor:
    """Indices of at most `count` instances that are kept, the largest, ascending: int64 [n]."""
    candidates = tf.where(kept)[:, 0]
    order = tf.argsort(tf.gather(sizes, candidates), direction="DESCENDING", stable=True)
    return tf.sort(tf.gather(candidates, order[:count]))


def _rpn_targets(
    gt_boxes: tf.Tensor,
    crowd_boxes: tf.Tensor,
    canvas_index: tf.Tensor,
    valid: tf.Tensor,
    config: DataConfig,
    seed: tf.Tensor,
) -> RpnTargets:
    """Matches the anchors of the canvas that the image is on; `valid` int64 [2] is its size."""
    if config.rpn_negative_area == "padded":
        valid = -(-valid // PADDING_MULTIPLE) * PADDING_MULTIPLE
    area = tf.cast(valid, tf.float32)

    def match_on(canvas: tuple[int, int]) -> RpnTargets:
        return match_and_sample(
            gt_boxes,
            crowd_boxes,
            AnchorGrid.from_config(config, canvas),
            seed,
            positive_iou=config.rpn_positive_iou,
            negative_iou=config.rpn_negative_iou,
            num_samples=config.rpn_samples_per_image,
            positive_fraction=config.rpn_positive_fraction,
            ignore_crowds=config.rpn_ignore_crowds,
            forced_match=config.rpn_forced_match,
            negative_area=None if config.rpn_negative_area == "canvas" else area,
        )

    if len(config.canvas_sizes) == 1:
        return match_on(config.canvas_sizes[0])
    branches = [lambda canvas=canvas: match_on(canvas) for canvas in config.canvas_sizes]
    return tf.switch_case(tf.cast(canvas_index, tf.int32), branches)


def _pad(values: tf.Tensor, length: int) -> tf.Tensor:
    """Extends the first axis to `length` with zeros."""
    zeros = tf.zeros([length - tf.shape(values)[0], *values.shape[1:]], values.dtype)
    return tf.ensure_shape(tf.concat([values, zeros], axis=0), [length, *values.shape[1:]])
