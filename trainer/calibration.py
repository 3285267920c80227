"""The images that an export with 8-bit arithmetic takes the ranges of its activations from."""

from __future__ import annotations

import dataclasses

import numpy as np

from data.errors import UserError
from data.input_fn import input_fn
from trainer.config import Params
from trainer.exported import fill_canvas
from trainer.run_record import home_of, load_record

COUNT = 100


def read_calibration_images(params: Params) -> list[np.ndarray]:
    """Reads the first images of --calibration_file_pattern, by default of the training records.

    Args:
        params: of the export, with one canvas.

    Returns:
        At most `COUNT` uint8 [1, H, W, 3].

    Raises:
        UserError: no pattern is known, it matches nothing, or its records have no images.
    """
    train = params.train
    recorded = load_record(home_of(train.model_dir, train.init_checkpoint))
    pattern = train.calibration_file_pattern or recorded.get("train_file_pattern", "")
    if not pattern:
        raise UserError(
            "int8 is calibrated on images: name records with --calibration_file_pattern."
        )
    data = dataclasses.replace(
        params.data, eval_file_pattern=pattern, eval_batch_size=1, data_service=""
    )
    batches = input_fn("predict", dataclasses.replace(params, data=data)).take(COUNT)
    mean = params.model.pixel_mean
    images = [fill_canvas(features, mean) for features in batches.as_numpy_iterator()]
    if not images:
        raise UserError(f"int8 is calibrated on images, and {pattern} has none.")
    return images
