from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from construction_panoptic.evaluation.analysis import (
    LOSSES,
    best_thresholds,
    confusion_matrix,
    image_scores,
    loss_budget,
    size_quality,
)
from construction_panoptic.evaluation.quality import panoptic_quality
from construction_panoptic.evaluation.segments import match_segments, segment_table
from tests.unit.evaluation.pairs import CATEGORIES, PanopticPair

MATCHED, LABEL, OUTLINE = "matched", "mislabelled", "badly_outlined"


def table(*rows: tuple[str, int, int, str, float, int | None]) -> pd.DataFrame:
    """Segments from (side, class, area, outcome, IoU, the other's class), all of image 1."""
    return segment_table(
        [
            (1, side, k, category, area, 0.5, outcome, iou, None if other is None else 99, other)
            for k, (side, category, area, outcome, iou, other) in enumerate(rows, start=1)
        ]
    )


def test_the_budget_of_rows_that_can_be_reckoned_by_hand() -> None:
    rows = table(
        ("true", 1, 50, MATCHED, 0.8, 1),
        ("predicted", 1, 50, MATCHED, 0.8, 1),
        ("true", 1, 50, "missed", 0.0, None),
        ("true", 1, 50, OUTLINE, 0.3, 1),
        ("predicted", 1, 50, OUTLINE, 0.3, 1),
        ("true", 4, 50, LABEL, 0.9, 1),
        ("predicted", 1, 50, LABEL, 0.9, 4),
        ("predicted", 1, 50, "ignored", 0.0, None),
        ("predicted", 4, 50, "spurious", 0.0, None),
    )
    budget = loss_budget(rows, CATEGORIES).set_index("name")
    # Class 1: TP 1, FP 2, FN 2, so D = 3; outlines lose 0.2 + 1/2 + 1/2.
    one = {"pq": 80 / 3, OUTLINE: 120 / 3, LABEL: 50 / 3, "missed": 50 / 3, "spurious": 0}
    # Class 4: FP 1, FN 1, so D = 1.
    four = {"pq": 0, OUTLINE: 0, LABEL: 50, "missed": 0, "spurious": 50}
    assert dict(budget.loc["class 1", list(one)]) == pytest.approx(one)
    assert dict(budget.loc["class 4", list(four)]) == pytest.approx(four)
    mean = {key: (one[key] + four[key]) / 2 for key in one}
    assert dict(budget.loc["All", list(mean)]) == pytest.approx(mean)
    assert list(budget.loc["Things", ["pq", "fp", "fn"]]) == [0, 1, 1]
    assert list(budget["kind"]) == ["all", "thing", "stuff", "stuff", "thing"]


@pytest.mark.parametrize("seed", range(30))
def test_the_budget_sums_to_100_minus_the_evaluators_pq(seed: int, random_pair: Callable[..., PanopticPair]) -> None:
    pair = random_pair(seed)
    quality = panoptic_quality(*pair.arguments)
    budget = loss_budget(match_segments(*pair.arguments), CATEGORIES)
    by_name = {category["name"]: quality["per_class"][str(category["id"])]["pq"] for category in CATEGORIES}
    for row in budget.to_dict("records"):
        pq = quality[row["name"]]["pq"] if row["name"] in quality else by_name[row["name"]]
        if pq is None:
            assert np.isnan([row["pq"], *(row[name] for name in LOSSES)]).all()
            continue
        assert row["pq"] == pytest.approx(100 * pq, abs=1e-9)
        assert sum(row[name] for name in LOSSES) == pytest.approx(100 - 100 * pq, abs=1e-9)
        assert min(row[name] for name in LOSSES) >= -1e-12


