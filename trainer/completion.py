"""What the flags leave open, taken from the manifests or, without one, from the records themselves.

The classes of the network are those that it was trained with, as categories.json in the model_dir
tells; a first training takes those of its records. Records without a manifest are asked once.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data.errors import UserError
from data.findings import format_warning
from data.manifest import check_shards, find_manifest
from trainer import categories
from trainer.categories import Category
from trainer.config import Params
from trainer.run_record import has_checkpoint, home_of, load_record

_TRAINING_MODES = ("train", "train_and_eval")


class Completion(NamedTuple):
    """All that a run has to know.

    Attributes:
      params: the settings, complete.
      categories: of the network's labels.
      label_map: the network's label of each label of the training records, where any differ.
      num_images: in the training records, where there are any.
    """

    params: Params
    categories: tuple[Category, ...]
    label_map: dict[int, int]
    num_images: int | None


def complete_from_manifests(params: Params) -> Params:
    """Finds the number of classes as far as manifests tell it, and checks the flags by them.

    Returns:
      Params whose num_classes is 0 if nothing but the records themselves tells it.

    Raises:
      UserError: a pattern matches nothing, the number of classes is too small, or the records lack
        masks that the network is to learn.
    """
    training = params.train.mode in _TRAINING_MODES
    for pattern in _patterns(params):
        check_shards(pattern)
    manifest = find_manifest(_pattern(params))
    if training and manifest:
        _check_training_records(params, manifest)
    if known := _known_categories(params):
        return _with_num_classes(params, known)
    return _with_num_classes(params, manifest.categories, True) if manifest else params


def complete_from_records(params: Params) -> Completion:
    """Completes the settings by a look into the records that have no manifest.

    Call it when TensorFlow is prepared, since it reads the records: all of them where they are
    trained on or the number of classes is known from nothing else, otherwise the first few.

    Raises:
      UserError: there is no label to count classes by, a label is below 1 or beyond the number of
        classes, the network knows other classes than the records, or these lack masks that it is to
        learn.
    """
    training = params.train.mode in _TRAINING_MODES
    facts = _look_into(params)
    names = {pattern: found.names for pattern, found in facts.items()}
    num_classes = params.model.num_classes or _recorded_num_classes(params)
    if names and not num_classes:
        num_classes = _count_classes(names)
    for pattern, by_label in names.items():
        _check_labels(pattern, by_label, num_classes, training and pattern == _pattern(params))
    if training and _pattern(params) in facts:
        _check_training_records(params, facts[_pattern(params)])
    params = _replace_num_classes(params, num_classes)
    found = categories.record_categories(_pattern(params), lambda: names[_pattern(params)])
    known, label_map = _agree(params, found)
    manifest = find_manifest(_pattern(params)) or facts[_pattern(params)]
    return Completion(params, known, label_map, manifest.num_images if training else None)


def evaluated_categories(completion: Completion, ground_truth: Mapping) -> Sequence[Category]:
    """The network's categories with the ids that a ground truth gives to their names.

    Raises:
      UserError: the ground truth or the records have classes that the network does not know.
    """
    params, truth = completion.params, ground_truth["categories"]
    if not completion.categories:
        return _categories_of_labels(params, truth)
    file, pattern = params.train.eval_annotation_file, params.data.eval_file_pattern
    manifest = find_manifest(pattern)
    theirs = {pattern: manifest.categories} if manifest else {}
    theirs |= {file: truth} if file else {} if manifest else {pattern: truth}
    return _with_their_ids(completion, theirs)


def predicted_categories(completion: Completion) -> Sequence[Category]:
    """The network's categories with the ids that the records' manifest gives to their names.

    Raises:
      UserError: the manifest has classes that the network does not know.
    """
    pattern = completion.params.data.eval_file_pattern
    manifest = find_manifest(pattern)
    return _with_their_ids(completion, {pattern: manifest.categories if manifest else ()})


def _pattern(params: Params) -> str:
    """Of the records that the run is about."""
    training = params.train.mode in _TRAINING_MODES
    return params.data.train_file_pattern if training else params.data.eval_file_pattern


def _patterns(params: Params) -> list[str]:
    """Of all records that the run reads."""
    mode, data = params.train.mode, params.data
    patterns = [data.train_file_pattern] if mode in _TRAINING_MODES else []
    return list(dict.fromkeys(patterns + ([data.eval_file_pattern] if mode != "train" else [])))


def _known_categories(params: Params) -> tuple[Category, ...]:
    """Those that the network was trained with before; empty if nothing tells them."""
    folder = _trained_in(params)
    return categories.load_categories(folder) if folder else ()


def _trained_in(params: Params) -> str:
    """The model_dir of the trained network; "" where the training begins."""
    model_dir = params.train.model_dir
    if params.train.mode not in _TRAINING_MODES:
        return home_of(model_dir, params.train.init_checkpoint)
    return model_dir if has_checkpoint(model_dir) else ""


def _agree(
    params: Params, found: tuple[Category, ...]
) -> tuple[tuple[Category, ...], dict[int, int]]:
    """The network's categories, and its labels for those of the training records."""
    known = _known_categories(params)
    training = params.train.mode in _TRAINING_MODES
    if not known:
        if training:
            return found, {}
        print(
            f"Warning: no {categories.FILE} says which classes the network knows; they are taken "
            f"to be those of {_pattern(params)}, in their order.",
            file=sys.stderr,
        )
        # The first few records need not show all labels.
        return found if find_manifest(_pattern(params)) else (), {}
    if not training:
        return known, {}
    pairs = categories.pair_by_name(found, known)
    categories.require_known(pairs, _pattern(params), params.train.model_dir)
    if described := categories.describe_pairs(pairs):
        print(described, flush=True)
    learnt = {own["label"] for _, own in pairs}
    if missing := [category for category in known if category["label"] not in learnt]:
        print(
            f"Warning: the model in {params.train.model_dir} was trained on "
            f"{categories.list_names(missing)} too, which {_pattern(params)} does not have.",
            file=sys.stderr,
        )
    label_map = {theirs["label"]: own["label"] for theirs, own in pairs}
    return known, {} if all(a == b for a, b in label_map.items()) else label_map


