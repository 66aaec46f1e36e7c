"""The data report: the data set on one HTML page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from construction_panoptic.visualisation.classes import display_name
from construction_panoptic.visualisation.page import ReportPicture, bars, facts, html_page, sheet, table


def data_report(
    summary: Mapping[str, Any],
    counts: pd.DataFrame,
    distributions: Mapping[str, Mapping[str, int]],
    suspicious: Sequence[ReportPicture],
    examples: Mapping[str, Sequence[ReportPicture]],
) -> str:
    """Set the report.

    Args:
        summary: the content of ``dataset_summary.json``.
        counts: a row a class, see `annotations.summary.class_counts`.
        distributions: by title, how many fall under each label, such as images by their number of segments.
        suspicious: images worth a look.
        examples: by class name, ground truth of some of its images.

    Returns:
        An HTML page in ASCII; pictures are inside.
    """
    present = counts[(counts["images_total"] > 0) | (counts["rejected"] > 0)]
    parts = [
        _facts(summary),
        "<h2>Classes</h2>",
        _class_table(present),
        "<h2>Rejected records</h2>",
        bars(summary["rejected"]["by_reason"]) or "<p>Nothing was rejected.</p>",
        "<h2>Repaired records</h2>",
        bars(summary["repaired"]["by_reason"]) or "<p>Nothing was changed.</p>",
        *(f"<h2>{escape(title)}</h2>{bars(values)}" for title, values in distributions.items()),
        "<h2>Worth a look</h2>",
        sheet(suspicious) or "<p>No image stands out.</p>",
        "<h2>Ground truth by class</h2>",
        *(f"<h3>{escape(display_name(name))}</h3>{sheet(pictures)}" for name, pictures in examples.items()),
    ]
    return html_page("Data report", parts)


def _facts(summary: Mapping[str, Any]) -> str:
    whole, fringe = summary["all"], summary.get("fringe", {})
    void = whole["void_share"]
    values = {
        "images": f"{whole['images']:,}",
        "train / val": f"{summary['train']['images']:,} / {summary['val']['images']:,}",
        "groups of look-alikes": f"{summary['groups']:,}",
        "segments": f"{whole['segments']:,}",
        "things": f"{whole['thing_segments']:,}",
        "segments an image": whole["segments_per_image"],
        "void": "–" if void is None else f"{100 * void:.1f} %",
        "images without stuff": f"{whole['images_without_stuff']:,}",
        "images without things": f"{whole['images_without_things']:,}",
        "rejected": f"{summary['rejected']['total']:,}",
        "repaired": f"{summary['repaired']['total']:,}",
    }
    if fringe:
        name = f"leftover stuff within {fringe['within_pixels']} px of things, before → after"
        values[name] = f"{fringe['pixels_before']:,} → {fringe['pixels_after']:,} px"
    return facts(values)


def _class_table(counts: pd.DataFrame) -> str:
    columns = ["images_train", "images_val", "segments_train", "segments_val", "rejected"]
    rows = [
        [display_name(str(row["class"])), str(row["kind"]), *(f"{int(row[name]):,}" for name in columns)]
        for _, row in counts.sort_values("segments_total", ascending=False, kind="stable").iterrows()
    ]
    return table([name.replace("_", " ") for name in ["class", "kind", *columns]], rows)
