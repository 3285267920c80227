"""What an evaluation writes for TensorBoard and chooses the best checkpoint by."""

import tensorflow as tf
from coco_examples import CATEGORIES, ground_truth, predict, square

from trainer.coco_metrics import CocoEvaluator
from trainer.evaluation import flatten_metrics, ranking_metric
from trainer.hooks import Summaries


def test_metrics_are_flattened_without_categories_and_sizes():
    report = {
        "LRP": 0.4,
        "components": {"oLRP": {"FP": 0.1}},
        "agreement": {"count": 3, "correlation": None},
        "by_category": {"cat": {"LRP": 1.0}},
        "by_size": {"small": {"LRP": 1.0}},
    }
    metrics = {
        "step": 7,
        "segm": {"AP": 0.3, "AP50": 0.5},
        "per_category": {"cat": {"segm": 0.3}},
        "quality": {"mask_score": report},
        "errors": {"class": 0.1, "counts": {"class": 4}},
    }
    assert flatten_metrics(metrics) == {
        "segm/AP": 0.3,
        "segm/AP50": 0.5,
        "quality/mask_score/LRP": 0.4,
        "quality/mask_score/components/oLRP/FP": 0.1,
        "quality/mask_score/agreement/count": 3,
        "errors/class": 0.1,
        "errors/counts/class": 4,
    }


def test_an_evaluation_reaches_tensorboard(tmp_path):
    evaluator = CocoEvaluator(ground_truth(square(1, 20, 10, 40)), CATEGORIES)
    evaluator.add(predict(1, ([10, 20, 50, 60], 1, 0.8, 0.5)))
    metrics = {"step": 5, **evaluator.evaluate()}
    Summaries(str(tmp_path)).write_scalars(5, flatten_metrics(metrics))
    (path,) = tmp_path.glob("events.*")
    events = tf.compat.v1.train.summary_iterator(str(path))
    tags = {value.tag for event in events for value in event.summary.value}
    assert tags == flatten_metrics(metrics).keys()
    assert {"segm/AP", "quality/mask_score/LaECE", "errors/missed"} <= tags
    assert ranking_metric(metrics) == metrics["segm"]["AP"]
