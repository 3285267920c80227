"""The JSON files of tools/benchmark.py, read back and put into words."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

from data.errors import UserError

OURS = "ours"
UNITS = ("images/s", "s/step", "s/image", "ms/image", "s")
PEER_NAMES = {
    "model_garden": "Model Garden",
    "torchvision": "torchvision",
    "mmdetection": "mmdetection MS R-CNN",
    "pycocotools": "pycocotools",
}
# What is measured, in the order of the chart: its name and the settings that always stand with it.
_WORK = {
    "convert": ("Conversion", ("num_processes",)),
    "decode": ("Image decoding", ("image_size",)),
    "match": ("Anchor matching", ("image_size", "instances")),
    "input": ("Input pipeline", ("image_size",)),
    "backbone": ("Backbone", ("image_size", "batch_size", "precision", "kind")),
    "train": ("Training", ("image_size", "batch_size", "precision")),
    "predict": ("Prediction", ("image_size", "batch_size", "precision")),
    "evaluate": ("COCO evaluation", ("kind",)),
    "start": ("Start-up", ("image_size", "precision")),
}
_KINDS = {"segm": "masks", "bbox": "boxes", "both": "forward and backward"}
_SETTINGS = {
    "precision": lambda value: str(value).removeprefix("mixed_"),
    "image_size": lambda value: f"{value} px",
    "batch_size": lambda value: f"batch {value}",
    "instances": lambda value: f"{value} objects" if value else "",  # 0: as annotated
    "positives": lambda value: f"{value} positives" if value else "",
    "kind": lambda value: _KINDS.get(value, str(value)),
    "num_processes": lambda value: f"{value} process{'' if value == 1 else 'es'}",
    "num_shards": lambda value: f"{value} shards",
    "images": lambda value: "",  # how long a run is says nothing of its speed
    "backbone": str,
    "norm": lambda value: {"bn": "batch norm", "frozen_bn": "frozen norm"}.get(value, value),
    "freeze_at": lambda value: "",  # the norm says it
    "jit_compile": lambda value: "XLA" if value else "no XLA",
}


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of a figure."""

    median: float
    low: float
    high: float

    def inverse(self, scale: float = 1.0) -> Spread:
        """The spread of `scale` divided by the figure."""
        return Spread(scale / self.median, scale / self.high, scale / self.low)


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One program of a measurement, its figure in the measurement's unit."""

    name: str
    settings: Mapping
    figure: Spread
    memory_gb: float


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One JSON file.

    Attributes:
      path: the file.
      what: what is measured, a word of tools/benchmark.py.
      unit: one of `UNITS`.
      date: day of the measurement, YYYY-MM-DD.
      machine: the machine in words.
      sweep: the setting that varies, or an empty text.
      contestants: the programs, ours first.
      speedups: for each peer, how many times as fast as it this project is.
    """

    path: str
    what: str
    unit: str
    date: str
    machine: str
    sweep: str
    contestants: tuple[Contestant, ...]
    speedups: Mapping[str, Spread]

    def throughput(self, contestant: Contestant) -> Spread:
        """Images per second, or seconds where the unit does not count images."""
        figure = contestant.figure
        if self.unit == "s/step":
            return figure.inverse(_positive(contestant.settings, "batch_size"))
        if self.unit in ("s/image", "ms/image"):
            return figure.inverse(1000.0 if self.unit == "ms/image" else 1.0)
        return figure


def read_measurement(path: str) -> Measurement:
    """Reads a JSON file of tools/benchmark.py.

    Raises:
      UserError: the file cannot be read, or is another one.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from error
    try:
        return _parse(path, content)
    except KeyError as error:
        reason = f"{error} is missing"
    except (TypeError, ValueError, AttributeError) as error:
        reason = str(error)
    raise UserError(f"{path}: is no file of tools/benchmark.py ({reason}); measure again.")


