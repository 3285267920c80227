"""calibration.json: maps from scores to expected IoU, beside the checkpoint that they belong to.

`tools/calibrate.py` writes it, and whatever predicts with the checkpoint applies it. It names the
weights by a checksum: once a training has changed them, it is not applied.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data import files
from data.errors import UserError
from model.detector import Detector
from model.score_calibration import IDENTITY, ScoreCalibration, ScoreMap
from model.variables import named_variables
from trainer.checkpoint_files import read_shapes, read_variable
from trainer.checkpoints import write_json
from trainer.coco_results import OUTPUTS
from trainer.config import Params

FILE = "calibration.json"


class FittedMap(NamedTuple):
    """The map of one score.

    Attributes:
        label: the class; None for the map of all classes without one of their own.
        num_detections: how many it was fitted to.
        map: the map.
    """

    label: int | None
    num_detections: int
    map: ScoreMap


# By score: box_score, mask_iou and mask_score, as far as there are maps.
FittedMaps = Mapping[str, Sequence[FittedMap]]


def write_calibration(
    checkpoint: str,
    network: Detector,
    fitted: FittedMaps,
    *,
    rescore: bool,
    **facts: object,
) -> str:
    """Writes calibration.json into the folder of a checkpoint, completely or not at all.

    Args:
        checkpoint: the checkpoint that the network was loaded from.
        network: with the weights that the scores are of.
        fitted: the maps.
        rescore: whether mask scores were products with the mask's IoU.
        facts: further entries, for readers.

    Returns:
        Its path.
    """
    path = os.path.join(os.path.dirname(checkpoint), FILE)
    maps = {
        score: [
            {
                "label": one.label,
                "num_detections": one.num_detections,
                "scores": [round(float(value), 6) for value in one.map.scores],
                "expected_ious": [round(float(value), 6) for value in one.map.ious],
            }
            for one in of_score
        ]
        for score, of_score in fitted.items()
    }
    identity = {
        "checkpoint": os.path.basename(checkpoint),
        "step": int(read_variable(checkpoint, "step")) if _has_step(checkpoint) else 0,
        "weights": fingerprint(network),
        "rescore": rescore,
    }
    write_json({**identity, **facts, "maps": maps}, path)
    return path


def calibrate_network(network: Detector, checkpoint: str, params: Params) -> str:
    """Makes a network calibrate its scores, if its checkpoint has a calibration.

    Args:
        network: with the weights of the checkpoint, not traced yet.
        checkpoint: where they were loaded from.
        params: settings.

    Returns:
        The path of the calibration; "" if there is none, if it is of other weights or another kind
        of mask score (of which it warns), or without `--calibrate_scores`.

    Raises:
        UserError: the file is not a calibration.
    """
    path = os.path.join(os.path.dirname(checkpoint), FILE)
    if not params.model.calibrate_scores or not files.exists(path):
        return ""
    try:
        with files.open_file(path) as file:
            content = json.load(file)
        reason = _reason_to_ignore(content, network, checkpoint, params)
        maps = _maps_of_classes(content["maps"], params.model.num_classes)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not a calibration ({error}): run tools/calibrate.py again, delete the "
            "file, or use --nocalibrate_scores."
        ) from None
    if reason:
        print(
            f"Warning: {path} is ignored, because it was made {reason}: scores are not calibrated. "
            "Run tools/calibrate.py again, or delete the file.",
            file=sys.stderr,
        )
        return ""
    network.calibration = ScoreCalibration(maps)
    return path


def fingerprint(network: Detector) -> str:
    """Returns a checksum of a network's weights: 8 hexadecimal digits."""
    checksum = 0
    for _, variable in sorted(named_variables(network).items()):
        checksum = zlib.crc32(np.ascontiguousarray(variable.numpy()), checksum)
    return f"{checksum:08x}"


def _has_step(checkpoint: str) -> bool:
    return "step" in read_shapes(checkpoint)


def _reason_to_ignore(
    content: Mapping[str, Any], network: Detector, checkpoint: str, params: Params
) -> str:
    if content["weights"] != fingerprint(network):
        return f"for other weights ({content['checkpoint']}) than those of {checkpoint}"
    if content["rescore"] != params.model.rescore:
        return f"with --{'' if content['rescore'] else 'no'}rescore"
    return ""


def _maps_of_classes(
    maps: Mapping[str, Sequence[Mapping]], num_classes: int
) -> dict[str, list[ScoreMap]]:
    """Returns a map for each class but the background, by the names of the network's outputs."""
    of_outputs = {}
    for score, entries in maps.items():
        by_label = {entry["label"]: _read_map(entry) for entry in entries}
        others = by_label.get(None, IDENTITY)
        of_outputs[OUTPUTS[score]] = [
            by_label.get(label, others) for label in range(1, num_classes)
        ]
    return of_outputs


def _read_map(entry: Mapping) -> ScoreMap:
    read = ScoreMap(*(np.array(entry[key], np.float64) for key in ("scores", "expected_ious")))
    scores, ious = read
    if (
        scores.ndim != 1
        or scores.shape != ious.shape
        or not (np.diff(scores) > 0).all()
        or not (np.diff(ious) > 0).all()
        or [scores[0], scores[-1], ious[0]] != [0, 1, 0]
        or ious[-1] > 1
    ):
        raise ValueError(f"the knots of class {entry['label']} do not ascend from 0")
    return read
