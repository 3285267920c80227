"""Greedy matching of detections with objects, as pycocotools' COCOeval does it.

The overlaps of masks or boxes are computed once. Detections can then be matched in the order of any
of their scores, at several IoU thresholds and for COCO's area ranges at the same time.

Axes: N detections, M objects, P pairs of a detection and an object of its image that overlap, K
categories, A area ranges, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from trainer.coco_report import DETECTIONS_COUNTED

# Pixels; both ends belong to the range, as in COCO.
AREAS = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
_SHAPES = {"bbox": "bbox", "segm": "segmentation"}


class Pairs(NamedTuple):
    """Detections and objects that overlap, sorted by detection, then IoU, then object.

    detection, object: int64 [P], indices. iou: float64 [P], above 0; for crowds the share of the
    detection that the crowd covers.
    """

    detection: np.ndarray
    object: np.ndarray
    iou: np.ndarray

    def take(self, chosen: np.ndarray) -> Pairs:
        """Returns some pairs: a mask [P], or indices."""
        return Pairs(*(values[chosen] for values in self))


class Overlaps(NamedTuple):
    """Detections and objects of all images, sorted by image.

    Attributes:
        category_ids: COCO's ids, ascending; the arrays hold indices into them.
        entry: int64 [N], index of each detection in the results.
        image: int64 [N], index of its image.
        category: int64 [N].
        is_outside: bool [N, A], whether its own area is outside a range of `AREAS`.
        object_category: int64 [M].
        is_crowd: bool [M].
        is_ignored: bool [M, A], whether the object does not count: crowds, areas outside the range.
        pairs: those of the same category.
        other_pairs: those of different categories, without crowds.
    """

    category_ids: list[int]
    entry: np.ndarray
    image: np.ndarray
    category: np.ndarray
    is_outside: np.ndarray
    object_category: np.ndarray
    is_crowd: np.ndarray
    is_ignored: np.ndarray
    pairs: Pairs
    other_pairs: Pairs

    @property
    def group(self) -> np.ndarray:
        """One number for each image and category of a detection: int64 [N]."""
        return self.image * len(self.category_ids) + self.category

    def object_of(self, pair: np.ndarray) -> np.ndarray:
        """Returns the objects of some pairs, int64 of any shape; -1 for the pair -1."""
        return np.append(self.pairs.object, -1)[pair]

    def iou_of(self, pair: np.ndarray) -> np.ndarray:
        """Returns the IoUs of some pairs, float64 of any shape; 0 for the pair -1."""
        return np.append(self.pairs.iou, 0.0)[pair]

    def count_objects(self) -> np.ndarray:
        """Returns how many objects count: int64 [K, A]."""
        counts = np.zeros((len(self.category_ids), self.is_ignored.shape[1]), np.int64)
        np.add.at(counts, self.object_category, ~self.is_ignored)
        return counts

    def best_iou(self) -> np.ndarray:
        """Returns the highest IoU of each detection with an object of its category: float64 [N].

        Crowds do not count; 0 without an overlap.
        """
        pairs = self.pairs.take(~self.is_crowd[self.pairs.object])
        best = np.zeros(len(self.entry))
        np.maximum.at(best, pairs.detection, pairs.iou)
        return best


class Matches(NamedTuple):
    """What each detection is at each area range and IoU threshold.

    Attributes:
        hit: bool [N, A, T], whether it is matched with an object that counts.
        false: bool [N, A, T], whether it is matched with nothing and counts. A detection that is
            neither is ignored: it is matched with a crowd or with an object outside the area range,
            it is itself outside the range without a match, or better ones exceed COCO's limit.
        pair: int32 [N, A, T], index of the pair of the match, -1 for none.
    """

    hit: np.ndarray
    false: np.ndarray
    pair: np.ndarray


def find_overlaps(
    ground_truth: Mapping, results: Sequence[Mapping], kind: str, image_ids: Iterable[int]
) -> Overlaps:
    """Computes the overlaps of all detections with all objects.

    Args:
        ground_truth: COCO-format dict; every annotation has area and iscrowd, and with kind "segm"
            a segmentation as compressed RLE.
        results: entries in COCO results format, with bbox or segmentation (compressed RLE). Entries
            of categories that the ground truth does not list are left out.
        kind: "bbox" or "segm".
        image_ids: images of the ground truth to evaluate.
    """
    numbers = {image_id: number for number, image_id in enumerate(sorted(image_ids))}
    category_ids = sorted({category["id"] for category in ground_truth["categories"]})
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    found, image, category = _sort_by_image(results, numbers, labels)
    entries = [results[index] for index in found]
    shapes = _shapes(entries, kind)
    area = _areas(shapes, kind)
    annotations = ground_truth["annotations"]
    kept, object_image, object_category = _sort_by_image(annotations, numbers, labels)
    objects = [annotations[index] for index in kept]
    is_crowd = np.array([entry["iscrowd"] for entry in objects], bool)
    object_area = np.array([entry["area"] for entry in objects], np.float64)
    pairs = _find_pairs(shapes, image, _shapes(objects, kind), object_image, is_crowd, len(numbers))
    same = category[pairs.detection] == object_category[pairs.object]
    return Overlaps(
        category_ids=category_ids,
        entry=found,
        image=image,
        category=category,
        is_outside=_is_outside(area),
        object_category=object_category,
        is_crowd=is_crowd,
        is_ignored=is_crowd[:, None] | _is_outside(object_area),
        pairs=pairs.take(same),
        other_pairs=pairs.take(~same & ~is_crowd[pairs.object]),
    )


def match(
    overlaps: Overlaps,
    scores: np.ndarray,
    thresholds: np.ndarray,
    limit: int = DETECTIONS_COUNTED,
) -> Matches:
    """Matches detections, the best first, each with the free object that it overlaps most.

    Objects that do not count are only matched by detections that reach no other object. A crowd can
    be matched any number of times. The lists `dtMatches` and `dtIgnore` of COCOeval say the same.
    COCOeval at a threshold of 0 would also match a detection with an object that it does not touch,
    and so take the object from the detection that found it; here a match needs an IoU above 0.

    Args:
        overlaps: of N detections and M objects.
        scores: float64 [N], that detections are ranked by. Of equal ones, the earlier is first.
        thresholds: float64 [T], lowest IoU of a match.
        limit: number of detections of a category in an image; the others are ignored.
    """
    rank = _rank(scores, overlaps.group)
    pair = _match_pairs(overlaps, rank, limit, np.minimum(thresholds, 1 - 1e-10))
    hit, false = pair >= 0, pair < 0
    counts = np.append(~overlaps.is_ignored, np.zeros((1, len(AREAS)), bool), axis=0)
    for area in range(len(AREAS)):
        hit[:, area] &= counts[overlaps.object_of(pair[:, area]), area]
    false &= ((rank < limit)[:, None] & ~overlaps.is_outside)[..., None]
    return Matches(hit, false, pair)


def _sort_by_image(
    entries: Sequence[Mapping], numbers: Mapping[int, int], labels: Mapping[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the indices of the entries that count, by image, and the image and category."""
    known = [
        (index, numbers[entry["image_id"]], labels[entry["category_id"]])
        for index, entry in enumerate(entries)
        if entry["image_id"] in numbers and entry["category_id"] in labels
    ]
    index, image, category = np.array(known, np.int64).reshape(-1, 3).T
    order = np.argsort(image, kind="stable")
    return index[order], image[order], category[order]


