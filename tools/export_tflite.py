"""Converts a trained network to LiteRT (TensorFlow Lite) files.

    python tools/export_tflite.py --model=M --output=O --types=float32,float16,dynamic

writes O/model_float32.tflite and so on. Each takes one uint8 image of the canvas that --canvas
names, and gives boxes, classes, three scores and masks (`serving_default` of
`trainer.serving.Serving`); metadata.json at the file's end has the classes and settings. A file is
opened again and run beside TensorFlow before it counts. Every setting that changes predictions is a
flag here too, such as --detections_per_image=20.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from data import files
from data.errors import UserError
from data.tensorflow_log import quieten_tensorflow
from trainer.config import Params
from trainer.exported import add_metadata
from trainer.flags import exit_status, parse_command_line, refuse_flags
from trainer.run_record import load_params
from trainer.runtimes import run_tflite as make_runner

TYPES = ("float32", "float16", "dynamic")
# How far scores may differ from TensorFlow's, by type; dynamic range rounds weights to 8 bits.
_TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "dynamic": np.inf}
_DESCRIPTION = "python tools/export_tflite.py --model=M --output=O"


def convert(function, serving, kind: str) -> bytes:
    """Converts a network to a .tflite file of built-in operations alone, and returns its content.

    Args:
        function: the concrete function of a signature.
        serving: the `trainer.serving.Serving` that has its weights.
        kind: one of `TYPES`.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], serving)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


def check(content: bytes, kind: str, image: np.ndarray, expected: dict[str, np.ndarray]) -> float:
    """Runs a file of one of `TYPES` on uint8 [1, H, W, 3], and compares as `compare` does."""
    return compare(make_runner(content)(image), expected, kind, _TOLERANCES[kind])


def compare(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], kind: str, tolerance: float
) -> float:
    """Compares what an exported file finds in an image with what TensorFlow finds.

    Args:
        found, expected: by the names of the outputs.
        kind: of the file, for messages.
        tolerance: how far box scores may differ.

    Returns:
        The largest difference of a box score.

    Raises:
        UserError: it finds nothing where TensorFlow does, lacks an output, or differs too much.
    """
    if missing := expected.keys() - found.keys():
        raise UserError(f"the {kind} file lacks the outputs {', '.join(sorted(missing))}.")
    if expected["num_detections"].any() and not found["num_detections"].any():
        raise UserError(f"the {kind} file finds nothing where TensorFlow finds something.")
    difference = float(np.abs(found["box_scores"] - expected["box_scores"]).max())
    if not difference <= tolerance:
        raise UserError(f"the {kind} file's scores differ from TensorFlow's by {difference:.2g}.")
    return difference


def export(serving, metadata: dict, folder: str, kinds: Sequence[str], image: np.ndarray) -> None:
    """Writes and checks the files, each of which appears when it has passed."""
    function = serving.signature("serving_default")
    expected = find_expected(function, image)
    files.make_folder(folder)
    for kind in kinds:
        content = add_metadata(convert(function, serving, kind), metadata)
        difference = check(content, kind, image, expected)
        path = os.path.join(folder, f"model_{kind}.tflite")
        with files.whole_file(path, "wb") as file:
            file.write(content)
        print(
            f"{path}: {len(content) / 1e6:.1f} MB; box scores differ from TensorFlow's by at most "
            f"{difference:.1g}.",
            flush=True,
        )


def find_expected(function: Callable, image: np.ndarray) -> dict[str, np.ndarray]:
    """What TensorFlow finds in an image; warns where that is nothing."""
    expected = {name: value.numpy() for name, value in function(image).items()}
    if not expected["num_detections"].any():
        print(
            "Warning: TensorFlow finds nothing in the image that the files are compared on; name "
            "one with objects by --check_image.",
            file=sys.stderr,
        )
    return expected


def read_image(path: str, params: Params) -> np.ndarray:
    """An image on the canvas, uint8 [1, H, W, 3]: of a file, or noise without one.

    Raises:
        UserError: the file cannot be read as an image.
    """
    (canvas,) = params.data.canvas_sizes
    if not path:
        return np.random.default_rng(0).integers(0, 256, [1, *canvas, 3], np.uint8)
    from data.examples import lay_out
    from data.photographs import read_photograph
    from trainer.exported import fill_canvas

    features = lay_out(read_photograph(path, params.data.exif), params.data)
    features = {name: value.numpy()[None] for name, value in features.items()}
    return fill_canvas(features, params.model.pixel_mean)


def _define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", "", "model_dir of a training.", flag_values=flag_values)
    flags.DEFINE_string("output", "", "Folder for the files.", flag_values=flag_values)
    flags.DEFINE_list("types", ["float32"], f"Among {', '.join(TYPES)}.", flag_values=flag_values)
    flags.DEFINE_string(
        "check_image", "", "Image with objects to compare on; empty: noise.",
        flag_values=flag_values,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status."""
    command = parse_command_line(argv, _DESCRIPTION, _define_flags)
    values = command.flag_values
    for name in ("model", "output"):
        if not values[name].value:
            refuse_flags(f"--{name} is not set.")
    if unknown := set(values["types"].value) - set(TYPES):
        refuse_flags(f"--types={','.join(sorted(unknown))}: expected some of {', '.join(TYPES)}.")
    folder = files.expand(values["output"].value)

    def work() -> int:
        files.require_writable(folder, "output")
        quieten_tensorflow()
        from trainer.export import open_for_export

        params = load_params(values["model"].value, command.given)
        serving, params, metadata = open_for_export(params)
        image = read_image(values["check_image"].value, params)
        export(serving, metadata, folder, values["types"].value, image)
        return 0

    return exit_status(work)


def run() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