def _parse(path: str, content: dict) -> Measurement:
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    unit, sweep, machine = content["unit"], content["sweep"], content["machine"]
    if unit not in UNITS:
        raise ValueError(f"its unit {unit!r} is none of {', '.join(UNITS)}")
    contestants = tuple(
        Contestant(
            str(entry["name"]),
            dict(entry["settings"]),
            _spread(entry),
            _positive(entry, "peak_rss_mb") / 1024.0,
        )
        for entry in content["contestants"]
    )
    if not contestants or contestants[0].name != OURS:
        raise ValueError(f"its first contestant is not {OURS!r}")
    peers = [] if sweep else [entry.name for entry in contestants[1:]]
    ratios = {peer: _spread(content["ratios"][peer]) for peer in peers}
    measurement = Measurement(
        path=path,
        what=str(content["what"]),
        unit=unit,
        date=str(content["date"]),
        machine=f"{_short_cpu(machine['cpu'])}, {machine['cpus']} CPU"
        f"{'' if machine['cpus'] == 1 else 's'}, {_positive(machine, 'memory_gb'):.0f} GB",
        sweep=str(sweep),
        contestants=contestants,
        speedups={
            peer: ratio if unit == "images/s" else ratio.inverse() for peer, ratio in ratios.items()
        },
    )
    for entry in contestants if sweep else ():
        if not isinstance(entry.settings[sweep], int | float | str):
            raise ValueError(f"{sweep} is neither a number nor a word")
        measurement.throughput(entry)
    return measurement


def _spread(entry: Mapping) -> Spread:
    spread = Spread(*(_positive(entry, key) for key in ("median", "min", "max")))
    if not spread.low <= spread.median <= spread.high:
        raise ValueError("a median is not between its min and max")
    return spread


def _positive(entry: Mapping, key: str) -> float:
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{key} is {value!r}, not a positive number")
    return float(value)


def _short_cpu(name: str) -> str:
    return " ".join(name.replace("(R)", "").replace("(TM)", "").partition("@")[0].split())


def describe(measurement: Measurement, others: Sequence[Measurement] = ()) -> str:
    """The settings that tell a measurement apart, such as "512 px, batch 2, float32".

    Args:
      measurement: what to describe.
      others: where they measure the same work, the settings in which they differ are named too.
    """
    settings = measurement.contestants[0].settings
    always = _WORK.get(measurement.what, ("", ("image_size", "batch_size", "precision")))[1]
    rivals = [other for other in others if other.what == measurement.what]
    words = []
    for key in (*always, *(key for key in _SETTINGS if key not in always)):
        differs = any(
            other.contestants[0].settings.get(key) != settings.get(key) for other in rivals
        )
        if key in settings and key != measurement.sweep and (key in always or differs):
            words.append(_SETTINGS[key](settings[key]))
    return ", ".join(word for word in words if word)


def work_title(what: str) -> str:
    """What people call the work, such as "Anchor matching"."""
    return _WORK[what][0] if what in _WORK else what.capitalize()


def chart_order(measurement: Measurement) -> tuple:
    """The key that sorts measurements by work, precision and size."""
    settings = measurement.contestants[0].settings
    numbers = [settings.get(key) for key in ("image_size", "batch_size", "instances")]
    work = list(_WORK)
    return (
        work.index(measurement.what) if measurement.what in work else len(work),
        measurement.what,
        settings.get("precision", "float32") != "float32",
        [number if isinstance(number, int | float) else 0 for number in numbers],
        measurement.path,
    )


def format_times(ratio: float) -> str:
    """A ratio as it stands at a bar: 0.45×, 1.04×, 2.3×, 12×."""
    digits = 3 if ratio < 0.0995 else 2 if ratio < 1.995 else 1 if ratio < 9.95 else 0
    return f"{ratio:.{digits}f}×"


def list_machines(measurements: Sequence[Measurement]) -> str:
    """The machines, each with its first and last day."""
    days = {}
    for entry in measurements:
        days.setdefault(entry.machine, set()).add(entry.date)
    lines = []
    for machine, dates in sorted(days.items()):
        span = min(dates) if len(dates) == 1 else f"{min(dates)} to {max(dates)}"
        lines.append(f"{machine} · {span}")
    return "\n".join(lines)
