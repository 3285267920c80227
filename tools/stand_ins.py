"""What a benchmark works on so that its work is the same whatever random weights see.

Axes: B images, G objects of an image, N RoIs, K classes with the background.
"""

from __future__ import annotations

import atexit
import itertools
import json
import math
import shutil
import tempfile

import numpy as np

DETECTIONS_PER_IMAGE = 30
SCORED_CLASSES = 3
PROPOSALS_NEAR_OBJECTS = 200
_VERTICES = 22


class PinnedClasses:
    """A box head whose scores name three classes a RoI, as a trained network roughly does.

    Random weights find nothing or everything; with three scores above the threshold each, NMS and
    the mask branch have the work that they have in earnest.
    """

    def __init__(self, head):
        self._head = head

    def __call__(self, features):
        """The head's outputs on [N, 7, 7, C], its logits replaced and its deltas damped."""
        import tensorflow as tf

        outputs = self._head(features)
        count, classes = tf.shape(outputs.class_logits)[0], outputs.class_logits.shape[1]
        shape, seed = [count, SCORED_CLASSES], [1, 2]
        chosen = tf.random.stateless_uniform(shape, seed, 1, classes, tf.int32)
        heights = tf.random.stateless_uniform(shape, seed, 4.0, 6.0)
        raised = tf.reduce_max(tf.one_hot(chosen, classes) * heights[..., None], axis=1)
        return outputs._replace(
            class_logits=outputs.class_logits * 0.0 + raised - 4.0,
            box_deltas=outputs.box_deltas * 0.01,
        )


def pin_positives(network, gt_boxes):
    """Makes a network propose boxes near the objects, so that it has all positives it may have.

    Args:
        network: whose `propose` is changed.
        gt_boxes: float32 [B, G, 4] of the one batch that it will see, zeros where there is none.
    """
    import tensorflow as tf

    boxes, count = np.asarray(gt_boxes), PROPOSALS_NEAR_OBJECTS
    rng = np.random.default_rng(0)
    near = np.zeros([len(boxes), count, 4], np.float32)
    for image, objects in zip(near, boxes, strict=True):
        objects = objects[objects[:, 2] > objects[:, 0]]
        chosen = objects[np.arange(count) % max(len(objects), 1)] if len(objects) else image
        sides = np.tile(chosen[:, 2:] - chosen[:, :2], 2)
        # An edge moved by a twentieth of the side leaves an IoU well above one half.
        image[:] = chosen + rng.uniform(-0.05, 0.05, sides.shape) * sides
    propose = network.propose

    def propose_near_objects(*args, **kwargs):
        pyramid, outputs, proposals = propose(*args, **kwargs)
        pinned = tf.concat([near, proposals.boxes[:, count:]], axis=1)
        valid = tf.concat([tf.ones(near.shape[:2], tf.bool), proposals.valid[:, count:]], axis=1)
        return pyramid, outputs, proposals._replace(boxes=pinned, valid=valid)

    network.propose = propose_near_objects


def scratch() -> str:
    """A folder that goes with the process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def read_coco(path: str, instances: int) -> dict:
    """A COCO file, its objects drawn anew if a number of them an image is asked for."""
    with open(path, encoding="utf-8") as file:
        coco = json.load(file)
    if instances:
        coco = draw_annotations(coco, instances, np.random.default_rng(0))
    return coco


def draw_boxes(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Boxes with COCO's shares of small, medium and large ones: float32 [count, 4], pixels."""
    spans = np.array([[6.0, 32.0], [32.0, 96.0], [96.0, 330.0]]) * size / 640.0
    low, high = spans[rng.choice(3, count, p=[0.41, 0.34, 0.25])].T
    side = np.exp(rng.uniform(np.log(low), np.log(high)))
    stretch = np.exp(np.clip(rng.normal(0.0, 0.45, count), -1.0, 1.0) / 2)
    sides = np.minimum(np.stack([side / stretch, side * stretch], -1), 0.95 * size)
    corner = rng.uniform(0.0, 1.0, (count, 2)) * (size - sides)
    return np.concatenate([corner, corner + sides], -1).astype(np.float32)


def draw_annotations(coco: dict, per_image: int, rng: np.random.Generator) -> dict:
    """The same images with `per_image` drawn objects each: ellipses, as polygons."""
    angles = np.arange(_VERTICES) * (2 * math.pi / _VERTICES)
    circle = np.stack([np.cos(angles), np.sin(angles)], -1)
    categories = [category["id"] for category in coco["categories"]]
    annotations = []
    for image in coco["images"]:
        size = min(image["height"], image["width"])
        for y1, x1, y2, x2 in draw_boxes(rng, per_image, size).tolist():
            radii = np.array([x2 - x1, y2 - y1]) / 2
            polygon = np.array([x1 + x2, y1 + y2]) / 2 + circle * radii
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": categories[len(annotations) % len(categories)],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(math.pi * radii.prod()),
                    "iscrowd": 0,
                    "segmentation": [polygon.ravel().tolist()],
                }
            )
    return {**coco, "annotations": annotations}


def draw_results(ground_truth: dict, rng: np.random.Generator) -> list[dict]:
    """COCO results, thirty an image with objects, many of them wrong as those of a detector are.

    The first are the image's objects, their boxes moved a little; then come copies of them that
    take themselves for something else. Segmentations are as they are.
    """
    categories = [category["id"] for category in ground_truth["categories"]]
    by_image: dict[int, list[dict]] = {}
    for annotation in ground_truth["annotations"]:
        if not annotation["iscrowd"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    results = []
    for objects in by_image.values():
        for rank, annotation in enumerate(
            itertools.islice(itertools.cycle(objects), DETECTIONS_PER_IMAGE)
        ):
            mistaken = int(rng.choice(categories))
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"] if rank < len(objects) else mistaken,
                    "bbox": np.maximum(annotation["bbox"] + rng.normal(0.0, 2.0, 4), 0.5).tolist(),
                    "segmentation": annotation["segmentation"],
                    "score": float(rng.uniform()),
                }
            )
    return results
