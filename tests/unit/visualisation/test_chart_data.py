from typing import Any

import numpy as np
import pandas as pd
import pytest

from construction_panoptic.errors import InputDataError
from construction_panoptic.visualisation import ClassTable
from construction_panoptic.visualisation.chart_data import (
    CountRow,
    columns_of,
    count_rows,
    curve_panels,
    epoch_span,
    is_skewed,
    quality_rows,
    quality_title,
    size_table,
)


def test_quality_rows_are_in_percent_best_first_absent_last(quality: dict[str, Any], classes: ClassTable) -> None:
    rows = quality_rows(quality, classes)
    assert [(row.name, row.pq) for row in rows] == [
        ("wheel loader", pytest.approx(72)),
        ("sky", pytest.approx(48)),
        ("ground", 0.0),
        ("crane", None),
    ]
    assert (rows[0].sq, rows[0].rq) == (pytest.approx(80), pytest.approx(90))
    assert (rows[3].sq, rows[3].rq) == (None, None)
    assert [row.is_thing for row in rows] == [True, False, False, True]


def test_absence_can_be_told_in_each_way(quality: dict[str, Any], classes: ClassTable) -> None:
    def absent(present: set[int] | None = None) -> set[int]:
        return {row.category_id for row in quality_rows(quality, classes, present) if row.pq is None}

    per_class = quality["per_class"]
    assert absent() == {4}
    assert absent(present={1, 4}) == {2, 3}
    for row in per_class.values():
        del row["present"]
    assert absent() == set()
    per_class["4"]["n"] = 0
    assert absent() == {4}
    per_class["4"] = {"pq": None, "sq": None, "rq": None}
    assert absent() == {4}
    assert absent(present={1, 2, 3, 4}) == {4}
    del per_class["4"]
    assert absent() == {4}


def test_a_class_without_a_name_is_shown_by_its_id(quality: dict[str, Any], classes: ClassTable) -> None:
    quality["per_class"]["77"] = {"pq": 1.0, "sq": 1.0, "rq": 1.0, "isthing": False}
    row = quality_rows(quality, classes)[0]
    assert (row.name, row.is_thing) == ("77", False)


def test_the_title_has_the_means(quality: dict[str, Any]) -> None:
    assert quality_title(quality) == "PQ: All 40.0 (3 classes), Things 72.0 (1 class), Stuff 24.0 (2 classes)"
    quality["Stuff"] = {"pq": None, "sq": None, "rq": None, "n": 0}
    assert quality_title(quality).endswith("Stuff n/a (0 classes)")
    assert quality_title({"All": {"pq": 0.5}, "per_class": {}}) == "PQ: All 50.0, Things n/a, Stuff n/a"


def test_counts_are_sorted_and_missing_classes_have_none(classes: ClassTable) -> None:
    table = pd.DataFrame(
        {
            "class_id": [4, 1, 3],
            "images_train": [1, 2, 3],
            "images_val": [1, 1, 1],
            "segments_train": [5, 9, 5],
            "segments_val": [1, 3, 2],
        }
    )
    rows = count_rows(table, classes)
    assert [(row.category_id, row.train, row.val) for row in rows] == [
        (1, 9, 3),
        (3, 5, 2),
        (4, 5, 1),
        (2, 0, 0),
    ]
    assert count_rows(table, classes, "images")[0].train == 3
    short = table.rename(columns={"class_id": "category_id", "segments_train": "train", "segments_val": "val"})
    assert count_rows(short, classes) == rows
    with pytest.raises(InputDataError, match="segments_val or val"):
        count_rows(table.drop(columns="segments_val"), classes)


@pytest.mark.parametrize(
    ("totals", "skewed"), [([10, 10, 100], False), ([1, 1, 20], True), ([0, 0, 500], False), ([], False)]
)
def test_skew(totals: list[int], skewed: bool) -> None:
    assert is_skewed([CountRow(k, "", True, total, 0) for k, total in enumerate(totals)]) is skewed


