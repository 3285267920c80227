"""--mode=export: a trained network as a SavedModel."""

from __future__ import annotations

import json
import os

import tensorflow as tf

from data import files
from data.tfrecords import write_shard
from model.detector import Detector
from model.systems import build_network
from trainer.categories import Category, load_categories
from trainer.checkpoints import find_checkpoint, load_network
from trainer.config import Params
from trainer.exported import ASSETS, FILE, choose_canvas, describe
from trainer.run_record import home_of, require_checkpoint
from trainer.serving import Serving
from trainer.warmup import FILE as WARMUP_FILE
from trainer.warmup import make_warmup_request


def export(params: Params) -> str:
    """Writes the network of `--model_dir` to export/saved_model there, or in `--output_dir`.

    The folder appears when it is complete.

    Returns:
        Its path.

    Raises:
        UserError: there is no checkpoint, or it is of another network.
    """
    serving, params, metadata = open_for_export(params)
    folder = os.path.join(params.train.output_dir or params.train.model_dir, "export")
    target = os.path.join(folder, "saved_model")
    unfinished = f"{target}.tmp"
    _clear(unfinished)
    files.make_folder(folder)
    # Nobody trains an export, and the gradients would be traced one by one.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with files.os_errors(target):
        tf.saved_model.save(serving, unfinished, serving.signatures(), options)
    _write_assets(os.path.join(unfinished, ASSETS), params, metadata)
    _clear(target)
    files.rename(unfinished, target)
    return target


def _write_assets(folder: str, params: Params, metadata: dict) -> None:
    files.make_folder(folder)
    with files.whole_file(os.path.join(folder, FILE)) as file:
        json.dump(metadata, file, indent=1, ensure_ascii=False)
    (canvas,) = params.data.canvas_sizes
    write_shard(os.path.join(folder, WARMUP_FILE), [make_warmup_request(*canvas)])


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
    params = choose_canvas(params)
    network = build_network(params)
    checkpoint = params.train.init_checkpoint or params.train.model_dir
    load_network(network, find_checkpoint(checkpoint))
    categories = load_categories(home_of(params.train.model_dir, params.train.init_checkpoint))
    return network, params, categories
