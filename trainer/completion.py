"""What the flags leave open, taken from the manifests or, without one, from the records themselves.

Training and evaluation have to agree on the classes though they read different files. So records
without a manifest are asked once, all of those that the first run reads; from the first checkpoint
on, the number that `config.flags` in the model_dir recorded holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Mapping

from data.errors import UserError
from data.files import exists, open_file
from data.manifest import Manifest, check_shards, find_manifest
from trainer.config import Params

_TRAINING_MODES = ("train", "train_and_eval")
FLAGFILE = "config.flags"


def complete_from_manifests(params: Params) -> Params:
    """Takes the number of classes from the manifests, and checks the flags by them.

    Returns:
      Complete params; num_classes is 0 if it was not given and there is no manifest.

    Raises:
      UserError: a pattern matches nothing, the number of classes is too small, or the records lack
        masks that the network is to learn.
    """
    mode, data = params.train.mode, params.data
    training = mode in _TRAINING_MODES
    if training:
        check_shards(data.train_file_pattern)
    if mode != "train":
        check_shards(data.eval_file_pattern)
    manifest = find_manifest(data.train_file_pattern if training else data.eval_file_pattern)
    if mode == "train_and_eval":
        _check_same_categories(manifest, find_manifest(data.eval_file_pattern))
    if manifest is None:
        return params
    if training:
        _check_training_records(params, manifest)
    return _with_num_classes(params, manifest)


def complete_from_records(params: Params) -> Params:
    """Does the same by a look into the records of the patterns that have no manifest.

    Call it when TensorFlow is prepared, since it reads the records. All of them are read only where
    the number of classes is known from nothing else; otherwise the first few are looked at.

    Raises:
      UserError: there is no label to count classes by, a label is below 1 or beyond the number of
        classes, labels have other names elsewhere, or the records lack masks that the network is to
        learn.
    """
    data = params.data
    training = params.train.mode in _TRAINING_MODES
    patterns = [data.train_file_pattern] if training else []
    patterns += [data.eval_file_pattern] if params.train.mode != "train" else []
    foreign = [pattern for pattern in dict.fromkeys(patterns) if find_manifest(pattern) is None]
    if not foreign:
        return params
    # Here because it brings TensorFlow.
    from data.survey import PEEK, survey_records

    num_classes = params.model.num_classes or int(_recorded(params, "num_classes") or 0)
    surveys = {pattern: survey_records(pattern, PEEK if num_classes else -1) for pattern in foreign}
    if training and patterns[0] in surveys:
        _check_training_records(params, surveys[patterns[0]])
    names = {pattern: survey.names for pattern, survey in surveys.items()}
    trained_on = data.train_file_pattern or _recorded(params, "train_file_pattern")
    _check_names(names | _find_names({trained_on, *patterns} - {"", *foreign}))
    if not num_classes:
        num_classes = _count_classes(names)
    for pattern, by_label in names.items():
        _check_labels(pattern, by_label, num_classes, training and pattern == patterns[0])
    return _replace_num_classes(params, num_classes)


def _recorded(params: Params, name: str) -> str:
    """A flag of the training run whose checkpoints are in the model_dir; "" without one."""
    folder = params.train.model_dir
    if not exists(os.path.join(folder, "checkpoint")):
        return ""
    try:
        with open_file(os.path.join(folder, FLAGFILE)) as file:
            match = re.search(rf"^--{name}=(.*)$", file.read(), re.MULTILINE)
    except OSError:
        return ""
    return match[1] if match else ""


def _find_names(patterns: Iterable[str]) -> dict[str, dict[int, str]]:
    """Names by label of further records: their manifest's, or those that the first ones show."""
    from data.survey import PEEK, survey_records

    found = {}
    for pattern in patterns:
        # The records of the training need not be there any more for an evaluation.
        with contextlib.suppress(UserError):
            manifest = find_manifest(pattern)
            found[pattern] = (
                {entry["label"]: entry["name"] for entry in manifest.categories}
                if manifest
                else survey_records(pattern, PEEK).names
            )
    return found


def _check_names(names: Mapping[str, Mapping[int, str]]) -> None:
    """Refuses patterns whose labels do not mean the same."""
    seen: dict[int, tuple[str, str]] = {}
    for pattern, by_label in names.items():
        for label, name in by_label.items():
            known, where = seen.setdefault(label, (name, pattern)) if name else ("", "")
            if known != name:
                raise UserError(
                    f"Label {label} is {name!r} in the records {pattern} and {known!r} in {where}: "
                    "train and evaluate on records that one program converted with one list of "
                    "categories."
                )


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
    if params.model.include_mask and not facts.include_masks:
        raise UserError(
            f"The records {pattern} have objects without masks: give --noinclude_mask "
            "--noinclude_maskiou to train boxes alone, or convert them with masks."
        )
    if params.model.include_polygons:
        _check_polygons(params, facts)
    if facts.max_instances_per_image > params.data.max_instances:
        print(
            f"Warning: an image of {pattern} has {facts.max_instances_per_image} objects and "
            f"--max_instances={params.data.max_instances} drops what exceeds it; raise it to keep "
            "them all.",
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


def _check_same_categories(train: Manifest | None, evaluation: Manifest | None) -> None:
    if train and evaluation and train.categories != evaluation.categories:
        raise UserError(
            "The records of --train_file_pattern and of --eval_file_pattern have different "
            "categories: convert both from annotation files with one list of categories."
        )


def _with_num_classes(params: Params, manifest: Manifest) -> Params:
    num_classes = manifest.num_classes
    if 0 < params.model.num_classes < num_classes:
        raise UserError(
            f"--num_classes={params.model.num_classes} is too small: the records have "
            f"{num_classes - 1} categories, and the background counts as one more; give "
            f"--num_classes={num_classes} or leave it out."
        )
    if params.model.num_classes > num_classes:
        print(
            f"Warning: --num_classes={params.model.num_classes} is more than the {num_classes} of "
            "the records, the background among them; what the network takes for a class beyond "
            "them has no category, and if its weights number the classes otherwise, all categories "
            "are wrong (tools/import_weights.py --keep_classes brings them into order).",
            file=sys.stderr,
        )
    return _replace_num_classes(params, params.model.num_classes or num_classes)


def _replace_num_classes(params: Params, num_classes: int) -> Params:
    return dataclasses.replace(
        params, model=dataclasses.replace(params.model, num_classes=num_classes)
    )
