"""Whether scores mean what they say, and what box AP loses to which kind of error."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

BINS = 10

# TIDE's kinds of errors (Bolya et al., "TIDE", ECCV 2020), with IoU limits 0.5 and 0.1.
_KINDS = {
    "Cls": "well placed, wrong class",
    "Loc": "right class, badly placed (IoU 0.1…0.5)",
    "Both": "wrong class and badly placed",
    "Dupe": "second box on one object",
    "Bkg": "box on background",
    "Miss": "object without a box",
}


def box_analysis(truth: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare the scores of all predicted boxes with how many are right, and split the errors of box AP.

    ``truth`` is COCO detection JSON, loaded; ``boxes`` are COCO box results. Gives the :func:`calibration_table`, where
    a box is right if it is matched at IoU 0.5 to a true one of its class, and TIDE's errors: ``error``, ``meaning``,
    ``count``, ``delta_ap`` (fraction by which AP at IoU 0.5 would rise if only these errors were mended).
    """
    import hotcoco

    known = {category["id"] for category in truth["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):  # hotcoco says what it loads
        data = hotcoco.COCO(dict(truth))
        results = data.load_res([dict(box) for box in boxes if box["category_id"] in known])
        evaluator = hotcoco.COCOeval(data, results, "bbox")
        evaluator.evaluate()
        bins = evaluator.calibration(n_bins=BINS, iou_threshold=0.5)["bins"]
        errors = evaluator.tide_errors()
    rows = [(kind, meaning, errors["counts"][kind], errors["delta_ap"][kind]) for kind, meaning in _KINDS.items()]
    return _bin_table(bins, "boxes"), pd.DataFrame(rows, columns=["error", "meaning", "count", "delta_ap"])


def calibration_table(segments: pd.DataFrame) -> pd.DataFrame:
    """Compare the scores of predicted `match_segments` with how many are right, that is true positives of PQ.

    Gives a row a bin of scores that is not empty: ``of`` (segments), ``lower``, ``upper``, ``score`` (mean of the bin),
    ``right`` (share, 0…1), ``count``.
    """
    from hotcoco import metrics

    counted = segments[(segments["side"] == "predicted") & (segments["outcome"] != "ignored")]
    right = (counted["outcome"] == "matched").to_numpy()
    return _bin_table(metrics.calibration_curve(counted["score"].to_numpy(), right, BINS), "segments")


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error: the mean distance of score and share that is right; NaN if nothing was counted."""
    total = table["count"].sum()
    return float((table["count"] * (table["score"] - table["right"]).abs()).sum() / total) if total else float("nan")


def _bin_table(bins: Sequence[Mapping[str, Any]], of: str) -> pd.DataFrame:
    names = {"bin_lower": "lower", "bin_upper": "upper", "avg_confidence": "score", "avg_accuracy": "right"}
    rows = [{"of": of, **{new: row[old] for old, new in names.items()}, "count": row["count"]} for row in bins]
    table = pd.DataFrame(rows, columns=["of", *names.values(), "count"])
    return table[table["count"] > 0].reset_index(drop=True)
