"""--mode=export: a trained network as a SavedModel, and as OpenVINO models."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import tensorflow as tf

from data import files
from data.tfrecords import write_shard
from model.detector import Detector
from model.systems import build_network
from trainer.calibration import read_calibration_images
from trainer.calibration_file import calibrate_network
from trainer.categories import Category, load_categories
from trainer.checkpoint_files import find_checkpoint, load_network
from trainer.config import Params
from trainer.export_check import find_expected
from trainer.exported import ASSETS, choose_canvas, describe, write_metadata
from trainer.openvino_export import export_openvino, require_openvino
from trainer.run_record import home_of, require_checkpoint, require_own_proposals
from trainer.serving import Serving
from trainer.warmup import FILE as WARMUP_FILE
from trainer.warmup import make_warmup_request


def export(params: Params) -> str:
    """Writes the network of `--model_dir` to the folder export/ there, or in `--output_dir`.

    saved_model/ is always written, because the other formats are made from it. Each format's folder
    appears when it is complete.

    Returns:
        The path of export/.

    Raises:
        UserError: there is no checkpoint, or it is of another network, or a package is missing.
    """
    openvino = "openvino" in params.train.export_formats
    folder = os.path.join(params.train.output_dir or params.train.model_dir, "export")
    if openvino:
        require_openvino(folder)
    serving, params, metadata = open_for_export(params)
    signatures = serving.signatures()
    images = read_calibration_images(params) if openvino else []
    saved_model = os.path.join(folder, "saved_model")
    with _whole_folder(saved_model) as unfinished:
        # Nobody trains an export, and the gradients would be traced one by one.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        with files.os_errors(saved_model):
            tf.saved_model.save(serving, unfinished, signatures, options)
        _write_assets(os.path.join(unfinished, ASSETS), params, metadata)
    if openvino:
        expected = find_expected(signatures["serving_default"], images[0])
        with _whole_folder(os.path.join(folder, "openvino")) as unfinished:
            export_openvino(saved_model, unfinished, metadata, expected, images)
    return folder


def _write_assets(folder: str, params: Params, metadata: dict) -> None:
    files.make_folder(folder)
    write_metadata(folder, metadata)
    (canvas,) = params.data.canvas_sizes
    write_shard(os.path.join(folder, WARMUP_FILE), [make_warmup_request(*canvas)])


@contextlib.contextmanager
def _whole_folder(target: str) -> Iterator[str]:
    """Yields an empty folder that takes the place of `target` when it is complete."""
    unfinished = f"{target}.tmp"
    _clear(unfinished)
    files.make_folder(unfinished)
    try:
        yield unfinished
    except BaseException:
        _clear(unfinished)
        raise
    _clear(target)
    files.rename(unfinished, target)


def _clear(folder: str) -> None:
    if files.exists(folder):
        files.remove_folder(folder)


def open_for_export(params: Params) -> tuple[Serving, Params, dict]:
    """The signatures of `open_network`'s network, its settings and its metadata."""
    network, params, categories = open_network(params)
    return Serving(params, network, categories), params, describe(params, categories)


def open_network(params: Params) -> tuple[Detector, Params, tuple[Category, ...]]:
    """The network of `--model_dir` or `--init_checkpoint`, its settings and its classes."""
    require_checkpoint(params)
    require_own_proposals(params, params.train.model_dir)
    params = choose_canvas(params)
    network = build_network(params)
    checkpoint = find_checkpoint(params.train.init_checkpoint or params.train.model_dir)
    load_network(network, checkpoint)
    calibrated = bool(calibrate_network(network, checkpoint, params))
    # The metadata say what was done.
    model = dataclasses.replace(params.model, calibrate_scores=calibrated)
    params = dataclasses.replace(params, model=model)
    categories = load_categories(home_of(params.train.model_dir, params.train.init_checkpoint))
    return network, params, categories
