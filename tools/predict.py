"""Detects and outlines the objects in images and videos with a trained model.

    python tools/predict.py --model=M --input='photos/*.jpg,walk.mp4' --output_dir=O

writes O/predictions.json, in COCO results format with the file name and the three scores of each
detection, and each image with its detections as O/FILE.png. Entries of a video also have the number
of the `frame`, and its frames are drawn as O/FILE/NUMBER.png. Every setting that changes
predictions is a flag here too, such as --score_threshold=0.5.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags
from PIL import Image

from data import files
from data.errors import UserError
from data.progress import ProgressMeter
from data.tensorflow_log import quieten_tensorflow
from tools.pictures import Picture, find_pictures, is_video, read_pictures
from trainer.flags import CommandLine, exit_status, parse_command_line, require_flags

if TYPE_CHECKING:
    from trainer.predictor import Detections

_DESCRIPTION = "python tools/predict.py --model=M --input=FILES --output_dir=O"
RESULTS = "predictions.json"


def predict(predictor, paths: Sequence[str], folder: str, min_score: float) -> tuple[int, int]:
    """Writes the detections in images and videos, and draws them.

    Args:
        predictor: `msrcnn.Predictor`.
        paths: the files. Those that cannot be read are reported and skipped.
        folder: output folder.
        min_score: detections with a lower box score are not drawn; above 1 nothing is drawn.

    Returns:
        The number of images, and of files that could not be read completely.
    """
    names = _names_of_drawings(paths)
    refused: list[UserError] = []
    results: list[dict] = []

    def refuse(error: UserError) -> None:
        report(error)
        refused.append(error)

    total = None if any(map(is_video, paths)) else len(paths)
    with ProgressMeter("Predicting", total) as meter:
        for number, picture, found in detect(predictor, paths, refuse):
            results += entries_of(number, picture, found)
            if min_score <= 1.0:
                frame = "" if picture.frame is None else f"/{picture.frame:06}"
                drawing = os.path.join(folder, f"{names[picture.path]}{frame}.png")
                _write_picture(drawing, found.draw(picture.pixels, min_score))
            meter.update()
    write_results(folder, sorted(results, key=lambda entry: entry["image_id"]))
    return meter.n, len(refused)


def detect(
    predictor, paths: Sequence[str], refuse: Callable[[UserError], None]
) -> Iterator[tuple[int, Picture, Detections]]:
    """Yields the number of each image, the image, and its detections.

    Images that use several canvases arrive in another order than that of their numbers.

    Args:
        predictor: `msrcnn.Predictor`.
        paths: the files.
        refuse: called with the error of each file that cannot be read completely.
    """
    pictures = read_pictures(paths, predictor.read, refuse)
    numbered = (((number, picture), picture.pixels) for number, picture in enumerate(pictures))
    for (number, picture), found in predictor.stream(numbered):
        yield number, picture, found


def report(error: UserError) -> None:
    """Prints the error of a file that cannot be read."""
    print(f"error: {error}", file=sys.stderr)


def write_results(folder: str, entries: Iterable[dict]) -> None:
    """Writes entries in COCO results format to the folder, without holding all of them."""
    with files.whole_file(os.path.join(folder, RESULTS)) as file:
        file.write("[")
        for index, entry in enumerate(entries):
            file.write((", " if index else "") + json.dumps(entry))
        file.write("]")


def entries_of(number: int, picture: Picture, found: Detections) -> list[dict]:
    """Returns the entries of an image, with the `frame` if it is from a video."""
    frame = {} if picture.frame is None else {"frame": picture.frame}
    return [entry | frame for entry in found.to_coco(image_id=number, file_name=picture.path)]


def _names_of_drawings(paths: Sequence[str]) -> dict[str, str]:
    """Names the drawing of each file, numbering files with the same name."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        name = os.path.basename(path)
        candidates = (f"{name}{f'-{n}' if n > 1 else ''}" for n in itertools.count(1))
        names[path] = next(each for each in candidates if each not in taken)
        taken.add(names[path])
    return names


def _write_picture(path: str, pixels: np.ndarray) -> None:
    files.make_folder(os.path.dirname(path))
    with files.whole_file(path, "wb") as file:
        Image.fromarray(pixels).save(file, "png")


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines what to predict with, and on what."""
    flags.DEFINE_string(
        "model", "", "model_dir of a training, with the model to use.", flag_values=flag_values
    )
    flags.DEFINE_list(
        "input",
        [],
        "Images and videos: a comma-separated list of files, folders and glob patterns.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "batch_size", 1, "Number of images with the same canvas that are processed together.",
        lower_bound=1, flag_values=flag_values,
    )  # fmt: skip


def _define_flags(flag_values: flags.FlagValues) -> None:
    define_flags(flag_values)
    flags.DEFINE_float(
        "min_score", 0.3, "Minimum box score of detections that are drawn; above 1, no images "
                          "are drawn.",
        flag_values=flag_values,
    )  # fmt: skip


def settings_of(command: CommandLine) -> dict[str, object]:
    """Returns the given settings that the model is opened with."""
    return {name: value for name, value in command.given.items() if name != "output_dir"}


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status, 1 also if a file was skipped."""
    command = parse_command_line(argv, _DESCRIPTION, _define_flags)
    values = command.flag_values
    folder = files.expand(values["output_dir"].value)
    require_flags(values, "model", "input", "output_dir")

    def work() -> int:
        paths = find_pictures(values["input"].value)
        files.require_writable(folder, "output_dir")
        quieten_tensorflow()
        from trainer.predictor import load

        batch_size = values["batch_size"].value
        predictor = load(values["model"].value, batch_size=batch_size, **settings_of(command))
        count, refused = predict(predictor, paths, folder, values["min_score"].value)
        print(f"The detections in {count} images are in {os.path.join(folder, RESULTS)}.")
        return 1 if refused else 0

    return exit_status(work)


def run() -> None:
    """Runs the command line; console entry point."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
