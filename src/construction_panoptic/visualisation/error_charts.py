"""The charts of the error analysis: loss budget, confusions, thresholds, calibration."""

import pandas as pd
import plotly.graph_objects as go

from construction_panoptic.evaluation.analysis import LOSSES
from construction_panoptic.visualisation.charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    BarChart,
    BarColumn,
    Bars,
    Curve,
    CurveChart,
    Panel,
)
from construction_panoptic.visualisation.classes import display_name

LOSS_COLORS = dict(zip(LOSSES, (SKY, PURPLE, ORANGE, RED), strict=True))


def loss_budget_chart(budget: pd.DataFrame) -> BarChart:
    """Chart PQ and what is missing to 100 as one bar for All, Things, Stuff and each class, best class first.

    Args:
        budget: see `analysis.loss_budget`.
    """
    rows = sorted_budget(budget)
    labels = [display_name(name) for name in rows["name"]]
    bars = []
    for part, color in {"pq": GREEN, **LOSS_COLORS}.items():
        name = "PQ" if part == "pq" else display_name(part)
        hover = [f"{label}<br>{name} {value:.1f}" for label, value in zip(labels, rows[part], strict=True)]
        bars.append(Bars(name, color, rows[part].tolist(), hover))
    return BarChart("What costs PQ", "points", [BarColumn("", labels, bars)], (0, 100), stacked=True)


def threshold_chart(thresholds: pd.DataFrame, threshold: float) -> CurveChart:
    """Chart PQ against the score threshold, and mark the one in use.

    Args:
        thresholds: see `thresholds.threshold_curve`.
        threshold: the one in use.
    """
    curves = [
        Curve(name, color, thresholds["threshold"].tolist(), (100 * thresholds[column]).tolist())
        for name, column, color in (("PQ", "pq", GREEN), ("things", "pq_things", BLUE), ("stuff", "pq_stuff", ORANGE))
        if thresholds[column].notna().any()
    ]
    in_use = Curve(f"in use: {threshold:g}", GREY, [threshold] * 2, [0, 100], "dashed")
    title = "PQ of training images by the least score of a segment"
    return CurveChart(title, "threshold", [Panel("PQ", [*curves, in_use], top=100)], (0, 1))


def calibration_chart(calibration: pd.DataFrame) -> CurveChart:
    """Chart the fraction of boxes and segments that are right against their score; on the diagonal, scores are right.

    Args:
        calibration: see `calibration.calibration_table`.
    """
    curves = [Curve("ideal", GREY, [0, 1], [0, 1], "dashed")]
    for of, color in (("boxes", BLUE), ("segments", ORANGE)):
        rows = calibration[calibration["of"] == of]
        columns = [rows[name].tolist() for name in ("score", "right", "count")]
        hover = [f"score {x:.2f}, right {y:.0%} of {count:,} {of}" for x, y, count in zip(*columns, strict=True)]
        curves.append(Curve(of, color, columns[0], columns[1], hover=hover))
    title = "What scores mean: the fraction that is right, by score"
    return CurveChart(title, "score", [Panel("fraction that is right", curves, top=1)], (0, 1))


def confusion_chart(confusions: pd.DataFrame) -> go.Figure:
    """Draw the confusion matrix, each row as fractions of its ground-truth segments; counts show on hover.

    Args:
        confusions: see `analysis.confusion_matrix`.
    """
    confusions = confusions.set_index("true")
    fractions = confusions.div(confusions.sum(axis=1).clip(lower=1), axis=0)
    figure = go.Figure(
        go.Heatmap(
            z=fractions.to_numpy().tolist(),
            x=[display_name(str(name)) for name in confusions.columns],
            y=[display_name(str(name)) for name in confusions.index],
            customdata=confusions.to_numpy().tolist(),
            hovertemplate="%{y} as %{x}: %{customdata} segments, %{z:.0%}<extra></extra>",
            colorscale="Blues",
            zmin=0,
            zmax=1,
            colorbar={"title": {"text": "fraction"}, "tickformat": ".0%"},
        )
    )
    return figure.update_layout(
        template="plotly_white",
        height=22 * len(confusions) + 260,
        title={"text": "Classes of the ground truth (rows) and what they were predicted as", "font": {"size": 16}},
        yaxis={"autorange": "reversed", "automargin": True, "dtick": 1},
        xaxis={"automargin": True, "dtick": 1, "tickangle": -60},
    )


def sorted_budget(budget: pd.DataFrame) -> pd.DataFrame:
    """The rows of All, Things and Stuff, where there are such classes, then the classes, best first."""
    classes = budget.iloc[3:].sort_values("pq", ascending=False, kind="stable")
    return pd.concat([budget.iloc[:3].dropna(subset="pq"), classes])


def shown_confusions(confusions: pd.DataFrame) -> list[tuple[str, str, int]]:
    """List (class, predicted class, segments) of the pairs that are confused, most frequent first."""
    classes = confusions.drop(columns="missed").melt("true", var_name="predicted", value_name="segments")
    classes = classes[(classes["true"] != "spurious") & (classes["segments"] > 0)]
    wrong = classes[classes["true"] != classes["predicted"]]
    pairs = [(str(a), str(b), int(count)) for a, b, count in wrong.itertuples(index=False)]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[:2]))
