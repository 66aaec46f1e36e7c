import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from construction_panoptic.config.base import Execution
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation import segments
from construction_panoptic.evaluation.analysis import class_scores
from construction_panoptic.evaluation.quality import merge_counts, panoptic_quality, quality_of_counts
from construction_panoptic.evaluation.segments import counts_of, match_image, match_segments, segment_table
from tests.unit.evaluation.pairs import CATEGORIES, PanopticPair, load_ids, save_ids


def matched(truth: list[str], predicted: list[str], crowd: str = "") -> pd.DataFrame:
    """Match two maps of letters, a segment each; small ones have class 1, capital ones class 2, a dot is void."""
    sides: list[Any] = []
    for rows in (truth, predicted):
        letters = np.array([list(row) for row in rows])
        names = sorted(set(letters.ravel()) - {"."})
        ids = np.zeros(letters.shape, np.int64)
        for name in names:
            ids[letters == name] = ord(name)
        segments = [
            {"id": ord(n), "category_id": 1 + n.isupper(), "iscrowd": int(n in crowd), "score": 0.5} for n in names
        ]
        sides += [ids, segments]
    return segment_table(list(match_image(7, sides[0], sides[1], sides[2], sides[3])))


def outcomes(table: pd.DataFrame) -> dict[str, list[tuple[str, str, float]]]:
    """By side: (segment, outcome, IoU)."""
    return {
        str(side): [(chr(r["segment_id"]), r["outcome"], round(r["iou"], 3)) for r in rows.to_dict("records")]
        for side, rows in table.groupby("side")
    }


def test_each_outcome_on_a_map_that_can_be_counted() -> None:
    table = matched(
        ["aaaabbbbCCCC........", "aaaabbbbCCCCddddgggg"],
        ["aaaa....cccc........", "aaaeEEEEcccc...fGGGh"],
    )
    assert outcomes(table) == {
        "true": [
            ("C", "mislabelled", 1.0),
            ("a", "matched", 0.875),
            ("b", "missed", 0.5),  # E has half of it, and more than half makes a pair
            ("d", "badly_outlined", 0.25),
            ("g", "mislabelled", 0.75),
        ],
        "predicted": [
            ("E", "spurious", 0.5),
            ("G", "mislabelled", 0.75),
            ("a", "matched", 0.875),
            ("c", "mislabelled", 1.0),
            ("e", "spurious", 0.125),  # a is matched already
            ("f", "badly_outlined", 0.25),
            ("h", "badly_outlined", 0.25),
        ],
    }


def test_a_badly_outlined_segment_keeps_the_partner_of_its_class() -> None:
    table = matched(["aaaaaaaa"], ["aaaXXXX."])
    rows = table.set_index("side")
    assert rows.loc["true", "outcome"] == "badly_outlined"
    assert rows.loc["true", "other_id"] == ord("a")
    assert rows.loc["true", "iou"] == pytest.approx(3 / 8)


def test_what_is_mostly_void_is_ignored_and_void_leaves_the_area() -> None:
    rows = outcomes(matched(["aaaa......"], ["aaaaa.bbcc"]))
    assert rows["true"] == [("a", "matched", 1.0)]
    assert rows["predicted"] == [("a", "matched", 1.0), ("b", "ignored", 0.0), ("c", "ignored", 0.0)]


def test_what_lies_in_a_crowd_of_its_class_is_ignored() -> None:
    rows = outcomes(matched(["aaaabbbb"], ["ccCC...."], crowd="a"))
    assert rows["true"] == [("b", "missed", 0.0)]
    assert rows["predicted"] == [("C", "spurious", 0.0), ("c", "ignored", 0.0)]


@pytest.mark.parametrize("seed", range(30))
def test_the_rows_hold_panoptic_quality(seed: int, random_pair: Callable[..., PanopticPair]) -> None:
    pair = random_pair(seed)
    scores = class_scores(match_segments(*pair.arguments))
    expected = panoptic_quality(*pair.arguments)["per_class"]
    assert set(scores.index) == {int(key) for key, row in expected.items() if row["present"]}
    for identity, row in scores.iterrows():
        for key in ("pq", "sq", "rq", "tp", "fp", "fn"):
            assert row[key] == pytest.approx(expected[str(identity)][key], abs=1e-12), (identity, key)


def test_areas_and_ids_are_those_of_the_files(random_pair: Callable[..., PanopticPair]) -> None:
    pair = random_pair(3)
    table = match_segments(*pair.arguments)
    for annotation in pair.predictions["annotations"]:
        ids = load_ids(pair.prediction_folder / annotation["file_name"])
        rows = table[(table["image_id"] == annotation["image_id"]) & (table["side"] == "predicted")]
        found = dict(zip(rows["segment_id"], rows["area"], strict=True))
        assert found == {s["id"]: np.count_nonzero(ids == s["id"]) for s in annotation["segments_info"]}
    assert len(json.loads(table.to_json(orient="records"))) == len(table) > 5


@pytest.mark.usefixtures("ready_processes")
def test_processes_give_the_same_rows(
    random_pair: Callable[..., PanopticPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = random_pair(3)
    expected = match_segments(*pair.arguments)
    monkeypatch.setattr(segments, "_FEW", 0)
    pd.testing.assert_frame_equal(match_segments(*pair.arguments, Execution(workers=2)), expected)


def test_a_missing_prediction_is_named(random_pair: Callable[..., PanopticPair]) -> None:
    pair = random_pair(0)
    with pytest.raises(InputDataError, match=r"no prediction for .* the first being image 1"):
        match_segments(pair.truth, pair.truth_folder, {"annotations": []}, pair.prediction_folder)


def test_another_size_is_named(random_pair: Callable[..., PanopticPair], tmp_path: Path) -> None:
    pair = random_pair(0)
    save_ids(tmp_path / "1.png", np.zeros((2, 3), np.int64))
    predictions = {"annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": []}]}
    truth = {**pair.truth, "annotations": pair.truth["annotations"][:1]}
    with pytest.raises(InputDataError, match=r"image 1: .* \(3, 2\) pixels"):
        match_segments(truth, pair.truth_folder, predictions, tmp_path)


@pytest.mark.parametrize("seed", range(10))
def test_quality_in_memory_is_that_of_the_files(seed: int, random_pair: Callable[..., PanopticPair]) -> None:
    pair = random_pair(seed)
    rows: list[tuple[Any, ...]] = []
    for true, predicted in zip(pair.truth["annotations"], pair.predictions["annotations"], strict=True):
        rows += match_image(
            true["image_id"],
            load_ids(pair.truth_folder / true["file_name"]),
            true["segments_info"],
            load_ids(pair.prediction_folder / predicted["file_name"]),
            predicted["segments_info"],
        )
    found = quality_of_counts(merge_counts(map(counts_of, rows)), CATEGORIES)
    expected = panoptic_quality(*pair.arguments)
    assert expected["All"]["n"] > 2
    for split in ("All", "Things", "Stuff"):
        assert found[split] == pytest.approx(expected[split], abs=1e-12)
    for identity, row in expected["per_class"].items():
        assert found["per_class"][identity] == pytest.approx(row, abs=1e-12)
