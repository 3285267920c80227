"""Charts of measurements: speed beside peers, and speed and memory over a setting.

Lengths are in inches. Needs matplotlib, which is imported where it is used.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.errors import UserError
from tools.benchmarks.measurements import (
    PEER_NAMES,
    Measurement,
    Spread,
    chart_order,
    describe,
    format_times,
    list_machines,
)
from tools.benchmarks.stages import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FASTER, _SLOWER = "#0072B2", "#D55E00"  # Okabe and Ito's, safe for the colour-blind.
_INK, _SOFT, _GRID = "#1F2328", "#59636E", "#D8DEE4"
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "msrcnn",  # ids do not change from run to run
    "font.family": "sans-serif",
    # The first, which comes with matplotlib, is what the layout is measured with, on any machine.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"],
    "font.size": 9.0,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _SOFT,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
}
_MARGIN = 0.2
_WIDTH = 12.0
_ROW, _GROUP_GAP = 0.25, 0.11
_PANEL_WIDTH, _SPEED_HEIGHT, _MEMORY_HEIGHT, _PANEL_HEIGHT = 2.9, 1.45, 0.7, 3.85


def draw(chart: str, measurements: Sequence[Measurement], picture: str) -> bytes:
    """Draws a chart from those measurements that it can show.

    Args:
      chart: "overview" or "scaling".
      measurements: of all kinds.
      picture: "svg" or "png".

    Raises:
      UserError: matplotlib is missing, or the chart would be empty.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "charts need matplotlib: install the extra `charts`, "
            "pip install 'mask-scoring-rcnn[charts]'."
        ) from error
    overview = chart == "overview"
    shown = [entry for entry in measurements if (entry.speedups if overview else entry.sweep)]
    if not shown:
        need = "peers (--against)" if overview else "a sweep (--sweep)"
        raise UserError(f"none of the {len(measurements)} files has {need}: nothing to draw.")
    file = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the settings of the person at the keyboard
        matplotlib.rcParams.update(_STYLE)
        figure = (draw_overview if overview else draw_scaling)(shown)
        # Neither the day nor matplotlib's version may change the bytes.
        blank = {"Date": None, "Creator": None} if picture == "svg" else {"Software": None}
        figure.savefig(file, format=picture, dpi=160, metadata=blank)
    return file.getvalue()


def draw_overview(measurements: Sequence[Measurement]) -> Figure:
    """Draws a bar for each peer of each measurement: how many times as fast as it we are."""
    from matplotlib.transforms import blended_transform_factory

    measurements = sorted(measurements, key=chart_order)
    rows, y, previous = [], 0.0, None
    for entry in measurements:
        y += _GROUP_GAP if previous not in (None, entry.stage) else 0.0
        for number, (peer, speedup) in enumerate(entry.speedups.items()):
            work = STAGES[entry.stage].title if entry.stage != previous else ""
            settings = "" if number else describe(entry, measurements)
            rows.append((y + _ROW / 2, work, settings, PEER_NAMES.get(peer, peer), speedup))
            y += _ROW
            previous = entry.stage
    footer = list_machines(measurements)
    top, bottom = 1.0, 0.5 + 0.17 * (footer.count("\n") + 1)
    figure = _make_figure(_WIDTH, top + y + bottom)
    columns, left = [], _MARGIN
    for column, look in enumerate(({"weight": "bold"}, {"color": _SOFT}, {})):
        columns.append((left, look))
        left += max(_text_width(figure, row[1 + column], **look) for row in rows) + 0.2
    axes = _add_axes(figure, left, bottom, _WIDTH - _MARGIN - left, y)
    axes.set_ylim(y, 0)
    across = blended_transform_factory(figure.dpi_scale_trans, axes.transData)
    for middle, *texts, speedup in rows:
        for (start, look), text in zip(columns, texts, strict=True):
            if text:
                axes.text(start, middle, text, transform=across, va="center", **look)
        _draw_bar(axes, middle, speedup)
    _scale_overview(axes, [row[-1] for row in rows])
    _write_heads(
        figure,
        "How many times as fast as others (log scale)",
        "Our speed divided by theirs, measured in turns; 1× is the same. "
        "Thin lines: lowest and highest turn.",
        footer,
    )
    return figure


