"""Interactive charts of the error analysis (plotly): loss budget, confusions, thresholds, calibration."""

import pandas as pd
import plotly.graph_objects as go

from construction_panoptic.evaluation.analysis import LOSSES
from construction_panoptic.visualisation.chart_data import BLUE, GREEN, ORANGE, PURPLE, RED, SKY
from construction_panoptic.visualisation.classes import display_name

LOSS_COLORS = dict(zip(LOSSES, (SKY, PURPLE, ORANGE, RED), strict=True))
ROW_HEIGHT = 22


def loss_budget_chart(budget: pd.DataFrame) -> go.Figure:
    """Draw PQ and what is missing to 100 as one bar for All, Things, Stuff and each class, best class first.

    Args:
        budget: see `analysis.loss_budget`.
    """
    rows = sorted_budget(budget)
    names = [display_name(name) for name in rows["name"]]
    figure = go.Figure()
    for part, color in {"pq": GREEN, **LOSS_COLORS}.items():
        title = "PQ" if part == "pq" else part.replace("_", " ")
        hover = f"%{{y}}<br>{title} %{{x:.1f}}<extra></extra>"
        figure.add_bar(x=rows[part], y=names, name=title, orientation="h", marker_color=color, hovertemplate=hover)
    figure.update_layout(
        template="plotly_white",
        barmode="stack",
        height=ROW_HEIGHT * len(rows) + 170,
        title={"text": "What costs PQ", "font": {"size": 16}},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "traceorder": "normal"},
        xaxis={"title": {"text": "points"}, "range": [0, 100]},
        yaxis={"autorange": "reversed", "automargin": True, "dtick": 1},
    )
    return figure


def confusion_chart(confusions: pd.DataFrame) -> go.Figure:
    """Draw the confusion matrix, each row as shares of its true segments; counts show on hover.

    Args:
        confusions: see `analysis.confusion_matrix`.
    """
    confusions = confusions.set_index("true")
    shares = confusions.div(confusions.sum(axis=1).clip(lower=1), axis=0)
    figure = go.Figure(
        go.Heatmap(
            z=shares.to_numpy().tolist(),
            x=[display_name(str(name)) for name in confusions.columns],
            y=[display_name(str(name)) for name in confusions.index],
            customdata=confusions.to_numpy().tolist(),
            hovertemplate="%{y} as %{x}: %{customdata} segments, %{z:.0%}<extra></extra>",
            colorscale="Blues",
            zmin=0,
            zmax=1,
            colorbar={"title": {"text": "share"}, "tickformat": ".0%"},
        )
    )
    figure.update_layout(
        template="plotly_white",
        height=ROW_HEIGHT * len(confusions) + 260,
        title={"text": "True classes (rows) and what they were predicted as", "font": {"size": 16}},
        yaxis={"autorange": "reversed", "automargin": True, "dtick": 1},
        xaxis={"automargin": True, "dtick": 1, "tickangle": -60},
    )
    return figure


def threshold_chart(thresholds: pd.DataFrame, threshold: float) -> go.Figure:
    """Draw PQ against the score threshold, and mark the one in use.

    Args:
        thresholds: see `thresholds.threshold_curve`.
        threshold: the one in use.
    """
    figure = go.Figure()
    for name, column, color in (("PQ", "pq", GREEN), ("things", "pq_things", BLUE), ("stuff", "pq_stuff", ORANGE)):
        figure.add_scatter(
            x=thresholds["threshold"],
            y=100 * thresholds[column],
            name=name,
            mode="lines+markers",
            line={"color": color},
        )
    figure.add_vline(x=threshold, line_dash="dash", line_color="#888", annotation_text="in use")
    figure.update_layout(
        template="plotly_white",
        height=420,
        title={"text": "PQ of training images by the least score of a segment", "font": {"size": 16}},
        xaxis={"title": {"text": "threshold"}, "range": [0, 1]},
        yaxis={"title": {"text": "PQ"}, "range": [0, 100]},
    )
    return figure


def calibration_chart(calibration: pd.DataFrame) -> go.Figure:
    """Draw the share of right boxes and segments against their score; the diagonal is what scores promise.

    Args:
        calibration: see `calibration.calibration_table`.
    """
    figure = go.Figure(
        go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dash", "color": "#888"}, name="ideal")
    )
    for of, color in (("boxes", BLUE), ("segments", ORANGE)):
        rows = calibration[calibration["of"] == of]
        figure.add_scatter(
            x=rows["score"],
            y=rows["right"],
            name=of,
            mode="lines+markers",
            line={"color": color},
            customdata=rows["count"],
            hovertemplate="score %{x:.2f}, right %{y:.0%} of %{customdata}",
        )
    figure.update_layout(
        template="plotly_white",
        height=420,
        title={"text": "What scores mean: share that is right, by score", "font": {"size": 16}},
        xaxis={"title": {"text": "score"}, "range": [0, 1]},
        yaxis={"title": {"text": "share that is right"}, "range": [0, 1]},
    )
    return figure


def sorted_budget(budget: pd.DataFrame) -> pd.DataFrame:
    """The rows of All, Things and Stuff, where there are such classes, then the classes, best first."""
    classes = budget.iloc[3:].sort_values("pq", ascending=False, kind="stable")
    return pd.concat([budget.iloc[:3].dropna(subset="pq"), classes])


def shown_confusions(confusions: pd.DataFrame) -> list[tuple[str, str, int]]:
    """List (true class, predicted class, segments) of the pairs that are confused, most frequent first."""
    classes = confusions.drop(columns="missed").melt("true", var_name="predicted", value_name="segments")
    classes = classes[(classes["true"] != "spurious") & (classes["segments"] > 0)]
    wrong = classes[classes["true"] != classes["predicted"]]
    pairs = [(str(a), str(b), int(count)) for a, b, count in wrong.itertuples(index=False)]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[:2]))
