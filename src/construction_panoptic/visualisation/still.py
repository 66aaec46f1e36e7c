"""Charts as still pictures (matplotlib), and as SVG to stand in a page."""

import io
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from construction_panoptic.visualisation.charts import BarChart, CurveChart, Panel

DPI = 120
GRID = "0.85"
_INK = "#010203"  # stands for the colour of the page's text


def picture(chart: BarChart | CurveChart) -> Image.Image:
    """Draw a chart as a picture."""
    stream = io.BytesIO()
    draw(chart).savefig(stream)
    return Image.open(stream).convert("RGB")


def draw(chart: BarChart | CurveChart) -> Figure:
    """Draw a chart."""
    if isinstance(chart, CurveChart):
        return _draw_curves(chart) if chart.panels else _empty(f"{chart.title}: nothing was logged yet")
    return _draw_bars(chart) if chart.columns else _empty(chart.title)


def svg(chart: CurveChart) -> str:
    """Draw a chart for a page: an ``<svg>`` element without title, in the page's text colour and font."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    style: dict[Any, Any] = dict.fromkeys(inked, _INK)
    style |= {"svg.fonttype": "none", "svg.hashsalt": "chart", "font.family": "sans-serif", "legend.framealpha": 0}
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        ax = figure.subplots()
        _draw_panel(ax, chart.panels[0], chart)
        ax.set_title("")
        ax.set_ylabel(chart.panels[0].title)
        ax.grid(color="#88888866")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


def _draw_bars(chart: BarChart) -> Figure:
    length = max([4, *(len(column.labels) for column in chart.columns)])
    figure = Figure(figsize=(4.6 * max(len(chart.columns), 2), 0.23 * length + 1.4), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(chart.columns), squeeze=False).ravel()
    for column, ax in zip(chart.columns, axes, strict=True):
        places, starts = range(len(column.labels)), [0.0] * len(column.labels)
        for bars in column.bars:
            left = starts if chart.stacked else None
            ax.barh(places, bars.values, bars.thickness, left=left, color=bars.color, label=bars.name)
            starts = [start + value for start, value in zip(starts, bars.values, strict=True)]
        for place, (end, note) in enumerate(zip(column.ends(), column.notes, strict=False)):
            start = (max(end, chart.span[0]), place)
            ax.annotate(note, start, xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set_yticks(places, column.labels, fontsize=8)
        ax.set_ylim(length - 0.4, -0.6)
        if chart.log:
            ax.set_xscale("log")
        ax.set_xlim(chart.span)
        ax.set_xlabel(chart.x_title, fontsize=9)
        ax.set_title(column.title, fontsize=11)
        ax.tick_params(axis="x", labelsize=8)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color=GRID)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    if len(chart.columns[0].bars) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    figure.suptitle(chart.title, fontsize=13)
    return figure


def _draw_curves(chart: CurveChart) -> Figure:
    across, down = chart.grid()
    figure = Figure(figsize=(3.6 * across, 2.9 * down + 0.5), dpi=DPI, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for panel, ax in zip(chart.panels, axes, strict=False):
        _draw_panel(ax, panel, chart)
    for ax in axes[len(chart.panels) :]:
        ax.set_axis_off()
    figure.suptitle(chart.title, fontsize=13)
    return figure


def _draw_panel(ax: Axes, panel: Panel, chart: CurveChart) -> None:
    for curve in panel.curves:
        marker = {"star": "*", "dashed": ""}.get(curve.style, "o" if len(curve.x) <= 30 else "")
        size, line = (10, "") if curve.style == "star" else (3, "--" if curve.style == "dashed" else "-")
        style: dict[str, Any] = {"color": curve.color, "marker": marker, "markersize": size, "linestyle": line}
        ax.plot(curve.x, curve.y, label=curve.name, **style)
    if panel.log:
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, panel.top)
    if chart.integers:
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    ax.set_xlim(chart.span)
    ax.set_title(panel.title, fontsize=10)
    ax.set_xlabel(chart.x_title, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(color=GRID)
    ax.legend(fontsize=7)


def _empty(text: str) -> Figure:
    figure = Figure(figsize=(8, 2), dpi=DPI)
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure
