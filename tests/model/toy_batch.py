"""A synthetic batch and the smallest settings that exercise the whole network."""

import numpy as np
import tensorflow as tf

from data.anchors import AnchorGrid
from data.config import DataConfig
from model.config import ModelConfig
from trainer.config import Params

CANVAS = (64, 64)
NUM_CLASSES = 4


def toy_params(seed: int = 0, **model) -> Params:
    """Settings of a narrow network on a 64 x 64 canvas; `model` overrides those of the network."""
    settings = {
        "num_classes": NUM_CLASSES,
        "backbone": "resnet18",
        "norm": "gn",
        "freeze_at": 0,
        "fpn_channels": 32,
        "head_dim": 32,
        "mask_size": 8,
        "rois_per_image": 24,
        "rpn_pre_nms_train": 30,
        "rpn_post_nms_train": 20,
        "rpn_pre_nms_test": 30,
        "rpn_post_nms_test": 20,
        "detections_per_image": 6,
    }
    config = ModelConfig(**(settings | model))
    sizes = (8.0, 16.0, 32.0, 64.0, 128.0) if config.has_pyramid else (8.0, 16.0, 32.0)
    levels = (2, 3, 4, 5, 6) if config.has_pyramid else (4,)
    data = DataConfig(
        canvases=("64x64",), anchor_levels=levels, anchor_sizes=sizes, seed=seed, max_proposals=7
    )
    return Params(data=data, model=config)


def toy_features(batch: int = 2, seed: int = 0) -> dict[str, tf.Tensor]:
    """Noise images of which the last 4 rows and 8 columns are padding."""
    rng = np.random.default_rng(seed)
    height, width = CANVAS
    info = np.array([height - 4, width - 8, 1.0, height - 4, width - 8], np.float32)
    return {
        "image": tf.constant(rng.integers(0, 256, (batch, height, width, 3)), tf.uint8),
        "image_id": tf.range(10, 10 + batch, dtype=tf.int64),
        "image_info": tf.constant(np.tile(info, (batch, 1))),
    }


def toy_proposals(labels: dict[str, tf.Tensor], seed: int = 0) -> dict[str, tf.Tensor]:
    """Five external proposals an image, two of them near its first objects, and two empty slots."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((labels["gt_boxes"].shape[0], 7, 4), np.float32)
    corners = rng.uniform(0, 30, (len(boxes), 5, 2))
    boxes[:, :5] = np.concatenate([corners, corners + rng.uniform(8, 26, corners.shape)], axis=2)
    boxes[:, :2] = labels["gt_boxes"][:, :2] + 1.0
    return {"proposals": tf.constant(boxes)}


def toy_polygons(labels: dict[str, tf.Tensor], corners: int = 16) -> dict[str, tf.Tensor]:
    """The discs of `toy_labels` as polygons, with room for four more vertices."""
    angles = np.linspace(0, 2 * np.pi, corners + 1)
    circle = np.stack([np.sin(angles), np.cos(angles)], axis=-1) / 2 + 0.5
    boxes = labels["gt_boxes"].numpy()[:, :, None]
    points = boxes[..., :2] + circle * (boxes[..., 2:] - boxes[..., :2])
    room = [[0, 0], [0, 0], [0, 4]]
    return {
        "gt_polygons": tf.constant(np.pad(points, [*room, [0, 0]]), tf.float32),
        "gt_polygon_parts": tf.constant(np.pad(np.ones(points.shape[:3], np.int32), room)),
    }


def toy_labels(batch: int = 2, num_objects: int = 2, seed: int = 0) -> dict[str, tf.Tensor]:
    """Discs of which each fills its box, and random RPN samples."""
    rng = np.random.default_rng(seed)
    slots, side, samples = 3, 28, 32
    centre = np.arange(side) - (side - 1) / 2
    disc = np.hypot(centre[:, None], centre[None, :]) <= side / 2
    boxes = np.zeros((batch, slots, 4), np.float32)
    classes = np.zeros((batch, slots), np.int32)
    for image in range(batch):
        for index in range(num_objects):
            size = rng.uniform(14, 40, 2)
            corner = rng.uniform(0, np.array([60, 56]) - size)
            boxes[image, index] = [*corner, *(corner + size)]
            classes[image, index] = rng.integers(1, NUM_CLASSES)
    present = classes > 0
    masks = np.where(present[..., None, None], disc, False).astype(np.uint8)
    sides = boxes[..., 2:] - boxes[..., :2]
    num_anchors = AnchorGrid.from_config(toy_params().data, CANVAS).num_anchors
    return {
        "gt_boxes": tf.constant(boxes),
        "gt_classes": tf.constant(classes),
        "gt_masks": tf.constant(masks),
        "gt_areas": tf.constant(masks.mean((2, 3)) * sides.prod(-1), tf.float32),
        "rpn_indices": tf.constant(rng.integers(0, num_anchors, (batch, samples)), tf.int32),
        "rpn_labels": tf.constant(
            rng.integers(-1, 2 if num_objects else 1, (batch, samples)), tf.int32
        ),
        "rpn_deltas": tf.constant(rng.normal(0, 0.1, (batch, samples, 4)), tf.float32),
        "sample_seeds": tf.constant(rng.integers(0, 2**31 - 1, (batch, 2)), tf.int32),
    }
