"""Draws charts from the JSON files that tools/benchmark.py writes.

  python tools/draw_benchmarks.py --chart=overview --output=overview.svg docs/benchmarks/*.json
  python tools/draw_benchmarks.py --chart=scaling --output=scaling.svg docs/benchmarks/*.json

`overview` shows how many times as fast as its peers this project is, from the files that have
peers; `scaling` shows speed and memory over the setting that varies, a panel for each sweep.
Files that the chart has no use for are left out. The same files give the same bytes.

Needs matplotlib, which the extra `charts` installs.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if __package__ is None:  # started as a script, which may be without the package installed
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags

from data.errors import UserError
from data.files import make_folder, whole_file
from tools.measurements import (
    PEER_NAMES,
    Measurement,
    Spread,
    chart_order,
    describe,
    format_times,
    list_machines,
    read_measurement,
    work_title,
)
from trainer.flags import refuse_flags

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SWEPT = {
    "image_size": ("image size", "side of the image, pixels"),
    "batch_size": ("batch size", "images of a batch"),
    "instances": ("objects", "objects of an image"),
    "positives": ("positives", "positive RoIs of an image"),
    "num_processes": ("processes", "processes"),
    "num_shards": ("shards", "shards"),
    "images": ("images", "images"),
}
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
_MARGIN = 0.2  # Inches, as all lengths below.
_WIDTH = 12.0
_ROW, _GROUP_GAP = 0.25, 0.11
_PANEL_WIDTH, _SPEED_HEIGHT, _MEMORY_HEIGHT, _PANEL_HEIGHT = 2.9, 1.45, 0.7, 3.85


def draw_overview(measurements: Sequence[Measurement]) -> Figure:
    """Draws a bar for each peer of each measurement: how many times as fast as it we are."""
    from matplotlib.transforms import blended_transform_factory

    measurements = sorted(measurements, key=chart_order)
    rows, y, previous = [], 0.0, None
    for entry in measurements:
        y += _GROUP_GAP if previous not in (None, entry.what) else 0.0
        for number, (peer, speedup) in enumerate(entry.speedups.items()):
            work = work_title(entry.what) if entry.what != previous else ""
            settings = "" if number else describe(entry, measurements)
            rows.append((y + _ROW / 2, work, settings, PEER_NAMES.get(peer, peer), speedup))
            y += _ROW
            previous = entry.what
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
    steps = (1, 2, 5) if wide > 4 else (1, 1.5, 2, 3, 5, 7) if wide > 1.6 else range(1, 10)
    ticks = [step * 10.0**power for power in range(-4, 5) for step in steps]
    if wide <= 1.6:
        ticks += [1.1, 1.2, 1.3, 1.4, 1.5]
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
    swept, axis_name = _SWEPT.get(measurement.sweep, (measurement.sweep.replace("_", " "),) * 2)
    unit = "seconds, less is better" if measurement.unit == "s" else "images/s"
    for below, text, look in (
        (0.0, f"{work_title(measurement.what)} by {swept}", {"weight": "bold"}),
        (0.2, note, {"color": _SOFT, "fontsize": 8}),
        (0.42, unit, {"color": _FASTER, "fontsize": 8}),
        (0.62 + _SPEED_HEIGHT + 0.16, "peak memory, GB", {"color": _SLOWER, "fontsize": 8}),
    ):
        figure.text(left, upper - below, text, va="top", transform=figure.dpi_scale_trans, **look)
    entries = measurement.contestants
    values = [entry.settings[measurement.sweep] for entry in entries]
    numeric = all(isinstance(value, int | float) for value in values)
    if numeric:
        entries = sorted(entries, key=lambda entry: entry.settings[measurement.sweep])
        values = sorted(values)
    places = values if numeric else list(range(len(values)))
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
        _draw_line(axes, places, spreads, look)
        _scale_across(axes, places, [f"{value}" for value in values], numeric)
    above.tick_params(axis="x", labelbottom=False)
    below.set_xlabel(axis_name, fontsize=8)


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


def _scale_across(axes: Axes, places: Sequence[float], names: Sequence[str], numeric: bool) -> None:
    """Ticks at the values that were measured, those too close to the last one left blank."""
    logarithmic = numeric and min(places) > 0 and max(places) / min(places) >= 8
    if logarithmic:
        axes.set_xscale("log")
    scaled = [math.log(place) if logarithmic else place for place in places]
    room = 0.08 * (max(scaled) - min(scaled)) or 0.5
    limits = min(scaled) - room, max(scaled) + room
    axes.set_xlim(*(math.exp(limit) if logarithmic else limit for limit in limits))
    shown, last = [], -math.inf
    for place, name in zip(scaled, names, strict=True):
        close = place - last < 1.4 * room * max(1.0, len(name) / 4)
        shown.append("" if close else name)
        last = last if close else place
    axes.set_xticks(places, shown)
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


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_enum(
        "chart", None, ["overview", "scaling"], "What to draw.", flag_values=values, required=True
    )
    flags.DEFINE_string(
        "output", None, "Picture to write, .svg or .png.", flag_values=values, required=True
    )
    flags.DEFINE_bool("help", False, "Show these flags.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`, whose first entry is the program; returns the exit status."""
    values = _define_flags()
    if any(argument in ("-h", "-help", "--help") for argument in argv):
        print(f"{__doc__}\n{values.get_help()}")
        return 0
    try:
        paths = values(list(argv))[1:]
    except flags.Error as error:
        refuse_flags(str(error).splitlines()[-1].strip())
    picture = os.path.splitext(values.output)[1].lower().removeprefix(".")
    if picture not in ("svg", "png"):
        refuse_flags(f"--output={values.output} is neither an .svg nor a .png.")
    if not paths:
        refuse_flags("name the JSON files to draw.")
    try:
        content = draw(values.chart, [read_measurement(path) for path in paths], picture)
        make_folder(os.path.dirname(values.output) or ".")
        with whole_file(values.output, "wb") as file:
            file.write(content)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {values.output}: cannot be written ({error.strerror}).", file=sys.stderr)
        return 1
    print(f"{values.chart} in {values.output}")
    return 0


def run() -> None:
    """Console entry point of msrcnn-draw-benchmarks."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
