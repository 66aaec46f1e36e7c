"""Evaluation results as the tables that people know, in text and as data frames."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from construction_panoptic.evaluation.quality import SPLITS

SCORES = ("pq", "sq", "rq")

# Per COCO number: AP or AR, IoU thresholds, object area, detections an image.
_PRECISION_ROWS = {
    "AP": ("AP", "0.50:0.95", "all", 100),
    "AP50": ("AP", "0.50", "all", 100),
    "AP75": ("AP", "0.75", "all", 100),
    "APs": ("AP", "0.50:0.95", "small", 100),
    "APm": ("AP", "0.50:0.95", "medium", 100),
    "APl": ("AP", "0.50:0.95", "large", 100),
    "AR1": ("AR", "0.50:0.95", "all", 1),
    "AR10": ("AR", "0.50:0.95", "all", 10),
    "AR100": ("AR", "0.50:0.95", "all", 100),
    "ARs": ("AR", "0.50:0.95", "small", 100),
    "ARm": ("AR", "0.50:0.95", "medium", 100),
    "ARl": ("AR", "0.50:0.95", "large", 100),
}


def quality_text(quality: Mapping[str, Any]) -> str:
    """panopticapi's PQ table: a row each for all classes, things, stuff, in percent; "n/a" where n is 0."""
    lines = [f"{'':10s}| {'PQ':>5s}  {'SQ':>5s}  {'RQ':>5s} {'N':>5s}", "-" * 38]
    lines += [f"{split:10s}| {_scores(quality[split])} {quality[split]['n']:5d}" for split in SPLITS]
    return "\n".join(lines)


def class_quality_text(quality: Mapping[str, Any], names: Mapping[int, str]) -> str:
    """PQ, SQ, RQ in percent and segment counts of each class that takes part in the means, best first."""
    classes = sorted(_class_rows(quality, names), key=lambda row: (-row["pq"], row["name"]))
    width = max([len("class"), *(len(row["name"]) for row in classes)])
    titles = f"{'PQ':>5s}  {'SQ':>5s}  {'RQ':>5s} {'TP':>6s} {'FP':>6s} {'FN':>6s}"
    header = f"{'class':{width}s} | {'kind':5s} | {titles}"
    lines = [header, "-" * len(header)]
    for row in classes:
        counts = " ".join(f"{row[key]:6d}" for key in ("tp", "fp", "fn"))
        lines.append(f"{row['name']:{width}s} | {row['kind']:5s} | {_scores(row)} {counts}")
    return "\n".join(lines)


def precision_text(precision: Mapping[str, Any]) -> str:
    """pycocotools' 12-line summary; -1.000 where the truth has no object of that size."""
    lines = []
    for name, (kind, iou, area, detections) in _PRECISION_ROWS.items():
        title = "Average Precision" if kind == "AP" else "Average Recall"
        setting = f"@[ IoU={iou:<9} | area={area:>6s} | maxDets={detections:>3d} ]"
        lines.append(f" {title:<18} ({kind}) {setting} = {precision[name]:0.3f}")
    return "\n".join(lines)


def quality_table(quality: Mapping[str, Any], names: Mapping[int, str]) -> pd.DataFrame:
    """Give rows All, Things, Stuff, then the classes that take part in the means, in the order of category ids.

    Columns ``name`` (of a class that is not in ``names``, its id), ``pq``, ``sq``, ``rq`` (fractions; NaN for a mean
    over no class), and of classes ``category_id``, ``kind`` (thing, stuff), ``tp``, ``fp``, ``fn``, ``present``.
    """
    means = pd.DataFrame([{"name": split, **{key: quality[split][key] for key in SCORES}} for split in SPLITS])
    columns = ["category_id", "name", "kind", *SCORES, "tp", "fp", "fn", "present"]
    classes = pd.DataFrame(_class_rows(quality, names), columns=columns)
    return pd.concat([means.astype(dict.fromkeys(SCORES, float)), classes], ignore_index=True)


def precision_table(precision: Mapping[str, Any]) -> pd.DataFrame:
    """Give the 12 COCO numbers: columns metric, iou, area, detections, box (the value; NaN for COCO's -1)."""
    rows = [(name, *setting[1:], float(precision[name])) for name, setting in _PRECISION_ROWS.items()]
    table = pd.DataFrame(rows, columns=["metric", "iou", "area", "detections", "box"])
    return table.replace({"box": {-1: float("nan")}})


def _class_rows(quality: Mapping[str, Any], names: Mapping[int, str]) -> list[dict[str, Any]]:
    rows = sorted(quality["per_class"].items(), key=lambda item: int(item[0]))
    return [
        {
            **row,
            "category_id": int(key),
            "name": names.get(int(key), key),
            "kind": "thing" if row["isthing"] else "stuff",
        }
        for key, row in rows
        if row["present"]
    ]


def _scores(row: Mapping[Any, Any]) -> str:
    values = (row[key] for key in SCORES)
    return "  ".join(f"{'n/a':>5s}" if value is None else f"{100 * value:5.1f}" for value in values)
