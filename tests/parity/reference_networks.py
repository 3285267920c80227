"""The reference networks, rebuilt from the fixtures' weights through the importer."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import zlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from fixtures import ROOT, Fixture, fixture, key_list, yx

from data.config import DataConfig
from model.config import ModelConfig
from model.detector import Detector
from model.importers.family import Family
from model.importers.report import explain_refusal
from model.importers.translate import count_classes, recognise, translate
from model.systems import build_network
from model.variables import named_variables
from trainer.config import Params
from trainer.flags import parse_flags

# What each library calls the settings of a fixture's configuration.
_SETTINGS = {
    "rpn_pre_nms_test": ("nms_pre", "pre_nms"),
    "rpn_post_nms_test": ("max_proposals", "fpn_post_nms", "post_nms"),
    "score_threshold": ("score_thr", "score_thresh"),
    "nms_iou": ("nms",),
    "detections_per_image": ("max_dets", "dets"),
}
# The key list of each reference's published weights.
_KEY_LISTS = {
    "mm": "mmdet_ms_rcnn_r50_caffe_fpn_1x_coco",
    "tv": "torchvision_maskrcnn_resnet50_fpn",
    "ms": "maskscoring_rcnn_R_50_FPN",
}
_FLAGFILES = {
    "d2": "detectron2",
    "tv": "torchvision",
    "mm": "mmdetection_caffe",
    "ms": "authors",
}
_FROM_FIRST = {"tv", "ms"}


class Reference(NamedTuple):
    """One reference network and ours with its weights.

    Attributes:
        library: d2, tv, mm or ms.
        fixture: its numbers.
        family: what the importer took its weights for.
        network: ours.
        config, data: its settings.
    """

    library: str
    fixture: Fixture
    family: Family
    network: Detector
    config: ModelConfig
    data: DataConfig

    @property
    def is_bgr(self) -> bool:
        """Whether the reference takes blue, green and red."""
        return self.library != "tv"

    def to_classes(self, labels: np.ndarray) -> np.ndarray:
        """Their labels, from 0 on in the foreground except where it begins at 1, as ours."""
        return labels.astype(np.int32) + (0 if self.library in _FROM_FIRST else 1)

    def class_columns(self, values: np.ndarray, entries: int = 1) -> np.ndarray:
        """Our class-wise outputs [N, K · entries] in their order of classes.

        With one entry a class the background is first or last; with four, deltas, it is first and
        its values are nobody's, or it is absent.
        """
        values = values.reshape(len(values), -1, entries)
        if entries == 4:
            values = yx(values)[:, 1:]
        elif self.library not in _FROM_FIRST:
            values = np.roll(values, -1, axis=1)
        return values.reshape(len(values), -1)

    def reference_deltas(self, deltas: np.ndarray) -> np.ndarray:
        """Their deltas without columns for the background."""
        return deltas[:, 4:] if self.library in _FROM_FIRST else deltas


def image_features(image: np.ndarray, canvas: tuple[int, int]) -> dict[str, tf.Tensor]:
    """One image [h, w, 3] at the top left of a canvas (H, W), as a batch of one."""
    return batch_features([image], canvas)


def batch_features(images: list[np.ndarray], canvas: tuple[int, int]) -> dict[str, tf.Tensor]:
    """Images at the top left of canvases (H, W)."""
    pixels = np.zeros([len(images), *canvas, 3], np.uint8)
    for index, image in enumerate(images):
        pixels[index, : image.shape[0], : image.shape[1]] = image
    info = [[*image.shape[:2], 1.0, *image.shape[:2]] for image in images]
    return {
        "image": tf.constant(pixels),
        "image_id": tf.range(len(images), dtype=tf.int64),
        "image_info": tf.constant(info, tf.float32),
    }


def box_tolerance(tolerance: dict) -> float:
    """Pixels: the manifest's, or for the full networks what IoU > .99 leaves."""
    stated = re.search(r"atol (\S+) px", tolerance["boxes"])
    return float(stated.group(1)) if stated else 1.0


