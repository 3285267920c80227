"""Reads the JSON files of tools/benchmark.py and describes them in words."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

from data.errors import UserError
from tools.benchmarks.stages import OURS, STAGES

_PROGRAM_NAMES = {
    "model_garden": "Model Garden",
    "torchvision_onnxruntime": "torchvision in ONNX Runtime",
    "torchvision_openvino": "torchvision in OpenVINO",
    "mmdetection": "mmdetection MS R-CNN",
}
_KINDS = {"segm": "masks", "bbox": "boxes", "both": "forward and backward"}
_SETTINGS = {
    "precision": lambda value: str(value).removeprefix("mixed_"),
    "image_size": lambda value: f"{value} px",
    "batch_size": lambda value: f"batch {value}",
    "instances": lambda value: f"{value} objects" if value else "",  # 0 means as annotated
    "positives": lambda value: f"{value} positives" if value else "",
    "kind": lambda value: _KINDS.get(value, str(value)),
    "num_processes": lambda value: f"{value} process{'' if value == 1 else 'es'}",
    "num_shards": lambda value: f"{value} shards",
    "backbone": str,
    "norm": lambda value: {"bn": "batch norm", "frozen_bn": "frozen norm"}.get(value, value),
    "jit_compile": lambda value: "XLA" if value else "no XLA",
    "object_annotations_file": str,
}


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, lowest and highest value of a figure."""

    median: float
    low: float
    high: float

    def inverse(self, scale: float = 1.0) -> Spread:
        """Returns the spread of `scale` divided by the figure."""
        return Spread(scale / self.median, scale / self.high, scale / self.low)


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a measurement, with its figure in the measurement's unit."""

    name: str
    settings: Mapping
    figure: Spread
    memory_gb: float

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's; exported models have their format after the name."""
        return self.name.partition(" ")[0] == OURS


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One JSON file.

    Attributes:
        path: the file.
        stage: one of `STAGES`.
        date: day of the measurement, YYYY-MM-DD.
        machine: the machine in words.
        sweep: the setting that varies, or an empty string.
        programs: ours first.
        speedups: for each peer, this project's speed divided by the peer's.
    """

    path: str
    stage: str
    date: str
    machine: str
    sweep: str
    programs: tuple[Program, ...]
    speedups: Mapping[str, Spread]

    @property
    def unit(self) -> str:
        """The unit of the figures."""
        return STAGES[self.stage].unit

    def throughput(self, program: Program) -> Spread:
        """Returns images per second, or seconds if the unit does not count images."""
        figure = program.figure
        if self.unit == "s/step":
            return figure.inverse(_positive(program.settings, "batch_size"))
        if self.unit in ("s/image", "ms/image"):
            return figure.inverse(1000.0 if self.unit == "ms/image" else 1.0)
        return figure


def read_measurement(path: str) -> Measurement:
    """Reads a JSON file of tools/benchmark.py.

    Raises:
        UserError: the file cannot be read, or is not a measurement.
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
    raise UserError(f"{path}: is not a file of tools/benchmark.py ({reason}); measure again.")


def _parse(path: str, content: dict) -> Measurement:
    if not isinstance(content, dict):
        raise ValueError("it does not contain a JSON object")
    stage, unit, sweep = content["what"], content["unit"], content["sweep"]
    machine = content["machine"]
    if stage not in STAGES or unit != STAGES[stage].unit:
        raise ValueError(f"it cannot have measured {stage!r} in {unit!r}")
    programs = tuple(
        Program(
            str(entry["name"]),
            dict(entry["settings"]),
            _spread(entry),
            _positive(entry, "peak_rss_mb") / 1024.0,
        )
        for entry in content["contestants"]
    )
    if not programs or not programs[0].is_ours:
        raise ValueError(f"its first contestant is not {OURS!r}")
    peers = [] if sweep else [entry.name for entry in programs if not entry.is_ours]
    ratios = {peer: _spread(content["ratios"][peer]) for peer in peers}
    measurement = Measurement(
        path=path,
        stage=stage,
        date=str(content["date"]),
        machine=f"{_short_cpu(machine['cpu'])}, {machine['cpus']} CPU"
        f"{'' if machine['cpus'] == 1 else 's'}, {_positive(machine, 'memory_gb'):.0f} GB",
        sweep=str(sweep),
        programs=programs,
        speedups={
            peer: ratio if unit == "images/s" else ratio.inverse() for peer, ratio in ratios.items()
        },
    )
    for entry in programs if sweep else ():
        if not isinstance(entry.settings[sweep], int):
            raise ValueError(f"{sweep} is not a whole number")
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
    """Describes a measurement by its settings, such as "512 px, batch 2, float32".

    Args:
        measurement: what to describe.
        others: measurements of the same stage; settings in which they differ are named too.
    """
    settings = measurement.programs[0].settings
    always = STAGES[measurement.stage].settings
    rivals = [other for other in others if other.stage == measurement.stage]
    words = []
    for key in (*always, *(key for key in _SETTINGS if key not in always)):
        differs = any(other.programs[0].settings.get(key) != settings.get(key) for other in rivals)
        if key in settings and key != measurement.sweep and (key in always or differs):
            words.append(_SETTINGS[key](settings[key]))
    return ", ".join(word for word in words if word)


def name_program(name: str) -> str:
    """Names a program in charts: "Model Garden", or "Model Garden dynamic.tflite"."""
    program, space, file = name.partition(" ")
    return _PROGRAM_NAMES.get(program, program) + space + file


def chart_order(measurement: Measurement) -> tuple:
    """Returns the key that sorts measurements by stage, precision and size."""
    settings = measurement.programs[0].settings
    numbers = [settings.get(key) for key in ("image_size", "batch_size", "instances")]
    return (
        list(STAGES).index(measurement.stage),
        settings.get("precision", "float32") != "float32",
        [number if isinstance(number, int | float) else 0 for number in numbers],
        measurement.path,
    )


def format_times(ratio: float) -> str:
    """Formats a ratio as the label of a bar: 0.45×, 1.04×, 2.3×, 12×."""
    digits = 3 if ratio < 0.0995 else 2 if ratio < 1.995 else 1 if ratio < 9.95 else 0
    return f"{ratio:.{digits}f}×"


def list_machines(measurements: Sequence[Measurement]) -> str:
    """Lists the machines, each with its first and last date."""
    days = {}
    for entry in measurements:
        days.setdefault(entry.machine, set()).add(entry.date)
    lines = []
    for machine, dates in sorted(days.items()):
        span = min(dates) if len(dates) == 1 else f"{min(dates)} to {max(dates)}"
        lines.append(f"{machine} · {span}")
    return "\n".join(lines)
