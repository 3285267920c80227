"""Determines the network's classes and how they correspond to a run's records.

The network's classes are those that it was trained on, read from categories.json in the model_dir;
a first training uses those of its records.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from data.manifest import find_manifest
from trainer import categories
from trainer.categories import Category
from trainer.config import Params
from trainer.run_record import has_checkpoint, home_of


def known_categories(params: Params) -> tuple[Category, ...]:
    """Returns the classes that the network was trained on; empty if they are unknown."""
    folder = trained_in(params)
    return categories.load_categories(folder) if folder else ()


def trained_in(params: Params) -> str:
    """Returns the model_dir of the trained network; "" if the training starts from scratch."""
    model_dir = params.train.model_dir
    if not params.train.trains:
        return home_of(model_dir, params.train.init_checkpoint)
    return model_dir if has_checkpoint(model_dir) else ""


def settle_categories(
    params: Params, found: tuple[Category, ...]
) -> tuple[tuple[Category, ...], dict[int, int]]:
    """Determines the network's categories, and its labels for those of the training records.

    Args:
        params: the settings.
        found: the categories of the run's main records.

    Returns:
        The categories, and the network's label by the records' label; {} if all are equal.

    Raises:
        UserError: the training records have classes that the network does not know.
    """
    known = known_categories(params)
    if known:
        return known, _map_labels(params, found, known) if params.train.trains else {}
    if params.train.trains:
        return found, {}
    print(
        f"Warning: there is no {categories.FILE} with the network's classes; they are assumed to "
        f"be those of {params.patterns[0]}, in the same order.",
        file=sys.stderr,
    )
    # The first few records may not contain all labels.
    return found if find_manifest(params.patterns[0]) else (), {}


def _map_labels(
    params: Params, found: Sequence[Category], known: Sequence[Category]
) -> dict[int, int]:
    pattern, model = params.patterns[0], params.train.model_dir
    pairs = categories.pair_by_name(found, known)
    categories.require_known(pairs, pattern, model)
    if described := categories.describe_pairs(pairs):
        print(described, flush=True)
    learnt = {own["label"] for _, own in pairs}
    if missing := [category for category in known if category["label"] not in learnt]:
        print(
            f"Warning: the model in {model} was also trained on {categories.list_names(missing)}, "
            f"which {pattern} does not contain.",
            file=sys.stderr,
        )
    label_map = {theirs["label"]: own["label"] for theirs, own in pairs}
    return {} if all(a == b for a, b in label_map.items()) else label_map


def evaluated_categories(
    params: Params, known: Sequence[Category], ground_truth: Mapping
) -> Sequence[Category]:
    """Gives the network's categories the ids that a ground truth uses for their names.

    Raises:
        UserError: the ground truth or the records have classes that the network does not know.
    """
    truth = ground_truth["categories"]
    if not known:
        return _categories_of_labels(params, truth)
    file, pattern = params.train.eval_annotation_file, params.data.eval_file_pattern
    manifest = find_manifest(pattern)
    theirs = {pattern: manifest.categories} if manifest else {}
    theirs |= {file: truth} if file else {} if manifest else {pattern: truth}
    return _with_their_ids(params, known, theirs)


def predicted_categories(params: Params, known: Sequence[Category]) -> Sequence[Category]:
    """Gives the network's categories the ids that the records' manifest uses for their names.

    Raises:
        UserError: the manifest has classes that the network does not know.
    """
    pattern = params.data.eval_file_pattern
    manifest = find_manifest(pattern)
    return _with_their_ids(params, known, {pattern: manifest.categories if manifest else ()})


def _categories_of_labels(params: Params, theirs: Sequence[Category]) -> Sequence[Category]:
    """Uses labels as COCO ids, if neither model nor records name all of them."""
    from data.skipped_records import skip_of
    from data.survey import PEEK, survey_records

    names = {category["id"]: category["name"] for category in theirs}
    if params.train.eval_annotation_file:
        # The records' own names are included, so that they are compared with the file's.
        pattern = params.data.eval_file_pattern
        seen = survey_records(pattern, PEEK, skip_of("eval", params)).names
        names |= {label: name for label, name in seen.items() if name}
    return [{"label": key, "id": key, "name": name} for key, name in names.items()]


def _with_their_ids(
    params: Params, known: Sequence[Category], theirs: Mapping[str, Sequence[Category]]
) -> Sequence[Category]:
    """Gives the network's categories the ids that the last of several sources uses."""
    said = []
    for where, entries in theirs.items():
        pairs = categories.pair_by_name(entries, known)
        categories.require_known(pairs, where, trained_in(params))
        said.append(categories.describe_pairs(pairs))
    for line in filter(None, dict.fromkeys(said)):
        print(line, flush=True)
    matched = categories.with_ids_of(known, pairs)
    if unnamed := [category for category in matched if category["id"] is None]:
        print(
            f"Warning: detections of {categories.list_names(unnamed)} are left out of the "
            f"results, because {where} uses the same ids for other classes.",
            file=sys.stderr,
        )
    return matched
