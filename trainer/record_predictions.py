"""What any model, a checkpoint or an export, finds in the images of records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from data.input_fn import input_fn
from trainer.config import Params
from trainer.steps import split_images


def with_records(params: Params, given: Mapping[str, Any]) -> Params:
    """The settings to evaluate with on other records than those of the training.

    Args:
        params: of the model.
        given: `eval_file_pattern` and `eval_annotation_file`.
    """
    data = dataclasses.replace(
        params.data,
        eval_file_pattern=given["eval_file_pattern"],
        eval_batch_size=1,
        data_service="",
        on_corrupt_record="error",
    )
    train = dataclasses.replace(
        params.train, mode="eval", eval_annotation_file=given["eval_annotation_file"]
    )
    return dataclasses.replace(params, data=data, train=train)


def predict_records(params: Params, detect: Callable) -> Iterator[dict[str, np.ndarray]]:
    """Yields the detections in each image, as `trainer.estimator.Estimator.predict` does.

    Args:
        params: settings, see `with_records`.
        detect: maps the features of a batch to detections, with the names of
            `model.detector.Detector.detect`.
    """
    for features in input_fn("predict", params).as_numpy_iterator():
        known = {name: features[name] for name in ("image_id", "image_info")}
        seen = {name: value for name, value in features.items() if name != "image_id"}
        outputs = {name: np.asarray(value) for name, value in detect(seen).items()}
        yield from split_images(features, {**outputs, **known})
