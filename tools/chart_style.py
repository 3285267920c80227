"""The style of all charts.

Lengths are in inches. Needs matplotlib, which is imported where it is used.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from data.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito's, safe for the colour-blind.
INK, SOFT, GRID = "#1F2328", "#59636E", "#D8DEE4"
_STYLE = {
    "svg.fonttype": "none",  # text remains text
    "svg.hashsalt": "msrcnn",  # ids are the same in every run
    "font.family": "sans-serif",
    # The first one is installed with matplotlib, so the layout is the same on any machine.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "savefig.bbox": "tight",
    "savefig.dpi": 160,
    "savefig.pad_inches": 0.2,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
}


def render(make: Callable[[], Figure], picture: str) -> bytes:
    """Returns the image file of the figure that `make` makes in this style.

    The same figure gives the same bytes in every run.

    Args:
        make: makes the figure with `make_figure`.
        picture: "svg" or "png".

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "charts need matplotlib; install the extra `charts`: pip install "
            "'mask-scoring-rcnn[charts]'."
        ) from error
    file = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # independent of the user's settings
        matplotlib.rcParams.update(_STYLE)
        # The bytes must not depend on the date or matplotlib's version.
        blank = {"Date": None, "Creator": None} if picture == "svg" else {"Software": None}
        make().savefig(file, format=picture, metadata=blank)
    return file.getvalue()


def make_figure(width: float, height: float, title: str, footer: str) -> Figure:
    """Makes an empty figure with a title above and small text below."""
    from matplotlib.figure import Figure

    # Opaque, so that it is readable on a dark page.
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white", layout="constrained")
    figure.suptitle(title, x=0, ha="left", fontsize=13, weight="bold")
    figure.supxlabel(footer, x=0, ha="left", fontsize=8, color=SOFT)
    return figure


def set_log_ticks(axis: Axis, suffix: str = "", subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """Labels a logarithmic axis at these multiples of powers of ten."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}" + suffix)
    axis.axes.minorticks_off()


def tidy(axes: Axes, lines: str) -> None:
    """Shows the grid lines of one axis, "x" or "y", instead of the frame and the ticks."""
    axes.grid(axis=lines)
    axes.tick_params(which="both", length=0)
    axes.spines[["left", "right", "top"]].set_visible(False)
