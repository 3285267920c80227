"""Charts of measurements: speed relative to peers, and speed and memory over a setting.

Lengths are in inches. Needs matplotlib, which is imported where it is used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.errors import UserError
from tools.benchmarks.measurements import (
    Measurement,
    Spread,
    chart_order,
    describe,
    format_times,
    list_machines,
    name_program,
)
from tools.benchmarks.stages import STAGES
from tools.chart_style import BLUE, INK, ORANGE, SOFT, make_figure, render, set_log_ticks, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _ROW, _GROUP = 10.0, 0.25, 0.35
_PANEL_WIDTH, _PANEL_HEIGHT = 3.0, 3.6


def draw(chart: str, measurements: Sequence[Measurement], picture: str) -> bytes:
    """Draws a chart of the measurements that it can show.

    Args:
        chart: "overview" or "scaling".
        measurements: of all kinds.
        picture: "svg" or "png".

    Raises:
        UserError: matplotlib is missing, or the chart would be empty.
    """
    overview = chart == "overview"
    shown = [entry for entry in measurements if (entry.speedups if overview else entry.sweep)]
    if not shown:
        need = "peers (--against)" if overview else "a sweep (--sweep)"
        raise UserError(f"none of the {len(measurements)} files has {need}: nothing to draw.")
    return render(lambda: (draw_overview if overview else draw_scaling)(shown), picture)


def draw_overview(measurements: Sequence[Measurement]) -> Figure:
    """Draws a bar for each peer of each measurement: our speed relative to the peer's."""
    measurements = sorted(measurements, key=chart_order)
    groups = {
        stage: [
            (f"{name_program(peer)}: {describe(entry, measurements)}", speedup)
            for entry in entries
            for peer, speedup in entry.speedups.items()
        ]
        for stage, entries in itertools.groupby(measurements, lambda entry: entry.stage)
    }
    rows = [len(group) for group in groups.values()]
    height = _ROW * sum(rows) + _GROUP * len(rows) + 1.4
    figure = _make_figure(_WIDTH, height, "Speed relative to others (log scale)",
        "Our speed divided by theirs, measured in turns; 1× means equal. Thin lines: lowest and "
        "highest turn.",
        measurements,
    )  # fmt: skip
    panels = figure.subplots(len(rows), sharex=True, height_ratios=rows, squeeze=False)[:, 0]
    for axes, (stage, group) in zip(panels, groups.items(), strict=True):
        axes.set_title(STAGES[stage].title)
        _draw_bars(axes, group)
    axes.set_xscale("log")
    set_log_ticks(axes.xaxis, "×")
    return figure


def _draw_bars(axes: Axes, speedups: Sequence[tuple[str, Spread]]) -> None:
    names, spreads = zip(*speedups, strict=True)
    medians = [spread.median for spread in spreads]
    bars = axes.barh(
        range(len(spreads)),
        [median - 1 for median in medians],
        0.62,
        left=1,
        xerr=_reach(spreads),
        color=[BLUE if median >= 1 else ORANGE for median in medians],
        error_kw={"ecolor": INK, "elinewidth": 0.8},
    )
    axes.bar_label(bars, map(format_times, medians), padding=5, weight="bold")
    axes.set_yticks(range(len(spreads)), names)
    axes.set_ylim(len(spreads) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.axvline(1, color=SOFT, linewidth=1)
    tidy(axes, "x")


def draw_scaling(measurements: Sequence[Measurement]) -> Figure:
    """Draws a panel for each sweep: its speed above, its memory below."""
    measurements = sorted(measurements, key=chart_order)
    columns = min(3, len(measurements))
    rows = math.ceil(len(measurements) / columns)
    # A single panel leaves space for the title.
    width = max(columns * _PANEL_WIDTH, 5.6)
    figure = _make_figure(width, rows * _PANEL_HEIGHT + 0.9, "Speed and memory",
        "Median of the runs; bars: lowest and highest.", measurements,
    )  # fmt: skip
    panels = figure.subfigures(rows, columns, squeeze=False).flat
    for panel, measurement in zip(panels, measurements, strict=False):
        above, below = panel.subplots(2, sharex=True, height_ratios=(3, 2))
        _draw_sweep(above, below, measurement, describe(measurement, measurements))
    return figure


def _draw_sweep(above: Axes, below: Axes, measurement: Measurement, note: str) -> None:
    swept = measurement.sweep.removeprefix("num_").replace("_", " ")
    entries = sorted(measurement.programs, key=lambda entry: entry.settings[measurement.sweep])
    values = [entry.settings[measurement.sweep] for entry in entries]
    memory = [Spread(entry.memory_gb, entry.memory_gb, entry.memory_gb) for entry in entries]
    above.set_title(f"{STAGES[measurement.stage].title} by {swept}\n{note}")
    above.set_ylabel("seconds, lower is better" if measurement.unit == "s" else "images/s")
    below.set_ylabel("peak memory, GB")
    below.set_xlabel(f"{swept}, pixels" if swept == "image size" else swept)
    _draw_line(above, values, [measurement.throughput(entry) for entry in entries], BLUE)
    _draw_line(below, values, memory, ORANGE)
    if min(values) > 0 and max(values) / min(values) >= 8:
        below.set_xscale("log")
    below.set_xticks(values, map(str, values))
    below.minorticks_off()


def _draw_line(axes: Axes, values: Sequence[int], spreads: Sequence[Spread], color: str) -> None:
    medians = [spread.median for spread in spreads]
    axes.errorbar(values, medians, _reach(spreads), color=color, marker="o", markersize=4)
    high, low = max(spread.high for spread in spreads), min(spread.low for spread in spreads)
    if high / low >= 10:
        axes.set_yscale("log")
        set_log_ticks(axes.yaxis)
    else:
        axes.set_ylim(0, high * 1.15)
        axes.locator_params(axis="y", nbins=4)
        axes.yaxis.set_major_formatter("{x:g}")
    tidy(axes, "y")


def _reach(spreads: Sequence[Spread]) -> list[list[float]]:
    """Computes the distances of the lowest and the highest from the median."""
    return [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]


def _make_figure(
    width: float, height: float, title: str, note: str, measurements: Sequence[Measurement]
) -> Figure:
    return make_figure(width, height, title, f"{note}\n{list_machines(measurements)}")
