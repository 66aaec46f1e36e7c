"""Charts as SVG (matplotlib), to stand in a page."""

import io
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from construction_panoptic.visualisation.charts import BarChart, CurveChart, Panel

GRID = "#88888866"
_INK = "#010203"  # stands for the colour of the page's text
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "chart", "font.family": "sans-serif"}
_STYLE |= {"legend.framealpha": 0, "legend.labelcolor": _INK, "text.color": _INK, "axes.edgecolor": _INK}
_STYLE |= {"axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK}


def svg(chart: BarChart | CurveChart) -> Markup:
    """Draw a chart as an ``<svg>`` element in the page's text colour and font."""
    stream = io.StringIO()
    with mpl.rc_context(_STYLE):
        draw(chart).savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return Markup(text[text.index("<svg") :].replace(_INK, "currentColor"))


def draw(chart: BarChart | CurveChart) -> Figure:
    """Draw a chart."""
    if isinstance(chart, CurveChart):
        return _draw_curves(chart) if chart.panels else _empty(f"{chart.title}: nothing was logged yet")
    return _draw_bars(chart) if chart.columns else _empty(chart.title)


def _draw_bars(chart: BarChart) -> Figure:
    length = max([4, *(len(column.labels) for column in chart.columns)])
    figure = Figure(figsize=(4.6 * max(len(chart.columns), 2), 0.23 * length + 1.4), layout="constrained")
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
    figure = Figure(figsize=(max(5.4, 3.6 * across), 2.9 * down + 0.5), layout="constrained")
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
    figure = Figure(figsize=(8, 2))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure
