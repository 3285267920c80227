"""The stages that can be benchmarked, and the settings of a benchmark."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data.settings import NOT_NEGATIVE, POSITIVE, check_settings, one_of, setting

OURS = "ours"  # this project's name among the programs
Workload = Callable[[], int]  # does the work once and returns the number of images processed


class Stage(NamedTuple):
    """A stage that can be benchmarked.

    Attributes:
        title: its name in charts.
        unit: unit of its figure: "images/s", "s/step", "s/image", "ms/image" or "s".
        settings: settings that a chart always states.
        streams: whether it works ahead, so that finished work is waiting when its turn starts.
    """

    title: str
    unit: str
    settings: tuple[str, ...]
    streams: bool = False


# In the order of the charts.
STAGES = {
    "convert": Stage("Conversion", "images/s", ("num_processes",)),
    "decode": Stage("Image decoding", "images/s", ("image_size",), streams=True),
    "match": Stage("Anchor matching", "ms/image", ("image_size", "instances"), streams=True),
    "input": Stage("Input pipeline", "images/s", ("image_size",), streams=True),
    "backbone": Stage("Backbone", "s/step", ("image_size", "batch_size", "precision", "kind")),
    "train": Stage("Training", "s/step", ("image_size", "batch_size", "precision")),
    "predict": Stage("Prediction", "s/image", ("image_size", "batch_size", "precision")),
    "export": Stage("Exported models", "s/image", ("image_size",)),
    "evaluate": Stage("COCO evaluation", "ms/image", ("kind",)),
    "start": Stage("Start-up", "s", ("image_size", "precision")),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that all programs share; each is a flag.

    Raises:
        SettingError: a value is invalid.
    """

    image_size: int = setting(832, "Side of the square canvas, in pixels.", POSITIVE)
    batch_size: int = setting(2, "Images per batch, summed over all replicas.", POSITIVE)
    instances: int = setting(
        0,
        "Number of objects to draw per image; 0 uses the annotated ones (8 in `match`).",
        NOT_NEGATIVE,
    )
    positives: int = setting(
        0, "Positive RoIs per image in `train`; 0 uses the actual number.", NOT_NEGATIVE
    )
    images: int = setting(400, "Images per timed run of `input`, `decode` and `match`.", POSITIVE)
    num_shards: int = setting(8, "Number of shards of the records.", POSITIVE)
    num_processes: int = setting(os.cpu_count(), "Number of processes of `convert`.", POSITIVE)
    image_dir: str = setting("", "Folder with the images.")
    object_annotations_file: str = setting("", "COCO JSON of the images.")
    exports: str = setting("", "Exported models to run in `export`, separated by commas.")
    kind: str = setting(
        "segm",
        "For `evaluate`: bbox or segm; for `backbone`: forward or both.",
        one_of("bbox", "segm", "forward", "both"),
    )

    def __post_init__(self):
        check_settings(self)

    @classmethod
    def from_dict(cls, entries: dict) -> Settings:
        """Makes the settings from `entries`, ignoring other entries."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in entries.items() if name in known})


def stream(items: Iterator, images: int, images_per_item: int = 1) -> Workload:
    """Makes the workload that takes so many `images` from an endless iterator."""
    count = max(1, images // images_per_item)

    def run() -> int:
        for _ in itertools.islice(items, count):
            pass
        return count * images_per_item

    return run
