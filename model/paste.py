"""Pastes the predicted mask of a RoI into its image and encodes it as COCO run lengths.

Both rules sample the M x M probabilities bilinearly at the centres of image pixels:

- "exact" (Detectron2, mmdetection): the probabilities are stretched over the box, with zeros
  outside. Pixel (y, x) has its centre at (y + 0.5, x + 0.5), which corresponds to mask row (y + 0.5
  - y1) / (y2 - y1) * M - 0.5, columns likewise. A pixel is set if its probability is at least the
  threshold.
- "integer" (the authors, torchvision, the first Detectron): a border of zeros extends the mask to M
  + 2 cells on a side, the box is enlarged accordingly, its corners are truncated to whole pixels,
  and the mask is resized to the pixels from the first corner to the second, both included. A pixel
  is set if its probability is above the threshold.

Bilinear sampling is separable, so pasting is rows [h, M] @ mask [M, M] @ columns [M, w], computed
only for the pixels around the box.

Axes: M mask side; H, W image; h, w the window of the image that the mask can affect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask


class Window(NamedTuple):
    """The part of a pasted mask that may be set; everything outside it is 0.

    Attributes:
        pixels: uint8 [h, w], 0 or 1, or float32 probabilities; h or w is 0 if the box is outside
            the image.
        top: image row of the first window row.
        left: image column of the first window column.
    """

    pixels: np.ndarray
    top: int
    left: int

    def in_image(self, height: int, width: int) -> np.ndarray:
        """Returns the whole image [H, W], zeros outside the window."""
        image = np.zeros((height, width), self.pixels.dtype)
        rows, columns = self.pixels.shape
        image[self.top : self.top + rows, self.left : self.left + columns] = self.pixels
        return image


def _exact_weights(start: float, stop: float, size: int, mask_side: int) -> tuple[int, np.ndarray]:
    """Computes bilinear weights along one axis: first pixel, and float32 [pixels, M].

    The M values are stretched over [start, stop); pixels more than half a cell outside are affected
    by the zero padding only and are left out.
    """
    if not stop > start:
        return 0, np.zeros((0, mask_side), np.float32)
    margin = (stop - start) / mask_side / 2
    first = int(np.clip(np.floor(start - margin), 0, size))
    last = int(np.clip(np.ceil(stop + margin), first, size))
    centres = np.arange(first, last) + 0.5
    cells = (centres - start) / (stop - start) * mask_side - 0.5
    distances = np.abs(cells[:, None] - np.arange(mask_side))
    return first, np.maximum(1 - distances, 0).astype(np.float32)


def _integer_weights(
    start: float, stop: float, size: int, mask_side: int
) -> tuple[int, np.ndarray]:
    """Computes the same weights for the rule "integer".

    Uses float32 and the references' order of operations, because truncation turns an ulp into a
    pixel.
    """
    if not stop >= start:
        return 0, np.zeros((0, mask_side), np.float32)
    start, stop = np.float32(start), np.float32(stop)
    half = (stop - start) * np.float32(0.5) * np.float32((mask_side + 2) / mask_side)
    centre = (stop + start) * np.float32(0.5)
    low, high = int(centre - half), int(centre + half)
    pixels = high - low + 1
    first = min(max(low, 0), size)
    last = min(max(high + 1, first), size)
    centres = np.arange(first - low, last - low, dtype=np.float32) + np.float32(0.5)
    cells = centres * np.float32((mask_side + 2) / pixels) - np.float32(0.5)
    # The outermost cells are the border of zeros, so pixels beyond their centres are 0.
    distances = np.abs(cells[:, None] - np.arange(1, mask_side + 1, dtype=np.float32))
    return first, np.maximum(1 - distances, 0)


_WEIGHTS = {"exact": _exact_weights, "integer": _integer_weights}


def paste_probabilities(
    mask: np.ndarray, box: np.ndarray, height: int, width: int, rule: str = "exact"
) -> Window:
    """Pastes one mask without a threshold, returning only the window that it can affect.

    Args:
        mask: float [M, M], probabilities over the box.
        box: float [4], (y1, x1, y2, x2) in pixels of the image; may extend beyond its border.
        height: H of the image, pixels.
        width: W of the image, pixels.
        rule: "exact", in which a box without area gives an empty window, or "integer", in which
            only an inverted box does.

    Returns:
        The window with float32 probabilities.
    """
    y1, x1, y2, x2 = (float(side) for side in box)
    top, rows = _WEIGHTS[rule](y1, y2, height, mask.shape[0])
    left, columns = _WEIGHTS[rule](x1, x2, width, mask.shape[1])
    return Window(rows @ mask.astype(np.float32) @ columns.T, top, left)


def paste_window(
    mask: np.ndarray,
    box: np.ndarray,
    height: int,
    width: int,
    threshold: float = 0.5,
    rule: str = "exact",
) -> Window:
    """Pastes one mask, returning only the window of the image that it can affect.

    Args:
        mask, box, height, width, rule: as for `paste_probabilities`.
        threshold: a pixel is set if its probability is at least this ("exact") or above it
            ("integer").

    Returns:
        The window with uint8 pixels, 0 or 1.
    """
    soft = paste_probabilities(mask, box, height, width, rule)
    is_set = soft.pixels >= threshold if rule == "exact" else soft.pixels > threshold
    return soft._replace(pixels=is_set.astype(np.uint8))


def paste_mask(
    mask: np.ndarray,
    box: np.ndarray,
    height: int,
    width: int,
    threshold: float = 0.5,
    rule: str = "exact",
) -> np.ndarray:
    """Pastes one mask into an image: uint8 [H, W], 0 or 1. Arguments as in `paste_window`."""
    return paste_window(mask, box, height, width, threshold, rule).in_image(height, width)


def encode_window(window: Window, height: int, width: int) -> dict:
    """Encodes a window of an otherwise empty image as COCO's compressed RLE.

    The result equals pycocotools' for the whole image, but the cost grows with the window only.

    Returns:
        {"size": [H, W], "counts": str}.
    """
    columns = window.pixels.T.astype(np.int8)
    edges = np.diff(np.pad(columns, ((0, 0), (1, 1))))
    column, row = np.nonzero(edges == 1)
    starts = (window.left + column) * height + window.top + row
    column, row = np.nonzero(edges == -1)
    stops = (window.left + column) * height + window.top + row
    # A run that reaches the bottom continues at the top of the next column.
    joined = starts[1:] == stops[:-1]
    starts = np.delete(starts, np.flatnonzero(joined) + 1)
    stops = np.delete(stops, np.flatnonzero(joined))
    bounds = np.stack([starts, stops], axis=1).ravel()
    counts = np.diff(np.concatenate([[0], bounds, [height * width]])).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    return encode_counts(counts, height, width)


def encode_counts(counts: Sequence[int], height: int, width: int) -> dict:
    """Encodes run lengths (column by column, zeros first) as COCO's compressed RLE.

    Returns:
        {"size": [H, W], "counts": str}.
    """
    size = [height, width]
    rle = coco_mask.frPyObjects({"size": size, "counts": list(counts)}, height, width)
    return {"size": size, "counts": rle["counts"].decode("ascii")}


def encode_rle(mask: np.ndarray) -> dict:
    """Encodes a binary mask [H, W] as COCO's compressed RLE {"size": [H, W], "counts": str}."""
    height, width = mask.shape
    return encode_window(Window(np.asarray(mask != 0, np.uint8), 0, 0), height, width)


def paste_rle(
    mask: np.ndarray,
    box: np.ndarray,
    height: int,
    width: int,
    threshold: float = 0.5,
    rule: str = "exact",
) -> dict:
    """Pastes one mask and encodes it: arguments as in `paste_window`, result as `encode_rle`."""
    return encode_window(paste_window(mask, box, height, width, threshold, rule), height, width)
