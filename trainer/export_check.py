"""Compares an exported model with TensorFlow, before it counts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from data import boxes as box_ops
from data.errors import UserError
from data.examples import lay_out
from data.photographs import read_photograph
from trainer.config import Params
from trainer.exported import fill_canvas


class Tolerance(NamedTuple):
    """How far an export may differ from TensorFlow.

    Attributes:
        score: largest difference of a box score.
        share: least share of TensorFlow's boxes that it finds.
    """

    score: float
    share: float


# Whether 8 bits suffice for a network is said by its AP (`tools/evaluate_export.py`).
TOLERANCES = {
    "float32": Tolerance(1e-3, 0.99),
    "float16": Tolerance(2e-2, 0.9),
    "bfloat16": Tolerance(0.1, 0.5),
    "dynamic": Tolerance(1.0, 0.01),
    "int8": Tolerance(1.0, 0.01),
}


def read_image(path: str, params: Params) -> np.ndarray:
    """An image on the canvas, uint8 [1, H, W, 3]: of a file, or noise without one.

    Raises:
        UserError: the file cannot be read as an image.
    """
    (canvas,) = params.data.canvas_sizes
    if not path:
        return np.random.default_rng(0).integers(0, 256, [1, *canvas, 3], np.uint8)
    features = lay_out(read_photograph(path, params.data.exif), params.data)
    features = {name: value.numpy()[None] for name, value in features.items()}
    return fill_canvas(features, params.model.pixel_mean)


def find_expected(function: Callable, image: np.ndarray) -> dict[str, np.ndarray]:
    """What TensorFlow finds in an image; warns where that is nothing."""
    expected = {name: value.numpy() for name, value in function(image).items()}
    if not expected["num_detections"].any():
        print(
            "Warning: TensorFlow finds nothing in the image that the files are compared on; name "
            "one with objects by --check_image.",
            file=sys.stderr,
        )
    return expected


def compare(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], precision: str, what: str
) -> str:
    """Compares what an exported model finds in an image with what TensorFlow finds.

    Args:
        found, expected: by the names of the outputs.
        precision: a key of `TOLERANCES`.
        what: the model, for messages.

    Returns:
        How far they agree, for the user.

    Raises:
        UserError: it finds nothing where TensorFlow does, lacks an output, or differs too much.
    """
    tolerance = TOLERANCES[precision]
    if missing := expected.keys() - found.keys():
        raise UserError(f"{what} lacks the outputs {', '.join(sorted(missing))}.")
    if expected["num_detections"].any() and not found["num_detections"].any():
        raise UserError(f"{what} finds nothing where TensorFlow finds something.")
    share = _share_found(found, expected)
    if share < tolerance.share:
        raise UserError(f"{what} finds only {share:.0%} of the boxes that TensorFlow finds.")
    difference = float(np.abs(found["box_scores"] - expected["box_scores"]).max())
    if not difference <= tolerance.score:
        raise UserError(f"{what} has scores that differ from TensorFlow's by {difference:.2g}.")
    return f"it finds {share:.0%} of TensorFlow's boxes; scores differ by at most {difference:.1g}."


def _share_found(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The share of the expected boxes that overlap a found one of their class by half."""
    count = int(expected["num_detections"][0])
    ious = box_ops.iou(expected["boxes"][0, :count, None], found["boxes"][0, None]).numpy()
    same = expected["classes"][0, :count, None] == found["classes"][0, None]
    return float(((ious > 0.5) & same).any(axis=1).mean()) if count else 1.0
