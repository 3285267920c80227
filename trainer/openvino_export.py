"""Converts an exported SavedModel to OpenVINO models."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import numpy as np

from data import files
from data.errors import UserError
from model.quantisation import is_quantised
from trainer.export_check import compare
from trainer.exported import write_metadata
from trainer.runtimes import OPENVINO_FILE, import_openvino, run_openvino

PRECISIONS = ("float32", "bfloat16", "int8")


def require_openvino(folder: str) -> None:
    """Raises a UserError if models cannot be made in this folder."""
    import_openvino()
    _import_quantiser()
    if files.has_scheme(folder):
        raise UserError(
            f"OpenVINO models are written to local folders only, not to {folder}: name one with "
            "--output_dir."
        )


def export_openvino(
    saved_model: str,
    folder: str,
    metadata: dict,
    expected: dict[str, np.ndarray],
    images: Sequence[np.ndarray],
) -> None:
    """Writes the models in float32, for bfloat16 and in int8, each in a folder of its own.

    Each is run beside TensorFlow before it is written.

    Args:
        saved_model: folder of the SavedModel.
        folder: for the three folders.
        metadata: see `trainer.exported.describe`.
        expected: what TensorFlow finds in the first image.
        images: uint8 [1, H, W, 3] each, whose activations give the ranges for int8.

    Raises:
        UserError: OpenVINO or NNCF is not installed, or a model finds something else than
            TensorFlow.
    """
    openvino, quantise = import_openvino(), _import_quantiser()
    model = openvino.convert_model(saved_model)
    for precision in PRECISIONS:
        if precision == "int8":
            model = quantise(model, images)
        found = run_openvino(model, precision)(images[0])
        name = f"OpenVINO model in {precision}"
        message = compare(found, expected, precision, f"the {name}")
        target = os.path.join(folder, precision)
        files.make_folder(target)
        # bfloat16 has fewer bits than the 16 that the weights then keep.
        path = os.path.join(target, OPENVINO_FILE)
        openvino.save_model(model, path, compress_to_fp16=precision == "bfloat16")
        write_metadata(target, metadata | {"precision": precision})
        print(f"{name}: {message}", flush=True)


def _import_quantiser() -> Callable:
    try:
        import nncf
    except ImportError:
        raise UserError(
            "NNCF is not installed: pip install 'mask-scoring-rcnn[openvino]'."
        ) from None

    # It names each operation that stays in float32.
    logging.getLogger("nncf").setLevel(logging.ERROR)

    def quantise(model, images: Sequence[np.ndarray]):
        names = [operation.get_friendly_name() for operation in model.get_ops()]
        kept = [name for name in names if not is_quantised(name)]
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
        )

    return quantise
