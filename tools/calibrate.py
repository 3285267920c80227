"""Calibrates the scores of a trained model, so that they are the IoU that one can expect.

    python tools/calibrate.py --model=M --eval_file_pattern='records/calibration-*'

predicts on records that the model was not trained on, fits increasing maps of the scores to half of
the images, measures them on the other half, and writes them beside the checkpoint, to
M/calibration.json. `msrcnn.load`, `tools/predict.py`, --mode=eval, --mode=predict and all exports
then apply them, until the weights change; --nocalibrate_scores turns that off. AP stays as it is,
because detections keep their order. --eval_annotation_file names another ground truth than that in
the records. Every setting that changes predictions is a flag here too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from data import files
from data.errors import UserError
from data.progress import with_progress
from data.tensorflow_log import quieten_tensorflow
from trainer.flags import exit_status, parse_command_line, require_flags

if TYPE_CHECKING:
    from trainer.calibration_file import FittedMaps
    from trainer.predictor import Trained
    from trainer.score_fitting import Scored

_DESCRIPTION = "python tools/calibrate.py --model=M --eval_file_pattern=R"
# By how much AP may change, for scores that become equal by rounding.
_AP_TOLERANCE = 1e-3
_COLUMNS = ("LaECE", "LaACE", "AP")
Measured = Mapping[str, Mapping[str, float]]


def calibrate(model: str, given: Mapping[str, Any], method: str) -> None:
    """Fits, measures and writes the calibration of a model_dir.

    Args:
        model: model_dir, or the folder `best` in one.
        given: settings that replace the recorded ones, among them `eval_file_pattern` and
            `eval_annotation_file`.
        method: a key of `trainer.score_maps.METHODS`.

    Raises:
        UserError: there is no checkpoint, or the records do not suit.
    """
    from trainer.calibration_file import write_calibration
    from trainer.predictor import load_trained
    from trainer.score_fitting import apply_maps, fit_maps, halve, measure

    trained = load_trained(files.expand(model), settings=given)
    scored, image_ids = find_scored(trained, given)
    first, second = halve(image_ids)
    fitted = fit_maps(scored, first, method)
    before, after = (measure(each, second) for each in (scored, apply_maps(scored, fitted)))
    print(describe(fitted, trained.categories, len(first)))
    print(format_table(before, after, len(second)))
    require_same_ap(before, after)
    path = write_calibration(
        trained.checkpoint,
        trained.network,
        fitted,
        rescore=trained.params.model.rescore,
        method=method,
        num_images=len(first),
        measured={"num_images": len(second), "before": before, "after": after},
    )
    print(f"Scores of {trained.checkpoint} are calibrated by {path} from now on.")


def find_scored(trained: Trained, given: Mapping[str, Any]) -> tuple[Scored, set[int]]:
    """Predicts on records, without calibration.

    Returns:
        The detections, and the ids of the images.

    Raises:
        UserError: the records have few images, or classes that the model does not know.
    """
    import tensorflow as tf

    from trainer.coco_ground_truth import complete_ground_truth, load_ground_truth
    from trainer.coco_metrics import CocoEvaluator
    from trainer.known_classes import evaluated_categories
    from trainer.record_predictions import predict_records, with_records
    from trainer.score_fitting import Scored, require_content

    params = with_records(trained.params, given)
    pattern, annotation_file = given["eval_file_pattern"], given["eval_annotation_file"]
    truth = load_ground_truth(annotation_file, pattern)
    require_content(truth)
    categories = evaluated_categories(params, trained.categories, truth)
    limit = params.model.detections_per_image
    found = CocoEvaluator(truth, categories, params.model.mask_paste, max_detections=limit)
    detect = tf.function(trained.network.detect, autograph=False)
    predictions = predict_records(params, detect)
    for prediction in with_progress(predictions, "Predicting", len(truth["images"])):
        found.add(prediction)
    names = {category["id"]: category["name"] for category in truth["categories"]}
    labels = {category["id"]: category["label"] for category in categories}
    truth, kind = complete_ground_truth(truth, names), "segm" if found.measures_masks else "bbox"
    entries = found.results.masks if kind == "segm" else found.results.boxes
    return Scored(truth, entries, kind, labels), found.results.image_ids


def describe(fitted: FittedMaps, categories: Sequence[Mapping], num_images: int) -> str:
    """Says what maps were fitted to."""
    names = {category["label"]: category["name"] for category in categories}
    lines = [f"Fitted to {num_images} images:"]
    for score, maps in fitted.items():
        own = [f"{names.get(one.label, one.label)} {one.num_detections}" for one in maps[1:]]
        line = f"  {score}: {maps[0].num_detections} detections"
        lines.append(line + (f", classes with a map of their own: {', '.join(own)}" if own else ""))
    if "mask_iou" not in fitted and "mask_score" in fitted:
        lines.append("  mask_iou: as it is, because there are too few true detections")
    return "\n".join(lines)


def format_table(before: Measured, after: Measured, num_images: int) -> str:
    """Formats what was measured before and after calibration, a line for each score."""
    lines = [f"Measured on {num_images} other images, before → after:"]
    lines.append("score     " + "".join(f"{title:>18}" for title in _COLUMNS))
    for score, numbers in before.items():
        changes = (f"{numbers[key]:.4f} → {after[score][key]:.4f}" for key in _COLUMNS)
        lines.append(f"{score:10}" + "".join(f"{change:>18}" for change in changes))
    if "mask_iou" in before:
        errors = [f"{each['mask_iou']['mean_error']:.4f}" for each in (before, after)]
        lines.append(f"Mean error of mask_iou, of true detections: {' → '.join(errors)}")
    return "\n".join(lines)


def require_same_ap(before: Measured, after: Measured) -> None:
    """Raises a UserError if calibration would change an AP."""
    for score, numbers in before.items():
        change = after[score]["AP"] - numbers["AP"]
        if abs(change) > _AP_TOLERANCE:
            raise UserError(
                f"nothing was written, because the calibration would change the AP by {score} by "
                f"{change:+.4f}: too many detections have nearly the same score."
            )


def _define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "model", "", "model_dir of a training, or the folder best in it.", flag_values=flag_values
    )
    flags.DEFINE_enum(
        "method", "isotonic", ["isotonic", "temperature"],
        "Kind of map: any increasing one (isotonic), or one with a single parameter (temperature).",
        flag_values=flag_values,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status."""
    command = parse_command_line(argv, _DESCRIPTION, _define_flags)
    values = command.flag_values
    require_flags(values, "model", "eval_file_pattern")

    def work() -> int:
        quieten_tensorflow()
        names = ("eval_file_pattern", "eval_annotation_file")
        given = command.given | {name: values[name].value for name in names}
        calibrate(values["model"].value, given, values["method"].value)
        return 0

    return exit_status(work)


def run() -> None:
    """Runs the command line; console entry point."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
