"""The results of a benchmark: the content of its JSON file, and the lines that it prints."""

from __future__ import annotations

import datetime
import os
import statistics
from collections.abc import Mapping, Sequence

from data import files
from tools.benchmarks.stages import OURS, STAGES
from tools.benchmarks.turns import Result


def summarise(stage: str, results: Sequence[Result], sweep: str = "") -> dict:
    """Makes the JSON object of a measurement.

    Args:
        stage: one of `STAGES`.
        results: results of the programs, ours first, which may be several.
        sweep: the flag in whose values they differ, if any.
    """
    unit = STAGES[stage].unit
    programs = [_program(result, unit) for result in results]
    for index, result in enumerate(results):
        if index and result.job.name == OURS and not sweep:
            programs[index]["ratios"] = _ratios(*programs[index:])
    return {
        "what": stage,
        "unit": unit,
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
        "sweep": sweep,
        "contestants": programs,
        "ratios": _ratios(*(programs[:1] if sweep else programs)),
    }


def describe_figures(figures: dict) -> str:
    """Describes the object of `summarise`, one line for each program and ratio."""
    lines = []
    for entry in figures["contestants"]:
        swept = figures["sweep"]
        name = f"{swept}={entry['settings'][swept]}" if swept else entry["name"]
        lines.append(
            f"{figures['what']} {name}: {entry['median']:.4g} {figures['unit']} (from "
            f"{entry['min']:.4g} to {entry['max']:.4g} in {len(entry['values'])} runs), "
            f"{entry['cpu_ms_per_image']:.4g} CPU ms per image, {entry['peak_rss_mb']:.0f} MB"
            + (f", file of {entry['file_mb']:.1f} MB" if "file_mb" in entry else "")
        )
    first, *others = figures["contestants"]
    for entry in ({**first, "ratios": figures["ratios"]}, *others):
        for name, ratio in entry.get("ratios", {}).items():
            spread = f"from {ratio['min']:.3f} to {ratio['max']:.3f}"
            lines.append(f"{entry['name']} / {name}: {ratio['median']:.3f} ({spread})")
    return "\n".join(lines)


def _ratios(program: Mapping, *others: Mapping) -> dict[str, dict]:
    """Divides the program's value of each turn by those of other programs."""
    return {
        other["name"]: _spread(
            [own / value for own, value in zip(program["values"], other["values"], strict=True)]
        )
        for other in others
    }


def _program(result: Result, unit: str) -> dict:
    values = [sample.value(unit) for sample in result.samples]
    cpu = [1000.0 * sample.cpu_seconds / sample.images for sample in result.samples]
    export = result.job.settings.get("exports")
    return {
        "name": result.job.title,
        "settings": _without_folders(result.job.settings),
        "versions": result.versions,
        "values": values,
        **_spread(values),
        "cpu_ms_per_image": statistics.median(cpu),
        "rss_mb": [round(sample.rss_mb) for sample in result.samples],
        "peak_rss_mb": result.peak_rss_mb,
        "ready_seconds": result.ready_seconds,
        "first_seconds": result.first_seconds,
        **({"file_mb": files.total_size(export) / 1e6} if export else {}),
    }


def _without_folders(settings: dict) -> dict:
    """Shortens each path in the settings to its last part, which reveals nothing of the machine."""
    return {
        name: os.path.basename(value.rstrip("/")) if isinstance(value, str) else value
        for name, value in settings.items()
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _machine() -> dict:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = models[0] if models else "unknown"
    return {"cpu": cpu, "cpus": len(os.sched_getaffinity(0)), "memory_gb": round(memory, 1)}
