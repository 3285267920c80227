"""Benchmarks one stage, alone or against other frameworks, and writes the results as JSON.

  python tools/benchmark.py train --image_dir=D --object_annotations_file=A --json=F
  python tools/benchmark.py train ... --against=model_garden:/opt/garden/bin/python
  python tools/benchmark.py input ... --sweep=image_size=512,832,1024

Stages:
  input     the training input          match     anchor matching and sampling
  decode    JPEG decode and resize      convert   the converter, as a command
  train     training steps              predict   detection up to COCO results
  backbone  ResNet and FPN alone        evaluate  COCO evaluation of results
  start     from the command to the first step

`--against` names peers (model_garden, torchvision, mmdetection or pycocotools), each followed by
the Python interpreter that has its packages, if that is another one. Each program runs in its own
process, and they take turns, `--repeats` times each. The ratio of ours to the peer's is computed
for each turn; quote its median. `--sweep` does the same with several values of one of this
program's flags.

A canvas is a square with side `--image_size`, which the longer image side fills. `train` repeats
its step on one real batch, with the batch's own positive RoIs or with `--positives` per image.
`predict` does a fixed amount of work: 100 detections per image, independent of the random weights.
All settings of the trainer are flags too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence

if __package__ is None:  # started as a script, perhaps without the package installed
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags

from data.files import make_folder, whole_file
from tools.benchmarks.peers import PEERS
from tools.benchmarks.report import describe_figures, summarise
from tools.benchmarks.stages import OURS, STAGES
from tools.benchmarks.turns import take_turns
from tools.benchmarks.worker import Job
from tools.benchmarks.workloads import define_flags, read_settings
from trainer.config import Params
from trainer.flags import exit_status, parse_flags_with, refuse_flags, write_flagfile

_SHOWN_SETTINGS = ("precision", "backbone", "norm", "freeze_at", "jit_compile")


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit status."""
    stage = argv[1] if len(argv) > 1 and argv[1] in STAGES else ""
    rest = list(argv[1 + bool(stage) :])
    params, values = parse_flags_with([argv[0], *rest], __doc__, _define_flags)
    if not stage:
        refuse_flags(f"the first argument must be the stage to measure: {', '.join(STAGES)}.")
    if values.repeats < 1 or not values.json:
        refuse_flags("--json must name the file to write, and --repeats must be at least 1.")

    def work() -> int:
        # Fails here rather than after minutes of measuring.
        make_folder(os.path.dirname(values.json) or ".")
        with tempfile.TemporaryDirectory() as folder:
            flagfile = os.path.join(folder, "settings.flags")
            write_flagfile(params, flagfile)
            results = take_turns(_jobs(stage, flagfile, params, values), values.repeats)
        figures = summarise(stage, results, values.sweep.partition("=")[0])
        with whole_file(values.json) as file:
            json.dump(figures, file, indent=1)
            file.write("\n")
        print(describe_figures(figures))
        return 0

    return exit_status(work)


def run() -> None:
    """Runs the command line; console entry point."""
    sys.exit(main(sys.argv))


def _define_flags(values: flags.FlagValues) -> None:
    define_flags(values)
    flags.DEFINE_list(
        "against", [], "Peers to compare with, each NAME or NAME:PYTHON.", flag_values=values
    )
    flags.DEFINE_string(
        "sweep",
        "",
        "Values of one of this program's flags to compare: NAME=V1,V2,...",
        flag_values=values,
    )
    flags.DEFINE_string("json", "", "JSON file to write the results to.", flag_values=values)
    flags.DEFINE_integer("repeats", 5, "Number of timed runs of each program.", flag_values=values)


def _jobs(stage: str, flagfile: str, params: Params, values: flags.FlagValues) -> list[Job]:
    told = dataclasses.asdict(read_settings(values))
    shown = told | {name: getattr(params.model, name) for name in _SHOWN_SETTINGS}

    def ours(changes: dict) -> Job:
        argv = tuple(f"--{name}={value}" for name, value in (told | changes).items())
        return Job(OURS, stage, sys.executable, (f"--flagfile={flagfile}", *argv), shown | changes)

    name, _, swept = values.sweep.partition("=")
    if not name:
        return [ours({}), *(_peer(entry, stage, shown) for entry in values.against)]
    if values.against:
        refuse_flags("--sweep does not use peers; leave --against out.")
    try:
        numbers = [int(value) for value in swept.split(",")]
    except ValueError:
        refuse_flags(f"--sweep={values.sweep}: expected NAME=V1,V2,... with whole numbers.")
    if name not in values or not isinstance(values[name].value, int):
        refuse_flags(f"--sweep={values.sweep}: {name!r} is not a flag that takes a whole number.")
    return [ours({name: number}) for number in numbers]


def _peer(entry: str, stage: str, settings: dict) -> Job:
    name, _, python = entry.partition(":")
    if stage not in PEERS.get(name, ()):
        able = [peer for peer, does in PEERS.items() if stage in does]
        refuse_flags(
            f"--against={entry}: {stage} can be compared with {', '.join(able) or 'no peer'}."
        )
    return Job(name, stage, python or sys.executable, (), settings)


if __name__ == "__main__":
    run()
