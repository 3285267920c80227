"""Evaluates a model_dir: metrics.json, COCO results, table, TensorBoard, best checkpoint.

Axes: H, W original image.
"""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from data.findings import NONE_SKIPPED, SkippedImages
from trainer.checkpoints import write_json
from trainer.coco_metrics import CocoEvaluator
from trainer.coco_report import DETECTIONS_COUNTED, format_table
from trainer.coco_results import original_size
from trainer.estimator import Estimator, InputFn, Prediction
from trainer.hooks import Summaries
from trainer.lvis_federation import Federation
from trainer.overlays import annotation_instances, draw_comparison, prediction_instances

_NOT_FLATTENED = ("per_category", "by_category", "by_size")


class Evaluation:
    """Evaluates an estimator against a ground truth, any number of times.

    Args:
        estimator: the estimator whose current weights are evaluated.
        input_fn: gives the evaluation images in mode "eval".
        ground_truth: COCO-format dict.
        categories: {"label", "id", "name"} of every class.
        output_dir: where `eval/` and the summaries are written.
        num_images_shown: number of predictions drawn for TensorBoard.
        mask_paste: how masks are pasted into their images, a rule of `model.paste`.
        max_detections, skipped, boundary, federation: as for `CocoEvaluator`.
    """

    def __init__(
        self,
        estimator: Estimator,
        input_fn: InputFn,
        ground_truth: Mapping,
        categories: Sequence[Mapping],
        output_dir: str,
        num_images_shown: int,
        mask_paste: str = "exact",
        max_detections: int = DETECTIONS_COUNTED,
        skipped: SkippedImages = NONE_SKIPPED,
        *,
        boundary: bool = False,
        federation: Federation | None = None,
    ):
        self._estimator = estimator
        self._input_fn = input_fn
        self._ground_truth = ground_truth
        self._categories = categories
        self._folder = os.path.join(output_dir, "eval")
        self._summaries = Summaries(os.path.join(output_dir, "summaries", "eval"))
        self._num_images_shown = num_images_shown
        self._mask_paste = mask_paste
        self._max_detections = max_detections
        self._skipped = skipped
        self._boundary = boundary
        self._federation = federation

    def run(self) -> dict:
        """Evaluates, writes and prints the results, and returns the metrics with the step.

        The workers of a cluster that are not the chief only predict; their result is empty.
        """
        evaluator = CocoEvaluator(
            self._ground_truth,
            self._categories,
            self._mask_paste,
            max_detections=self._max_detections,
            skipped=self._skipped,
            boundary=self._boundary,
            federation=self._federation,
        )
        num_images = len(self._ground_truth["images"])
        metrics = self._estimator.evaluate(self._input_fn, evaluator, num_images)
        if not metrics:
            return {}
        evaluator.results.write(self._folder)
        write_json(metrics, os.path.join(self._folder, "metrics.json"))
        self._summaries.write_scalars(metrics["step"], flatten_metrics(metrics))
        self._draw(metrics["step"])
        print(f"Evaluation at step {metrics['step']}:\n{format_table(metrics)}", flush=True)
        for sentence in evaluator.explain(metrics):
            print(sentence, flush=True)
        return metrics

    def run_in_training(self, step: int) -> None:
        """Evaluates at `step` and keeps the checkpoint if it is the best so far."""
        metrics = self.run()
        if not metrics:
            return
        average_precision = ranking_metric(metrics)
        measured = average_precision if average_precision >= 0 else math.nan
        if self._estimator.checkpoints.record_evaluation(measured):
            print(f"Step {step} is the best so far: AP {average_precision:.4f}.", flush=True)

    def _draw(self, step: int) -> None:
        if not self._num_images_shown:
            return
        annotations = collections.defaultdict(list)
        for annotation in self._ground_truth["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        shown = self._estimator.predict(
            self._input_fn, mode="eval", num_images_shown=self._num_images_shown
        )
        pictures = {
            f"image_{number}": self._compare(image, annotations[int(image["image_id"])])
            for number, image in enumerate(shown)
        }
        self._summaries.write_images(step, pictures)

    def _compare(self, prediction: Prediction, annotations: Sequence[Mapping]) -> np.ndarray:
        """Draws ground truth and prediction side by side on the image at its original size."""
        height, width = original_size(prediction)
        image = np.asarray(Image.fromarray(prediction["image"]).resize((width, height)))
        names_by_id = {category["id"]: category["name"] for category in self._categories}
        names_by_label = {category["label"]: category["name"] for category in self._categories}
        return draw_comparison(
            image,
            annotation_instances(annotations, names_by_id, height, width),
            prediction_instances(
                prediction, names_by_label, height, width, mask_paste=self._mask_paste
            ),
        )


def flatten_metrics(metrics: Mapping) -> dict[str, float]:
    """Flattens `{"bbox": {"AP": 0.3}}` to `{"bbox/AP": 0.3}`, to any depth.

    Leaves out categories, sizes, what is not in a group, and what is not defined.
    """
    flat = {}
    for group, values in metrics.items():
        if isinstance(values, Mapping) and group not in _NOT_FLATTENED:
            flat |= {f"{group}/{name}": v for name, v in values.items() if _is_number(v)}
            flat |= {f"{group}/{name}": v for name, v in flatten_metrics(values).items()}
    return flat


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def ranking_metric(metrics: Mapping) -> float:
    """Returns the AP that the best checkpoint is chosen by: of masks, else of boxes."""
    return float(metrics["segm" if "segm" in metrics else "bbox"]["AP"])
