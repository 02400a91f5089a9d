"""Charts as matplotlib figures, without a window. matplotlib is imported when the first one is drawn."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _PALE = "#303030", "#b0b0b0"
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a class name may contain $
    "font.family": ["sans-serif"],
    "axes.titlesize": 11,
    "axes.edgecolor": _PALE,
    "legend.frameon": False,
    "axes.axisbelow": True,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class LineChart:
    """Named lines of (x, y) points. Points that are not finite are omitted; a line with one point is a dot."""

    title: str
    lines: Mapping[str, Points]
    x_label: str = ""
    y_label: str = ""
    pale_lines: Sequence[Points] = ()  # thin, gray and unnamed, behind the others
    y_limits: tuple[float, float] | None = None  # None fits the lines
    mark_x: float | None = None  # position of a dashed vertical line


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars from top to bottom, one per name and series. NaN is a bar of zero length."""

    title: str
    names: Sequence[str]
    series: Mapping[str, Sequence[float]]
    x_label: str = ""


@contextlib.contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters that the font lacks are drawn as boxes
        yield


def write_chart(path: Path, figure: "Figure") -> None:
    """Write a figure as a PNG file."""
    with _style(), atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


@_style()
def draw_lines(*charts: LineChart) -> "Figure":
    """Draw line charts side by side."""
    figure, all_axes = _make_figure(len(charts), 6.4, 4.2)
    for axes, chart in zip(all_axes, charts):
        axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
        axes.grid(alpha=0.3)
        for points in map(_finite, chart.pale_lines):
            axes.plot(*zip(*points), color=_PALE, linewidth=0.7, alpha=0.6)
        lines = {name: points for name, line in chart.lines.items() if (points := _finite(line))}
        if not lines:
            axes.set_axis_off()
            continue
        handles = []
        for points in lines.values():
            handles += axes.plot(*zip(*points), marker="o" if len(points) <= 30 else None, markersize=3.5)
        if all(x == round(x) for points in lines.values() for x, _ in points):
            axes.locator_params(axis="x", integer=True)
        if chart.y_limits:
            axes.set_ylim(*chart.y_limits)
        if chart.mark_x is not None:
            axes.axvline(chart.mark_x, color=_INK, linestyle="--", linewidth=0.8)
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(lines) > 5 else {}
        axes.legend(handles, lines, **beside)
    return figure


def _finite(points: Points) -> list[tuple[float, float]]:
    return [point for point in points if all(map(math.isfinite, point))]


@_style()
def draw_bars(*charts: BarChart) -> "Figure":
    """Draw bar charts side by side."""
    bars = max((len(chart.names) * (1 + len(chart.series)) for chart in charts), default=0)
    figure, all_axes = _make_figure(len(charts), 6.4, 1.2 + 0.12 * max(bars, 4))
    for axes, chart in zip(all_axes, charts):
        axes.set_title(chart.title)
        if not chart.names:
            axes.set_axis_off()
            continue
        axes.set_xlabel(chart.x_label)
        axes.grid(axis="x", alpha=0.3)
        thickness = 0.8 / max(1, len(chart.series))
        handles = []
        for number, values in enumerate(chart.series.values()):
            positions = np.arange(len(chart.names)) + (number - (len(chart.series) - 1) / 2) * thickness
            handles.append(axes.barh(positions, np.nan_to_num(values), thickness))
            axes.bar_label(handles[-1], [_format(value) for value in values], padding=3, fontsize=7)
        axes.set_yticks(range(len(chart.names)), chart.names)
        axes.set_ylim(len(chart.names) - 0.5, -0.5)  # the first at the top
        axes.margins(x=0.1)  # room for the labels
        if len(handles) > 1:
            axes.legend(handles, chart.series, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _format(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "" if math.isnan(value) else f"{value:.3f}"


@_style()
def draw_matrix(title: str, names: Sequence[str], cells: np.ndarray, row_label: str, column_label: str) -> "Figure":
    """Draw a matrix of counts (N, N). A cell is darker the larger its share of its row; zeros are blank."""
    side = 2.4 + 0.36 * max(len(names), 4)
    figure, (axes,) = _make_figure(1, side, side)
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title=title, xlabel=column_label, ylabel=row_label)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    for row, column in np.argwhere(cells):
        color = "white" if shares[row, column] > 0.5 else _INK
        axes.text(column, row, f"{cells[row, column]}", ha="center", va="center", color=color, fontsize=7)
    return figure


def _make_figure(columns: int, width: float, height: float) -> tuple["Figure", list["Axes"]]:
    """Return a figure with axes side by side, each `width` x `height` inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])