def _categories_of_labels(params: Params, theirs: Sequence[Category]) -> Sequence[Category]:
    """Labels stand for COCO ids, where neither model nor records name them all."""
    from data.survey import PEEK, survey_records

    names = {category["id"]: category["name"] for category in theirs}
    if params.train.eval_annotation_file:
        # The records' own names are in there too, so that they are compared with the file's.
        seen = survey_records(params.data.eval_file_pattern, PEEK).names
        names |= {label: name for label, name in seen.items() if name}
    return [{"label": key, "id": key, "name": name} for key, name in names.items()]


def _with_their_ids(
    completion: Completion, theirs: Mapping[str, Sequence[Category]]
) -> Sequence[Category]:
    """The network's categories with the ids that the last of some sources gives to their names."""
    known, said = completion.categories, []
    for where, entries in theirs.items():
        pairs = categories.pair_by_name(entries, known)
        categories.require_known(pairs, where, _trained_in(completion.params))
        said.append(categories.describe_pairs(pairs))
    for line in filter(None, dict.fromkeys(said)):
        print(line, flush=True)
    matched = categories.with_ids_of(known, pairs)
    if unnamed := [category for category in matched if category["id"] is None]:
        print(
            f"Warning: what is found of {categories.list_names(unnamed)} is left out of the "
            f"results, because {where} uses the same ids for other classes.",
            file=sys.stderr,
        )
    return matched


def _look_into(params: Params) -> dict:
    """The surveys of those patterns that have no manifest."""
    foreign = [pattern for pattern in _patterns(params) if find_manifest(pattern) is None]
    if not foreign:
        return {}
    # Here because it brings TensorFlow.
    from data.survey import PEEK, survey_records

    known = params.model.num_classes or _recorded_num_classes(params)
    return {
        pattern: survey_records(
            pattern, PEEK if known and pattern != params.data.train_file_pattern else -1
        )
        for pattern in foreign
    }


def _recorded_num_classes(params: Params) -> int:
    return load_record(_trained_in(params)).get("num_classes", 0)


