"""Images of noise with ground truth, for programs that do not read records.

Axes: G objects, S side of the image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tools.benchmarks import synthetic
from tools.benchmarks.peers import CLASSES, PeerSettings


class Scene(NamedTuple):
    """An image and its objects.

    Attributes:
        image: uint8 [3, S, S].
        boxes: float32 [G, 4] as x1, y1, x2, y2 in pixels.
        labels: int64 [G] from 1.
        masks: uint8 [G, S, S], an ellipse in each box.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def draw_scenes(settings: PeerSettings) -> list[Scene]:
    """Draws a batch of images."""
    rng = np.random.default_rng(settings.seed)
    return [_draw_scene(rng, settings) for _ in range(settings.batch_size)]


def draw_ellipses(boxes: np.ndarray, size: int) -> np.ndarray:
    """Draws masks of the ellipses that touch the sides of boxes: uint8 [G, S, S]."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    radii = (boxes[:, 2:] - boxes[:, :2]) / 2
    pixels = np.arange(size, dtype=np.float32) + 0.5
    across, down = np.square((pixels - centres.T[..., None]) / radii.T[..., None])
    return (across[:, None, :] + down[:, :, None] <= 1.0).astype(np.uint8)


def _draw_scene(rng: np.random.Generator, settings: PeerSettings) -> Scene:
    count, size = settings.instances or synthetic.FEW_OBJECTS, settings.image_size
    boxes = synthetic.draw_boxes(rng, count, size)[:, [1, 0, 3, 2]]
    return Scene(
        image=rng.integers(0, 256, (3, size, size), np.uint8),
        boxes=boxes,
        labels=rng.integers(1, CLASSES, count),
        masks=draw_ellipses(boxes, size),
    )
