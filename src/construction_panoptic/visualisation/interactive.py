"""Charts as interactive figures (plotly), which Kedro-Viz previews, on its light or dark ground."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from construction_panoptic.visualisation.charts import BarChart, Curve, CurveChart, Matrix
from construction_panoptic.visualisation.labels import shorten_text

GRID = "rgba(128,128,128,0.3)"
ROW_HEIGHT = 22
SMALL_FONT = 11
LONGEST_NAME = 28
# The names between two columns take at most this fraction of the figure's width.
WIDEST_GAP = 0.19


def draw(chart: BarChart | CurveChart | Matrix) -> go.Figure:
    """Draw a chart."""
    if isinstance(chart, Matrix):
        return _draw_matrix(chart)
    if isinstance(chart, CurveChart):
        return _draw_curves(chart) if chart.panels else _empty(f"{chart.title}: nothing was logged yet")
    return _draw_bars(chart) if chart.columns else _empty(chart.title)


def _draw_matrix(chart: Matrix) -> go.Figure:
    """Each row as fractions; counts show on hover."""
    figure = go.Figure(
        go.Heatmap(
            z=[[count / max(1, sum(row)) for count in row] for row in chart.counts],
            x=chart.columns,
            y=chart.rows,
            customdata=chart.counts,
            hovertemplate="%{y} as %{x}: %{customdata} segments, %{z:.0%}<extra></extra>",
            colorscale="Blues",
            zmin=0,
            zmax=1,
            colorbar={"title": {"text": "fraction"}, "tickformat": ".0%"},
        )
    )
    return figure.update_layout(
        template="plotly_white",
        height=ROW_HEIGHT * len(chart.rows) + 260,
        title={"text": chart.title, "font": {"size": 16}},
        yaxis={"autorange": "reversed", "automargin": True, "dtick": 1},
        xaxis={"automargin": True, "dtick": 1, "tickangle": -60},
    )


def _draw_bars(chart: BarChart) -> go.Figure:
    names = [[shorten_text(label, len, LONGEST_NAME) for label in column.labels] for column in chart.columns]
    longest = max((len(name) for column in names[1:] for name in column), default=0)
    gap = min(0.03 + 0.0062 * longest, WIDEST_GAP) if len(chart.columns) > 1 else 0
    titles = [column.title for column in chart.columns]
    figure = make_subplots(cols=len(titles), subplot_titles=titles, horizontal_spacing=gap)
    length = max([4, *(len(column.labels) for column in chart.columns)])
    for position, (column, texts) in enumerate(zip(chart.columns, names, strict=True), start=1):
        places = list(range(len(column.labels)))
        for bars in column.bars:
            figure.add_bar(
                # A logarithmic axis has no zero.
                x=[value or None for value in bars.values] if chart.log else list(bars.values),
                y=places,
                orientation="h",
                name=bars.name,
                legendgroup=bars.name,
                showlegend=position == 1 and len(column.bars) > 1,
                marker_color=bars.color,
                width=bars.thickness,
                hovertext=bars.hover,
                hoverinfo="text",
                row=1,
                col=position,
            )
        if column.notes:
            figure.add_scatter(
                x=[max(end, chart.span[0]) for end in column.ends()],
                y=places,
                text=[f" {note}" for note in column.notes],
                mode="text",
                textposition="middle right",
                textfont_size=SMALL_FONT,
                hoverinfo="skip",
                showlegend=False,
                cliponaxis=False,
                row=1,
                col=position,
            )
        ticks = [f"{text}\u00a0" for text in texts]
        figure.update_yaxes(tickvals=places, ticktext=ticks, range=[length - 0.4, -0.6], col=position)
    figure.update_xaxes(title_text=chart.x_title, title_font_size=12, gridcolor=GRID, zerolinecolor=GRID)
    if chart.log:
        figure.update_xaxes(type="log", range=np.log10(chart.span).tolist(), dtick=1)
    else:
        figure.update_xaxes(range=chart.span, nticks=6)
    figure.update_yaxes(showgrid=False, zeroline=False, automargin=True)
    figure.update_annotations(font_size=13)
    return figure.update_layout(
        template="plotly_white",
        title={"text": chart.title, "font": {"size": 16}},
        height=ROW_HEIGHT * length + 170,
        barmode="stack" if chart.stacked else "overlay",
        legend={"orientation": "h", "yanchor": "top", "y": -60 / (ROW_HEIGHT * length), "traceorder": "normal"},
        font_size=SMALL_FONT,
        margin={"l": 10, "r": 30, "t": 80, "b": 80},
    )


def _draw_curves(chart: CurveChart) -> go.Figure:
    across, down = chart.grid()
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=[panel.title for panel in chart.panels],
        vertical_spacing=0.2 / down,
        horizontal_spacing=0.2 / across,
    )
    named = set[str]()
    for k, panel in enumerate(chart.panels):
        row, column = k // across + 1, k % across + 1
        for curve in panel.curves:
            figure.add_trace(_trace(curve, in_legend=curve.name not in named), row=row, col=column)
            named.add(curve.name)
        few = chart.integers and chart.span[1] - chart.span[0] < 11
        figure.update_xaxes(range=chart.span, dtick=1 if few else None, row=row, col=column)
        scale = {"type": "log", "exponentformat": "e", "dtick": 1} if panel.log else {"rangemode": "tozero"}
        limits = {} if panel.top is None else {"range": [0, panel.top]}
        figure.update_yaxes(**scale, **limits, row=row, col=column)
        if k + across >= len(chart.panels):
            figure.update_xaxes(title_text=chart.x_title, title_font_size=12, row=row, col=column)
    figure.update_annotations(font_size=13)
    figure.update_xaxes(gridcolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID)
    return figure.update_layout(
        template="plotly_white",
        title={"text": chart.title, "font": {"size": 16}},
        height=110 + (260 if len(chart.panels) > 1 else 340) * down,
        legend={"orientation": "h", "yanchor": "top", "y": -0.16 / down - 0.03, "x": 0},
        margin={"l": 60, "r": 30, "t": 80, "b": 90},
        hovermode="x unified" if len(chart.panels) > 1 else "closest",
    )


def _trace(curve: Curve, *, in_legend: bool) -> go.Scatter:
    mode = {"star": "markers", "dashed": "lines"}.get(curve.style, "lines+markers" if len(curve.x) <= 30 else "lines")
    return go.Scatter(
        x=list(curve.x),
        y=list(curve.y),
        mode=mode,
        line={"color": curve.color, "width": 2, "dash": "dash" if curve.style == "dashed" else None},
        marker={"size": 12, "symbol": "star", "color": curve.color} if curve.style == "star" else {"size": 5},
        name=curve.name,
        legendgroup=curve.name,
        showlegend=in_legend,
        hovertext=list(curve.hover) or None,
        hoverinfo="text" if curve.hover else None,
    )


def _empty(text: str) -> go.Figure:
    figure = go.Figure()
    figure.add_annotation(text=text, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font_size=16)
    return figure.update_layout(template="plotly_white", height=260, xaxis_visible=False, yaxis_visible=False)
