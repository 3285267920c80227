"""Detects the objects in many images and videos with Apache Beam.

    python tools/predict_beam.py --model=gs://B/export/saved_model --input='gs://B/photos/*.jpg' \\
        --output_dir=gs://B/found --runner=DataflowRunner --project=P --region=R

writes the predictions.json of predict.py, without drawings. The flags are those of predict.py, and
all other flags are options of Beam; those that only the runner knows go after --. Each chunk of
files is one element of the pipeline, and each worker opens the model once. Finished chunks are kept
in O/predictions.partial; a rerun uses them if the model, the settings and the files are unchanged.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from absl import flags

from data import files
from data.errors import UserError
from data.tensorflow_log import quieten_tensorflow
from tools.beam_tasks import run_tasks, split_arguments
from tools.pictures import find_pictures
from tools.predict import (
    RESULTS,
    define_flags,
    detect,
    entries_of,
    report,
    settings_of,
    write_results,
)
from trainer.flags import exit_status, parse_command_line, refuse_flags, require_flags

_DESCRIPTION = (
    "python tools/predict_beam.py --model=M --input=FILES --output_dir=O [Beam's options]"
)


class Model(NamedTuple):
    """What a worker opens: a folder or file, and the arguments of `msrcnn.load`."""

    path: str
    batch_size: int
    settings: Mapping[str, object]


def _open(model: Model):
    quieten_tensorflow()
    from trainer.predictor import load

    return load(model.path, batch_size=model.batch_size, **model.settings)


def _detect_in(model: Model, states: list, shared, folder: str, paths: Sequence[str]) -> str:
    """Writes the detections in a chunk of files, unless a run before did; returns the path.

    Args:
        model: what to predict with.
        states: state of the model's files.
        shared: `apache_beam.utils.shared.Shared`, which holds the open model for all threads.
        folder: folder of the chunks.
        paths: the files of the chunk.
    """
    parts = [*model, states, [(path, _state(path)) for path in paths]]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    target = os.path.join(folder, f"{digest}.json")
    if files.exists(target):
        return target
    predictor = shared.acquire(functools.partial(_open, model))
    refused: list[UserError] = []
    entries: list[dict] = []
    num_images = 0
    for number, picture, found in detect(predictor, paths, refused.append):
        entries += entries_of(number, picture, found)
        num_images += 1
    entries.sort(key=lambda entry: entry["image_id"])
    chunk = {"num_images": num_images, "refused": list(map(str, refused)), "entries": entries}
    with files.whole_file(target, writer=uuid.uuid4().hex) as file:
        json.dump(chunk, file)
    return target


def _state(path: str) -> tuple[int, ...] | None:
    try:
        return files.state(path)
    except OSError:
        return None


def _states_below(path: str) -> list:
    """Lists the files of a model, each with its state; raises OSError if there is none."""
    if not files.is_folder(path):
        return [[path, *files.state(path)]]
    names = files.list_folder(path)
    return [state for name in names for state in _states_below(os.path.join(path, name))]


def _join(chunks: Iterable[str], totals: collections.Counter) -> Iterator[dict]:
    """Yields the entries of all chunks, their images numbered from 0 on, and counts."""
    for path in chunks:
        with files.open_file(path) as file:
            chunk = json.load(file)
        for sentence in chunk["refused"]:
            report(UserError(sentence))
        for entry in chunk["entries"]:
            yield entry | {"image_id": totals["images"] + entry["image_id"]}
        totals["images"] += chunk["num_images"]
        totals["refused"] += len(chunk["refused"])


def predict(
    model: Model, paths: Sequence[str], folder: str, chunk_size: int, options
) -> collections.Counter:
    """Writes the detections in images and videos to `folder`; returns "images" and "refused".

    Args:
        model: what to predict with.
        paths: the files.
        folder: existing output folder.
        chunk_size: number of files of each element of the pipeline.
        options: of Beam.

    Raises:
        UserError: the model cannot be used, or the pipeline failed.
    """
    from apache_beam.utils.shared import Shared

    partial = os.path.join(folder, "predictions.partial")
    files.make_folder(partial)
    work = functools.partial(_detect_in, model, _states_below(model.path), Shared(), partial)
    chunks = [paths[start : start + chunk_size] for start in range(0, len(paths), chunk_size)]
    totals: collections.Counter = collections.Counter()
    write_results(folder, _join(run_tasks(work, chunks, partial, options), totals))
    files.remove_folder(partial)
    return totals


def _define_flags(flag_values: flags.FlagValues) -> None:
    define_flags(flag_values)
    flags.DEFINE_integer(
        "chunk_size", 32, "Number of files that a worker processes at a time.",
        lower_bound=1, flag_values=flag_values,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status, 1 also if a file was skipped."""

    def work() -> int:
        try:
            own, options = split_arguments(argv)
        except flags.Error as error:
            refuse_flags(f"{error}.")
        command = parse_command_line(own, _DESCRIPTION, _define_flags)
        values = command.flag_values
        folder = files.expand(values["output_dir"].value)
        require_flags(values, "model", "input", "output_dir")
        paths = find_pictures(values["input"].value)
        files.require_writable(folder, "output_dir")
        model = Model(
            files.expand(values["model"].value), values["batch_size"].value, settings_of(command)
        )
        totals = predict(model, paths, folder, values["chunk_size"].value, options)
        print(f"The detections in {totals['images']} images are in {folder}/{RESULTS}.")
        return 1 if totals["refused"] else 0

    return exit_status(work)


def run() -> None:
    """Runs the command line; console entry point."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