def _draw_bar(axes: Axes, middle: float, speedup: Spread) -> None:
    faster = speedup.median >= 1
    axes.barh(middle, speedup.median - 1, 0.62 * _ROW, left=1, color=_FASTER if faster else _SLOWER)
    axes.plot([speedup.low, speedup.high], [middle, middle], color=_INK, linewidth=0.8)
    axes.annotate(
        format_times(speedup.median),
        (max(1.0, speedup.high) if faster else min(1.0, speedup.low), middle),
        (5 if faster else -5, -0.5),
        textcoords="offset points",
        ha="left" if faster else "right",
        va="center",
        weight="bold",
    )


def _scale_overview(axes: Axes, speedups: Sequence[Spread]) -> None:
    """A logarithmic axis, on which twice and half as fast are equally long, with room for text."""
    low = min(1.0, *(entry.low for entry in speedups))
    high = max(1.0, *(entry.high for entry in speedups))
    wide = max(high / low, 1.25)
    sides = [any(entry.median < 1 for entry in speedups), any(e.median >= 1 for e in speedups)]
    pads = [wide ** (0.16 if side else 0.03) for side in sides]
    limits = low / pads[0], (high if high > 1 else low * wide) * pads[1]
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    steps = (1, 2, 5) if wide > 4 else (1, 1.2, 1.5, 2, 3, 5, 7, 8, 9)
    ticks = [step * 10.0**power for power in range(-4, 5) for step in steps]
    ticks = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.axvline(1, color=_SOFT, linewidth=1)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for side, x, text, colour in (
        (0, -6, "← slower", _SLOWER),
        (1, 6, "faster →", _FASTER),
    ):
        if sides[side]:
            axes.annotate(
                text, (1, 0), (x, 5), textcoords="offset points", xycoords="data",
                ha="left" if side else "right", va="bottom", color=colour, fontsize=8,
            )  # fmt: skip


def draw_scaling(measurements: Sequence[Measurement]) -> Figure:
    """Draws a panel for each sweep: its speed above, its memory below."""
    measurements = sorted(measurements, key=chart_order)
    count = len(measurements)
    columns = 2 if count == 4 else min(3, count)
    footer = list_machines(measurements)
    top, bottom = 0.8, 0.1 + 0.17 * (footer.count("\n") + 1)
    # A single panel leaves room for the heads.
    width = max(columns * _PANEL_WIDTH, 5.6) + 2 * _MARGIN
    height = top + math.ceil(count / columns) * _PANEL_HEIGHT + bottom
    figure = _make_figure(width, height)
    panel_width = (width - 2 * _MARGIN) / columns
    for number, measurement in enumerate(measurements):
        left = _MARGIN + number % columns * panel_width
        upper = height - top - number // columns * _PANEL_HEIGHT
        _draw_panel(
            figure, measurement, left, upper, panel_width, describe(measurement, measurements)
        )
    _write_heads(
        figure,
        "Speed and memory",
        "Median of the runs; bars: lowest and highest.",
        footer,
    )
    return figure


