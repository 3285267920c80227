"""Entry point for training, evaluation, prediction and export.

    python -m trainer.main --flagfile=configs/r50.flags --mode=train_and_eval --model_dir=M \\
        --train_file_pattern=... --eval_file_pattern=... --eval_annotation_file=...

Exit codes: 0 done, 1 refused or failed (one sentence on stderr), 2 bad flags. TensorFlow is
imported after the flags have been checked, so that --help and errors appear at once.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence

from data import files
from data.errors import UserError
from data.tensorflow_log import quieten_tensorflow
from trainer import categories
from trainer.cluster import Cluster, describe_loss, find_cluster
from trainer.completion import Completion, complete_from_manifests, complete_from_records
from trainer.config import Params
from trainer.flags import Places, Values, exit_status, parse_command_line, refuse_flags
from trainer.known_classes import evaluated_categories, predicted_categories
from trainer.lock import exclusive_training
from trainer.run_record import load_params, recall_settings, require_checkpoint, write_record
from trainer.schedule import resolve_schedule
from trainer.stopping import Stopped
from trainer.training_records import check_proposals

_DESCRIPTION = (
    "python -m trainer.main --flagfile=configs/r50.flags "
    "--mode=train|eval|train_and_eval|predict|export --model_dir=M"
)


def run() -> None:
    """Runs the command line and exits with its status; console entry point."""
    sys.exit(main(sys.argv))


def main(argv: Sequence[str]) -> int:
    """Runs one command line (`argv[0]` is the program's name) and returns the exit status."""

    def work() -> int:
        command = parse_command_line(argv, _DESCRIPTION, recall=_recall)
        check_required(command.params)
        params = resolve_schedule(command.params, command.literal)
        execute(params if params.train.mode == "export" else complete_from_manifests(params))
        return 0

    try:
        return exit_status(work)
    except Stopped as stop:
        print(stop, file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to continue.", file=sys.stderr)
    return 1


def _recall(values: Values, places: Places) -> tuple[Values, Places]:
    """Unless the run trains, takes settings that are not given from the training of the weights."""
    if values["mode"] in ("eval", "predict", "export"):
        return recall_settings(values, places)
    return values, {}


def check_required(params: Params) -> None:
    """Exits with status 2 if a flag that the mode needs is missing."""
    mode = params.train.mode
    required = {"model_dir": params.train.model_dir}
    if params.train.trains:
        required["train_file_pattern"] = params.data.train_file_pattern
    if mode not in ("train", "export"):
        required["eval_file_pattern"] = params.data.eval_file_pattern
    if mode != "export" and not params.model.has_rpn:
        required["proposals_file"] = params.data.proposals_file
    for name, value in required.items():
        if not value:
            refuse_flags(f"--mode={mode} needs --{name}, which is not set.")


def execute(params: Params) -> None:
    """Does what `--mode` says.

    Raises:
        UserError: something in the flags, the records or the model_dir cannot be used.
    """
    cluster = find_cluster(params.train.distribution)
    with contextlib.ExitStack() as stack:
        if cluster.is_chief:
            _require_folders(params)
            if params.train.trains:
                stack.enter_context(exclusive_training(params.train.model_dir))
        else:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        _execute(params, cluster)


def _execute(params: Params, cluster: Cluster) -> None:
    quieten_tensorflow()
    if params.train.mode == "export":
        return _export(params) if cluster.is_chief else None
    import tensorflow as tf

    from data.input_fn import input_fn
    from model.model_fn import model_fn
    from model.systems import build_network
    from trainer.estimator import Estimator
    from trainer.relabelling import relabel
    from trainer.strategy import make_strategy, prepare_runtime

    prepare_runtime(params)
    strategy = make_strategy(params, cluster)
    completion = complete_from_records(params)
    params = completion.params
    if params.model.fits_svms and cluster.num_workers > 1:
        raise UserError(
            f"--system={params.model.system} cannot be trained by several workers, because its "
            "SVMs are fitted in one process; leave TF_CONFIG out."
        )
    if cluster.is_chief and not params.model.has_rpn:
        check_proposals(params)
    with strategy.scope():
        network = build_network(params)
    estimator = Estimator(model_fn, network, params, strategy, cluster)
    try:
        _MODES[params.train.mode](estimator, relabel(input_fn, completion.label_map), completion)
        estimator.wait_for_all()
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError):
        _raise_if_a_record_is_broken(params)
        raise
    except tf.errors.FailedPreconditionError as error:
        if not params.data.data_service:
            raise
        raise UserError(
            f"the workers of --data_service={params.data.data_service} lost images, so the "
            "evaluation would be incomplete; restart the workers and evaluate again."
        ) from error
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
    ) as error:
        if cluster.num_workers == 1:
            raise
        raise describe_loss(cluster, error.message) from error


def _export(params: Params) -> None:
    from trainer.export import export

    print(f"Exported to {export(params)}: `msrcnn.load` opens what lies there.")


def _train(estimator, input_fn: Callable, completion: Completion) -> None:
    estimator.train(input_fn, **_opening(estimator, completion))
    if completion.params.model.fits_svms:
        _fit_region_head(estimator, completion)


def _train_and_eval(estimator, input_fn: Callable, completion: Completion) -> None:
    evaluation = _make_evaluation(estimator, input_fn, completion)
    if completion.params.model.fits_svms:
        _train(estimator, input_fn, completion)
        return evaluation.run_in_training(estimator.step)
    opening = _opening(estimator, completion)
    if not estimator.train(input_fn, evaluation.run_in_training, **opening):
        evaluation.run_in_training(estimator.step)


