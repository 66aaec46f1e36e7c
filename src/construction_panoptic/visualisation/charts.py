"""Interactive charts (plotly): class balance, panoptic quality per class, training curves, segment sizes.

Each is a ``plotly.graph_objects.Figure``: Kedro-Viz previews it, and ``write_html`` makes a page of it. The
colours of text and background are left to the viewer, so that the charts are readable on a dark ground too.
``figures`` has the same charts as still pictures.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from construction_panoptic.visualisation.chart_data import (
    BEST_COLOR,
    STUFF_COLOR,
    THING_COLOR,
    TRAIN_COLOR,
    VAL_COLOR,
    Column,
    CountRow,
    Curve,
    Row,
    Stage,
    columns_of,
    count_rows,
    curve_panels,
    epoch_span,
    is_skewed,
    quality_rows,
    quality_title,
    size_table,
)
from construction_panoptic.visualisation.classes import Classes
from construction_panoptic.visualisation.labels import shorten_text

GRID = "rgba(128,128,128,0.3)"
ROW_HEIGHT = 22
SMALL_FONT = 11
LONGEST_NAME = 28
# Longest part of the space between columns that names may take, as a part of the figure's width.
WIDEST_GAP = 0.19


def pq_chart(
    panoptic_quality: Mapping[str, Any], classes: Classes, *, present: Collection[int] | None = None
) -> go.Figure:
    """Draw the PQ of every class as bars, best first, things and stuff apart; SQ and RQ show on hover.

    A class that is absent from the validation set has no bar but "n/a": it is not a class with a PQ of 0.

    Args:
        panoptic_quality: ``{"All": {"pq", "sq", "rq", "n"}, "Things": …, "Stuff": …, "per_class": {"<category
            id>": {"pq", "sq", "rq"}}}``, fractions. A class is absent if it is missing, its values are None,
            its ``n`` is 0 or its ``present`` is false.
        classes: names and kinds of the categories.
        present: the category ids to show with a value, where the result does not say.
    """
    columns = columns_of(quality_rows(panoptic_quality, classes, present))
    figure = _bar_grid(columns)
    for position, column in enumerate(columns, start=1):
        rows = column.rows
        figure.add_bar(
            x=[row.pq for row in rows],
            y=list(range(len(rows))),
            orientation="h",
            marker_color=[THING_COLOR if row.is_thing else STUFF_COLOR for row in rows],
            text=[None if row.pq is None else f"{row.pq:.1f}" for row in rows],
            textposition="outside",
            textfont_size=SMALL_FONT,
            cliponaxis=False,
            customdata=[[row.name, row.sq, row.rq] for row in rows],
            hovertemplate="%{customdata[0]}<br>PQ %{x:.1f}<br>SQ %{customdata[1]:.1f}"
            "<br>RQ %{customdata[2]:.1f}<extra></extra>",
            row=1,
            col=position,
        )
        absent = [(k, row.name) for k, row in enumerate(rows) if row.pq is None]
        texts = _texts(
            x=[0.0] * len(absent),
            y=[k for k, _ in absent],
            text=[" n/a"] * len(absent),
            hovertext=[f"{name}: not in the validation set" for _, name in absent],
        )
        figure.add_trace(texts, row=1, col=position)
    figure.update_xaxes(range=[0, 118], tickvals=[0, 25, 50, 75, 100])
    figure.update_layout(showlegend=False)
    return _finished(figure, quality_title(panoptic_quality), "PQ (%)")


def class_balance_chart(
    counts: pd.DataFrame, classes: Classes, *, unit: Literal["segments", "images"] = "segments"
) -> go.Figure:
    """Draw how many segments (or images) of each class are in the training and in the validation set.

    The narrow validation bar lies over the wide training bar, both from zero. The axis is logarithmic if the
    most frequent class has 20 times the median or more.

    Args:
        counts: a row a class: ``class_id`` (or ``category_id``), and ``<unit>_train``, ``<unit>_val`` (or
            ``train``, ``val``). A class of the taxonomy that has no row is shown with 0.
        classes: names and kinds of the categories.
        unit: what is counted.

    Raises:
        InputDataError: a column is missing.
    """
    rows = count_rows(counts, classes, unit)
    columns, log = columns_of(rows), is_skewed(rows)
    figure = _bar_grid(columns)
    for position, column in enumerate(columns, start=1):
        _add_counts(figure, position, column, log)
    most = max((max(row.train, row.val) for row in rows), default=1) or 1
    if log:
        figure.update_xaxes(type="log", range=[np.log10(0.7), np.log10(most * 12)], dtick=1)
    else:
        figure.update_xaxes(range=[0, most * 1.45], nticks=5)
    figure.update_layout(barmode="overlay")
    absent = sum(row.train + row.val == 0 for row in rows)
    title = f"{unit.capitalize()} per class: training / validation"
    if absent:
        title += f" ({len(rows) - absent} of {len(rows)} classes occur)"
    return _finished(figure, title, f"{unit}{' (log scale)' if log else ''}")


def _add_counts(figure: go.Figure, position: int, column: Column[CountRow], log: bool) -> None:
    places = list(range(len(column.rows)))
    for name, color, width in (("train", TRAIN_COLOR, 0.8), ("val", VAL_COLOR, 0.35)):
        figure.add_bar(
            # A logarithmic axis has no zero.
            x=[getattr(row, name) or None for row in column.rows],
            y=places,
            orientation="h",
            name={"train": "training", "val": "validation"}[name],
            legendgroup=name,
            showlegend=position == 1,
            marker_color=color,
            width=width,
            customdata=[[row.name] for row in column.rows],
            hovertemplate="%{customdata[0]}: %{x}",
            row=1,
            col=position,
        )
    start = 0.7 if log else 0.0
    texts = _texts(
        x=[max(row.train, row.val, start) for row in column.rows],
        y=places,
        text=[f" {row.train} / {row.val}" for row in column.rows],
        hovertext=[f"{row.name}: {row.train} training, {row.val} validation" for row in column.rows],
    )
    figure.add_trace(texts, row=1, col=position)


def training_curves(history: pd.DataFrame, stage: Stage) -> go.Figure:
    """Draw losses, errors, the validation metric and the learning rates against the epoch, a panel each.

    Args:
        history: a row an epoch: ``epoch``, ``train/<loss>``, ``val/<loss>``, as fractions ``val/ap``
            (detection) or ``val/pq`` (mask head), ``train/lr``, ``train/lr_backbone``. What was not logged is
            left out.
        stage: "detection" or "mask_head".

    Raises:
        InputDataError: there is no column ``epoch``.
    """
    panels = curve_panels(history, stage)
    title = {"detection": "Training of the detector", "mask_head": "Training of the mask head"}[stage]
    if not panels:
        return _empty(f"{title}: nothing was logged yet")
    across = min(len(panels), 4 if len(panels) > 6 else 3)
    down = -(-len(panels) // across)
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=[panel.title for panel in panels],
        vertical_spacing=0.2 / down,
        horizontal_spacing=0.2 / across,
    )
    span, named = epoch_span(panels), set[str]()
    for k, panel in enumerate(panels):
        row, column = k // across + 1, k % across + 1
        for curve in panel.curves:
            figure.add_trace(_line(curve, in_legend=curve.name not in named), row=row, col=column)
            named.add(curve.name)
        if best := panel.best():
            figure.add_scatter(
                x=[best[0]],
                y=[best[1]],
                mode="markers",
                marker={"symbol": "star", "size": 12, "color": BEST_COLOR},
                name=f"best: {best[1]:.1f} in epoch {best[0]:g}",
                hovertemplate="%{x}: %{y:.1f}",
                row=row,
                col=column,
            )
        figure.update_xaxes(range=span, dtick=1 if span[1] - span[0] < 11 else None, row=row, col=column)
        figure.update_yaxes(
            type="log" if panel.log else "linear",
            range=None if panel.log else [0, 1.06 * panel.highest()],
            exponentformat="e" if panel.log else "none",
            dtick=1 if panel.log else None,
            row=row,
            col=column,
        )
        if k + across >= len(panels):
            figure.update_xaxes(title_text="epoch", title_font_size=12, row=row, col=column)
    figure.update_annotations(font_size=13)
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "font": {"size": 16}},
        height=110 + 260 * down,
        legend={"orientation": "h", "yanchor": "top", "y": -0.16 / down - 0.03, "x": 0},
        margin={"l": 60, "r": 30, "t": 80, "b": 90},
        hovermode="x unified",
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID)
    return figure


def _line(curve: Curve, *, in_legend: bool) -> go.Scatter:
    return go.Scatter(
        x=curve.epochs,
        y=curve.values,
        mode="lines+markers" if len(curve.epochs) <= 30 else "lines",
        line={"color": curve.color, "width": 2},
        marker_size=5,
        name=curve.name,
        legendgroup=curve.name,
        showlegend=in_legend,
    )


def size_histogram(areas: pd.DataFrame, classes: Classes) -> go.Figure:
    """Draw how large the segments are, things and stuff apart, with COCO's limits of small and medium.

    Args:
        areas: a row a segment: ``category_id`` and ``area`` in pixels.
        classes: kinds of the categories.

    Raises:
        InputDataError: a column is missing.
    """
    table = size_table(areas, classes)
    figure = go.Figure()
    centers = [f"{size:g}" for size in table["side"]]
    for name, color in (("things", THING_COLOR), ("stuff", STUFF_COLOR)):
        figure.add_bar(x=centers, y=table[name].tolist(), name=name, marker_color=color, hovertemplate="%{x} px: %{y}")
    figure.update_layout(
        template="plotly_white",
        barmode="group",
        bargap=0.1,
        height=420,
        title={
            "text": "Segment sizes (COCO: small below 32, large from 96 pixels)",
            "font": {"size": 16},
        },
        xaxis={"title": {"text": "square root of the area, from … pixels"}, "type": "category"},
        yaxis={"title": {"text": "segments"}, "gridcolor": GRID},
    )
    return figure


def _bar_grid(columns: Sequence[Column[Row]]) -> go.Figure:
    """Make the empty columns of a bar chart, with the class names at their axes."""
    longest = max((len(_short(row.name)) for column in columns[1:] for row in column.rows), default=0)
    gap = min(0.03 + 0.0062 * longest, WIDEST_GAP) if len(columns) > 1 else 0
    figure = make_subplots(
        cols=max(len(columns), 1),
        subplot_titles=[column.title for column in columns],
        horizontal_spacing=gap,
    )
    length = max([4, *(len(column.rows) for column in columns)])
    for position, column in enumerate(columns, start=1):
        figure.update_yaxes(
            tickvals=list(range(len(column.rows))),
            ticktext=[_short(row.name) + "\u00a0" for row in column.rows],
            range=[length - 0.4, -0.6],
            col=position,
        )
    figure.update_layout(height=ROW_HEIGHT * length + 170)
    return figure


def _short(name: str) -> str:
    return shorten_text(name, len, LONGEST_NAME)


def _texts(x: list[float], y: list[int], text: list[str], hovertext: list[str]) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=y,
        text=text,
        hovertext=hovertext,
        mode="text",
        textposition="middle right",
        textfont_size=SMALL_FONT,
        hoverinfo="text",
        showlegend=False,
        cliponaxis=False,
    )


def _finished(figure: go.Figure, title: str, x_title: str) -> go.Figure:
    over_titles = 1 + 28 / ((figure.layout.height or 450) - 160)
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "font": {"size": 16}},
        bargap=0.2,
        margin={"l": 20, "r": 30, "t": 90, "b": 70},
        legend={"orientation": "h", "yanchor": "bottom", "y": over_titles, "xanchor": "right", "x": 1},
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(
        title_text=x_title, title_font_size=12, gridcolor=GRID, zerolinecolor=GRID, tickfont_size=SMALL_FONT
    )
    figure.update_yaxes(showgrid=False, zeroline=False, automargin=True, tickfont_size=SMALL_FONT)
    if not figure.data:
        return _empty(title)
    return figure


def _empty(text: str) -> go.Figure:
    figure = go.Figure()
    figure.add_annotation(text=text, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font_size=16)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(template="plotly_white", height=260)
    return figure
