"""Measures one part of the system, alone or beside others, and writes the figures as JSON.

  python tools/benchmark.py train --image_dir=D --object_annotations_file=A --json=F
  python tools/benchmark.py train ... --against=model_garden:/opt/garden/bin/python
  python tools/benchmark.py input ... --sweep=image_size=512,832,1024

What can be measured:
  input     the training input          match     anchor matching and sampling
  decode    JPEG decode and resize      convert   the converter, as a command
  train     training steps              predict   detection up to COCO results
  backbone  ResNet and FPN alone        evaluate  COCO evaluation of results
  start     from the command to the first step

`--against` names peers, model_garden, torchvision, mmdetection or pycocotools, each with the Python
that has its packages if that is another one. Every program has a process of its own and they take
turns, `--repeats` times each; the ratio is ours to the peer's, turn by turn, and its median is the
one to quote. `--sweep` does the same with several values of one of this program's own flags.

A canvas is a square of side `--image_size` that the longer image side fills. `train` repeats its
step on one real batch, with as many positive RoIs as it has or with `--positives` an image.
`predict` pins its work: 100 detections in an image, whatever the random weights see. All settings
of the trainer are flags too.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence

if __package__ is None:  # started as a script, which may be without the package installed
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags

from data.files import make_folder, whole_file
from tools.contestants import OURS, ContestantError, Result, Spec, take_turns
from tools.workloads import UNITS, define_flags
from trainer.config import Params
from trainer.flags import parse_flags_with, refuse_flags, write_flagfile

PEERS = {
    "model_garden": ("convert", "input", "match", "train", "predict"),
    "torchvision": ("train", "predict"),
    "mmdetection": ("train", "predict"),
    "pycocotools": ("evaluate",),
}
_SHOWN_SETTINGS = ("precision", "backbone", "norm", "freeze_at", "jit_compile")


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit status."""
    what = argv[1] if len(argv) > 1 and argv[1] in UNITS else ""
    rest = list(argv[1 + bool(what) :])
    params, values = parse_flags_with([argv[0], *rest], __doc__, _define_flags)
    if not what:
        refuse_flags(f"name what to measure first: {', '.join(UNITS)}.")
    if values.repeats < 1 or not values.json:
        refuse_flags("--json names the file to write, and --repeats is 1 or more.")
    try:
        # Not after minutes of measuring.
        make_folder(os.path.dirname(values.json) or ".")
        with tempfile.TemporaryDirectory() as folder:
            flagfile = os.path.join(folder, "settings.flags")
            write_flagfile(params, flagfile)
            results = take_turns(_specs(what, flagfile, params, values), values.repeats)
        figures = summarise(what, results, values.sweep.partition("=")[0])
        with whole_file(values.json) as file:
            json.dump(figures, file, indent=1)
            file.write("\n")
    except (ContestantError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(_lines(figures)))
    return 0


def run() -> None:
    """Console entry point."""
    sys.exit(main(sys.argv))


def summarise(what: str, results: Sequence[Result], sweep: str = "") -> dict:
    """The JSON object of a measurement.

    Args:
      what: the workload.
      results: of the contestants, ours first.
      sweep: the flag whose values they differ in, if they do.
    """
    unit = UNITS[what]
    contestants = [_contestant(result, unit) for result in results]
    ratios = {}
    for peer in contestants[1:] if not sweep else ():
        pairs = zip(contestants[0]["values"], peer["values"], strict=True)
        ratios[peer["name"]] = _spread([ours / theirs for ours, theirs in pairs])
    return {
        "what": what,
        "unit": unit,
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
        "sweep": sweep,
        "contestants": contestants,
        "ratios": ratios,
    }


def _define_flags(values: flags.FlagValues) -> None:
    define_flags(values)
    flags.DEFINE_list("against", [], "Peers, NAME or NAME:PYTHON.", flag_values=values)
    flags.DEFINE_string(
        "sweep", "", "NAME=V1,V2,... of a flag of this program.", flag_values=values
    )
    flags.DEFINE_string("json", "", "File to write the figures to.", flag_values=values)
    flags.DEFINE_integer("repeats", 5, "Timed runs of each program.", flag_values=values)


def _specs(what: str, flagfile: str, params: Params, values: flags.FlagValues) -> list[Spec]:
    own = flags.FlagValues()
    define_flags(own)
    told = {name: values[name].value for name in own}
    shown = told | {name: getattr(params.model, name) for name in _SHOWN_SETTINGS}

    def ours(changes: dict) -> Spec:
        argv = tuple(f"--{name}={value}" for name, value in (told | changes).items())
        return Spec(OURS, what, sys.executable, (f"--flagfile={flagfile}", *argv), shown | changes)

    name, _, swept = values.sweep.partition("=")
    if not name:
        return [ours({}), *(_peer(entry, what, shown) for entry in values.against)]
    if values.against:
        refuse_flags("--sweep compares us with ourselves: leave --against out.")
    try:
        numbers = [int(value) for value in swept.split(",")]
    except ValueError:
        refuse_flags(f"--sweep={values.sweep} is not NAME=V1,V2,... with whole numbers.")
    if name not in values or not isinstance(values[name].value, int):
        refuse_flags(f"--sweep={values.sweep}: {name!r} is no flag that takes a whole number.")
    return [ours({name: number}) for number in numbers]


def _peer(entry: str, what: str, settings: dict) -> Spec:
    name, _, python = entry.partition(":")
    if what not in PEERS.get(name, ()):
        able = [peer for peer, does in PEERS.items() if what in does]
        refuse_flags(
            f"--against={entry}: {what} can be compared with {', '.join(able) or 'no peer'}."
        )
    return Spec(name, what, python or sys.executable, (), settings)


def _contestant(result: Result, unit: str) -> dict:
    values = [sample.value(unit) for sample in result.samples]
    cpu = [1000.0 * sample.cpu_seconds / sample.images for sample in result.samples]
    return {
        "name": result.spec.name,
        "settings": result.spec.settings,
        "versions": result.versions,
        "values": values,
        **_spread(values),
        "cpu_ms_per_image": statistics.median(cpu),
        "rss_mb": [round(sample.rss_mb) for sample in result.samples],
        "peak_rss_mb": result.peak_rss_mb,
        "ready_seconds": result.ready_seconds,
        "first_seconds": result.first_seconds,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _machine() -> dict:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = models[0] if models else "unknown"
    return {"cpu": cpu, "cpus": len(os.sched_getaffinity(0)), "memory_gb": round(memory, 1)}


def _lines(figures: dict) -> list[str]:
    lines = []
    for entry in figures["contestants"]:
        swept = figures["sweep"]
        name = f"{swept}={entry['settings'][swept]}" if swept else entry["name"]
        lines.append(
            f"{figures['what']} {name}: {entry['median']:.4g} {figures['unit']} (from "
            f"{entry['min']:.4g} to {entry['max']:.4g} in {len(entry['values'])} runs), "
            f"{entry['cpu_ms_per_image']:.4g} CPU ms an image, {entry['peak_rss_mb']:.0f} MB"
        )
    for name, ratio in figures["ratios"].items():
        lines.append(
            f"ours / {name}: {ratio['median']:.3f} (from {ratio['min']:.3f} to {ratio['max']:.3f})"
        )
    return lines


if __name__ == "__main__":
    run()
