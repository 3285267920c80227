"""What a conversion finds wrong: things that it leaves out, and things that it warns about."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence

from data.errors import UserError

# A warning names the first few places; the rest are counted.
_NUM_EXAMPLES = 5


class InvalidAnnotation(ValueError):
    """The reason why one annotation cannot be used, as the second half of a sentence."""


class SkippedItems:
    """What a conversion leaves out: refuses it, or, when it tolerates it, writes it down."""

    def __init__(self, tolerate: bool):
        self._tolerate = tolerate
        self.items: list[dict] = []

    def add_image(self, reason: str, image_id, file_name) -> None:
        """Leaves out one image; raises UserError when nothing may be left out."""
        self._add(
            f"image {image_id} ({file_name}): {reason}",
            {"image_id": image_id, "file_name": file_name, "reason": reason},
        )

    def add_annotation(self, reason: str, annotation_id, image_id) -> None:
        """Leaves out one annotation; raises UserError when nothing may be left out."""
        self._add(
            f"annotation {annotation_id} of image {image_id}: {reason}",
            {"image_id": image_id, "annotation_id": annotation_id, "reason": reason},
        )

    def _add(self, sentence: str, item: dict) -> None:
        if not self._tolerate:
            raise UserError(f"{sentence}; correct it, or leave it out with --on_invalid=skip.")
        self.items.append(item)


def first_reason(items: Iterable[Mapping]) -> str:
    """Why nothing is left: the first of `SkippedItems.items`, an image before any annotation."""
    first = min(items, key=lambda item: "annotation_id" in item, default=None)
    if not first:
        return ""
    where = f"annotation {first['annotation_id']} of " if "annotation_id" in first else ""
    return f", the first because {first['reason']} ({where}image {first['image_id']})"


class Warnings:
    """Things that are converted all the same, by kind: how many, and where the first of them are.

    Attributes:
        entries: [{"kind": a sentence without its full stop, "count": n, "first": ["annotation 7",
            ...]}], as JSON can hold it.
    """

    def __init__(self, *parts: Iterable[Mapping]):
        """Begins with the entries of others, one after another."""
        self.entries: list[dict] = []
        for entry in itertools.chain(*parts):
            self.add(entry["kind"], *entry["first"], count=entry["count"])

    def add(self, kind: str, *places: str, count: int = 1) -> None:
        """Counts things of one kind; `places` are the first of them, such as "annotation 7"."""
        entry = next((entry for entry in self.entries if entry["kind"] == kind), None)
        if entry is None:
            entry = {"kind": kind, "count": 0, "first": []}
            self.entries.append(entry)
        entry["count"] += count
        entry["first"] = [*entry["first"], *places][:_NUM_EXAMPLES]


def format_warning(entry: Mapping) -> str:
    """The line for one of `Warnings.entries`."""
    places = ", ".join(entry["first"])
    more = entry["count"] - len(entry["first"])
    rest = f" and {more} more" if places and more else ""
    return f"Warning: {entry['kind']}{': ' if places else ''}{places}{rest}."


def warn_of_left_out(items: Sequence[Mapping], where: str) -> None:
    """Says on stderr what of a ground truth, `SkippedItems.items`, takes no part in evaluation."""
    if items:
        print(
            f"Warning: {len(items)} images or annotations of {where} cannot be used and take no "
            f"part in the evaluation{first_reason(items)}.",
            file=sys.stderr,
        )
