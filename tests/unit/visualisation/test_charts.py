from typing import Any

import numpy as np
import pandas as pd
import pytest

from construction_panoptic.evaluation.tables import quality_table
from construction_panoptic.visualisation import ClassTable
from construction_panoptic.visualisation.charts import class_balance_chart, pq_chart, training_chart


def test_pq_is_in_percent_best_first_and_without_absent_classes(quality: dict[str, Any], classes: ClassTable) -> None:
    chart = pq_chart(quality_table(quality, classes.names))
    assert [(column.title, list(column.labels)) for column in chart.columns] == [
        ("Things", ["wheel loader"]),
        ("Stuff", ["sky", "ground"]),
    ]
    things, stuff = (column.bars[0] for column in chart.columns)
    assert things.values == [pytest.approx(72)]
    assert stuff.values == [pytest.approx(48), 0]
    assert things.hover == ["wheel loader<br>PQ 72.0<br>SQ 80.0<br>RQ 90.0"]
    assert chart.columns[1].notes == ["48.0", "0.0"]
    assert things.color != stuff.color


def test_the_title_has_the_means(quality: dict[str, Any], classes: ClassTable) -> None:
    title = "PQ: All 40.0 (3 classes), Things 72.0 (1 class), Stuff 24.0 (2 classes)"
    assert pq_chart(quality_table(quality, classes.names)).title == title
    quality["Stuff"] = {"pq": None, "sq": None, "rq": None, "n": 0}
    quality["per_class"] = {"3": quality["per_class"]["3"]}
    assert pq_chart(quality_table(quality, classes.names)).title.endswith("Stuff n/a (0 classes)")


def counts(train: list[int], val: list[int], kinds: str = "tttttt") -> pd.DataFrame:
    names = ["wheel_loader", "crane", "pump", "block", "pipe", "tank"][: len(train)]
    kind = [{"t": "thing", "s": "stuff"}[letter] for letter in kinds[: len(train)]]
    return pd.DataFrame({"class": names, "kind": kind, "segments_train": train, "segments_val": val})


def test_counts_are_sorted_and_classes_without_a_segment_left_out() -> None:
    chart = class_balance_chart(counts([5, 0, 8, 10], [1, 0, 2, 0], "ttss"))
    things, stuff = chart.columns
    assert things.labels == ["wheel loader"]
    assert stuff.labels == ["block", "pump"]
    assert [tuple(bars.values) for bars in stuff.bars] == [(10, 8), (0, 2)]
    assert stuff.notes == ["10 / 0", "8 / 2"]
    assert stuff.ends() == [10, 8]
    assert "3 of 4 classes occur" in chart.title
    assert chart.span[0] == 0
    assert chart.span[1] > 10


@pytest.mark.parametrize(("train", "log"), [([10, 10, 100], False), ([1, 1, 20], True), ([0, 0, 500], False)])
def test_a_skewed_balance_has_a_logarithmic_axis(train: list[int], log: bool) -> None:
    chart = class_balance_chart(counts(train, [0, 0, 0]))
    assert chart.log is log
    assert (chart.span[0] > 0) is log


@pytest.mark.parametrize(
    ("things", "stuff", "lengths"),
    [(1, 0, [1]), (0, 1, [1]), (3, 2, [3, 2]), (48, 16, [24, 24, 16]), (80, 53, [40, 40, 27, 26]), (0, 0, [])],
)
def test_columns_keep_groups_apart_and_lose_no_row(things: int, stuff: int, lengths: list[int]) -> None:
    number = things + stuff
    table = pd.DataFrame({"class": [f"c{k:03}" for k in range(number)], "kind": ["thing"] * things + ["stuff"] * stuff})
    chart = class_balance_chart(table.assign(segments_train=1, segments_val=1))
    assert [len(column.labels) for column in chart.columns] == lengths
    assert [label for column in chart.columns for label in column.labels] == table["class"].tolist()


def history() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "train/loss": [9.0, 7.0, 6.0],
            "val/loss": [9.5, np.nan, 7.5],
            "train/loss_bbox": [1.0, np.inf, 0.7],
            "train/loss_offset_map": [1.0, 0.5, 0.4],
            "train/class_error": [90.0, 60.0, 40.0],
            "val/ap": [0.1, 0.4, 0.3],
            "val/ap50": [0.2, 0.6, 0.5],
            "train/lr": [1e-4, 1e-4, 1e-5],
            "train/lr_backbone": [1e-5, 1e-5, 1e-6],
        }
    )


def test_panels_hold_what_was_logged() -> None:
    chart = training_chart(history())
    panels = {panel.title: panel for panel in chart.panels}
    assert list(panels) == [
        "Total loss",
        "Box L1 loss",
        "Class error (%)",
        "loss offset map",
        "Validation box AP (%)",
        "Learning rate",
    ]
    train, val = panels["Total loss"].curves
    assert (train.name, train.x, train.y) == ("train", [1, 2, 3], [9, 7, 6])
    assert (val.name, val.x, val.y) == ("validation", [1, 3], [9.5, 7.5])
    assert panels["Box L1 loss"].curves[0].x == [1, 3]
    ap, ap50, best = panels["Validation box AP (%)"].curves
    assert (ap.name, ap50.name) == ("AP", "AP50")
    assert ap.y == pytest.approx([10, 40, 30])
    assert (best.style, best.x, best.y) == ("star", [2], [pytest.approx(40)])
    assert [curve.y[-1] for curve in panels["Learning rate"].curves] == [1e-5, 1e-6]
    assert chart.span == (0.5, 3.5)


def test_the_best_epoch_is_that_of_the_main_metric_only() -> None:
    chart = training_chart(history().drop(columns="val/ap"))
    assert [curve.style for panel in chart.panels for curve in panel.curves].count("star") == 0


def test_a_learning_rate_of_zero_is_left_out_of_the_logarithmic_axis() -> None:
    rates = pd.DataFrame({"train/lr": [1e-4, 1e-5, 0.0], "train/lr_backbone": 0.0})
    last = training_chart(history().drop(columns=list(rates)).join(rates)).panels[-1]
    assert [(curve.name, curve.x) for curve in last.curves] == [("learning rate", [1, 2])]


def test_an_epoch_logged_twice_counts_once() -> None:
    table = pd.DataFrame({"epoch": [1, 3, 2, 2], "train/loss": [4.0, 1.0, 9.0, 2.0]})
    curve = training_chart(table).panels[0].curves[0]
    assert (curve.x, curve.y) == ([1, 2, 3], [4, 2, 1])
