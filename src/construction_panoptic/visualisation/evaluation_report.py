"""The evaluation report: how good the model is and what it does wrong, on one HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from construction_panoptic.evaluation.analysis import LOSSES, best_threshold
from construction_panoptic.evaluation.calibration import calibration_error
from construction_panoptic.visualisation import still
from construction_panoptic.visualisation.charts import (
    GREEN,
    LOSS_COLORS,
    calibration_chart,
    percent_text,
    shown_confusions,
    sorted_budget,
    threshold_chart,
)
from construction_panoptic.visualisation.classes import display_name
from construction_panoptic.visualisation.page import Markup, ReportPicture, render
from construction_panoptic.visualisation.sheets import Example

MOST_CONFUSIONS = 15


def evaluation_report(
    about: Mapping[str, str],
    quality: Mapping[str, Any],
    precision: Mapping[str, Any],
    budget: pd.DataFrame,
    confusions: pd.DataFrame,
    sizes: pd.DataFrame,
    calibration: pd.DataFrame,
    box_errors: pd.DataFrame,
    thresholds: pd.DataFrame,
    threshold: float,
    worst: Sequence[Example],
) -> str:
    """Set the report as an HTML page in ASCII with its pictures and charts inside.

    Args:
        about: see `page.about`.
        quality: the content of ``panoptic_quality.json``.
        precision: the content of ``average_precision.json``.
        budget: see `analysis.loss_budget`.
        confusions: see `analysis.confusion_matrix`.
        sizes: see `analysis.size_quality`.
        calibration: see `calibration.calibration_table`, of boxes and segments.
        box_errors: see `calibration.box_analysis`.
        thresholds: see `thresholds.threshold_curve`.
        threshold: the one that the predictions were made with.
        worst: the images with the lowest PQ.
    """
    colors = {display_name(name): color for name, color in LOSS_COLORS.items()}
    best, tried = best_threshold(thresholds), thresholds.set_index("threshold")["pq"]
    rows = {of: calibration[calibration["of"] == of] for of in ("boxes", "segments")}
    confused = [
        (display_name(true), display_name(predicted), f"{count:,}")
        for true, predicted, count in shown_confusions(confusions)[:MOST_CONFUSIONS]
    ]
    return render(
        "evaluation_report.html.j2",
        title="Evaluation report",
        about=about,
        facts=_facts(quality, precision, threshold),
        loss_colors={"PQ": GREEN, **colors},
        error_colors=colors,
        budget=[_budget_row(row) for row in sorted_budget(budget).to_dict("records")],
        confused=confused,
        confusions=confusions.set_index("true"),
        sizes=[_size_row(row) for row in sizes.to_dict("records")],
        calibration_errors={of: calibration_error(found) for of, found in rows.items() if len(found)},
        calibration_chart=Markup(still.svg(calibration_chart(calibration))),
        threshold=threshold,
        threshold_images=int(thresholds["images"].iloc[0]),
        best=best,
        gain=tried[best] - tried[threshold],
        threshold_chart=Markup(still.svg(threshold_chart(thresholds, threshold))),
        thresholds=[
            [f"{row['threshold']:g}", *map(percent_text, (row["pq"], row["pq_things"], row["pq_stuff"])),
             f"{row['segments']:.1f}"]
            for row in thresholds.to_dict("records")
        ],
        box_errors=[
            [row["error"], row["meaning"], f"{row['count']:,}", percent_text(row["delta_ap"])]
            for row in box_errors.to_dict("records")
        ],
        worst={f"{example.title}: PQ {percent_text(example.quality)}": example_pictures(example) for example in worst},
    )  # fmt: skip


def _facts(quality: Mapping[str, Any], precision: Mapping[str, Any], threshold: float) -> dict[str, str]:
    values = {
        f"PQ {name} ({quality[name]['n']})": percent_text(quality[name]["pq"]) for name in ("All", "Things", "Stuff")
    }
    values |= {score.upper(): percent_text(quality["All"][score]) for score in ("sq", "rq")}
    # COCO's -1: there is no such box.
    values |= {
        f"box {name}": percent_text(None if precision[name] == -1 else precision[name]) for name in ("AP", "AP50")
    }
    return {**values, "score threshold": f"{threshold:g}"}


def _budget_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    points = {"PQ": row["pq"], **{display_name(name): row[name] for name in LOSSES}}
    return {"name": row["name"], "points": points, "counts": [int(row[name]) for name in ("tp", "fp", "fn")]}


def _size_row(row: Mapping[Any, Any]) -> list[str]:
    scores = (row[name] for name in ("pq", "sq", "rq", "pq_things", "pq_stuff", "ap", "ar"))
    return [row["size"], f"{row['true_segments']:,}", *map(percent_text, scores)]


def example_pictures(example: Example) -> list[ReportPicture]:
    """Give the pictures of an example, the image first, with what they are."""
    pictures = {
        "image": example.image,
        "ground truth": example.truth,
        "prediction": example.prediction,
        "errors": example.errors,
    }
    return [ReportPicture(picture, caption) for caption, picture in pictures.items() if picture is not None]
