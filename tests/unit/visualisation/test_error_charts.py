import pandas as pd
import pytest

from construction_panoptic.evaluation.analysis import LOSSES
from construction_panoptic.visualisation.charts import (
    calibration_chart,
    confusion_chart,
    loss_budget_chart,
    sorted_budget,
    threshold_chart,
)
from construction_panoptic.visualisation.interactive import draw
from construction_panoptic.visualisation.reports import most_confused

NAN = float("nan")


def budget() -> pd.DataFrame:
    rows = [
        ("All", "all", 60.0, 20.0, 5.0, 10.0, 5.0),
        ("Things", "thing", 60.0, 20.0, 5.0, 10.0, 5.0),
        ("Stuff", "stuff", NAN, NAN, NAN, NAN, NAN),
        ("wheel_loader", "thing", 40.0, 30.0, 10.0, 10.0, 10.0),
        ("tower_crane", "thing", 80.0, 10.0, 0.0, 10.0, 0.0),
    ]
    table = pd.DataFrame(rows, columns=["name", "kind", "pq", *LOSSES])
    return table.assign(tp=1, fp=2, fn=3)


CONFUSIONS = pd.DataFrame(
    {"true": ["sky", "wall", "spurious"], "sky": [5, 3, 1], "wall": [2, 4, 0], "missed": [1, 0, 0]}
)

CALIBRATION = pd.DataFrame(
    {"of": ["boxes", "boxes", "segments"], "score": [0.2, 0.9, 0.9], "right": [0.1, 0.8, 0.7], "count": [5, 4, 3]}
)


def test_the_budget_goes_from_the_means_to_the_best_and_the_worst_class() -> None:
    assert sorted_budget(budget())["name"].tolist() == ["All", "Things", "tower_crane", "wheel_loader"]


def test_the_parts_of_a_class_are_in_one_row() -> None:
    [column] = loss_budget_chart(budget()).columns
    assert [bars.name for bars in column.bars] == ["PQ", "badly outlined", "mislabelled", "missed", "spurious"]
    assert column.labels == ["All", "Things", "tower crane", "wheel loader"]
    assert [sum(bars.values[k] for bars in column.bars) for k in range(4)] == pytest.approx([100] * 4)


def test_the_matrix_is_drawn_as_fractions_of_the_ground_truth() -> None:
    [heat] = draw(confusion_chart(CONFUSIONS)).data
    assert list(heat.x) == ["sky", "wall", "missed"]
    assert list(heat.z[0]) == pytest.approx([5 / 8, 2 / 8, 1 / 8])
    assert list(heat.customdata[1]) == [3, 4, 0]


def test_confusions_come_most_frequent_first() -> None:
    assert most_confused(CONFUSIONS) == [["wall", "sky", 3], ["sky", "wall", 2]]


def test_the_thresholds_in_use_are_marked() -> None:
    curve = pd.DataFrame({"threshold": [0.5, 0.9], "pq": [0.5, 0.4], "pq_things": [0.5, 0.4], "pq_stuff": [NAN, NAN]})
    curve = curve.assign(in_use_things=[True, False], in_use_stuff=[False, True])
    pq, things, of_things, of_stuff = threshold_chart(curve).panels[0].curves
    assert (pq.name, pq.y) == ("PQ", pytest.approx([50, 40]))
    assert things.name == "things"
    assert (of_things.style, of_things.x) == ("dashed", [0.5, 0.5])
    assert of_stuff.x == [0.9, 0.9]


def test_boxes_and_segments_have_a_curve_each() -> None:
    _, boxes, segments = calibration_chart(CALIBRATION).panels[0].curves
    assert (boxes.x, boxes.y) == ([0.2, 0.9], [0.1, 0.8])
    assert segments.hover == ["score 0.90, right 70% of 3 segments"]
