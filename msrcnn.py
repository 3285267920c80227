"""Mask Scoring R-CNN for TensorFlow 2: instance masks, each with its predicted quality.

from msrcnn import load

found = load("runs/photos")("street.jpg")
found.boxes, found.names, found.box_scores, found.mask_ious, found.mask_scores, found.masks
"""

from data.tensorflow_log import quieten_tensorflow

quieten_tensorflow()

from data.errors import UserError  # noqa: E402
from data.input_fn import input_fn  # noqa: E402
from trainer.own_loop import build, make_settings, save, train_step  # noqa: E402
from trainer.predictor import Detections, Predictor, load  # noqa: E402

__all__ = [
    "Detections",
    "Predictor",
    "UserError",
    "build",
    "input_fn",
    "load",
    "make_settings",
    "save",
    "train_step",
]
