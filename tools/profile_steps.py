"""Profiles a training step or a prediction by parts of the network.

  python tools/profile_steps.py train --image_dir=D --object_annotations_file=A --image_size=512

The flags are those of `tools/benchmark.py` for `train` and `predict`. TensorFlow's profiler records
two runs, and the durations of each operation are added up. Operations run in parallel, so the
seconds are thread time, not wall-clock time. `--trace_dir` keeps the trace, for TensorBoard.
"""

from __future__ import annotations

import collections
import glob
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence

if __package__ is None:  # started as a script, perhaps without the package installed
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags

from data.tensorflow_log import quieten_tensorflow
from tools.benchmarks import workloads
from tools.benchmarks.stages import Workload
from trainer.flags import exit_status, parse_flags_with, refuse_flags

_PROFILED = ("train", "predict")
_RUNS = 2
_OPERATION = re.compile(r"^([\w./\-]+):(\w+)(#|$)")
# The only asynchronous kernels here, which the profiler does not name.
_ASYNCHRONOUS = "ExecutorState::ProcessAsync::Start"
_CROPS = "roi_align/CropAndResize", "CropAndResize"

Event = tuple[int, int, str]  # start and duration in picoseconds, name


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit status."""
    what = argv[1] if len(argv) > 1 else ""
    if what not in _PROFILED and not what.startswith("--help"):
        refuse_flags(f"the first argument must be the stage to profile: {', '.join(_PROFILED)}.")
    rest = list(argv[1 + (what in _PROFILED) :])
    params, values = parse_flags_with([argv[0], *rest], __doc__, _define_flags)
    quieten_tensorflow()

    def work() -> int:
        workload = workloads.make(what, params, workloads.read_settings(values))
        with tempfile.TemporaryDirectory() as folder:
            seconds = _profile(workload, values.trace_dir or folder)
        for title, position in ("part", 0), ("operation", 1):
            print(_table(title, _sum_by(seconds, position)))
        return 0

    return exit_status(work)


def run() -> None:
    """Runs the command line; console entry point."""
    sys.exit(main(sys.argv))


def own_times(events: Iterable[Event]) -> dict[tuple[str, str], int]:
    """Computes the time of each operation of one thread, without operations nested in it.

    Args:
        events: events of one thread, in any order; those that are not operations are ignored.

    Returns:
        Picoseconds by the name and the type of the operation.
    """
    times: dict[tuple[str, str], int] = collections.Counter()
    running: list[tuple[int, tuple[str, str]]] = []
    # If two start together, the longer one contains the other.
    for start, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
        found = _OPERATION.match(name)
        if not found and name != _ASYNCHRONOUS:
            continue
        key = (found[1], found[2]) if found else _CROPS
        while running and running[-1][0] <= start:
            running.pop()
        if running:
            times[running[-1][1]] -= duration
        times[key] += duration
        running.append((start + duration, key))
    return dict(times)


def part_of(name: str) -> str:
    """Finds the part of the network that an operation belongs to, forward or backward.

    `gradient_tape/roi_align/AvgPool2D/AvgPoolGrad` belongs to `roi_align`; operations without a
    scope belong to `other`.
    """
    scopes = name.removeprefix("gradient_tape/").split("/")[:-1]
    return re.sub(r"(_\d+)+$", "", scopes[0]) if scopes else "other"


def _define_flags(values: flags.FlagValues) -> None:
    workloads.define_flags(values)
    flags.DEFINE_string(
        "trace_dir", "", "Folder to keep the trace in, for TensorBoard.", flag_values=values
    )


def _profile(work: Workload, folder: str) -> dict[tuple[str, str], float]:
    """Profiles seconds per run by the name and the type of the operation."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    for _ in range(_RUNS):
        work()
    with tf.profiler.experimental.Profile(folder):
        for _ in range(_RUNS):
            work()
    (path,) = glob.glob(os.path.join(folder, "**", "*.xplane.pb"), recursive=True)
    space = xplane_pb2.XSpace()
    with open(path, "rb") as file:
        space.ParseFromString(file.read())
    seconds: dict[tuple[str, str], float] = collections.defaultdict(float)
    for plane in space.planes:
        names = {key: value.name for key, value in plane.event_metadata.items()}
        for line in plane.lines:
            events = [(e.offset_ps, e.duration_ps, names[e.metadata_id]) for e in line.events]
            for key, picoseconds in own_times(events).items():
                seconds[key] += picoseconds / 1e12 / _RUNS
    return seconds


def _sum_by(seconds: dict[tuple[str, str], float], position: int) -> dict[str, float]:
    sums: dict[str, float] = collections.defaultdict(float)
    for key, value in seconds.items():
        sums[part_of(key[0]) if position == 0 else key[1]] += value
    return sums


def _table(title: str, seconds: dict[str, float]) -> str:
    total = sum(seconds.values())
    lines = [f"| {title} | thread seconds a run | share |", "| --- | --- | --- |"]
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        if value > 0.005 * total:
            lines.append(f"| {name} | {value:.3f} | {value / total:.1%} |")
    return "\n".join([*lines, f"| all | {total:.3f} | 100.0% |", ""])


if __name__ == "__main__":
    run()
