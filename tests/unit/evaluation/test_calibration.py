import numpy as np
import pandas as pd
import pytest

from construction_panoptic.evaluation.calibration import box_analysis, calibration_error, calibration_table
from construction_panoptic.evaluation.segments import segment_table
from tests.unit.evaluation.pairs import CATEGORIES

BOX = [10.0, 10.0, 40.0, 40.0]
TRUTH = {
    "images": [{"id": k, "file_name": f"{k}.jpg", "width": 100, "height": 100} for k in range(1, 11)],
    "categories": CATEGORIES,
    "annotations": [
        {"id": k, "image_id": k, "category_id": 4, "bbox": BOX, "area": 1600, "iscrowd": 0} for k in range(1, 11)
    ],
}


def box(image: int, score: float, *, category: int = 4, shift: float = 0) -> dict[str, object]:
    return {"image_id": image, "category_id": category, "score": score, "bbox": [10.0 + shift, 10.0, 40.0, 40.0]}


def test_boxes_right_half_of_the_time_are_half_calibrated() -> None:
    boxes = [box(k, 0.75, shift=0 if k <= 5 else 50) for k in range(1, 11)]
    calibration, errors = box_analysis(TRUTH, boxes)
    (row,) = calibration.to_dict("records")
    assert (row["of"], row["count"]) == ("boxes", 10)
    assert row["lower"] == pytest.approx(0.7)
    assert row["score"] == pytest.approx(0.75)
    assert row["right"] == pytest.approx(0.5)
    assert calibration_error(calibration) == pytest.approx(0.25)
    assert dict(zip(errors["error"], errors["count"], strict=True))["Bkg"] == 5


def test_kinds_of_box_errors_are_told_apart() -> None:
    boxes = [
        *(box(k, 0.9) for k in range(1, 7)),
        box(7, 0.8, category=5),  # right place, wrong class
        box(8, 0.8, shift=20),  # right class, IoU 1/3
        box(9, 0.8, category=5, shift=20),  # both
        box(1, 0.7),  # a second one
    ]
    _, errors = box_analysis(TRUTH, boxes)
    counts = dict(zip(errors["error"], errors["count"], strict=True))
    # Image 10 alone is missed: where a box is close, mending that box would find the object.
    assert counts["Cls"] == counts["Loc"] == counts["Both"] == counts["Dupe"] == 1
    assert counts["Bkg"] == 0
    assert counts["Miss"] >= 1
    assert (errors["delta_ap"] >= 0).all()


def test_boxes_of_unknown_classes_take_no_part() -> None:
    calibration, _ = box_analysis(TRUTH, [box(1, 0.9), box(1, 0.9, category=99)])
    assert calibration["count"].sum() == 1


def test_a_segment_is_right_if_pq_counts_it() -> None:
    outcomes = ["matched", "matched", "matched", "spurious", "ignored"]
    rows = segment_table(
        [
            (1, side, k, 1, 50, score, outcome, 0.9, None, None)
            for side, score in (("predicted", 0.9), ("true", None))
            for k, outcome in enumerate(outcomes)
        ]
    )
    calibration = calibration_table(rows)
    assert calibration["of"].tolist() == ["segments"]
    assert calibration[["score", "right", "count"]].to_numpy()[0].tolist() == pytest.approx([0.9, 0.75, 4])
    assert calibration_error(calibration) == pytest.approx(0.15)


def test_without_predictions_there_is_no_error() -> None:
    assert np.isnan(calibration_error(calibration_table(segment_table([]))))
    calibration, errors = box_analysis(TRUTH, [])
    assert calibration.empty
    assert dict(zip(errors["error"], errors["count"], strict=True))["Miss"] == 10
    assert isinstance(errors, pd.DataFrame)