@pytest.mark.parametrize("seed", range(10))
def test_the_confusion_matrix_counts_every_segment_once(seed: int, random_pair: Callable[..., PanopticPair]) -> None:
    pair = random_pair(seed)
    quality = panoptic_quality(*pair.arguments)["per_class"]
    matrix = confusion_matrix(match_segments(*pair.arguments), CATEGORIES).set_index("true")
    assert matrix.index[-1] == "spurious"
    assert matrix.columns[-1] == "missed"
    for category in CATEGORIES:
        row = quality[str(category["id"])]
        if row["tp"] + row["fn"] == 0:
            continue
        name = str(category["name"])
        assert matrix.loc[[name]].to_numpy().sum() == row["tp"] + row["fn"]
        assert matrix.at[name, name] == row["tp"]
        assert matrix[name].sum() >= row["tp"] + row["fp"]


def test_a_confused_pair_stands_where_its_classes_cross() -> None:
    rows = table(
        ("true", 2, 50, LABEL, 0.9, 5),
        ("predicted", 5, 50, LABEL, 0.9, 2),
        ("true", 5, 50, OUTLINE, 0.2, 5),
        ("predicted", 5, 50, OUTLINE, 0.2, 5),
    )
    assert confusion_matrix(rows, CATEGORIES).to_dict("list") == {
        "true": ["class 2", "class 5", "spurious"],
        "class 2": [0, 0, 0],
        "class 5": [1, 0, 1],
        "missed": [0, 1, 0],
    }


def test_a_pair_has_the_size_of_its_true_segment() -> None:
    rows = table(
        ("true", 1, 1023, MATCHED, 0.6, 1),
        ("predicted", 1, 1500, MATCHED, 0.6, 1),
        ("predicted", 1, 1024, "spurious", 0.0, None),
        ("true", 4, 9216, "missed", 0.0, None),
    )
    sizes = size_quality(rows, CATEGORIES, {"APs": 0.5, "APm": -1, "APl": 0.0}).set_index("size")
    assert list(sizes["pq"]) == [0.6, 0.0, 0.0]
    assert list(sizes["true_segments"]) == [1, 0, 1]
    assert sizes["pq_stuff"].fillna(-1).tolist() == [0.6, 0.0, -1]
    assert sizes["pq_things"].fillna(-1).tolist() == [-1, -1, 0.0]
    assert sizes["ap"].fillna(-1).tolist() == [0.5, -1, 0.0]
    assert sizes["ar"].isna().all()


@pytest.mark.parametrize("seed", range(8))
def test_the_score_of_an_image_is_its_own_pq(seed: int, random_pair: Callable[..., PanopticPair]) -> None:
    pair = random_pair(seed)
    scores = image_scores(match_segments(*pair.arguments))
    expected = {}
    for annotation in pair.truth["annotations"]:
        alone = {**pair.truth, "annotations": [annotation]}
        expected[annotation["image_id"]] = panoptic_quality(alone, *pair.arguments[1:])["All"]["pq"]
    assert dict(scores) == pytest.approx({k: pq for k, pq in expected.items() if pq is not None}, abs=1e-12)
    assert scores.is_monotonic_increasing


def test_of_equal_thresholds_the_one_in_use_or_the_higher_is_best() -> None:
    curve = pd.DataFrame(
        {
            "threshold": [0.25, 0.5, 0.75],
            "pq_things": [0.5, 0.5, 0.25],
            "pq_stuff": [0.5, 0.5, 0.25],
            "in_use_things": [True, False, False],
            "in_use_stuff": [False, False, True],
        }
    )
    assert best_thresholds(curve).to_numpy().tolist() == [["things", 0.25, 0.25, 0.0], ["stuff", 0.75, 0.5, 0.25]]
    without = best_thresholds(curve.assign(pq_things=float("nan")))
    assert without["kind"].tolist() == ["stuff"]


def test_no_threshold_is_best_for_what_is_predicted_at_lower_ones_alone() -> None:
    nan = float("nan")
    curve = pd.DataFrame({"threshold": [0.1, 0.3], "pq_things": [0.5, 0.6], "pq_stuff": [0.0, nan]})
    chosen = best_thresholds(curve.assign(in_use_things=[False, True], in_use_stuff=[False, True]))
    assert chosen["kind"].tolist() == ["things"]
