"""The data report: the data set on one HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from construction_panoptic.visualisation.charts import percent_text
from construction_panoptic.visualisation.classes import display_name
from construction_panoptic.visualisation.page import ReportPicture, render

_COUNTS = ["images_train", "images_val", "segments_train", "segments_val", "rejected"]


def data_report(
    about: Mapping[str, str],
    summary: Mapping[str, Any],
    counts: pd.DataFrame,
    distributions: Mapping[str, Mapping[str, int]],
    suspicious: Sequence[ReportPicture],
    examples: Mapping[str, Sequence[ReportPicture]],
) -> str:
    """Set the report as an HTML page in ASCII with its pictures inside.

    Args:
        about: see `page.about`.
        summary: the content of ``dataset_summary.json``.
        counts: a row a class, see `annotations.summary.class_counts`.
        distributions: by title, how many fall under each label, such as images by their number of segments.
        suspicious: images worth a look.
        examples: by class name, ground truth of some of its images.
    """
    present = counts[(counts["images_total"] > 0) | (counts["rejected"] > 0)]
    rows = [
        [display_name(row["class"]), row["kind"], *(f"{row[name]:,}" for name in _COUNTS)]
        for row in present.sort_values("segments_total", ascending=False, kind="stable").to_dict("records")
    ]
    return render(
        "data_report.html.j2",
        title="Data report",
        about=about,
        facts=_facts(summary),
        class_head=["class", "kind", *map(display_name, _COUNTS)],
        class_rows=rows,
        rejected=summary["rejected"]["by_reason"],
        repaired=summary["repaired"]["by_reason"],
        distributions=distributions,
        suspicious=suspicious,
        examples=examples,
    )


def _facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    whole, fringe = summary["all"], summary.get("fringe")
    void = whole["void_share"]
    facts = {
        "images": f"{whole['images']:,}",
        "train / val": f"{summary['train']['images']:,} / {summary['val']['images']:,}",
        "groups of look-alikes": f"{summary['groups']:,}",
        "segments": f"{whole['segments']:,}",
        "things": f"{whole['thing_segments']:,}",
        "segments an image": whole["segments_per_image"],
        "void": "–" if void is None else f"{percent_text(void)} %",
        "images without stuff": f"{whole['images_without_stuff']:,}",
        "images without things": f"{whole['images_without_things']:,}",
        "rejected": f"{summary['rejected']['total']:,}",
        "repaired": f"{summary['repaired']['total']:,}",
    }
    if fringe:
        name = f"leftover stuff within {fringe['within_pixels']} px of things, before → after"
        facts[name] = f"{fringe['pixels_before']:,} → {fringe['pixels_after']:,} px"
    return facts
