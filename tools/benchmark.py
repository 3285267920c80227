"""Measures one part of the system and writes the figures as one JSON object.

  python tools/benchmark.py input --train_file_pattern='records/train-*' --image_size=832 --json=F
  python tools/benchmark.py match --image_size=1024 --instances=100 --json=F
  python tools/benchmark.py train --train_file_pattern='records/train-*' --image_size=512 --json=F
  python tools/benchmark.py predict --image_size=512 --precision=mixed_bfloat16 --json=F
  python tools/benchmark.py convert --image_dir=D --object_annotations_file=A --json=F
  python tools/benchmark.py evaluate --eval_annotation_file=A --json=F

Every figure is measured `--repeats` times after a warm-up; the median is the one to quote. A canvas
is a square of side `--image_size` that the longer image side fills. `train` repeats its step on one
batch of the records, with as many positive RoIs as it has. `predict` pins its work: 100 detections
are found in an image, whatever the random weights see. All settings of the trainer are flags too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata

if __package__ is None:  # started as a script, which may be without the package installed
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags

from data.errors import UserError
from tools import workloads
from trainer.config import Params
from trainer.flags import parse_flags_with, refuse_flags

UNITS = {
    "input": "images/s",
    "match": "ms/image",
    "train": "s/step",
    "predict": "s/image",
    "convert": "images/s",
    "evaluate": "ms/image",
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """One timed run of a workload."""

    images: int
    wall_seconds: float
    cpu_seconds: float

    def value(self, unit: str) -> float:
        """The figure in one of `UNITS`; a step is as long as its images."""
        if unit == "images/s":
            return self.images / self.wall_seconds
        if unit == "s/step":
            return self.wall_seconds
        return self.wall_seconds / self.images * (1000.0 if unit == "ms/image" else 1.0)


def time_workload(run: Callable[[], int], repeats: int) -> list[Sample]:
    """Times `run`, which returns the number of images it processed, after one run to warm up."""
    run()
    samples = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), _cpu_seconds()
        images = run()
        samples.append(Sample(images, time.perf_counter() - wall, _cpu_seconds() - cpu))
    return samples


def summarise(what: str, samples: Sequence[Sample], settings: dict) -> dict:
    """The JSON object of a measurement."""
    unit = UNITS[what]
    values = [sample.value(unit) for sample in samples]
    cpu = [1000.0 * sample.cpu_seconds / sample.images for sample in samples]
    return {
        "what": what,
        "unit": unit,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repeats": len(values),
        "cpu_ms_per_image": statistics.median(cpu),
        "peak_rss_mb": _peak_rss_mb(),
        "versions": _versions(),
        "settings": {**settings, "cpus": len(os.sched_getaffinity(0))},
    }


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit status."""
    if len(argv) < 2 or (argv[1] not in UNITS and argv[1].startswith("-") is False):
        refuse_flags(f"name what to measure first: {', '.join(UNITS)}.")
    what = argv[1] if argv[1] in UNITS else ""
    params, values = parse_flags_with([argv[0], *argv[1 + bool(what) :]], __doc__, _define_flags)
    if not what:
        refuse_flags(f"name what to measure first: {', '.join(UNITS)}.")
    if values.repeats < 1 or not values.json:
        refuse_flags("--json names the file to write, and --repeats is 1 or more.")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    settings = {name: values[name].value for name in ("image_size", "batch_size", "instances")} | {
        "precision": params.model.precision,
        "backbone": params.model.backbone,
    }
    try:
        run = getattr(workloads, f"make_{what}")(_with_canvas(params, values), values)
        result = summarise(what, time_workload(run, values.repeats), settings)
        with open(values.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{what}: {result['median']:.4g} {result['unit']} (from {result['min']:.4g} to "
        f"{result['max']:.4g} in {result['repeats']} runs), "
        f"{result['cpu_ms_per_image']:.4g} CPU ms an image, {result['peak_rss_mb']:.0f} MB"
    )
    return 0


def run() -> None:
    """Console entry point."""
    sys.exit(main(sys.argv))


def _define_flags(values: flags.FlagValues) -> None:
    for name, default, meaning in (
        ("image_size", 832, "Side of the square canvas, pixels."),
        ("batch_size", 2, "Images of a batch."),
        ("instances", 8, "Objects of an image in `match`."),
        ("repeats", 5, "Timed runs."),
        ("images", 200, "Images of a timed run of `input` and `match`."),
        ("num_processes", os.cpu_count(), "Processes of `convert`."),
    ):
        flags.DEFINE_integer(name, default, meaning, flag_values=values)
    for name, meaning in (
        ("json", "File to write the figures to."),
        ("image_dir", "Folder of the images that `convert` converts."),
        ("object_annotations_file", "COCO JSON that `convert` converts."),
    ):
        flags.DEFINE_string(name, "", meaning, flag_values=values)


def _with_canvas(params: Params, values: flags.FlagValues) -> Params:
    size, batch = values.image_size, values.batch_size
    try:
        data = dataclasses.replace(
            params.data,
            canvases=(f"{size}x{size}",),
            short_side=size,
            long_side=size,
            train_short_side_min=size,
            train_batch_size=batch,
            eval_batch_size=batch,
        )
    except ValueError as error:
        refuse_flags(str(error))
    classes = params.model.num_classes or workloads.COCO_CLASSES
    model = dataclasses.replace(params.model, num_classes=classes)
    return dataclasses.replace(params, data=data, model=model)


def _cpu_seconds() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def _peak_rss_mb() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in kinds) / 1024.0


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    packages = "tensorflow", "tensorflow-cpu", "keras", "numpy", "pycocotools", "faster-coco-eval"
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    run()
