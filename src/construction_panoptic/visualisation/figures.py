"""The charts of ``charts`` as still pictures (matplotlib), to be saved as PNG."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from construction_panoptic.visualisation.chart_data import (
    BEST_COLOR,
    STUFF_COLOR,
    THING_COLOR,
    TRAIN_COLOR,
    VAL_COLOR,
    Column,
    Panel,
    Row,
    Stage,
    columns_of,
    count_rows,
    curve_panels,
    epoch_span,
    is_skewed,
    quality_rows,
    quality_title,
)
from construction_panoptic.visualisation.classes import Classes

DPI = 120
GRID = "0.85"


def pq_figure(
    panoptic_quality: Mapping[str, Any], classes: Classes, *, present: Collection[int] | None = None
) -> Figure:
    """Draw the PQ of every class as bars; see ``charts.pq_chart``."""
    columns = columns_of(quality_rows(panoptic_quality, classes, present))
    figure, axes = _bar_axes(columns)
    for column, ax in zip(columns, axes, strict=True):
        for k, row in enumerate(column.rows):
            if row.pq is None:
                ax.text(1, k, "n/a", va="center", fontsize=8, color="0.45")
                continue
            ax.barh(k, row.pq, color=THING_COLOR if row.is_thing else STUFF_COLOR)
            ax.text(row.pq + 1, k, f"{row.pq:.1f}", va="center", fontsize=8)
        ax.set_xlim(0, 118)
        ax.set_xticks([0, 25, 50, 75, 100])
        ax.set_xlabel("PQ (%)", fontsize=9)
    figure.suptitle(quality_title(panoptic_quality), fontsize=13)
    return figure


def class_balance_figure(
    counts: pd.DataFrame, classes: Classes, *, unit: Literal["segments", "images"] = "segments"
) -> Figure:
    """Draw how many segments or images of each class both sides have; see ``charts.class_balance_chart``."""
    rows = count_rows(counts, classes, unit)
    columns, log = columns_of(rows), is_skewed(rows)
    figure, axes = _bar_axes(columns)
    most = max((max(row.train, row.val) for row in rows), default=1) or 1
    for column, ax in zip(columns, axes, strict=True):
        places = range(len(column.rows))
        ax.barh(places, [row.train for row in column.rows], 0.8, color=TRAIN_COLOR, label="training")
        ax.barh(places, [row.val for row in column.rows], 0.35, color=VAL_COLOR, label="validation")
        if log:
            ax.set_xscale("log")
        ax.set_xlim((0.7, most * 12) if log else (0, most * 1.45))
        for k, row in enumerate(column.rows):
            start = max(row.train, row.val, 0.7 if log else 0)
            ax.annotate(
                f"{row.train} / {row.val}",
                (start, k),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        ax.set_xlabel(unit + (" (log scale)" if log else ""), fontsize=9)
    if axes:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    figure.suptitle(f"{unit.capitalize()} per class: training / validation", fontsize=13)
    return figure


def training_figure(history: pd.DataFrame, stage: Stage) -> Figure:
    """Draw the training curves; see ``charts.training_curves``."""
    panels = curve_panels(history, stage)
    title = {"detection": "Training of the detector", "mask_head": "Training of the mask head"}[stage]
    if not panels:
        figure = Figure(figsize=(8, 2), dpi=DPI)
        figure.text(0.5, 0.5, f"{title}: nothing was logged yet", ha="center", va="center")
        return figure
    across = min(len(panels), 4 if len(panels) > 6 else 3)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(3.6 * across, 2.9 * down + 0.5), dpi=DPI, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    span = epoch_span(panels)
    for panel, ax in zip(panels, axes, strict=False):
        _draw_panel(ax, panel)
        ax.set_xlim(span)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.suptitle(title, fontsize=13)
    return figure


def _draw_panel(ax: Axes, panel: Panel) -> None:
    for curve in panel.curves:
        marker = "o" if len(curve.epochs) <= 30 else None
        ax.plot(curve.epochs, curve.values, color=curve.color, label=curve.name, marker=marker, markersize=3)
    if best := panel.best():
        label = f"best: {best[1]:.1f} in epoch {best[0]:g}"
        ax.plot(*best, "*", color=BEST_COLOR, markersize=10, label=label)
    if panel.log:
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.06 * panel.highest())
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    ax.set_title(panel.title, fontsize=10)
    ax.set_xlabel("epoch", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(color=GRID)
    ax.legend(fontsize=7, framealpha=0.7)


def _bar_axes(columns: Sequence[Column[Row]]) -> tuple[Figure, list[Axes]]:
    """Make a figure with one bar chart a column: class names at the left, the first row on top."""
    length = max([4, *(len(column.rows) for column in columns)])
    width = 4.6 * max(len(columns), 2)
    figure = Figure(figsize=(width, 0.23 * length + 1.4), dpi=DPI, layout="constrained")
    if not columns:
        return figure, []
    axes = list(figure.subplots(1, len(columns), squeeze=False).ravel())
    for column, ax in zip(columns, axes, strict=True):
        ax.set_yticks(range(len(column.rows)), [row.name for row in column.rows], fontsize=8)
        ax.set_ylim(length - 0.4, -0.6)
        ax.set_title(column.title, fontsize=11)
        ax.tick_params(axis="x", labelsize=8)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color=GRID)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes
