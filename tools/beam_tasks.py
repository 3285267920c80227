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


def split_arguments(values: flags.FlagValues, argv: Sequence[str]) -> PipelineOptions:
    """Parses the flags that `values` defines, and all others as options of Beam.

    Args:
        values: the flags of the program.
        argv: the command line. Options after `--` are given to the runner unchecked.

    Raises:
        flags.Error: an argument is neither a flag nor an option of Beam, or has an invalid value.
        UserError: Beam is not installed.
    """
    arguments, unchecked = list(argv), []
    if "--" in arguments:
        end = arguments.index("--")
        arguments, unchecked = arguments[:end], arguments[end + 1 :]
    values.set_gnu_getopt(True)  # finds flags after arguments that belong to Beam, too
    return read_options(values(arguments, known_only=True)[1:], unchecked)


def read_options(arguments: Sequence[str], unchecked: Sequence[str] = ()) -> PipelineOptions:
    """Reads options of Beam; see `split_arguments`."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            "Apache Beam is not installed: pip install 'mask-scoring-rcnn[beam]'."
        ) from None

    def refuse(sentence: str) -> NoReturn:
        raise flags.Error(sentence)

    def check(parser) -> None:
        parser.error = refuse  # argparse would print hundreds of lines
        if unknown := parser.parse_known_args(arguments)[1]:
            refuse(f"{unknown[0]!r} is neither a flag of this program nor an option of Beam")

    PipelineOptions(arguments).get_all_options(add_extra_args_fn=check)
    return PipelineOptions([*arguments, *unchecked])


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
