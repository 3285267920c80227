"""Entry point: train, evaluate and predict.

    python -m trainer.main --flagfile=configs/r50.flags --mode=train_and_eval --model_dir=M \\
        --train_file_pattern=... --eval_file_pattern=... --eval_annotation_file=...

Exit codes: 0 done, 1 refused or failed (one sentence on stderr), 2 bad flags. TensorFlow is
imported after the flags are known to be good, so that --help and mistakes answer at once.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence

from data.errors import UserError
from data.manifest import Manifest, find_manifest
from trainer.config import Params
from trainer.flags import parse_flags, refuse_flags, write_flagfile

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
        params = complete_params(params)
        execute(params)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"Interrupted; the same command goes on from the latest checkpoint in "
            f"{params.train.model_dir}.",
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


def complete_params(params: Params) -> Params:
    """Takes from the records' manifests what the flags leave open, and checks the rest by them.

    Raises:
      UserError: a pattern matches nothing, the number of classes is neither given nor found or is
        too small, or the records lack masks that the network is to learn.
    """
    training = params.train.mode in ("train", "train_and_eval")
    pattern = params.data.train_file_pattern if training else params.data.eval_file_pattern
    manifest = find_manifest(pattern)
    if params.train.mode == "train_and_eval":
        _check_same_categories(manifest, find_manifest(params.data.eval_file_pattern))
    if manifest is None:
        if not params.model.num_classes:
            raise UserError(
                f"The records {pattern} have no manifest to take the number of classes from: "
                "give --num_classes, counting the background."
            )
        return params
    if training:
        _check_training_records(params, manifest)
    return _with_num_classes(params, manifest.num_classes)


def execute(params: Params) -> None:
    """Does what `--mode` says with complete params."""
    _make_model_dir(params.train.model_dir)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from data.input_fn import input_fn
    from model.mask_scoring_rcnn import build_network
    from model.model_fn import model_fn
    from trainer.estimator import Estimator
    from trainer.strategy import make_strategy, prepare_runtime

    prepare_runtime(params)
    strategy = make_strategy(params)
    with strategy.scope():
        network = build_network(params)
    estimator = Estimator(model_fn, network, params, strategy)
    _MODES[params.train.mode](estimator, input_fn, params)


def _train(estimator, input_fn: Callable, params: Params) -> None:
    write_flagfile(params, os.path.join(params.train.model_dir, "config.flags"))
    estimator.train(input_fn)


def _train_and_eval(estimator, input_fn: Callable, params: Params) -> None:
    write_flagfile(params, os.path.join(params.train.model_dir, "config.flags"))
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
    writer = CocoEvaluator(None, _categories(params))
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
        _categories(params),
        params.train.model_dir,
        params.train.num_eval_images_shown,
    )


def _categories(params: Params) -> Sequence[dict]:
    """The records' categories; without a manifest none, and labels stand for COCO ids."""
    manifest = find_manifest(params.data.eval_file_pattern)
    return () if manifest is None else manifest.categories


def _check_training_records(params: Params, manifest: Manifest) -> None:
    pattern = params.data.train_file_pattern
    if params.model.include_mask and not manifest.include_masks:
        raise UserError(
            f"The records {pattern} were converted without masks: give --noinclude_mask "
            "--noinclude_maskiou to train boxes alone, or convert them with masks."
        )
    if manifest.max_instances_per_image > params.data.max_instances:
        print(
            f"Warning: an image of {pattern} has {manifest.max_instances_per_image} objects and "
            f"--max_instances={params.data.max_instances} drops what exceeds it; raise it to keep "
            "them all.",
            file=sys.stderr,
        )


def _check_same_categories(train: Manifest | None, evaluation: Manifest | None) -> None:
    if train and evaluation and train.categories != evaluation.categories:
        raise UserError(
            "The records of --train_file_pattern and of --eval_file_pattern have different "
            "categories: convert both from annotation files with one list of categories."
        )


def _with_num_classes(params: Params, num_classes: int) -> Params:
    if 0 < params.model.num_classes < num_classes:
        raise UserError(
            f"--num_classes={params.model.num_classes} is too small: the records have "
            f"{num_classes - 1} categories, and the background counts as one more; give "
            f"--num_classes={num_classes} or leave it out."
        )
    if params.model.num_classes:
        return params
    return dataclasses.replace(
        params, model=dataclasses.replace(params.model, num_classes=num_classes)
    )


def _make_model_dir(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--model_dir={path} cannot be made ({error.strerror}): name a folder that can."
        ) from error


if __name__ == "__main__":
    run()
