"""Converts a trained network to LiteRT (TensorFlow Lite) files.

    python tools/export_tflite.py --model=M --output=O --types=float32,float16,dynamic,int8

writes O/model_float32.tflite and so on. Each takes one uint8 image of the canvas that --canvas
names, and gives boxes, classes, three scores and masks (`serving_default` of
`trainer.serving.Serving`); metadata.json at the file's end has the classes and settings. int8 takes
the ranges of its activations from the images of --calibration_file_pattern, by default the training
records. A file is opened again and run beside TensorFlow before it counts. Every setting that
changes predictions is a flag here too, such as --detections_per_image=20.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from absl import flags

from data import files
from data.tensorflow_log import quieten_tensorflow
from trainer.config import Params
from trainer.flags import exit_status, parse_command_line, refuse_flags, require_flags
from trainer.run_record import load_params

TYPES = ("float32", "float16", "dynamic", "int8")
_DESCRIPTION = "python tools/export_tflite.py --model=M --output=O"


def export(params: Params, folder: str, kinds: Sequence[str], check_image: str) -> None:
    """Writes and checks the files, each of which appears when it has passed.

    Raises:
        UserError: there is no checkpoint, no image, or a file finds something else than TensorFlow.
    """
    from trainer.calibration import read_calibration_images
    from trainer.export import open_for_export
    from trainer.export_check import compare, find_expected, read_image
    from trainer.exported import add_metadata
    from trainer.runtimes import run_tflite

    serving, params, metadata = open_for_export(params)
    images = read_calibration_images(params) if "int8" in kinds else []
    image = images[0] if images and not check_image else read_image(check_image, params)
    function = serving.signature("serving_default")
    expected = find_expected(function, image)
    files.make_folder(folder)
    for kind, converted in _convert_all(function, serving, kinds, images):
        content = add_metadata(converted, metadata)
        path = os.path.join(folder, f"model_{kind}.tflite")
        message = compare(run_tflite(content)(image), expected, kind, path)
        with files.whole_file(path, "wb") as file:
            file.write(content)
        print(f"{path}: {len(content) / 1e6:.1f} MB; {message}", flush=True)


def _convert_all(function, serving, kinds: Sequence[str], images) -> Iterator[tuple[str, bytes]]:
    """Yields each type with its file, as `trainer.litert` makes them."""
    from trainer.litert import convert, quantise

    float32 = convert(function, serving, "float32") if {"float32", "int8"} & set(kinds) else b""
    for kind in kinds:
        if kind == "float32":
            yield kind, float32
        elif kind == "int8":
            yield kind, quantise(float32, images)
        else:
            yield kind, convert(function, serving, kind)


def _define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", "", "model_dir of a training.", flag_values=flag_values)
    flags.DEFINE_string("output", "", "Folder for the files.", flag_values=flag_values)
    flags.DEFINE_list("types", ["float32"], f"Among {', '.join(TYPES)}.", flag_values=flag_values)
    flags.DEFINE_string(
        "check_image", "", "Image with objects to compare on; empty: one of those that calibrate "
                           "int8, otherwise noise.",
        flag_values=flag_values,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status."""
    command = parse_command_line(argv, _DESCRIPTION, _define_flags)
    values = command.flag_values
    require_flags(values, "model", "output")
    kinds = values["types"].value
    if unknown := set(kinds) - set(TYPES):
        refuse_flags(f"--types={','.join(sorted(unknown))}: expected some of {', '.join(TYPES)}.")
    folder = files.expand(values["output"].value)

    def work() -> int:
        files.require_writable(folder, "output")
        quieten_tensorflow()
        params = load_params(values["model"].value, command.given)
        export(params, folder, kinds, values["check_image"].value)
        return 0

    return exit_status(work)


def run() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
