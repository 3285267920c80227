"""Entry point: train, evaluate and predict.

    python -m trainer.main --flagfile=configs/r50.flags --mode=train_and_eval --model_dir=M \\
        --train_file_pattern=... --eval_file_pattern=... --eval_annotation_file=...

Exit codes: 0 done, 1 refused or failed (one sentence on stderr), 2 bad flags. TensorFlow is
imported after the flags are known to be good, so that --help and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from data.errors import UserError
from data.files import require_writable
from data.manifest import find_manifest
from trainer.completion import (
    FLAGFILE,
    complete_from_manifests,
    complete_from_records,
)
from trainer.config import Params
from trainer.flags import parse_flags, refuse_flags, write_flagfile
from trainer.lock import exclusive_training
from trainer.stopping import Stopped

_DESCRIPTION = (
    "python -m trainer.main --flagfile=configs/r50.flags --mode=train|eval|train_and_eval|predict "
    "--model_dir=M"
)


def run() -> None:
    """Console script: runs the command line and exits with its status."""
    sys.exit(main(sys.argv))


def main(argv: Sequence[str]) -> int:
    """Runs one command line (`argv[0]` is the program's name) and returns the exit status."""
    params = parse_flags(argv, _DESCRIPTION)
    check_required(params)
    try:
        execute(complete_from_manifests(params))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}.", file=sys.stderr)
        return 1
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "Interrupted before anything was written; run the same command again.",
            file=sys.stderr,
        )
        return 1
    return 0


def check_required(params: Params) -> None:
    """Exits with status 2 when a flag that the mode needs is missing."""
    mode = params.train.mode
    required = {"model_dir": params.train.model_dir}
    if mode in ("train", "train_and_eval"):
        required["train_file_pattern"] = params.data.train_file_pattern
    if mode != "train":
        required["eval_file_pattern"] = params.data.eval_file_pattern
    for name, value in required.items():
        if not value:
            refuse_flags(f"--mode={mode} needs --{name}, which is not set.")


def execute(params: Params) -> None:
    """Does what `--mode` says.

    Raises:
      UserError: something in the flags, the records or the model_dir cannot be used.
    """
    require_writable(params.train.model_dir, "model_dir")
    training = params.train.mode in ("train", "train_and_eval")
    with exclusive_training(params.train.model_dir) if training else contextlib.nullcontext():
        _execute(params)


def _execute(params: Params) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    from data.input_fn import input_fn
    from model.mask_scoring_rcnn import build_network
    from model.model_fn import model_fn
    from trainer.estimator import Estimator
    from trainer.strategy import make_strategy, prepare_runtime

    prepare_runtime(params)
    params = complete_from_records(params)
    strategy = make_strategy(params)
    with strategy.scope():
        network = build_network(params)
    estimator = Estimator(model_fn, network, params, strategy)
    try:
        _MODES[params.train.mode](estimator, input_fn, params)
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError):
        _raise_if_a_record_is_broken(params)
        raise
    except tf.errors.FailedPreconditionError as error:
        if not params.data.data_service:
            raise
        raise UserError(
            f"the workers of --data_service={params.data.data_service} lost images, so the "
            "evaluation would not be of all of them; start the workers again and evaluate anew."
        ) from error


def _train(estimator, input_fn: Callable, params: Params) -> None:
    write_flagfile(params, os.path.join(params.train.model_dir, FLAGFILE))
    estimator.train(input_fn)


def _train_and_eval(estimator, input_fn: Callable, params: Params) -> None:
    write_flagfile(params, os.path.join(params.train.model_dir, FLAGFILE))
    evaluation = _make_evaluation(estimator, input_fn, params)
    if not estimator.train(input_fn, evaluation.run_in_training):
        evaluation.run_in_training(estimator.step)


def _evaluate(estimator, input_fn: Callable, params: Params) -> None:
    evaluation = _make_evaluation(estimator, input_fn, params)
    estimator.load()
    evaluation.run()


def _predict(estimator, input_fn: Callable, params: Params) -> None:
    from trainer.coco_metrics import CocoEvaluator

    estimator.load()
    manifest = find_manifest(params.data.eval_file_pattern)
    categories = manifest.categories if manifest else ()
    writer = CocoEvaluator(None, categories, params.model.mask_paste)
    for prediction in estimator.predict(input_fn):
        writer.add(prediction)
    folder = os.path.join(params.train.model_dir, "predictions")
    writer.write_results(folder)
    print(f"Predictions in COCO results format are in {folder}.")


_MODES = {
    "train": _train,
    "eval": _evaluate,
    "train_and_eval": _train_and_eval,
    "predict": _predict,
}


def _make_evaluation(estimator, input_fn: Callable, params: Params):
    from trainer.coco_metrics import load_ground_truth
    from trainer.evaluation import Evaluation

    ground_truth = load_ground_truth(
        params.train.eval_annotation_file, params.data.eval_file_pattern
    )
    return Evaluation(
        estimator,
        input_fn,
        ground_truth,
        _categories(params, ground_truth),
        params.train.model_dir,
        params.train.num_eval_images_shown,
        params.model.mask_paste,
    )


def _categories(params: Params, ground_truth: Mapping) -> Sequence[dict]:
    """The records' categories; without a manifest labels stand for COCO ids."""
    from data.survey import PEEK, survey_records

    manifest = find_manifest(params.data.eval_file_pattern)
    if manifest:
        return manifest.categories
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    if params.train.eval_annotation_file:
        # The records' own names are in there too, so that they are compared with the file's.
        seen = survey_records(params.data.eval_file_pattern, PEEK).names
        names |= {label: name for label, name in seen.items() if name}
    return [{"label": key, "id": key, "name": name} for key, name in names.items()]


def _raise_if_a_record_is_broken(params: Params) -> None:
    """Looks through the records that were read for one that TensorFlow may have stopped at."""
    from data.diagnosis import find_broken_record

    print(
        "TensorFlow has stopped; looking for a broken image or record ...",
        file=sys.stderr,
        flush=True,
    )
    data, model = params.data, params.model
    patterns = {data.eval_file_pattern: (False, 0)} if params.train.mode != "train" else {}
    if params.train.mode in ("train", "train_and_eval"):
        vertices = data.max_polygon_vertices if model.include_polygons else 0
        patterns[data.train_file_pattern] = (model.include_mask, vertices)
    for pattern, needs in patterns.items():
        if error := find_broken_record(pattern, *needs):
            raise error


if __name__ == "__main__":
    run()
