"""Completes the settings from the manifests or, without a manifest, from the records.

Records without a manifest are read once.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data.errors import UserError
from data.manifest import check_shards, find_manifest
from trainer.categories import Category, record_categories
from trainer.config import Params
from trainer.known_classes import known_categories, settle_categories, trained_in
from trainer.run_record import load_record
from trainer.training_records import check_labels, check_training_records


class Completion(NamedTuple):
    """Everything that a run has to know.

    Attributes:
        params: the settings, complete.
        categories: categories of the network's labels.
        label_map: the network's label by the training records' label, if any differ.
        num_images: number of images in the training records, if there are any.
    """

    params: Params
    categories: tuple[Category, ...]
    label_map: dict[int, int]
    num_images: int | None


def complete_from_manifests(params: Params) -> Params:
    """Finds the number of classes from manifests, and checks the flags by them.

    Returns:
        Params, whose num_classes is 0 if only the records themselves can tell it.

    Raises:
        UserError: a pattern matches nothing, the number of classes is too small, or the records
            lack masks that the network needs.
    """
    for pattern in params.patterns:
        check_shards(pattern, sizes=params.data.on_corrupt_record == "error")
    manifest = find_manifest(params.patterns[0])
    if params.train.trains and manifest:
        check_training_records(params, manifest)
    if known := known_categories(params):
        return _with_num_classes(params, known)
    return _with_num_classes(params, manifest.categories, True) if manifest else params


def complete_from_records(params: Params) -> Completion:
    """Completes the settings by reading the records that have no manifest.

    Call it after TensorFlow is prepared, because it reads records: all of them if they are trained
    on or if the number of classes is otherwise unknown, else the first few.

    Raises:
        UserError: there are no labels to count classes by, a label is below 1 or above the number
            of classes, the network has other classes than the records, or these lack masks that it
            needs.
    """
    about, training = params.patterns[0], params.train.trains
    facts = _look_into(params)
    names = {pattern: found.names for pattern, found in facts.items()}
    num_classes = params.model.num_classes or _recorded_num_classes(params)
    if names and not num_classes:
        num_classes = _count_classes(names)
    for pattern, by_label in names.items():
        check_labels(pattern, by_label, num_classes, training and pattern == about)
    if training and about in facts:
        check_training_records(params, facts[about])
    params = _replace_num_classes(params, num_classes)
    found = record_categories(about, lambda: names[about])
    known, label_map = settle_categories(params, found)
    if params.data.train_fraction < 1 and training:
        num_images = _count_images(params)
    else:
        num_images = (find_manifest(about) or facts[about]).num_images
    return Completion(params, known, label_map, num_images if training else None)


def _count_images(params: Params) -> int:
    """Counts the training images of `--train_fraction`."""
    from data.record_files import RecordFiles
    from data.skipped_records import skip_of

    data = params.data
    files = RecordFiles.find(data.train_file_pattern, skip_of("train", params), data.train_fraction)
    return sum(files.count_records())


def _look_into(params: Params) -> dict:
    """Surveys the patterns that have no manifest."""
    foreign = [pattern for pattern in params.patterns if find_manifest(pattern) is None]
    if not foreign:
        return {}
    # Imported here because it imports TensorFlow.
    from data.skipped_records import skip_of
    from data.survey import PEEK, survey_records

    known = params.model.num_classes or _recorded_num_classes(params)
    facts = {}
    for pattern in foreign:
        is_trained_on = pattern == params.data.train_file_pattern
        limit = PEEK if known and not is_trained_on else -1
        skip = skip_of("train" if is_trained_on else "eval", params)
        facts[pattern] = survey_records(pattern, limit, skip)
    return facts


def _recorded_num_classes(params: Params) -> int:
    return load_record(trained_in(params)).get("num_classes", 0)


def _count_classes(names: Mapping[str, Mapping[int, str]]) -> int:
    patterns = " and ".join(names)
    largest = max((label for by_label in names.values() for label in by_label), default=0)
    if not largest:
        raise UserError(
            f"The records {patterns} have neither a manifest nor labelled objects, so the number "
            "of classes is unknown: give --num_classes, which includes the background."
        )
    print(
        f"The records {patterns} have no manifest; their largest label is {largest}, so "
        f"--num_classes={largest + 1} is used, which includes the background.",
        flush=True,
    )
    return largest + 1


def _with_num_classes(
    params: Params, known: Sequence[Category], of_records: bool = False
) -> Params:
    needed = max((category["label"] for category in known), default=0) + 1
    given = params.model.num_classes or _recorded_num_classes(params)
    if 0 < given < needed:
        raise UserError(
            f"--num_classes={given} is too small: there are {needed - 1} categories and the "
            f"background; give --num_classes={needed} or leave it out."
        )
    if of_records and params.model.num_classes > needed:
        print(
            f"Warning: --num_classes={params.model.num_classes} is more than the {needed} classes "
            "of the records, including the background. Detections of the additional classes have "
            "no category, and if the weights number the classes differently, all categories are "
            "wrong (correct them with tools/import_weights.py --keep_classes).",
            file=sys.stderr,
        )
    return _replace_num_classes(params, given or needed)


def _replace_num_classes(params: Params, num_classes: int) -> Params:
    return dataclasses.replace(
        params, model=dataclasses.replace(params.model, num_classes=num_classes)
    )
