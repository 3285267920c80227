"""Object proposals from files, for systems that do not make their own.

A file is in COCO results format: a JSON list of {"image_id", "bbox": [x, y, width, height],
"score"}, in any order; category_id and other keys are ignored. A file whose name ends in .gz is
compressed with gzip.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import re
import sys
from collections.abc import Iterator
from typing import TextIO

import numpy as np
import tensorflow as tf

from data import files
from data.errors import UserError
from data.numbers import is_finite_number, is_integer
from data.record_files import RecordFiles
from data.records import parse_image_id, parse_sizes

_BLOCK = 1 << 24  # characters read at a time
_RECORDS_AT_A_TIME = 512
# What separates two entries; within an entry, "}" and "," are followed by a key.
_BETWEEN_ENTRIES = re.compile(r"}\s*,\s*{")
_IDS_NAMED = 3
# Rounding of boxes that end at the border is no reason to complain.
_SLACK = 1.0


class ProposalFile:
    """The best proposals of each image in one or several files.

    Args:
        path: the file, or a comma-separated list of files.
        max_proposals: how many of an image are kept, those with the highest scores; of equal ones
            the first.

    Raises:
        UserError: the file cannot be read, or an entry is no proposal.

    Attributes:
        path: the file or files.
        image_ids: int64 [I], ascending.
        starts: int64 [I + 1], where the boxes of each image begin.
        boxes: float32 [N, 4], y1, x1, y2, x2 in pixels of the original image, an image's by
            descending score.
    """

    def __init__(self, path: str, max_proposals: int):
        self.path = path
        blocks = [block for each in list_proposal_files(path) for block in _read_blocks(each)]
        ids, boxes, scores = (np.concatenate(column) for column in zip(*blocks, strict=True))
        order = np.lexsort((-scores, ids))
        ids = ids[order]
        self.image_ids, firsts, counts = np.unique(ids, return_index=True, return_counts=True)
        rank = np.arange(len(ids)) - np.repeat(firsts, counts)
        kept = rank < max_proposals
        self.starts = np.concatenate([[0], np.cumsum(np.minimum(counts, max_proposals))])
        self.boxes = boxes[order][kept]
        # Captured by input graphs; constants in them may not exceed 2 GB.
        with tf.init_scope():
            self._tensors = [
                tf.constant(array) for array in (self.image_ids, self.starts, self.boxes)
            ]

    def find(self, image_id: tf.Tensor) -> tf.Tensor:
        """Returns the boxes of an image, int64 []: float32 [n, 4], by descending score."""
        ids, starts, boxes = self._tensors
        place = tf.searchsorted(ids, image_id[None])[0]
        is_here = tf.gather(ids, tf.minimum(place, len(self.image_ids) - 1)) == image_id
        start = tf.gather(starts, place)
        stop = tf.where(is_here, tf.gather(starts, tf.minimum(place + 1, len(ids))), start)
        return boxes[start:stop]

    def check(self, records: RecordFiles, pattern: str) -> None:
        """Compares the proposals with the images of records, all of which it reads.

        It warns of images without proposals and of boxes that end outside their image.

        Raises:
            UserError: no image has proposals, or a box has no part in its image.
        """
        ids, sizes = _read_images(records)
        known = np.isin(ids, self.image_ids)
        if not known.any():
            raise UserError(
                f"--proposals_file={self.path} has no proposals for any image of {pattern}: give "
                "the one that was made from these images."
            )
        if not known.all():
            missing = ids[~known]
            print(
                f"Warning: {len(missing)} of {len(ids)} images of {pattern} have no proposals in "
                f"{self.path}, so nothing can be found in them: image id "
                f"{_name_some(missing)}.",
                file=sys.stderr,
            )
        self._check_boxes(ids[known], sizes[known])

    def _check_boxes(self, ids: np.ndarray, sizes: np.ndarray) -> None:
        places = np.searchsorted(self.image_ids, ids)
        counts = self.starts[places + 1] - self.starts[places]
        row = np.repeat(np.arange(len(ids)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        boxes = self.boxes[self.starts[places][row] + within]
        limits = sizes[row]
        outside = (boxes[:, :2] >= limits).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
        beyond = (boxes[:, 2:] > limits + _SLACK).any(axis=1) | (boxes[:, :2] < -_SLACK).any(axis=1)
        if outside.any():
            first = int(np.argmax(outside))
            height, width = limits[first]
            raise UserError(
                f"{self.path}: a box of image id {ids[row[first]]} lies outside the image of "
                f"{width} x {height} pixels (y1, x1, y2, x2 = {boxes[first].tolist()}): make the "
                "proposals from the same images."
            )
        if beyond.any():
            print(
                f"Warning: {int(beyond.sum())} boxes of {self.path} end outside their image and "
                f"are clipped: image id {_name_some(np.unique(ids[row[beyond]]))}.",
                file=sys.stderr,
            )


def list_proposal_files(path: str) -> list[str]:
    """Returns the files that `--proposals_file` names."""
    return [files.expand(each.strip()) for each in path.split(",")]


def open_proposals(path: str, max_proposals: int) -> ProposalFile:
    """Reads files once in the life of the program, as long as they do not change."""
    states = []
    for each in list_proposal_files(path):
        with files.os_errors(each):
            states.append(files.state(each))
    return _open_proposals(path, max_proposals, tuple(states))


@functools.lru_cache(maxsize=1)
def _open_proposals(path: str, max_proposals: int, states: tuple) -> ProposalFile:
    return ProposalFile(path, max_proposals)


def _read_images(records: RecordFiles) -> tuple[np.ndarray, np.ndarray]:
    """Reads ids int64 [n] and sizes int64 [n, 2] of all images."""

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.map_fn(parse_image_id, serialized, tf.int64), parse_sizes(serialized)

    blocks = records.read().batch(_RECORDS_AT_A_TIME).map(parse, tf.data.AUTOTUNE)
    ids, sizes = zip(*blocks.as_numpy_iterator(), strict=True)
    return np.concatenate(ids), np.concatenate(sizes)


def _read_blocks(path: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Reads ids int64 [n], boxes float32 [n, 4] and scores float64 [n], block by block."""
    found = 0
    try:
        with files.os_errors(path), files.open_file(path, "rb") as raw:
            opened = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
            for entries in _parse_in_blocks(io.TextIOWrapper(opened, encoding="utf-8")):
                if entries:
                    yield _to_arrays(entries, path, found)
                found += len(entries)
    except (UnicodeDecodeError, json.JSONDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise UserError(
            f"{path} is no COCO results file, a JSON list of proposals ({error}): make it with "
            "tools/selective_search.py."
        ) from error
    if not found:
        raise UserError(f"{path} has no proposals: make it with tools/selective_search.py.")


def _parse_in_blocks(file: TextIO) -> Iterator[list]:
    """Parses a JSON list of objects without holding the text of all of them."""
    rest = ""
    for block in iter(functools.partial(file.read, _BLOCK), ""):
        rest += block
        ends = [match.start() + 1 for match in _BETWEEN_ENTRIES.finditer(rest)]
        if ends:
            yield _parse_list(rest[: ends[-1]] + "]")
            rest = "[" + rest[ends[-1] :].lstrip().removeprefix(",")
    yield _parse_list(rest)


def _parse_list(text: str) -> list:
    entries = json.loads(text)
    if not isinstance(entries, list):
        raise json.JSONDecodeError("expected a list", text[:1], 0)
    return entries


def _to_arrays(entries: list, path: str, num_before: int):
    try:
        ids = np.array([entry["image_id"] for entry in entries])
        boxes = np.array([entry["bbox"] for entry in entries], np.float64)
        scores = np.array([entry["score"] for entry in entries], np.float64)
        sound = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
        sound &= np.isfinite(scores) & (ids == ids.astype(np.int64))
        if boxes.shape[1:] == (4,) and sound.all():
            corners = np.concatenate([boxes[:, 1::-1], (boxes[:, :2] + boxes[:, 2:])[:, ::-1]], 1)
            return ids.astype(np.int64), corners.astype(np.float32), scores
    except (KeyError, TypeError, ValueError, IndexError):
        pass
    number, problem = next(
        (number, problem)
        for number, entry in enumerate(entries, num_before + 1)
        if (problem := _find_problem(entry))
    )
    raise UserError(
        f"{path}: entry {number} is no proposal ({problem}): each needs image_id, bbox [x, y, "
        "width, height] and score."
    )


def _find_problem(entry: object) -> str:
    """Says what is wrong with an entry; "" if nothing is."""
    if not isinstance(entry, dict):
        return "it is no object"
    for key in ("image_id", "bbox", "score"):
        if key not in entry:
            return f"{key} is missing"
    image_id, bbox, score = entry["image_id"], entry["bbox"], entry["score"]
    if not (is_finite_number(image_id) and is_integer(int(image_id)) and image_id % 1 == 0):
        return f"image_id is {image_id!r}"
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(is_finite_number, bbox))):
        return f"bbox is {bbox!r}"
    if min(bbox[2:]) <= 0:
        return f"the box {bbox} of image id {image_id} has no area"
    return "" if is_finite_number(score) else f"score is {score!r}"


def _name_some(ids: np.ndarray) -> str:
    more = len(ids) - _IDS_NAMED
    named = ", ".join(map(str, ids[:_IDS_NAMED].tolist()))
    return f"{named} and {more} more" if more > 0 else named
