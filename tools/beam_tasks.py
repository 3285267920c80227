"""Runs a function over many tasks with Apache Beam.

Tasks and results are files in a folder that all workers reach, and the pipeline holds only their
names: runners limit the size of a pipeline, and none of them hands results back. An exception for
the user is a result too. It so arrives unchanged, whatever the runner makes of exceptions.
"""

from __future__ import annotations

import functools
import os
import pickle
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from absl import flags

from data import files
from data.errors import UserError
from data.settings import SettingError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

Task = TypeVar("Task")
Result = TypeVar("Result")

_FOR_THE_USER = UserError, SettingError, OSError


def split_arguments(argv: Sequence[str]) -> tuple[list[str], PipelineOptions]:
    """Separates the options of Beam from the other arguments of a command line.

    Args:
        argv: the command line. Beam passes options after `--` to the runner unchecked. In a request
            for help, there are no options of Beam.

    Raises:
        flags.Error: an option of Beam has an invalid value.
        UserError: Beam is not installed.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            "Apache Beam is not installed: pip install 'mask-scoring-rcnn[beam]'."
        ) from None
    if any(argument.lstrip("-") in ("h", "help") for argument in argv):
        return list(argv), PipelineOptions([])
    given, unchecked = list(argv), []
    if "--" in given:
        end = given.index("--")
        given, unchecked = given[:end], given[end + 1 :]
    own: list[str] = []

    def set_apart(parser) -> None:
        parser.error = _refuse  # argparse would print hundreds of lines
        own.extend(parser.parse_known_args(given)[1])

    PipelineOptions([]).get_all_options(add_extra_args_fn=set_apart)
    rest = iter(own)  # in the order of `given`
    following = next(rest, None)
    chosen = []
    for argument in given:
        if argument == following:
            following = next(rest, None)
        else:
            chosen.append(argument)
    return own, PipelineOptions([*chosen, *unchecked])


def _refuse(sentence: str) -> NoReturn:
    raise flags.Error(sentence)


def run_tasks(
    work: Callable[[Task], Result], tasks: Iterable[Task], folder: str, options: PipelineOptions
) -> Iterator[Result]:
    """Yields the result of each task, in order, after all are done.

    Args:
        work: called once for each task or, if workers die, several times, perhaps at once. It is
            pickled, like its results.
        tasks: the tasks.
        folder: existing folder, the same for all workers. The files of this run stay in it.
        options: of Beam.

    Raises:
        UserError, SettingError, OSError: raised by `work`, or the pipeline failed.
    """
    import apache_beam as beam

    run = uuid.uuid4().hex  # workers of an earlier run may still be alive
    paths = []
    for index, task in enumerate(tasks):
        paths.append(os.path.join(folder, f"{run}-{index:05d}"))
        _write(f"{paths[-1]}.task", task)
    try:
        with beam.Pipeline(options=options) as pipeline:
            names = pipeline | beam.Create(paths) | beam.Reshuffle()
            names | beam.Map(functools.partial(_run_task, work))
    except Exception as error:  # each runner has its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the Beam pipeline failed: {reason[-1].rstrip('.')}; run the same command again to "
            "continue."
        ) from None
    for path in paths:
        result = _read(f"{path}.result")
        if isinstance(result, _FOR_THE_USER):
            raise result
        yield result


def _run_task(work: Callable[[Any], Any], path: str) -> None:
    try:
        result = work(_read(f"{path}.task"))
    except _FOR_THE_USER as error:
        result = error
    _write(f"{path}.result", result)


def _write(path: str, content: object) -> None:
    with files.whole_file(path, "wb", writer=uuid.uuid4().hex) as file:
        pickle.dump(content, file)


def _read(path: str) -> Any:
    with files.open_file(path, "rb") as file:
        return pickle.load(file)
