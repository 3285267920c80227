"""What travels with an exported model: its settings and classes, as metadata.json.

In a SavedModel the file lies in assets.extra/, beside an OpenVINO model in its folder, in a .tflite
file at its end, as a zip archive that LiteRT passes over.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data import files
from trainer.categories import Category
from trainer.config import Params
from trainer.flags import list_settings, settings_of
from trainer.named_settings import choose_settings

FILE = "metadata.json"
ASSETS = "assets.extra"
# What the network's outputs are called outside, where "detection" goes without saying.
NAMES = {
    "num_detections": "num_detections",
    "detection_boxes": "boxes",
    "detection_classes": "classes",
    "box_scores": "box_scores",
    "mask_ious": "mask_ious",
    "mask_scores": "mask_scores",
    "detection_masks": "masks",
}

# Settings of the machine that exports, besides paths.
_PLACES = ("train_file_pattern", "eval_file_pattern", "proposals_file", "data_service")


def choose_canvas(params: Params) -> Params:
    """The settings of the export: float32, one view, and the canvas of `--canvas`."""
    canvas = params.train.canvas or params.data.canvases[0]
    data = dataclasses.replace(params.data, canvases=(canvas,), test_scales=(1.0,), test_flip=False)
    model = dataclasses.replace(params.model, precision="float32", jit_compile=False)
    return dataclasses.replace(params, data=data, model=model)


def describe(params: Params, categories: Sequence[Category]) -> dict[str, Any]:
    """What metadata.json says."""
    (canvas,) = params.data.canvas_sizes
    values = settings_of(params)
    return {
        "input": {
            "height": canvas[0],
            "width": canvas[1],
            "dtype": "uint8",
            "colours": "RGB",
            "pixel_mean": params.model.pixel_mean,
            "padding": "pixel_mean, rounded; the image lies at the top left",
        },
        "categories": [dict(category) for category in categories],
        "settings": {
            setting.name: values[setting.name]
            for setting in list_settings()
            if setting.part != "train" and not setting.is_path and setting.name not in _PLACES
        },
    }


def write_metadata(folder: str, metadata: Mapping[str, Any]) -> None:
    """Writes metadata.json into a folder."""
    with files.whole_file(os.path.join(folder, FILE)) as file:
        json.dump(metadata, file, indent=1, ensure_ascii=False)


def read_metadata(folder: str) -> dict[str, Any]:
    """Reads the metadata.json of a folder."""
    with files.open_file(os.path.join(folder, FILE)) as file:
        return json.load(file)


def parse_metadata(metadata: Mapping[str, Any]) -> tuple[Params, tuple[Category, ...]]:
    """Settings and classes; raises KeyError, TypeError or ValueError where they are none."""
    return choose_settings(metadata["settings"]), tuple(metadata["categories"])


def add_metadata(content: bytes, metadata: Mapping[str, Any]) -> bytes:
    """The content of a .tflite file with metadata.json at its end."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(FILE, json.dumps(metadata, indent=1, ensure_ascii=False))
    return file.getvalue()


def find_on_canvas(
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]], mean: Sequence[float]
) -> Callable[[Mapping[str, Any]], dict[str, np.ndarray]]:
    """What finds the objects in one image on a canvas by a network that takes whole canvases.

    Args:
        run: maps uint8 [1, H, W, 3] to the outputs of `serving_default`.
        mean: as for `fill_canvas`.
    """

    def detect(features: Mapping[str, Any]) -> dict[str, np.ndarray]:
        found = run(fill_canvas(features, mean))
        outputs = {inner: found[outer] for inner, outer in NAMES.items() if outer in found}
        # The network takes the whole canvas for the image.
        limits = np.tile(np.asarray(features["image_info"])[:, None, :2], 2)
        boxes = outputs["detection_boxes"]
        outputs["detection_boxes"] = np.clip(boxes, 0.0, limits)
        if "detection_masks" in outputs:
            (masks,) = outputs["detection_masks"]
            masks = crop_masks(masks, boxes[0], outputs["detection_boxes"][0])
            outputs["detection_masks"] = masks[None]
        return _without_empty_boxes(outputs)

    return detect


def crop_masks(masks: np.ndarray, boxes: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Resamples masks, each over its box, to the part of the box that is kept.

    Cells are interpolated linearly between their centres.

    Args:
        masks: float32 [N, M, M], probabilities over `boxes`.
        boxes: float32 [N, 4].
        parts: float32 [N, 4], within them; where they are equal, masks stay as they are.

    Returns:
        float32 [N, M, M], probabilities over `parts`.
    """
    cut = np.flatnonzero((parts != boxes).any(axis=1))
    cropped, count = np.array(masks), masks.shape[1]
    masks, boxes, parts = masks[cut], boxes[cut], parts[cut]
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
    starts = (parts[:, :2] - boxes[:, :2]) / sides
    steps = (parts[:, 2:] - parts[:, :2]) / sides
    centres = (np.arange(count) + 0.5) / count
    # [N, 2, M], in cells of the masks
    places = (starts[..., None] + steps[..., None] * centres) * count - 0.5
    distances = np.abs(np.clip(places, 0, count - 1)[..., None] - np.arange(count))
    weights = np.maximum(1.0 - distances, 0.0)
    cropped[cut] = np.einsum("nij,njk,nlk->nil", weights[:, 0], masks, weights[:, 1])
    return cropped


def _without_empty_boxes(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The detections in one image, without boxes that lay outside it."""
    boxes = outputs["detection_boxes"][0]
    kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    found = {name: value[:, kept] for name, value in outputs.items() if value.ndim > 1}
    return found | {"num_detections": np.array([len(kept)], np.int32)}


def fill_canvas(features: Mapping[str, Any], mean: Sequence[float]) -> np.ndarray:
    """Fills the canvas around an image with the network's mean colour: uint8 [1, H, W, 3].

    For `serving_default`, which is not told how much of the canvas the image covers: what the
    network subtracts its mean from becomes nearly 0, as the padding of an image is otherwise.

    Args:
        features: `image` uint8 [1, H, W, 3] and `image_info` float32 [1, 5].
        mean: of red, green and blue, 0 to 255.
    """
    image = np.array(features["image"])
    height, width = np.asarray(features["image_info"])[0, :2].astype(int)
    image[:, height:] = image[:, :, width:] = np.round(mean).astype(np.uint8)
    return image
