"""Problems that a conversion finds: items that it leaves out, and warnings."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from data.errors import UserError

# A warning names the first few places and counts the rest.
_NUM_EXAMPLES = 5


class SkippedImages(NamedTuple):
    """The images of records that were left out because they are corrupt."""

    ids: frozenset[int] = frozenset()
    num_unknown: int = 0  # those whose ids cannot be read


NONE_SKIPPED = SkippedImages()


class InvalidAnnotation(ValueError):
    """The reason why one annotation cannot be used, as the second half of a sentence."""


class SkippedItems:
    """Collects the items that a conversion leaves out, or raises if none may be left out."""

    def __init__(self, tolerate: bool):
        self._tolerate = tolerate
        self.items: list[dict] = []

    def add_image(self, reason: str, image_id, file_name) -> None:
        """Records one image as left out; raises UserError if nothing may be left out."""
        self._add(
            f"image {image_id} ({file_name}): {reason}",
            {"image_id": image_id, "file_name": file_name, "reason": reason},
        )

    def add_annotation(self, reason: str, annotation_id, image_id) -> None:
        """Records one annotation as left out; raises UserError if nothing may be left out."""
        self._add(
            f"annotation {annotation_id} of image {image_id}: {reason}",
            {"image_id": image_id, "annotation_id": annotation_id, "reason": reason},
        )

    def _add(self, sentence: str, item: dict) -> None:
        if not self._tolerate:
            raise UserError(f"{sentence}; correct it, or use --on_invalid=skip to leave it out.")
        self.items.append(item)


def first_reason(items: Iterable[Mapping]) -> str:
    """Explains by the first of `SkippedItems.items`, images first, why nothing is left."""
    first = min(items, key=lambda item: "annotation_id" in item, default=None)
    if not first:
        return ""
    where = f"annotation {first['annotation_id']} of " if "annotation_id" in first else ""
    return f", the first because {first['reason']} ({where}image {first['image_id']})"


class Warnings:
    """Doubtful items that are converted, by kind: how many, and the first places.

    Attributes:
        entries: [{"kind": a sentence without its full stop, "count": n, "first": ["annotation 7",
            ...]}], as JSON can hold it.
    """

    def __init__(self, *parts: Iterable[Mapping]):
        """Starts with the entries of others, joined."""
        self.entries: list[dict] = []
        for entry in itertools.chain(*parts):
            self.add(entry["kind"], *entry["first"], count=entry["count"])

    def add(self, kind: str, *places: str, count: int = 1) -> None:
        """Counts items of one kind; `places` are the first of them, such as "annotation 7"."""
        entry = next((entry for entry in self.entries if entry["kind"] == kind), None)
        if entry is None:
            entry = {"kind": kind, "count": 0, "first": []}
            self.entries.append(entry)
        entry["count"] += count
        entry["first"] = [*entry["first"], *places][:_NUM_EXAMPLES]


def format_warning(entry: Mapping) -> str:
    """Formats one of `Warnings.entries` as a line."""
    places = ", ".join(entry["first"])
    more = entry["count"] - len(entry["first"])
    rest = f" and {more} more" if places and more else ""
    return f"Warning: {entry['kind']}{': ' if places else ''}{places}{rest}."


def warn_of_left_out(items: Sequence[Mapping], where: str) -> None:
    """Warns on stderr that items of a ground truth are excluded from the evaluation."""
    if items:
        print(
            f"Warning: {len(items)} images or annotations of {where} cannot be used and are "
            f"excluded from the evaluation{first_reason(items)}.",
            file=sys.stderr,
        )
