"""Benchmarks one stage, alone or against other frameworks, and writes the results as JSON.

  python tools/benchmark.py train --image_dir=D --object_annotations_file=A --json=F
  python tools/benchmark.py train ... --against=model_garden:/opt/garden/bin/python
  python tools/benchmark.py input ... --sweep=image_size=512,832,1024
  python tools/benchmark.py export --exports=E1,E2 --against=model_garden:PYTHON:FILE --json=F

Stages:
  input     the training input          match     anchor matching and sampling
  decode    JPEG decode and resize      convert   the converter, as a command
  train     training steps              predict   detection up to COCO results
  backbone  ResNet and FPN alone        export    detection by exported models
  evaluate  COCO evaluation of results  start     from the command to the first step

`--against` names peers, each followed by the Python interpreter that has its packages, if that is
another one. Each program runs in its own process, and they take turns, `--repeats` times each. The
ratio of ours to the peer's is computed for each turn; quote its median. `--sweep` does the same
with several values of one of this program's flags.

A canvas is a square with side `--image_size`, which the longer image side fills. `train` repeats
its step on one real batch, with the batch's own positive RoIs or with `--positives` per image.
`predict` does a fixed amount of work: 100 detections per image, independent of the random weights.
`export` runs each model of `--exports`, and the file that follows a peer's interpreter, on one
image: from its pixels to boxes, classes, scores and masks, not pasted. It shows the files' sizes
too. `tools/benchmarks/write_networks.py` writes networks that do the same fixed amount of work.
All settings of the trainer are flags too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence

if __package__ is None:  # started as a script, perhaps without the package installed
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags

from data.errors import UserError
from data.files import exists, expand, make_folder, whole_file
from model.config import ModelConfig
from tools.benchmarks.peers import PEERS
from tools.benchmarks.report import describe_figures, summarise
from tools.benchmarks.stages import OURS, STAGES
from tools.benchmarks.turns import take_turns
from tools.benchmarks.worker import Job
from tools.benchmarks.workloads import define_flags, read_settings
from trainer.config import Params
from trainer.flags import (
    exit_status,
    parse_flags_with,
    refuse_flags,
    require_flags,
    write_flagfile,
)
from trainer.runtimes import name_format, read_export

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
        "against",
        [],
        "Peers to compare with: NAME, NAME:PYTHON or, in `export`, NAME:PYTHON:FILE.",
        flag_values=values,
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

    def ours(changes: dict, model: ModelConfig = params.model, label: str = "") -> Job:
        argv = tuple(f"--{name}={value}" for name, value in (told | changes).items())
        shown = told | {name: getattr(model, name) for name in _SHOWN_SETTINGS} | changes
        return Job(OURS, stage, sys.executable, (f"--flagfile={flagfile}", *argv), shown, label)

    if values.sweep:
        if values.against:
            refuse_flags("--sweep does not use peers; leave --against out.")
        if stage == "export":
            refuse_flags("--sweep does not apply to `export`; name several --exports.")
        name, numbers = _parse_sweep(values)
        return [ours({name: number}) for number in numbers]
    own = [ours(*each) for each in _exports(values)] if stage == "export" else [ours({})]
    jobs = [*own, *(_peer(entry, stage, own[0].settings) for entry in values.against)]
    titles = [job.title for job in jobs]
    if twice := [title for title in titles if titles.count(title) > 1]:
        refuse_flags(f"two programs are called {twice[0]!r} in the results; rename a file.")
    return jobs


def _parse_sweep(values: flags.FlagValues) -> tuple[str, list[int]]:
    name, _, swept = values.sweep.partition("=")
    try:
        numbers = [int(value) for value in swept.split(",")]
    except ValueError:
        refuse_flags(f"--sweep={values.sweep}: expected NAME=V1,V2,... with whole numbers.")
    if name not in values or not isinstance(values[name].value, int):
        refuse_flags(f"--sweep={values.sweep}: {name!r} is not a flag that takes a whole number.")
    return name, numbers


def _exports(values: flags.FlagValues) -> Iterator[tuple[dict, ModelConfig, str]]:
    """Yields the settings, the network's settings and the label of each exported model."""
    require_flags(values, "exports")
    for path in map(expand, values.exports.split(",")):
        model = read_export(path).params.model
        label = f"{name_format(path)} {os.path.basename(path.rstrip('/'))}"
        yield {"exports": path, "batch_size": 1}, model, label


def _peer(entry: str, stage: str, settings: dict) -> Job:
    name, python, file = f"{entry}::".split(":")[:3]
    if stage not in PEERS.get(name, ()):
        able = [peer for peer, does in PEERS.items() if stage in does]
        refuse_flags(
            f"--against={entry}: {stage} can be compared with {', '.join(able) or 'no peer'}."
        )
    if bool(file) != (stage == "export"):
        refuse_flags(f"--against={entry}: expected NAME:PYTHON:FILE in `export`, else NAME:PYTHON.")
    if file and not exists(file):
        raise UserError(f"{file} does not exist; tools/benchmarks/write_networks.py writes it.")
    settings, label = settings | {"exports": file}, os.path.basename(file)
    return Job(name, stage, python or sys.executable, (), settings, label)


if __name__ == "__main__":
    run()
