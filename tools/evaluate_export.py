"""Evaluates a trained model and its exports on the same images, and compares them.

    python tools/evaluate_export.py --model=M --exports=M/export/saved_model,O/model_int8.tflite \
--eval_file_pattern='records/val-*'

prints a row for the checkpoint and for each export: COCO AP of boxes, of masks ranked by mask score
and of masks ranked by class score; the median time per image; the peak memory of a process that
does nothing else; the size on disk; and the time from its start to its first result. An export is a
SavedModel, a .tflite file, the folder of an OpenVINO model, or a .stablehlo file. The checkpoint is
evaluated as its exports are: with their settings, on their canvas, in float32, one image at a time.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from data import files
from data.tensorflow_log import quieten_tensorflow
from tools.benchmarks import memory
from trainer.flags import exit_status, parse_command_line, require_flags
from trainer.run_record import has_checkpoint
from trainer.runtimes import About, is_export, open_export, read_export

_DESCRIPTION = "python tools/evaluate_export.py --model=M --exports=E --eval_file_pattern=R"
_KINDS = {"bbox": "bbox AP", "segm": "segm AP", "segm_class_score": "by class score"}
# In the process that runs a model.
_detect: Callable[[Mapping], Mapping]


def evaluate(model: str, exports: Sequence[str], given: Mapping[str, Any]) -> list[dict]:
    """Evaluates a model_dir and its exports.

    Args:
        model: the model_dir.
        exports: paths.
        given: `eval_file_pattern` and, to evaluate against another ground truth than that in the
            records, `eval_annotation_file`.

    Returns:
        The rows, those of the same settings together and the checkpoint's before its exports'.

    Raises:
        UserError: one of them cannot be opened, or does not know the classes of the records.
    """
    from trainer.coco_ground_truth import load_ground_truth

    abouts = {path: read_export(path) for path in exports}
    by_settings: dict[str, list[str]] = {}
    for path, about in abouts.items():
        by_settings.setdefault(json.dumps(about.metadata["settings"]), []).append(path)
    truth = load_ground_truth(given["eval_annotation_file"], given["eval_file_pattern"])
    rows = []
    for paths in by_settings.values():
        about = abouts[paths[0]]
        rows.append(_evaluate_one(model, about, truth, given, about.metadata["settings"]))
        rows += [_evaluate_one(path, abouts[path], truth, given) for path in paths]
    return rows


def _evaluate_one(
    path: str, about: About, truth: Mapping, given: Mapping[str, Any], settings: Mapping = {}
) -> dict:
    """Evaluates one model, which runs in a process of its own."""
    from trainer.coco_metrics import CocoEvaluator
    from trainer.known_classes import evaluated_categories
    from trainer.record_predictions import predict_records, with_records

    params = with_records(about.params, given)
    categories = evaluated_categories(params, about.categories, truth)
    limit = params.model.detections_per_image
    evaluator = CocoEvaluator(truth, categories, params.model.mask_paste, max_detections=limit)
    with _Runner(path, settings) as runner:
        for prediction in predict_records(params, runner.detect):
            evaluator.add(prediction)
        figures = runner.figures()
    metrics = evaluator.evaluate()
    found = {kind: metrics[kind]["AP"] for kind in _KINDS if kind in metrics}
    return {"path": path, "canvas": params.data.canvases[0], **found, **figures}


class _Runner:
    """A process that opens a model and runs it, so that its time and memory are its own.

    Args:
        path: a model_dir or an export.
        settings: of a model_dir, for `trainer.predictor.open_checkpoint`.
    """

    def __init__(self, path: str, settings: Mapping[str, Any]):
        self._path = path
        self._seconds: list[float] = []
        self._started = time.perf_counter()
        self._ready_seconds = 0.0
        self._pool = concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _open, (path, dict(settings))
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._pool.shutdown(cancel_futures=True)

    def detect(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Detects the objects in a batch."""
        outputs, seconds = self._pool.submit(_run, features).result()
        self._ready_seconds = self._ready_seconds or time.perf_counter() - self._started
        self._seconds.append(seconds)
        return outputs

    def figures(self) -> dict[str, float]:
        """Returns what running it took. The first image, which may compile, is not timed."""
        return {
            "ms_per_image": 1000 * statistics.median(self._seconds[1:] or self._seconds),
            "peak_mb": self._pool.submit(memory.peak_mb).result(),
            "size_mb": _size(self._path) / 1e6,
            "start_seconds": self._ready_seconds,
        }


def _open(path: str, settings: dict[str, Any]) -> None:
    global _detect
    if settings:
        from trainer.predictor import open_checkpoint

        _detect = open_checkpoint(path, settings=settings).detect
    else:
        _detect = open_export(path).detect


def _run(features: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
    started = time.perf_counter()
    outputs = {name: np.asarray(value) for name, value in _detect(features).items()}
    return outputs, time.perf_counter() - started


def _size(path: str) -> int:
    """Bytes of an export, or of the latest checkpoint in a model_dir."""
    from trainer.checkpoint_files import find_checkpoint

    if is_export(path) or not has_checkpoint(path):
        return files.total_size(path)
    return sum(files.size(part) for part in files.glob(f"{find_checkpoint(path)}.*"))


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats the rows of `evaluate` as a Markdown table."""
    titles = ["model", "canvas", *_KINDS.values(), "ms/image", "peak MB", "size MB", "start s"]
    lines = [titles, ["---"] * 2 + ["---:"] * (len(titles) - 2)]
    for row in rows:
        average_precisions = [f"{row[kind]:.4f}" if kind in row else "" for kind in _KINDS]
        measured = [f"{row[name]:.0f}" for name in ("ms_per_image", "peak_mb")]
        sizes = [f"{row[name]:.1f}" for name in ("size_mb", "start_seconds")]
        lines.append([row["path"], row["canvas"], *average_precisions, *measured, *sizes])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", "", "model_dir of a training.", flag_values=flag_values)
    flags.DEFINE_list("exports", [], "Paths of its exports.", flag_values=flag_values)
    flags.DEFINE_string("json", "", "JSON file to write the rows to.", flag_values=flag_values)


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status."""
    command = parse_command_line(argv, _DESCRIPTION, _define_flags)
    values = command.flag_values
    require_flags(values, "model", "exports", "eval_file_pattern")

    def work() -> int:
        quieten_tensorflow()
        names = ("eval_file_pattern", "eval_annotation_file")
        given = {name: values[name].value for name in names}
        exports = [files.expand(path) for path in values["exports"].value]
        rows = evaluate(files.expand(values["model"].value), exports, given)
        print(format_rows(rows))
        if values["json"].value:
            with files.whole_file(values["json"].value) as file:
                json.dump(rows, file, indent=1)
        return 0

    return exit_status(work)


def run() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