@functools.cache
def load(file: str) -> Reference:
    """Opens a file of a whole network, i_LIBRARY_NAME.npz."""
    opened = fixture(file)
    library = file.split("_")[1]
    weights = _weights(opened, library)
    settings = flagfile(_FLAGFILES[library])
    family = recognise(weights, settings.model.resnet_stride_in_1x1)
    config = _model_config(opened, library, weights, family, settings.model)
    network = build_network(Params(model=config, data=settings.data))
    variables = named_variables(network)
    shapes = {path: tuple(variable.shape) for path, variable in variables.items()}
    result = translate(weights, family, shapes)
    assert result.complete, explain_refusal(result, file)
    assert not result.initial
    for path, value in result.values.items():
        variables[path].assign(value)
    return Reference(library, opened, family, network, config, settings.data)


def with_settings(reference: Reference, **settings) -> Reference:
    """The same with a copy of the network, and of its weights, under other settings of it."""
    config = dataclasses.replace(reference.config, **settings)
    copy = build_network(Params(model=config, data=reference.data))
    for ours, theirs in zip(copy.variables, reference.network.variables, strict=True):
        ours.assign(theirs)
    return reference._replace(network=copy, config=config)


def flagfile(name: str) -> Params:
    """The settings of configs/NAME.flags; flagfiles name each other as seen from the root."""
    folder = os.getcwd()
    try:
        os.chdir(ROOT)
        return parse_flags(["test", f"--flagfile=configs/{name}.flags"])
    finally:
        os.chdir(folder)


def _model_config(opened, library, weights, family, settings: ModelConfig) -> ModelConfig:
    params = opened["config"].params
    stated = {
        name: params[theirs]
        for name, names in _SETTINGS.items()
        for theirs in names
        if theirs in params
    }
    return dataclasses.replace(
        settings,
        num_classes=count_classes(weights, family),
        backbone_width=_outputs(weights, r"^(?!.*(layer|res)\d).*conv1\.weight$"),
        fpn_channels=_outputs(weights, r"rpn.*conv.*\.weight$"),
        head_dim=_outputs(weights, r"(fc6|shared_fcs\.0|box_head\.fc1)\.weight$"),
        norm="frozen_bn",
        freeze_at=2,
        system="mask_scoring_rcnn" if library in ("mm", "ms") else "mask_rcnn",
        **stated,
    )


def _outputs(weights, pattern: str) -> int:
    """Outputs of the first layer whose name matches."""
    return next(len(tensor) for name, tensor in weights.items() if re.search(pattern, name))


def _weights(opened: Fixture, library: str) -> dict[str, np.ndarray]:
    if "weights" in opened.cases:
        stored = opened["weights"].arrays("")
        return {name: np.asarray(tensor, np.float32) for name, tensor in stored.items()}
    params = opened["config"].params
    keys = key_list(_KEY_LISTS[library])["keys"]
    weights = {name: _recipe(name, tuple(entry["shape"]), params) for name, entry in keys.items()}
    transposed = re.search(r"axis 1 for (\S+?),? a? ?trans", params["calib"]).group(1)
    for name, value in opened["calib"].arrays("").items():
        module, _, kind = name.rpartition(".")
        if kind == "bias":
            weights[name] = value
        else:
            kernel = weights[f"{module}.weight"]
            axis = 1 if module == transposed else 0
            shape = [-1 if index == axis else 1 for index in range(kernel.ndim)]
            weights[f"{module}.weight"] = kernel * value.reshape(shape)
    return weights


def _recipe(name: str, shape: tuple[int, ...], params: dict) -> np.ndarray:
    """Weights made from their names, as the manifest's params tell."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    draw = np.random.RandomState(zlib.crc32((params["prefix"] + name).encode()) & 0x7FFFFFFF)
    if name.endswith("running_var"):
        value = draw.uniform(size=shape) + 0.5
    elif name.endswith("running_mean"):
        value = draw.standard_normal(shape) * 0.1
    elif len(shape) == 1 and name.endswith(".weight"):
        value = draw.uniform(size=shape) * 0.4 + 0.8
    elif len(shape) == 1:
        value = draw.standard_normal(shape) * 0.05
    else:
        gain = math.prod(gain for part, gain in params["gains"].items() if part in name)
        value = draw.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])) * gain
    return value.astype(np.float32)
