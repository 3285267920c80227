"""Opens exported models: SavedModel, LiteRT, OpenVINO.

Each function returns the settings, what finds the objects in a batch of one image on a canvas, and
the classes, as `trainer.predictor.Predictor` takes them.
"""

from __future__ import annotations

import io
import json
import os
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data import files
from data.errors import UserError
from trainer.categories import Category
from trainer.config import Params
from trainer.exported import (
    ASSETS,
    FILE,
    NAMES,
    find_on_canvas,
    parse_metadata,
    read_metadata,
)

if TYPE_CHECKING:
    import tensorflow as tf

OPENVINO_FILE = "model.xml"


class Opened(NamedTuple):
    """An exported model."""

    params: Params
    detect: Callable[[Mapping], Mapping]
    categories: tuple[Category, ...]


def find_opener(path: str) -> Callable[[str], Opened] | None:
    """Returns what opens the export at a path, None where there is none."""
    if path.endswith(".tflite"):
        return open_tflite
    if files.exists(os.path.join(path, "saved_model.pb")):
        return open_saved_model
    if files.exists(os.path.join(path, OPENVINO_FILE)):
        return open_openvino
    return None


def open_saved_model(folder: str) -> Opened:
    """Opens a SavedModel.

    Raises:
        UserError: the folder is not an export of this project.
    """
    import tensorflow as tf

    params, categories = parse_metadata(read_metadata(os.path.join(folder, ASSETS)))
    # Kept by the function: it owns the weights.
    model = tf.saved_model.load(folder)

    def detect(features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        found = model.signatures["serve_canvas"](**features)
        return {inner: found[outer] for inner, outer in NAMES.items() if outer in found}

    return Opened(params, detect, categories)


def open_tflite(path: str) -> Opened:
    """Opens a .tflite file, run by LiteRT, or by TensorFlow where that is not installed.

    Raises:
        UserError: the file is not an export of this project.
    """
    try:
        with files.open_file(path, "rb") as file:
            content = file.read()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            params, categories = parse_metadata(json.loads(archive.read(FILE)))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be opened ({error}): it is not a file of tools/export_tflite.py."
        ) from None
    return Opened(params, find_on_canvas(run_tflite(content), params.model.pixel_mean), categories)


def run_tflite(content: bytes) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """What runs a .tflite file on an image; one call at a time, as its interpreter has it."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        import tensorflow as tf

        warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated")
        Interpreter = tf.lite.Interpreter
    runner = Interpreter(model_content=content, num_threads=os.cpu_count()).get_signature_runner()
    lock = threading.Lock()

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        with lock:
            return {name: np.array(value) for name, value in runner(image=image).items()}

    return run


def open_openvino(folder: str) -> Opened:
    """Opens an OpenVINO model.

    Raises:
        UserError: the folder is not an export of this project, or OpenVINO is not installed.
    """
    metadata = read_metadata(folder)
    params, categories = parse_metadata(metadata)
    parts = []
    for name in (OPENVINO_FILE, OPENVINO_FILE.replace(".xml", ".bin")):
        with files.os_errors(folder), files.open_file(os.path.join(folder, name), "rb") as file:
            parts.append(file.read())
    run = run_openvino(import_openvino().Core().read_model(*parts), metadata["precision"])
    return Opened(params, find_on_canvas(run, params.model.pixel_mean), categories)


def run_openvino(model, precision: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """What runs an `openvino.Model` on an image; one call at a time.

    Args:
        model: with the inputs and outputs of `serving_default`.
        precision: "bfloat16" computes in it where the CPU can; else in float32 and, what is
            quantised, in int8.
    """
    # By itself OpenVINO computes in bfloat16 on CPUs with AMX.
    hint = "bf16" if precision == "bfloat16" else "f32"
    compiled = import_openvino().Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    )
    request = compiled.create_infer_request()
    lock = threading.Lock()

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        with lock:
            found = request.infer({"image": image})
            return {output.any_name: np.array(found[output]) for output in compiled.outputs}

    return run


def import_openvino():
    """Imports the package; raises UserError where it is not installed."""
    try:
        import openvino
    except ImportError:
        raise UserError(
            "OpenVINO is not installed: pip install 'mask-scoring-rcnn[openvino]'."
        ) from None
    return openvino