def _count_classes(names: Mapping[str, Mapping[int, str]]) -> int:
    patterns = " and ".join(names)
    largest = max((label for by_label in names.values() for label in by_label), default=0)
    if not largest:
        raise UserError(
            f"The records {patterns} have neither a manifest nor a labelled object to take the "
            "number of classes from: give --num_classes, counting the background."
        )
    print(
        f"The records {patterns} have no manifest; their largest label is {largest}, so "
        f"--num_classes={largest + 1} is taken, which counts the background.",
        flush=True,
    )
    return largest + 1


def _check_labels(
    pattern: str, names: Mapping[int, str], num_classes: int, for_training: bool
) -> None:
    if min(names, default=1) < 1:
        raise UserError(
            f"The records {pattern} have the label {min(names)}, but 0 is the background: convert "
            "them again with labels from 1 on."
        )
    largest = max(names, default=0)
    if largest < num_classes:
        return
    problem = (
        f"records {pattern} have the label {largest} and the network has --num_classes="
        f"{num_classes}, the background among them"
    )
    if for_training:
        raise UserError(
            f"The {problem}: give --num_classes={largest + 1} or more, and another --model_dir if "
            "this one has checkpoints."
        )
    print(f"Warning: the {problem}; objects beyond cannot be detected.", file=sys.stderr)


def _check_training_records(params: Params, facts) -> None:
    """Compares the flags with a `Manifest` or a `data.survey.Survey` of the training records."""
    pattern = params.data.train_file_pattern
    for entry in facts.warnings:
        print(format_warning(entry), file=sys.stderr)
    if not facts.max_instances_per_image:
        print(
            f"Warning: no image of {pattern} has an object to learn (crowds do not count), so that "
            "the network learns to find nothing.",
            file=sys.stderr,
        )
    if params.model.include_mask and not facts.include_masks:
        raise UserError(
            f"The records {pattern} have objects without masks: give --system=faster_rcnn "
            "to train boxes alone, or convert them with masks."
        )
    if params.model.include_polygons:
        _check_polygons(params, facts)
    if facts.max_instances_per_image > params.data.max_instances:
        print(
            f"Warning: an image of {pattern} has {facts.max_instances_per_image} objects and "
            f"--max_instances={params.data.max_instances} keeps the largest; raise it to learn "
            "from the smallest as well.",
            file=sys.stderr,
        )


def _check_polygons(params: Params, facts) -> None:
    pattern, most = params.data.train_file_pattern, params.data.max_polygon_vertices
    if not facts.include_polygons:
        raise UserError(
            f"The records {pattern} have objects without polygons, which --mask_target=polygon "
            "needs: give --mask_target=bitmap, or convert annotations that are polygons again."
        )
    if facts.max_polygon_vertices > most:
        raise UserError(
            f"An object of the records {pattern} has {facts.max_polygon_vertices} polygon vertices "
            f"and --max_polygon_vertices={most} has no room for them: give "
            f"--max_polygon_vertices={facts.max_polygon_vertices}."
        )


def _with_num_classes(
    params: Params, known: Sequence[Category], of_records: bool = False
) -> Params:
    needed = max((category["label"] for category in known), default=0) + 1
    given = params.model.num_classes or _recorded_num_classes(params)
    if 0 < given < needed:
        raise UserError(
            f"--num_classes={given} is too small: there are {needed - 1} categories, and the "
            f"background counts as one more; give --num_classes={needed} or leave it out."
        )
    if of_records and params.model.num_classes > needed:
        print(
            f"Warning: --num_classes={params.model.num_classes} is more than the {needed} of "
            "the records, the background among them; what the network takes for a class beyond "
            "them has no category, and if its weights number the classes otherwise, all categories "
            "are wrong (tools/import_weights.py --keep_classes brings them into order).",
            file=sys.stderr,
        )
    return _replace_num_classes(params, given or needed)


def _replace_num_classes(params: Params, num_classes: int) -> Params:
    return dataclasses.replace(
        params, model=dataclasses.replace(params.model, num_classes=num_classes)
    )
