"""Checks whether a network can be trained on the records with the given settings."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from data.errors import UserError
from data.findings import format_warning
from trainer.config import Params


def check_labels(
    pattern: str, names: Mapping[int, str], num_classes: int, for_training: bool
) -> None:
    """Compares the labels of records with the number of classes, including the background.

    Args:
        pattern: pattern of the records.
        names: a name, or "", by label.
        num_classes: number of classes of the network.
        for_training: whether the network trains on them; otherwise larger labels only cause a
            warning.

    Raises:
        UserError: a label is below 1, or too large for training.
    """
    if min(names, default=1) < 1:
        raise UserError(
            f"The records {pattern} have the label {min(names)}, but 0 is the background: convert "
            "them again with labels starting at 1."
        )
    largest = max(names, default=0)
    if largest < num_classes:
        return
    problem = (
        f"records {pattern} have the label {largest}, but the network has "
        f"--num_classes={num_classes}, including the background"
    )
    if for_training:
        raise UserError(
            f"The {problem}: give --num_classes={largest + 1} or more, and another --model_dir if "
            "this one has checkpoints."
        )
    print(f"Warning: the {problem}; objects of larger labels cannot be detected.", file=sys.stderr)


def check_training_records(params: Params, facts) -> None:
    """Compares the settings with a `Manifest` or a `data.survey.Survey` of the training records.

    Raises:
        UserError: the records lack masks or polygons that training needs, or polygons have too many
            vertices.
    """
    pattern = params.data.train_file_pattern
    for entry in facts.warnings:
        print(format_warning(entry), file=sys.stderr)
    if not facts.max_instances_per_image:
        print(
            f"Warning: the images of {pattern} have no objects to learn (crowds do not count), so "
            "the network will learn to detect nothing.",
            file=sys.stderr,
        )
    if params.model.include_mask and not facts.include_masks:
        raise UserError(
            f"The records {pattern} have objects without masks: use --system=faster_rcnn to train "
            "boxes only, or convert them with masks."
        )
    if params.model.include_polygons:
        _check_polygons(params, facts)
    if facts.max_instances_per_image > params.data.max_instances:
        print(
            f"Warning: an image of {pattern} has {facts.max_instances_per_image} objects and "
            f"--max_instances={params.data.max_instances} keeps only the largest; raise it to "
            "also learn from the others.",
            file=sys.stderr,
        )


def check_proposals(params: Params) -> None:
    """Compares `--proposals_file` with the images of all records that the run reads.

    Raises:
        UserError: the file cannot be read, or does not belong to these images.
    """
    # Imported here because they import TensorFlow.
    from data.proposal_file import open_proposals
    from data.record_files import RecordFiles
    from data.skipped_records import skip_of

    proposals = open_proposals(params.data.proposals_file, params.data.max_proposals)
    for pattern in params.patterns:
        mode = "train" if pattern == params.data.train_file_pattern else "eval"
        proposals.check(RecordFiles.match(pattern, skip_of(mode, params)), pattern)


def _check_polygons(params: Params, facts) -> None:
    pattern, most = params.data.train_file_pattern, params.data.max_polygon_vertices
    if not facts.include_polygons:
        raise UserError(
            f"The records {pattern} have objects without polygons, which --mask_target=polygon "
            "needs: use --mask_target=bitmap, or convert polygon annotations again."
        )
    if facts.max_polygon_vertices > most:
        raise UserError(
            f"An object of the records {pattern} has {facts.max_polygon_vertices} polygon "
            f"vertices, more than --max_polygon_vertices={most}: use "
            f"--max_polygon_vertices={facts.max_polygon_vertices}."
        )
