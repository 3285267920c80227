"""Opens exported models, and runs them by the packages that they are for.

All process one image on a canvas at a time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

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
    """An exported model, or a checkpoint.

    `rate` judges given masks as `model.detector.Detector.rate` does; None if the model cannot.
    """

    params: Params
    detect: Callable[[Mapping], Mapping]
    categories: tuple[Category, ...]
    rate: Callable | None = None


class About(NamedTuple):
    """What an exported model says about itself."""

    params: Params
    categories: tuple[Category, ...]
    metadata: Mapping[str, Any]


class Format(NamedTuple):
    """A format of exported models, whose functions take the path of one.

    Attributes:
        name: its name in results.
        holds: whether there is one.
        metadata: reads its metadata.json.
        open: returns what finds objects in the features of one image.
    """

    name: str
    holds: Callable[[str], bool]
    metadata: Callable[[str], Mapping[str, Any]]
    open: Callable[[str, About], Callable[[Mapping], Mapping]]


def is_export(path: str) -> bool:
    """Whether there is an exported model at a path."""
    return any(kind.holds(path) for kind in _FORMATS)


def name_format(path: str) -> str:
    """Names the format of an exported model; raises UserError if there is none."""
    return _format_of(path).name


def read_export(path: str) -> About:
    """Reads the settings and classes of an exported model.

    Raises:
        UserError: there is none.
    """
    with _refusals(path):
        metadata = _format_of(path).metadata(path)
        return About(*parse_metadata(metadata), metadata)


def open_export(path: str) -> Opened:
    """Opens an exported model.

    Raises:
        UserError: there is none, or the package that runs it is not installed.
    """
    about = read_export(path)
    with _refusals(path):
        return Opened(about.params, _format_of(path).open(path, about), about.categories)


@contextlib.contextmanager
def _refusals(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} cannot be opened ({reason}): it is not an export of this project."
        ) from None


def _format_of(path: str) -> Format:
    for kind in _FORMATS:
        if kind.holds(path):
            return kind
    raise UserError(f"There is no exported model in {path}.")


def _open_saved_model(folder: str, about: About) -> Callable[[Mapping], Mapping]:
    import tensorflow as tf

    # Kept by the function: it owns the weights.
    model = tf.saved_model.load(folder)

    def detect(features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        found = model.signatures["serve_canvas"](
            **{name: tf.convert_to_tensor(value) for name, value in features.items()}
        )
        return {inner: found[outer] for inner, outer in NAMES.items() if outer in found}

    return detect


def _zipped_metadata(path: str) -> Mapping[str, Any]:
    with zipfile.ZipFile(io.BytesIO(read_bytes(path))) as archive:
        return json.loads(archive.read(FILE))


def _open_tflite(path: str, about: About) -> Callable[[Mapping], Mapping]:
    return find_on_canvas(run_tflite(read_bytes(path)), about.params.model.pixel_mean)


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


def _open_openvino(folder: str, about: About) -> Callable[[Mapping], Mapping]:
    names = OPENVINO_FILE, OPENVINO_FILE.replace(".xml", ".bin")
    parts = [read_bytes(os.path.join(folder, name)) for name in names]
    model = import_openvino().Core().read_model(*parts)
    run = run_openvino(model, about.metadata["precision"])
    return find_on_canvas(run, about.params.model.pixel_mean)


def run_openvino(model, precision: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """What runs an `openvino.Model` on an image; one call at a time.

    Args:
        model: with the inputs and outputs of `serving_default`.
        precision: "bfloat16" computes in it where the CPU can; else in float32 and, what is
            quantised, in int8.
    """
    # By itself OpenVINO computes in bfloat16 on CPUs with AMX.
    hint = "bf16" if precision == "bfloat16" else "f32"
    compiled = (
        import_openvino()
        .Core()
        .compile_model(
            model, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        )
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


def _open_stablehlo(path: str, about: About) -> Callable[[Mapping], Mapping]:
    from trainer.stablehlo import make_runner

    run = make_runner(read_bytes(path), about.metadata)
    return find_on_canvas(run, about.params.model.pixel_mean)


def read_bytes(path: str) -> bytes:
    """The content of a file."""
    with files.open_file(path, "rb") as file:
        return file.read()


_FORMATS = (
    Format(
        "LiteRT",
        lambda path: path.endswith(".tflite"),
        _zipped_metadata,
        _open_tflite,
    ),
    Format(
        "StableHLO",
        lambda path: path.endswith(".stablehlo"),
        lambda path: read_metadata(os.path.dirname(path)),
        _open_stablehlo,
    ),
    Format(
        "SavedModel",
        lambda path: files.exists(os.path.join(path, "saved_model.pb")),
        lambda path: read_metadata(os.path.join(path, ASSETS)),
        _open_saved_model,
    ),
    Format(
        "OpenVINO",
        lambda path: files.exists(os.path.join(path, OPENVINO_FILE)),
        read_metadata,
        _open_openvino,
    ),
)
