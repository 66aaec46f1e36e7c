"""The evaluation report: how good the model is and what it does wrong, on one HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from construction_panoptic.evaluation.analysis import LOSSES, best_threshold
from construction_panoptic.evaluation.calibration import calibration_error
from construction_panoptic.visualisation.chart_data import BLUE, GREEN, ORANGE, percent_text
from construction_panoptic.visualisation.classes import display_name
from construction_panoptic.visualisation.error_charts import LOSS_COLORS, shown_confusions, sorted_budget
from construction_panoptic.visualisation.page import (
    Line,
    Markup,
    ReportPicture,
    facts,
    html_page,
    legend,
    line_chart,
    sheet,
    stacked_bar,
    table,
)

MOST_CONFUSIONS = 15


def evaluation_report(
    quality: Mapping[str, Any],
    precision: Mapping[str, Any],
    budget: pd.DataFrame,
    confusions: pd.DataFrame,
    sizes: pd.DataFrame,
    calibration: pd.DataFrame,
    box_errors: pd.DataFrame,
    thresholds: pd.DataFrame,
    threshold: float,
    worst: Sequence[tuple[ReportPicture, ReportPicture]],
) -> str:
    """Set the report.

    Args:
        quality: the content of ``panoptic_quality.json``.
        precision: the content of ``average_precision.json``.
        budget: see `analysis.loss_budget`.
        confusions: see `analysis.confusion_matrix`.
        sizes: see `analysis.size_quality`.
        calibration: see `calibration.calibration_table`, of boxes and segments.
        box_errors: see `calibration.box_analysis`.
        thresholds: see `thresholds.threshold_curve`.
        threshold: the one that the predictions were made with.
        worst: ground truth and prediction of the worst images.

    Returns:
        An HTML page in ASCII; pictures and charts are inside.
    """
    return html_page(
        "Evaluation report",
        [
            _facts(quality, precision, threshold),
            "<h2>What costs PQ</h2>",
            _budget(budget),
            "<h2>Which classes are confused</h2>",
            _confusions(confusions),
            "<h2>By size</h2>",
            _sizes(sizes),
            "<h2>What scores mean</h2>",
            _calibration(calibration),
            "<h2>The score threshold</h2>",
            _thresholds(thresholds, threshold),
            "<h2>What costs box AP</h2>",
            _box_errors(box_errors),
            "<h2>The worst images</h2>",
            "<p>By PQ of the image: the mean over the classes in it. Ground truth first, then the prediction.</p>",
            sheet([picture for pair in worst for picture in pair]) or "<p>No image has a segment.</p>",
        ],
    )


def _facts(quality: Mapping[str, Any], precision: Mapping[str, Any], threshold: float) -> str:
    values = {f"PQ {name} ({quality[name]['n']})": percent_text(quality[name]["pq"]) for name in ("All", "Things")}
    values[f"PQ Stuff ({quality['Stuff']['n']})"] = percent_text(quality["Stuff"]["pq"])
    values |= {score.upper(): percent_text(quality["All"][score]) for score in ("sq", "rq")}
    values |= {f"box {name}": _percent(precision[name]) for name in ("AP", "AP50")}
    return facts({**values, "score threshold": f"{threshold:g}"})


def _budget(budget: pd.DataFrame) -> str:
    names = {name: name.replace("_", " ") for name in LOSSES}
    colors = {"PQ": GREEN, **{names[name]: LOSS_COLORS[name] for name in LOSSES}}
    rows = []
    for row in sorted_budget(budget).to_dict("records"):
        points = {"PQ": row["pq"], **{names[name]: row[name] for name in LOSSES}}
        numbers = [f"{value:.1f}" for value in points.values()]
        counts = [f"{int(row[name]):,}" for name in ("tp", "fp", "fn")]
        rows.append([display_name(row["name"]), *numbers[:1], stacked_bar(points, colors), *numbers[1:], *counts])
    return (
        "<p>The parts of 100 &minus; PQ, in points. <b>Badly outlined</b>: found, but with a poor outline; "
        "<b>mislabelled</b>: covered by another class; <b>missed</b>: nothing there; <b>spurious</b>: predicted where "
        "nothing fits.</p>" + legend(colors) + table(["", "PQ", "", *names.values(), "TP", "FP", "FN"], rows)
    )


def _confusions(confusions: pd.DataFrame) -> str:
    pairs = [
        [display_name(str(true)), display_name(str(predicted)), f"{count:,}"]
        for true, predicted, count in shown_confusions(confusions)[:MOST_CONFUSIONS]
    ]
    confusions = confusions.set_index("true")
    most = max(1, int(confusions.to_numpy().max(initial=0)))
    names = [display_name(str(name)) for name in confusions.columns]
    rows = [
        [display_name(str(name)), *(_shaded(int(value), most) for value in row)]
        for name, row in zip(confusions.index, confusions.to_numpy(), strict=True)
    ]
    listed = table(["true", "predicted as", "segments"], pairs) if pairs else "<p>No two classes are confused.</p>"
    return (
        f"<p>Segments that share more than half of their area (IoU &gt; 0.5) but not their class:</p>{listed}"
        "<p>All of them, true classes in rows, predicted ones in columns:</p>" + table(["", *names], rows, kind="grid")
    )


def _shaded(count: int, most: int) -> Markup:
    if not count:
        return Markup("")
    share = 10 + 60 * count / most
    return Markup(
        f'<span style="display:block;background:color-mix(in srgb,{BLUE} {share:.0f}%,transparent)">{count}</span>'
    )


def _sizes(sizes: pd.DataFrame) -> str:
    rows = [
        [
            row["size"],
            f"{row['true_segments']:,}",
            *(percent_text(row[name]) for name in ("pq", "sq", "rq", "pq_things", "pq_stuff", "ap", "ar")),
        ]
        for row in sizes.to_dict("records")
    ]
    return "<p>COCO's limits: small is below 32² pixels, large from 96².</p>" + table(
        ["size", "true segments", "PQ", "SQ", "RQ", "PQ things", "PQ stuff", "box AP", "box AR"], rows
    )


def _calibration(calibration: pd.DataFrame) -> str:
    lines, texts = [], []
    for of, color in (("boxes", BLUE), ("segments", ORANGE)):
        rows = calibration[calibration["of"] == of]
        if len(rows):
            lines.append(Line(of, color, list(zip(rows["score"], rows["right"], strict=True))))
            texts.append(f"{percent_text(calibration_error(rows))} points for {of}")
    if not lines:
        return "<p>Nothing was predicted.</p>"
    return (
        "<p>A score of 0.9 should be right nine times in ten: above the dashed line scores are too modest, below it "
        "too sure. A box is right if its class is and its IoU is at least 0.5, a segment if PQ counts it. "
        f"Mean distance from the line: {', '.join(texts)}.</p>"
        + line_chart(lines, x_title="score", y_title="share that is right", diagonal=True)
    )


def _thresholds(thresholds: pd.DataFrame, threshold: float) -> str:
    lines = [
        Line(name, color, list(zip(thresholds["threshold"], 100 * thresholds[column], strict=True)))
        for name, column, color in (("PQ", "pq", GREEN), ("things", "pq_things", BLUE), ("stuff", "pq_stuff", ORANGE))
        if thresholds[column].notna().any()
    ]
    best = best_threshold(thresholds)
    scores = thresholds.set_index("threshold")["pq"]
    gain = 100 * (scores[best] - scores[threshold])
    advice = (
        f"The one in use, {threshold:g}, is the best of those tried."
        if best == threshold
        else f"The best is {best:g}, {gain:.1f} points above the one in use, {threshold:g}: "
        f"<code>--params panoptic_evaluation.threshold={best:g}</code>."
    )
    rows = [
        [f"{row['threshold']:g}", *(percent_text(row[name]) for name in ("pq", "pq_things", "pq_stuff")),
         f"{row['segments']:.1f}"]
        for row in thresholds.to_dict("records")
    ]  # fmt: skip
    return (
        f"<p>PQ of {int(thresholds['images'].iloc[0])} <em>training</em> images, so that nothing is tuned on the "
        f"validation set. {advice} The model knows these images, and is surer of them than of new ones.</p>"
        + line_chart(lines, x_title="least score of a segment", y_title="PQ, training images", y_top=100)
        + table(["threshold", "PQ", "things", "stuff", "segments an image"], rows)
    )


def _box_errors(box_errors: pd.DataFrame) -> str:
    rows = [
        [row["error"], row["meaning"], f"{row['count']:,}", f"{100 * row['delta_ap']:.1f}"]
        for row in box_errors.to_dict("records")
    ]
    return (
        "<p>TIDE (Bolya et al. 2020): by how many points AP at IoU 0.5 would rise if only these were mended.</p>"
        + table(["error", "meaning", "boxes", "AP lost"], rows)
    )


def _percent(value: float) -> str:
    return percent_text(None if value == -1 else value)