@pytest.mark.parametrize(
    ("things", "stuff", "lengths"),
    [
        (1, 0, [1]),
        (0, 1, [1]),
        (3, 2, [3, 2]),
        (48, 16, [24, 24, 16]),
        (80, 53, [40, 40, 27, 26]),
        (0, 0, []),
    ],
)
def test_columns_keep_groups_apart_and_lose_no_row(things: int, stuff: int, lengths: list[int]) -> None:
    rows = [CountRow(k, str(k), k % 2 == 0, 0, 0) for k in range(2 * max(things, stuff))]
    rows = [row for row in rows if row.category_id // 2 < (things if row.is_thing else stuff)]
    columns = columns_of(rows)
    assert [len(column.rows) for column in columns] == lengths
    assert [row for column in columns for row in column.rows] == sorted(rows, key=lambda row: not row.is_thing)
    assert all(len({row.is_thing for row in column.rows}) == 1 for column in columns)


def history() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "train/loss": [9.0, 7.0, 6.0],
            "val/loss": [9.5, np.nan, 7.5],
            "train/loss_bbox": [1.0, 0.8, 0.7],
            "train/class_error": [90.0, 60.0, 40.0],
            "val/ap": [0.1, 0.4, 0.3],
            "val/ap50": [0.2, 0.6, 0.5],
            "train/lr": [1e-4, 1e-4, 1e-5],
            "train/lr_backbone": [1e-5, 1e-5, 1e-6],
        }
    )


def test_panels_hold_what_was_logged() -> None:
    panels = {panel.title: panel for panel in curve_panels(history(), "detection")}
    assert list(panels) == [
        "Total loss",
        "Box L1 loss",
        "Class error (%)",
        "Validation box AP (%)",
        "Learning rate",
    ]
    train, val = panels["Total loss"].curves
    assert (train.name, train.epochs, train.values) == ("train", [1, 2, 3], [9, 7, 6])
    assert (val.name, val.epochs, val.values) == ("validation", [1, 3], [9.5, 7.5])
    metric = panels["Validation box AP (%)"]
    assert [curve.name for curve in metric.curves] == ["AP", "AP50"]
    assert metric.curves[0].values == pytest.approx([10, 40, 30])
    assert metric.best() == (2, pytest.approx(40))
    assert panels["Total loss"].best() is None
    assert [curve.values[-1] for curve in panels["Learning rate"].curves] == [1e-5, 1e-6]


def test_the_best_epoch_is_that_of_the_main_metric_only() -> None:
    panels = curve_panels(history().drop(columns="val/ap"), "detection")
    assert [panel.best() for panel in panels if panel.title.startswith("Validation")] == [None]


def test_mask_head_panels() -> None:
    table = pd.DataFrame({"epoch": [1], "train/loss_mask": [0.1], "train/loss_dice": [0.9], "val/pq": [0.5]})
    titles = [panel.title for panel in curve_panels(table, "mask_head")]
    assert titles == ["Mask focal loss", "Mask Dice loss", "Validation PQ (%)"]


def test_an_epoch_logged_twice_counts_once() -> None:
    table = pd.DataFrame({"epoch": [1, 3, 2, 2], "train/loss": [4.0, 1.0, 9.0, 2.0]})
    curve = curve_panels(table, "detection")[0].curves[0]
    assert (curve.epochs, curve.values) == ([1, 2, 3], [4, 2, 1])


def test_no_epoch_column_is_an_error() -> None:
    with pytest.raises(InputDataError, match="epoch"):
        curve_panels(pd.DataFrame({"train/loss": [1.0]}), "detection")


def test_span_has_room_at_both_ends() -> None:
    assert epoch_span(curve_panels(history(), "detection")) == (0.5, 3.5)


def test_sizes_are_counted_by_doubling_bins(classes: ClassTable) -> None:
    areas = pd.DataFrame({"category_id": [1, 3, 3, 4, 2], "area": [1, 16, 63, 64, 1024 * 1024]})
    table = size_table(areas, classes).set_index("side")
    found = {float(side): counts for side, counts in zip(table.index, table.to_numpy().tolist(), strict=True)}
    assert (found[1], found[4], found[8], found[1024]) == ([0, 1], [2, 0], [1, 0], [0, 1])
    assert len(table) == 11
    assert int(table.to_numpy().sum()) == 5
    assert size_table(areas.iloc[:0], classes)[["things", "stuff"]].to_numpy().tolist() == [[0, 0]]