def _shapes(entries: Sequence[Mapping], kind: str) -> list | np.ndarray:
    """Returns what pycocotools compares: a list of RLEs, or float64 [N, 4]."""
    shapes = [entry[_SHAPES[kind]] for entry in entries]
    return shapes if kind == "segm" else np.array(shapes, np.float64).reshape(-1, 4)


def _areas(shapes: list | np.ndarray, kind: str) -> np.ndarray:
    if kind == "bbox":
        return shapes[:, 2] * shapes[:, 3]
    # One at a time, because pycocotools refuses lists of more than 255.
    return np.array([coco_mask.area(shape) for shape in shapes], np.float64)


def _is_outside(area: np.ndarray) -> np.ndarray:
    """Whether areas [N] are outside the ranges: bool [N, A]."""
    lowest, highest = np.array(list(AREAS.values())).T
    return (area[:, None] < lowest) | (area[:, None] > highest)


def _find_pairs(
    shapes: list | np.ndarray,
    image: np.ndarray,
    object_shapes: list | np.ndarray,
    object_image: np.ndarray,
    is_crowd: np.ndarray,
    num_images: int,
) -> Pairs:
    numbers = np.arange(num_images + 1)
    bounds = np.searchsorted(image, numbers)
    object_bounds = np.searchsorted(object_image, numbers)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for number in np.flatnonzero(np.diff(bounds) * np.diff(object_bounds)):
        first, last = bounds[number : number + 2]
        start, stop = object_bounds[number : number + 2]
        ious = coco_mask.iou(
            shapes[first:last], object_shapes[start:stop], is_crowd[start:stop].tolist()
        )
        rows, columns = np.nonzero(ious)
        parts.append((rows + first, columns + start, ious[rows, columns]))
    pairs = Pairs(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    return pairs.take(np.lexsort((pairs.object, pairs.iou, pairs.detection)))


def _rank(scores: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Returns how many of its group rank before each detection: int64 [N]."""
    order = np.lexsort((-scores, group))
    rank = np.empty(len(scores), np.int64)
    rank[order] = _count_up(group[order])
    return rank


def _count_up(sorted_groups: np.ndarray) -> np.ndarray:
    """Counts from 0 within each run of equal values."""
    starts = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    lengths = np.diff(np.append(starts, len(sorted_groups)))
    return np.arange(len(sorted_groups)) - np.repeat(starts, lengths)


def _match_pairs(
    overlaps: Overlaps, rank: np.ndarray, limit: int, thresholds: np.ndarray
) -> np.ndarray:
    """Returns the pair that each detection is matched by: int32 [N, A, T], -1 for none.

    Round r matches the r-th overlapping detection of every category in every image at the same
    time, because they do not share objects.
    """
    pairs, num_pairs = overlaps.pairs, len(overlaps.pairs.iou)
    shape = (len(AREAS), len(thresholds))
    chosen = np.full((len(rank), *shape), -1, np.int32)
    is_free = np.ones((len(overlaps.is_crowd), *shape), bool)
    counts = ~overlaps.is_ignored[:, :, None]
    for indices, starts in _rounds(overlaps, rank, limit):
        objects = pairs.object[indices]
        can_match = is_free[objects] & (pairs.iou[indices, None, None] >= thresholds)
        # Of a detection's pairs, the last is the best. Objects that count are preferred.
        preference = indices[:, None, None] + num_pairs * counts[objects]
        best = np.maximum.reduceat(np.where(can_match, preference, -1), starts, axis=0)
        best = np.where(best < 0, -1, best % num_pairs)
        chosen[pairs.detection[indices[starts]]] = best
        matched, area, threshold = np.nonzero(best >= 0)
        taken = pairs.object[best[matched, area, threshold]]
        is_free[taken, area, threshold] = overlaps.is_crowd[taken]
    return chosen


def _rounds(overlaps: Overlaps, rank: np.ndarray, limit: int):
    """Yields for each round the indices of its pairs, and where each detection's pairs begin."""
    detection = overlaps.pairs.detection
    overlapping = np.unique(detection[rank[detection] < limit])
    order = overlapping[np.lexsort((rank[overlapping], overlaps.group[overlapping]))]
    turn = np.full(len(rank), -1, np.int64)
    turn[order] = _count_up(overlaps.group[order])
    sorted_pairs = np.argsort(turn[detection], kind="stable")
    turns = turn[detection[sorted_pairs]]
    bounds = np.searchsorted(turns, np.arange(turns[-1] + 2)) if len(turns) else np.zeros(0, int)
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        indices = sorted_pairs[first:last]
        yield indices, np.flatnonzero(np.diff(detection[indices], prepend=-1))
