import contextlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from construction_panoptic.evaluation.precision import average_precision
from construction_panoptic.evaluation.tables import (
    class_quality_text,
    precision_table,
    precision_text,
    quality_table,
    quality_text,
)

NAMES = {1: "earth", 17: "crane", 20: "a thing with a rather long name"}
QUALITY: dict[str, Any] = {
    "All": {"pq": 0.41249, "sq": 0.7, "rq": 0.5551, "n": 2},
    "Things": {"pq": None, "sq": None, "rq": None, "n": 0},
    "Stuff": {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 1},
    "per_class": {
        "17": {"pq": 0.25, "sq": 0.5, "rq": 0.5, "isthing": True, "present": True, "tp": 1, "fp": 1, "fn": 1},
        "1": {"pq": 1.0, "sq": 1.0, "rq": 1.0, "isthing": False, "present": True, "tp": 2, "fp": 0, "fn": 0},
        "20": {"pq": 0.0, "sq": 0.0, "rq": 0.0, "isthing": True, "present": False, "tp": 0, "fp": 0, "fn": 0},
    },
}
TRUTH = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 400, "height": 400}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 17, "bbox": [0, 0, 100, 100], "area": 10_000, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [10, 200, 40, 40], "area": 1_600, "iscrowd": 0},
    ],
    "categories": [{"id": i, "name": name} for i, name in NAMES.items()],
}
RESULTS = [
    {"image_id": 1, "category_id": 17, "bbox": [5, 0, 100, 90], "score": 0.9},
    {"image_id": 1, "category_id": 1, "bbox": [10, 200, 20, 40], "score": 0.8},
]


def test_quality_text() -> None:
    assert quality_text(QUALITY).splitlines() == [
        "          |    PQ     SQ     RQ     N",
        "--------------------------------------",
        "All       |  41.2   70.0   55.5     2",
        "Things    |   n/a    n/a    n/a     0",
        "Stuff     | 100.0  100.0  100.0     1",
    ]


@pytest.mark.skipif(importlib.util.find_spec("panopticapi") is None, reason="panopticapi is not installed")
def test_quality_text_is_what_panopticapi_prints(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from panopticapi.evaluation import pq_compute

    from construction_panoptic.evaluation.quality import panoptic_quality

    (tmp_path / "png").mkdir()
    Image.fromarray(np.array([[[1, 0, 0], [2, 0, 0]]], np.uint8)).save(tmp_path / "png" / "1.png")
    segments = [{"id": i, "category_id": i, "area": 1, "iscrowd": 0} for i in (1, 2)]
    data = {
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        "categories": [{"id": 1, "isthing": 0}, {"id": 2, "isthing": 1}],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    arguments = (
        str(tmp_path / "a.json"),
        str(tmp_path / "a.json"),
        str(tmp_path / "png"),
        str(tmp_path / "png"),
    )
    pq_compute(*arguments)
    ours = panoptic_quality(arguments[0], arguments[2], arguments[1], arguments[3])
    assert quality_text(ours) in capfd.readouterr().out


def test_precision_text_is_what_pycocotools_prints() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(TRUTH))
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(json.loads(json.dumps(RESULTS))), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        with contextlib.redirect_stdout(printed):
            evaluator.summarize()
    text = precision_text(average_precision(TRUTH, RESULTS))
    assert text == printed.getvalue().rstrip("\n")
    assert "area= small | maxDets=100 ] = -1.000" in text


def test_class_quality_text_has_the_present_classes_best_first() -> None:
    lines = class_quality_text(QUALITY, NAMES).splitlines()
    assert lines[0] == "class | kind  |    PQ     SQ     RQ     TP     FP     FN"
    assert lines[2:] == [
        "earth | stuff | 100.0  100.0  100.0      2      0      0",
        "crane | thing |  25.0   50.0   50.0      1      1      1",
    ]


def test_class_quality_text_without_classes() -> None:
    assert len(class_quality_text({"per_class": {}}, NAMES).splitlines()) == 2


def test_quality_table_has_the_means_then_the_classes_that_take_part() -> None:
    table = quality_table(QUALITY, NAMES).set_index("name")
    assert table.index.tolist() == ["All", "Things", "Stuff", "earth", "crane"]
    assert table["category_id"].tolist()[3:] == [1, 17]
    assert table["kind"].tolist()[3:] == ["stuff", "thing"]
    assert table["pq"].fillna(-1).tolist() == [0.41249, -1, 1.0, 1.0, 0.25]
    assert quality_table(json.loads(json.dumps(QUALITY)), {})["name"].tolist()[3:] == ["1", "17"]


def test_precision_table() -> None:
    precision = average_precision(TRUTH, RESULTS)
    table = precision_table(precision).set_index("metric")
    assert len(table) == 12
    assert table.loc["AP50", "box"] == precision["AP50"] > 0
    assert table["box"].isna()["APs"]
    assert [table[column]["APm"] for column in ("iou", "area", "detections")] == ["0.50:0.95", "medium", 100]
