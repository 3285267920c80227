"""Reads COCO segmentations, polygons or RLEs, as exact run lengths.

A mask is represented by COCO's uncompressed run-length encoding: going through the pixels column by
column, the runs of zeros and ones are counted in turn, zeros first (the first count may be 0). The
counts add up to height * width and are lossless.

Axes: R runs of one mask, H W image height and width.
"""

from __future__ import annotations

import array
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from data.findings import InvalidAnnotation
from data.numbers import is_integer

# A compressed count holds five bits a character; seven characters hold any 32-bit difference.
_MAX_CHARACTERS = 7
# Polygons farther outside than this many image sides are a mistake, and rasterising them would need
# memory proportional to their length.
_MAX_SIDES_OUTSIDE = 100
_LEAST_POINTS = 3


def run_lengths(segmentation, height: int, width: int) -> np.ndarray:
    """Returns only the run lengths of `read_mask`: int64 [R]."""
    return read_mask(segmentation, height, width)[0]


def read_mask(segmentation, height: int, width: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Turns a COCO segmentation into the run lengths that pycocotools' `annToMask` decodes.

    Args:
        segmentation: polygons (x, y in turn, pixels), or an RLE with compressed or plain counts.
            Parts with fewer than three points are ignored if there are other polygons.
        height, width: size of the image in pixels.

    Returns:
        int64 [R] run lengths, column by column, zeros first, which add up to height * width; and
        the polygons, float64 [2 V] each, x, y in turn, none for an RLE.

    Raises:
        InvalidAnnotation: the segmentation is missing or malformed.
    """
    if segmentation is None or segmentation in ([], {}):
        raise InvalidAnnotation(
            "it has no mask (segmentation); to train on boxes only, convert with --noinclude_masks"
        )
    if isinstance(segmentation, dict):
        return _rle_run_lengths(segmentation, height, width), []
    polygons = _read_polygons(segmentation)
    _check_coordinates(polygons, reach=_MAX_SIDES_OUTSIDE * max(height, width))
    encoded = coco_mask.frPyObjects(polygons, height, width)
    merged = encoded[0] if len(encoded) == 1 else coco_mask.merge(encoded)
    return decode_counts(merged["counts"]), polygons


def _read_polygons(segmentation) -> list[np.ndarray]:
    try:
        pieces = [np.asarray(piece, np.float64) for piece in segmentation]
    except (TypeError, ValueError, OverflowError):
        pieces = []
    polygons = [piece for piece in pieces if piece.size >= 2 * _LEAST_POINTS]
    are_flat = pieces and all(piece.ndim == 1 for piece in pieces)
    if not are_flat or (not polygons and len(pieces) >= _LEAST_POINTS):
        raise InvalidAnnotation(
            "its segmentation is not a list of polygons; each polygon is one flat list x1, y1, "
            "x2, y2, …"
        )
    if not polygons:
        raise InvalidAnnotation("its polygons have fewer than three points")
    if any(polygon.size % 2 for polygon in polygons):
        raise InvalidAnnotation("a polygon's numbers are not pairs x, y")
    return polygons


def _check_coordinates(polygons: Sequence[np.ndarray], reach: float) -> None:
    for polygon in polygons:
        farthest = np.abs(polygon).max()  # NaN if there is one
        if not np.isfinite(farthest):
            raise InvalidAnnotation("a polygon's coordinates are not all finite")
        if farthest > reach:
            raise InvalidAnnotation("a polygon reaches too far outside the image")
    if all(map(is_relative, polygons)):
        raise InvalidAnnotation(
            "its polygons lie between 0 and 1, relative to the image; give pixels"
        )


def is_relative(coordinates: Sequence[float]) -> bool:
    """Whether coordinates must be relative to the image: all within one pixel, and fractional."""
    in_one_pixel = all(0 <= value <= 1 for value in coordinates)
    return in_one_pixel and any(value % 1 for value in coordinates)


def _rle_run_lengths(rle: Mapping, height: int, width: int) -> np.ndarray:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or size != [height, width]:
        raise InvalidAnnotation(
            f"the RLE's size {size!r} is not the image's [{height}, {width}] (height, width)"
        )
    if isinstance(counts, str):
        runs = decode_counts(counts)
    elif isinstance(counts, array.array | list) and all(map(is_integer, counts)):
        runs = np.array(counts, np.int64)
    else:
        raise InvalidAnnotation("the RLE's counts are neither text nor a list of integers")
    if np.any((runs < 0) | (runs > height * width)) or runs.sum() != height * width:
        raise InvalidAnnotation(
            f"the RLE's counts do not add up to the image's {height} x {width} pixels"
        )
    return runs


def decode_counts(counts: str | bytes) -> np.ndarray:
    """Decodes pycocotools' compressed counts without drawing the mask.

    Each count is a variable-length integer, five bits a character from the lowest up, offset by 48;
    bit 5 means that more follow, bit 4 of the last is the sign. From the fourth count on it is the
    difference to the second to last count (`rleFrString` in cocoapi's maskApi.c).

    Args:
        counts: the compressed text.

    Returns:
        int64 [R] run lengths.

    Raises:
        InvalidAnnotation: the text is not a valid encoding.
    """
    raw = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    codes = np.frombuffer(raw, np.uint8) - np.uint8(
        48
    )  # characters below 48 become numbers above 63
    if not codes.size or codes.max() > 63:
        raise InvalidAnnotation(
            "the RLE's compressed counts are empty or contain invalid characters"
        )
    codes = codes.astype(np.int64)
    ends = np.flatnonzero(codes < 32)
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts + 1
    if not ends.size or ends[-1] != codes.size - 1 or lengths.max() > _MAX_CHARACTERS:
        raise InvalidAnnotation("the RLE's compressed counts are truncated")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def mask_area(runs: np.ndarray) -> int:
    """Counts the pixels of a mask given as run lengths int64 [R]."""
    return int(runs[1::2].sum())


def mask_box(runs: np.ndarray, height: int) -> tuple[int, int, int, int]:
    """Finds the smallest box around the pixels of a mask that is not empty.

    Args:
        runs: int64 [R], as of `run_lengths`.
        height: of the image in pixels.

    Returns:
        y1, x1, y2, x2 in pixels; y2 and x2 are one past the last pixel.
    """
    if np.count_nonzero(runs[1::2]) < len(runs) // 2:
        runs = _without_empty_runs(runs)
    ends = np.cumsum(runs)
    left, right = int(ends[0]) // height, -(-int(ends[len(runs) // 2 * 2 - 1]) // height)
    starts = ends[:-1:2] % height  # rows in which runs of ones begin
    top, bottom = int(np.minimum.reduce(starts)), int(np.maximum.reduce(starts + runs[1::2]))
    if bottom > height:  # a run continues in the next column
        return 0, left, height, right
    return top, left, bottom, right


def _without_empty_runs(runs: np.ndarray) -> np.ndarray:
    """Removes empty runs of ones by joining the runs of zeros around them."""
    ends = np.cumsum(runs)
    first, behind = ends[:-1:2], ends[1::2]
    edges = np.stack([first, behind], axis=1)[first < behind].ravel()
    return np.diff(np.concatenate([[0], edges, ends[-1:]]))
