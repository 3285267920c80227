"""Masks of any origin, prepared for the MaskIoU head.

Axes: N masks, h w rows and columns of an image, M side of a mask over its box.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

# Masks are padded to a multiple of this number, so that graphs are traced for few numbers of them.
_TOGETHER = 32


class GivenMasks(NamedTuple):
    """Masks over the smallest boxes around them; empty ones have boxes without area."""

    boxes: np.ndarray  # float32 [N, 4], pixels of the image
    classes: np.ndarray  # int32 [N]
    cells: np.ndarray  # float32 [N, M, M], the share of each cell that the mask covers

    def padded(self) -> GivenMasks:
        """Returns them with empty masks at the end, up to a multiple of 32."""
        missing = -len(self.classes) % _TOGETHER
        return GivenMasks(*(np.pad(v, [(0, missing), *[(0, 0)] * (v.ndim - 1)]) for v in self))


def prepare_masks(
    masks: np.ndarray | Sequence[np.ndarray],
    classes: Sequence[int],
    size: tuple[int, int],
    mask_size: int,
) -> GivenMasks:
    """Turns masks of an image into what the MaskIoU head sees of its own.

    Args:
        masks: N arrays [h, w], not 0 where the mask is.
        classes: N labels.
        size: h, w of the image.
        mask_size: M.

    Raises:
        ValueError: a mask has another size, or there are more or fewer classes than masks.
    """
    if len(masks) != len(classes):
        raise ValueError(f"there are {len(masks)} masks but {len(classes)} classes.")
    boxes = np.zeros([len(masks), 4], np.float32)
    cells = np.zeros([len(masks), mask_size, mask_size], np.float32)
    for index, mask in enumerate(masks):
        if np.shape(mask) != size:
            raise ValueError(
                f"a mask of {list(np.shape(mask))} does not fit an image of {list(size)} pixels."
            )
        covered = np.asarray(mask) != 0
        if covered.any():
            boxes[index], cells[index] = rasterise(covered, mask_size)
    return GivenMasks(boxes, np.asarray(classes, np.int32), cells)


def require_classes(classes: Collection[int], known: Collection[int]) -> None:
    """Raises a ValueError if a label is not among the known ones."""
    if unknown := set(map(int, classes)) - set(known):
        raise ValueError(f"there is no class {min(unknown)}; the classes are {sorted(known)}.")


def rasterise(mask: np.ndarray, mask_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Averages a mask over the cells of the smallest box around it.

    Args:
        mask: bool [h, w], not empty.
        mask_size: M.

    Returns:
        The box, float32 [4] as y1, x1, y2, x2 in pixels, and the covered share of each of its equal
        cells, float32 [M, M].
    """
    ends = []
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(axis=axis))
        ends.append((int(places[0]), int(places[-1]) + 1))
    (top, bottom), (left, right) = ends
    rows, columns = (_overlaps(stop - start, mask_size) for start, stop in ends)
    cells = rows @ mask[top:bottom, left:right].astype(np.float32) @ columns.T
    return np.array([top, left, bottom, right], np.float32), cells


def _overlaps(pixels: int, cells: int) -> np.ndarray:
    """The share of each of equal cells that each pixel of a row covers: float32 [cells, pixels]."""
    edges = np.linspace(0, pixels, cells + 1)
    first, last = edges[:-1, None], edges[1:, None]
    pixel = np.arange(pixels)[None]
    covered = np.minimum(last, pixel + 1) - np.maximum(first, pixel)
    return (np.maximum(covered, 0) * cells / pixels).astype(np.float32)
