"""Detects and outlines the objects in images and videos with a trained model.

    python tools/predict.py --model=M --input='photos/*.jpg,walk.mp4' --output_dir=O

writes O/predictions.json, in COCO results format with the file name and the three scores of each
detection, and each image with its detections as O/FILE.png. Entries of a video also have the number
of the `frame`, and its frames are drawn as O/FILE/NUMBER.png. Every setting that changes
predictions is a flag here too, such as --score_threshold=0.5.

--min_quality=0.8 leaves out the detections whose mask_iou is lower, and lists them in O/review.json
for a person to look at, the most doubtful first.
"""

from __future__ import annotations

import dataclasses
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
REVIEW = "review.json"


def predict(
    predictor, paths: Sequence[str], folder: str, min_score: float, min_quality: float = 0.0
) -> tuple[int, int]:
    """Writes the detections in images and videos, and draws them.

    Args:
        predictor: `msrcnn.Predictor`.
        paths: the files. Those that cannot be read are reported and skipped.
        folder: output folder.
        min_score: detections with a lower box score are not drawn; above 1 nothing is drawn.
        min_quality: detections with a lower mask_iou are written to review.json instead; 0 for all.

    Returns:
        The number of images, and of files that could not be read completely.
    """
    names = _names_of_drawings(paths)
    refused: list[UserError] = []
    results: list[dict] = []
    review: list[dict] = []

    def refuse(error: UserError) -> None:
        report(error)
        refused.append(error)

    total = None if any(map(is_video, paths)) else len(paths)
    with ProgressMeter("Predicting", total) as meter:
        for number, picture, found in detect(predictor, paths, refuse):
            if min_quality:
                doubtful = found.mask_ious < min_quality
                review += entries_of(number, picture, choose(found, doubtful))
                found = choose(found, ~doubtful)
            results += entries_of(number, picture, found)
            if min_score <= 1.0:
                frame = "" if picture.frame is None else f"/{picture.frame:06}"
                drawing = os.path.join(folder, f"{names[picture.path]}{frame}.png")
                _write_picture(drawing, found.draw(picture.pixels, min_score))
            meter.update()
    write_results(folder, sorted(results, key=lambda entry: entry["image_id"]))
    if min_quality:
        write_results(folder, sorted(review, key=_doubt), REVIEW)
    return meter.n, len(refused)


def _doubt(entry: dict) -> tuple:
    return entry["mask_iou"], entry["image_id"]


def choose(found: Detections, chosen: np.ndarray) -> Detections:
    """Returns the detections that a bool [N] marks."""
    parts = {}
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        if isinstance(value, np.ndarray):
            parts[field.name] = value[chosen]
        elif isinstance(value, list):
            parts[field.name] = list(itertools.compress(value, chosen))
    return dataclasses.replace(found, **parts)


def require_quality(predictor) -> None:
    """Raises a UserError if a model's detections have no mask_iou."""
    if not predictor.params.model.include_maskiou:
        raise UserError(
            f"--min_quality needs a system with a MaskIoU head, such as mask_scoring_rcnn; this "
            f"model is a {predictor.params.model.system}."
        )


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


def write_results(folder: str, entries: Iterable[dict], name: str = RESULTS) -> None:
    """Writes entries in COCO results format to the folder, without holding all of them."""
    with files.whole_file(os.path.join(folder, name)) as file:
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
    flags.DEFINE_float(
        "min_quality", 0.0, "Minimum mask_iou; detections below it are left out, and listed in "
                            "review.json.",
        lower_bound=0.0, upper_bound=1.0, flag_values=flag_values,
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
        min_score, min_quality = (values[name].value for name in ("min_score", "min_quality"))
        if min_quality:
            require_quality(predictor)
        count, refused = predict(predictor, paths, folder, min_score, min_quality)
        print(f"The detections in {count} images are in {os.path.join(folder, RESULTS)}.")
        return 1 if refused else 0

    return exit_status(work)


def run() -> None:
    """Runs the command line; console entry point."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