def _fit_region_head(estimator, completion: Completion) -> None:
    """The trainings of R-CNN that follow that of its network."""
    from trainer.region_fitting import fit_region_head

    fit_region_head(estimator, completion.params, completion.num_images)


def _opening(estimator, completion: Completion) -> dict[str, Callable]:
    """Returns what a training does at its start: what it loads, records and prints."""
    from trainer.fine_tuning import load_by_class
    from trainer.opening import describe_schedule, warn_of_frozen_weights, warn_of_rate

    params = completion.params

    def begin(step: int) -> None:
        print(describe_schedule(params, step, completion.num_images))
        _say_what_runs(estimator, completion)
        warn_of_frozen_weights(params, estimator.checkpoints.loaded)
        if step:
            warn_of_rate(params, load_params(params.train.model_dir), step)
        write_record(params, step)
        if completion.categories:
            categories.write_categories(completion.categories, params.train.model_dir)

    return {"begin": begin, "load": functools.partial(load_by_class, own=completion.categories)}


def _say_what_runs(estimator, completion: Completion) -> None:
    from trainer.opening import describe_system, warn_of_slow_precision
    from trainer.strategy import describe_devices

    loaded, step = estimator.checkpoints.loaded, estimator.step
    devices = describe_devices(estimator.strategy)
    weights = f"weights of {loaded}" if loaded else "random weights"
    print(
        describe_system(
            completion.params,
            completion.categories,
            devices,
            f"from step {step}, {weights}" if step else weights,
        ),
        flush=True,
    )
    warn_of_slow_precision(completion.params, devices)


def _load(estimator, completion: Completion) -> None:
    """Loads what to evaluate or predict with, and says what that is."""
    from trainer.calibration_file import calibrate_network

    estimator.load()
    loaded = estimator.checkpoints.loaded
    calibration = calibrate_network(estimator.network, loaded, completion.params)
    _say_what_runs(estimator, completion)
    if calibration:
        print(f"Scores are calibrated by {calibration}.", flush=True)


def _evaluate(estimator, input_fn: Callable, completion: Completion) -> None:
    evaluation = _make_evaluation(estimator, input_fn, completion)
    _load(estimator, completion)
    evaluation.run()


def _predict(estimator, input_fn: Callable, completion: Completion) -> None:
    from data.ground_truth import read_file_names
    from data.skipped_records import skip_of
    from trainer.coco_results import CocoResults

    params = completion.params
    found = predicted_categories(params, completion.categories)
    _load(estimator, completion)
    file_names = read_file_names(params.data.eval_file_pattern, skip_of("predict", params))
    results = CocoResults(found, params.model.mask_paste, file_names)
    estimator.collect(input_fn, results, "predict", "Predicting", len(file_names))
    if not estimator.is_chief:
        return
    folder = os.path.join(_output_dir(params), "predictions")
    results.write(folder)
    print(f"Predictions in COCO results format are in {folder}.")


_MODES = {
    "train": _train,
    "eval": _evaluate,
    "train_and_eval": _train_and_eval,
    "predict": _predict,
}


def _make_evaluation(estimator, input_fn: Callable, completion: Completion):
    from data.findings import NONE_SKIPPED
    from data.record_files import RecordFiles
    from data.skipped_records import skip_of
    from trainer.coco_ground_truth import load_ground_truth
    from trainer.evaluation import Evaluation
    from trainer.lvis_federation import read_federation

    params = completion.params
    pattern, skip = params.data.eval_file_pattern, skip_of("eval", params)
    annotation_file = params.train.eval_annotation_file
    ground_truth = load_ground_truth(annotation_file, pattern, skip)
    federation = None
    if params.train.eval_lvis_style:
        image_ids = {image["id"] for image in ground_truth["images"]}
        federation = read_federation(annotation_file, image_ids)
    files = RecordFiles.match(pattern, skip)
    return Evaluation(
        estimator,
        input_fn,
        ground_truth,
        evaluated_categories(params, completion.categories, ground_truth),
        _output_dir(params),
        params.train.num_eval_images_shown,
        params.model.mask_paste,
        params.model.detections_per_image,
        files.skipped.images if files.skipped else NONE_SKIPPED,
        boundary=params.train.eval_boundary,
        federation=federation,
    )


def _raise_if_a_record_is_broken(params: Params) -> None:
    """Searches the records that were read for one that may have stopped TensorFlow."""
    from data.diagnosis import find_broken_record
    from data.record_files import RecordFiles
    from data.skipped_records import needs_of, skip_of

    print(
        "TensorFlow has stopped; looking for a broken image or record ...",
        file=sys.stderr,
        flush=True,
    )
    patterns = {"eval": params.data.eval_file_pattern} if params.train.mode != "train" else {}
    if params.train.trains:
        patterns["train"] = params.data.train_file_pattern
    for mode, pattern in patterns.items():
        files = RecordFiles.match(pattern, skip_of(mode, params))
        if error := find_broken_record(pattern, needs_of(mode, params), files.offsets_skipped):
            raise error


def _output_dir(params: Params) -> str:
    return params.train.output_dir or params.train.model_dir


def _require_folders(params: Params) -> None:
    """Refuses folders that cannot be written to, before the work starts."""
    training = params.train.trains
    if params.train.output_dir:
        files.require_writable(params.train.output_dir, "output_dir")
    if training:
        files.require_writable(params.train.model_dir, "model_dir")
        return
    require_checkpoint(params)
    if not params.train.output_dir:
        try:
            files.require_writable(params.train.model_dir, "model_dir")
        except UserError as error:
            raise UserError(f"{error} Use --output_dir to write the results elsewhere.") from None


if __name__ == "__main__":
    run()