def _draw_panel(
    figure: Figure, measurement: Measurement, left: float, upper: float, width: float, note: str
) -> None:
    """Draws a sweep into the panel whose upper left corner is given."""
    swept = measurement.sweep.removeprefix("num_").replace("_", " ")
    unit = "seconds, less is better" if measurement.unit == "s" else "images/s"
    for below, text, look in (
        (0.0, f"{STAGES[measurement.stage].title} by {swept}", {"weight": "bold"}),
        (0.2, note, {"color": _SOFT, "fontsize": 8}),
        (0.42, unit, {"color": _FASTER, "fontsize": 8}),
        (0.62 + _SPEED_HEIGHT + 0.16, "peak memory, GB", {"color": _SLOWER, "fontsize": 8}),
    ):
        figure.text(left, upper - below, text, va="top", transform=figure.dpi_scale_trans, **look)
    entries = sorted(measurement.programs, key=lambda entry: entry.settings[measurement.sweep])
    values = [entry.settings[measurement.sweep] for entry in entries]
    speeds = [measurement.throughput(entry) for entry in entries]
    memory = [Spread(entry.memory_gb, entry.memory_gb, entry.memory_gb) for entry in entries]
    inner, span = left + 0.42, width - 0.42 - 0.3
    bottom = upper - 0.62 - _SPEED_HEIGHT
    above = _add_axes(figure, inner, bottom, span, _SPEED_HEIGHT)
    below = _add_axes(figure, inner, bottom - 0.37 - _MEMORY_HEIGHT, span, _MEMORY_HEIGHT)
    for axes, spreads, look in (
        (above, speeds, {"color": _FASTER, "marker": "o"}),
        (below, memory, {"color": _SLOWER, "marker": "s"}),
    ):
        _draw_line(axes, values, spreads, look)
        _scale_across(axes, values)
    above.tick_params(axis="x", labelbottom=False)
    below.set_xlabel(f"{swept}, pixels" if swept == "image size" else swept, fontsize=8)


def _draw_line(axes: Axes, places: Sequence[float], spreads: Sequence[Spread], look: dict) -> None:
    medians = [spread.median for spread in spreads]
    reach = [
        [spread.median - spread.low for spread in spreads],
        [spread.high - spread.median for spread in spreads],
    ]
    caps = 2.5 if any(map(max, reach)) else 0
    axes.errorbar(
        places, medians, reach, linewidth=1.5, markersize=4, elinewidth=1.2, capsize=caps, **look
    )
    high, low = max(spread.high for spread in spreads), min(spread.low for spread in spreads)
    if high / low >= 10:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.4, high * 1.4)
        steps = (1, 2, 5) if high / low < 100 else (1,)
        ticks = [step * 10.0**power for power in range(-6, 7) for step in steps]
        axes.set_yticks([tick for tick in ticks if low / 1.4 <= tick <= high * 1.4])
        axes.minorticks_off()
    else:
        axes.set_ylim(0, high * 1.15)
        axes.locator_params(axis="y", nbins=4)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.tick_params(length=0, labelsize=8)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)


def _scale_across(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at the values that were measured, those too close to the last one left blank."""
    logarithmic = min(values) > 0 and max(values) / min(values) >= 8
    if logarithmic:
        axes.set_xscale("log")
    scaled = [math.log(value) if logarithmic else value for value in values]
    room = 0.08 * (max(scaled) - min(scaled)) or 0.5
    limits = min(scaled) - room, max(scaled) + room
    axes.set_xlim(*(math.exp(limit) if logarithmic else limit for limit in limits))
    shown, last = [], -math.inf
    for place, name in zip(scaled, map(str, values), strict=True):
        close = place - last < 1.4 * room * max(1.0, len(name) / 4)
        shown.append("" if close else name)
        last = last if close else place
    axes.set_xticks(values, shown)
    axes.minorticks_off()


def _make_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    # Opaque, so that it can be read on a dark page.
    return Figure(figsize=(width, height), dpi=100, facecolor="white")


def _add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.set_axisbelow(True)
    return axes


def _text_width(figure: Figure, text: str, **look) -> float:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = figure.text(0, 0, text, **look)
    width = drawn.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / figure.dpi
    drawn.remove()
    return width


def _write_heads(figure: Figure, title: str, subtitle: str, footer: str) -> None:
    height = figure.get_size_inches()[1]
    for y, text, look in (
        (height - 0.18, title, {"fontsize": 13, "weight": "bold", "va": "top"}),
        (height - 0.46, subtitle, {"color": _SOFT, "va": "top"}),
        (0.15, footer, {"color": _SOFT, "fontsize": 8, "va": "bottom"}),
    ):
        figure.text(_MARGIN, y, text, transform=figure.dpi_scale_trans, **look)
