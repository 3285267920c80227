"""The COCO files of benchmarks, and synthetic boxes, annotations and results; needs only NumPy.

Axes: G objects of an image.
"""

from __future__ import annotations

import atexit
import itertools
import json
import math
import os
import shutil
import tempfile

import numpy as np

from data.errors import UserError
from tools.benchmarks.stages import Settings

DETECTIONS_PER_IMAGE = 30
SCORED_CLASSES = 3
# Of random weights' class logits, so that scores are high enough for detections.
LOGIT_DEVIATION = 3.0
# Objects per drawn image if no number is given.
FEW_OBJECTS = 8
_BOX_SETS = 32
_VERTICES = 22


def scratch() -> str:
    """Makes a folder that is removed when the process ends."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def read_coco(settings: Settings) -> dict:
    """Reads the COCO file to use; draws its objects anew if a number per image is given.

    Raises:
        UserError: no file is given, or it cannot be read.
    """
    path = settings.object_annotations_file
    if not path:
        raise UserError("--object_annotations_file and --image_dir must name the data to use.")
    try:
        with open(path, encoding="utf-8") as file:
            coco = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from error
    if settings.instances:
        coco = draw_annotations(coco, settings.instances, np.random.default_rng(0))
    return coco


def write_coco(coco: dict) -> str:
    """Writes `coco` to a file that is removed when the process ends; returns its path."""
    path = os.path.join(scratch(), "annotations.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(coco, file)
    return path


def draw_image(size: int) -> np.ndarray:
    """Draws an image of noise: uint8 [1, size, size, 3]."""
    return np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)


def draw_features(size: int) -> dict[str, np.ndarray]:
    """Returns `draw_image` as the features of an image that fills its canvas."""
    info = np.array([[size, size, 1, size, size]], np.float32)
    return {"image": draw_image(size), "image_info": info}


def draw_boxes(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Draws boxes in pixels, small, medium and large as in COCO: float32 [count, 4]."""
    spans = np.array([[6.0, 32.0], [32.0, 96.0], [96.0, 330.0]]) * size / 640.0
    low, high = spans[rng.choice(3, count, p=[0.41, 0.34, 0.25])].T
    side = np.exp(rng.uniform(np.log(low), np.log(high)))
    stretch = np.exp(np.clip(rng.normal(0.0, 0.45, count), -1.0, 1.0) / 2)
    sides = np.minimum(np.stack([side / stretch, side * stretch], -1), 0.95 * size)
    corner = rng.uniform(0.0, 1.0, (count, 2)) * (size - sides)
    return np.concatenate([corner, corner + sides], -1).astype(np.float32)


def near_objects(boxes: np.ndarray, count: int) -> np.ndarray:
    """Copies boxes, moving each edge by up to a twentieth of the side: float32 [count, 4].

    Their IoU with the boxes, [G, 4] with G > 0, is well above 0.5.
    """
    copies = boxes[np.arange(count) % len(boxes)]
    sides = np.tile(copies[:, 2:] - copies[:, :2], 2)
    moves = np.random.default_rng(0).uniform(-0.05, 0.05, sides.shape)
    return (copies + moves * sides).astype(np.float32)


def draw_box_sets(instances: int, size: int, seed: int) -> np.ndarray:
    """Draws boxes of 32 images, `FEW_OBJECTS` each for 0 instances: float32 [32, G, 4], pixels."""
    rng = np.random.default_rng(seed)
    return np.stack([draw_boxes(rng, instances or FEW_OBJECTS, size) for _ in range(_BOX_SETS)])


def draw_annotations(coco: dict, per_image: int, rng: np.random.Generator) -> dict:
    """Returns the same images with `per_image` drawn objects each: ellipses, as polygons."""
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
    """Draws COCO results, thirty per image with objects, many of them wrong like a detector's.

    The first are the image's objects with slightly moved boxes, followed by copies with other
    classes. Segmentations are not changed.
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
