"""Outlines the objects of photographs with a trained model.

    python tools/predict.py --model=M --input='photos/*.jpg' --output_dir=O

writes O/predictions.json, in COCO results format with the file name and the three scores of each
detection, and each photograph with its detections drawn on it as O/FILE.png. Every setting that
changes predictions is a flag here too, such as --score_threshold=0.5.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags
from PIL import Image

from data import files
from data.errors import UserError
from data.progress import ProgressMeter
from data.settings import SettingError
from data.tensorflow_log import quieten_tensorflow
from trainer.flags import CommandLine, list_settings, parse_command_line, refuse_flags

_DESCRIPTION = "python tools/predict.py --model=M --input=FILES --output_dir=O"
_ENDINGS = (".jpg", ".jpeg", ".png")
# Photographs read at a time for each that goes through the network, so that there are enough of one
# canvas to go together.
_READ_AHEAD = 4
_RESULTS = "predictions.json"


def find_photographs(patterns: Sequence[str]) -> list[str]:
    """The files that names, folders and glob patterns stand for, each once, in their order.

    Raises:
      UserError: one of them stands for nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        paths = [path for match in files.glob(pattern) for path in _list_photographs(match)]
        if not paths:
            raise UserError(f"--input={pattern}: there is no JPEG or PNG file.")
        found |= dict.fromkeys(paths)
    return list(found)


def _list_photographs(path: str) -> list[str]:
    if not files.is_folder(path):
        return [path]
    names = (name for name in files.list_folder(path) if name.lower().endswith(_ENDINGS))
    return [os.path.join(path, name) for name in names]


def predict(predictor, paths: Sequence[str], folder: str, batch_size: int, min_score: float) -> int:
    """Writes the results and pictures of photographs; a file that cannot be read is said and left.

    Args:
      predictor: `msrcnn.Predictor`.
      paths: the photographs.
      folder: where to.
      batch_size: of the predictor.
      min_score: detections with a lower box score are not drawn; above 1 nothing is drawn.

    Returns:
      The number of photographs that could not be read.
    """
    results: list[dict] = []
    names = _picture_names(paths)
    unread = 0
    with ProgressMeter("Predicting", len(paths)) as meter:
        for group in _grouped(list(enumerate(paths)), batch_size * _READ_AHEAD):
            readable = []
            for number, path in group:
                try:
                    readable.append((number, path, predictor.read(path)))
                except UserError as error:
                    print(f"error: {error}", file=sys.stderr)
                    unread += 1
            detections = predictor([pixels for *_, pixels in readable])
            for (number, path, pixels), found in zip(readable, detections, strict=True):
                results += found.to_coco(image_id=number, file_name=path)
                if min_score <= 1.0:
                    _write_picture(
                        os.path.join(folder, names[number]), found.draw(pixels, min_score)
                    )
            meter.update(len(group))
    with files.whole_file(os.path.join(folder, _RESULTS)) as file:
        json.dump(results, file)
    return unread


def _grouped(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _picture_names(paths: Sequence[str]) -> list[str]:
    """FILE.png for each, with a number where files of several folders have one name."""
    taken: set[str] = set()
    names = []
    for path in paths:
        name = os.path.basename(path)
        candidates = (f"{name}{f'-{n}' if n > 1 else ''}.png" for n in itertools.count(1))
        names.append(next(candidate for candidate in candidates if candidate not in taken))
        taken.add(names[-1])
    return names


def _write_picture(path: str, pixels: np.ndarray) -> None:
    with files.whole_file(path, "wb") as file:
        Image.fromarray(pixels).save(file, "png")


def _define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", "", "model_dir of a training.", flag_values=flag_values)
    flags.DEFINE_list(
        "input", [], "Photographs: files, folders, glob patterns.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "batch_size", 1, "Photographs that go through the network together.",
        lower_bound=1, flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_float(
        "min_score", 0.3, "Detections of at least this box score are drawn; above 1 no picture is.",
        flag_values=flag_values,
    )  # fmt: skip


def _given_settings(command: CommandLine) -> dict:
    settings = {setting.name for setting in list_settings()} - {"output_dir"}
    given = settings & command.places.keys()
    return {name: command.flag_values[name].value for name in given}


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status: 1 also if a photograph was left out."""
    command = parse_command_line(argv, _DESCRIPTION, _define_flags)
    values = command.flag_values
    folder = files.expand(values["output_dir"].value)
    for name in ("model", "input", "output_dir"):
        if not values[name].value:
            refuse_flags(f"--{name} is not set.")
    try:
        paths = find_photographs(values["input"].value)
        files.require_writable(folder, "output_dir")
        quieten_tensorflow()
        from trainer.predictor import load

        batch_size = values["batch_size"].value
        predictor = load(values["model"].value, batch_size=batch_size, **_given_settings(command))
        unread = predict(predictor, paths, folder, batch_size, values["min_score"].value)
    except SettingError as error:
        refuse_flags(str(error))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or folder}: {error.strerror or error}.", file=sys.stderr)
        return 1
    read = len(paths) - unread
    print(f"Wrote {os.path.join(folder, _RESULTS)} and the pictures of {read} photographs.")
    return 1 if unread else 0


def run() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
