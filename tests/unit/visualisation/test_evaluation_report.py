import re

import numpy as np
import pandas as pd
from PIL import Image

from construction_panoptic.visualisation.reports import evaluation_report
from construction_panoptic.visualisation.sheets import Example
from tests.unit.visualisation.test_error_charts import CONFUSIONS, NAN, budget

QUALITY = {
    "All": {"pq": 0.6, "sq": 0.8, "rq": 0.75, "n": 2},
    "Things": {"pq": 0.6, "sq": 0.8, "rq": 0.75, "n": 2},
    "Stuff": {"pq": None, "sq": None, "rq": None, "n": 0},
}
QUALITIES = pd.DataFrame(
    [
        {"name": "All", "kind": NAN, "pq": 0.6, "sq": 0.8, "rq": 0.75},
        {"name": "Things", "kind": NAN, "pq": 0.6, "sq": 0.8, "rq": 0.75},
        {"name": "Stuff", "kind": NAN, "pq": NAN, "sq": NAN, "rq": NAN},
        {"name": "tower_crane", "kind": "thing", "pq": 0.6, "sq": 0.811, "rq": 0.75},
    ]
)
PRECISIONS = pd.DataFrame([{"metric": "APs", "iou": "0.50:0.95", "area": "small", "detections": 100, "box": NAN}])
SIZES = pd.DataFrame(
    [
        {"size": "small", "true_segments": 1234, "pq": 0.321, "sq": 0.7, "rq": 0.4, "pq_things": 0.321}
        | {"pq_stuff": NAN, "ap": 0.2, "ar": 0.3}
    ]
)
CALIBRATION = pd.DataFrame({"of": ["boxes"], "score": [0.9], "right": [0.6], "count": [10]})
ERRORS = pd.DataFrame({"error": ["Loc"], "meaning": ["badly placed <x>"], "count": [7], "delta_ap": [0.123]})
CURVE = pd.DataFrame(
    {
        "threshold": [0.5, 0.7, 0.85],
        "pq": [0.55, 0.5, 0.4],
        "pq_things": [0.55, 0.5, 0.4],
        "pq_stuff": [0.2, 0.3, 0.3],
        "segments": [5.0, 4.0, 3.0],
        "images": [64] * 3,
    }
)
SHEET = Image.new("RGB", (2400, 5000))
PICTURE = np.full((90, 60, 3), 200, np.uint8)
WORST = [Example("<b>yard.jpg", dict.fromkeys(("Image", "Ground truth", "Prediction", "Errors"), PICTURE), 0.12)]


def report(
    things: float = 0.7, stuff: float = 0.7, calibration: pd.DataFrame = CALIBRATION, curve: pd.DataFrame = CURVE
) -> str:
    precision = {"AP": 0.345, "AP50": -1}
    curve = curve.assign(in_use_things=curve["threshold"] == things, in_use_stuff=curve["threshold"] == stuff)
    tables = (QUALITIES, PRECISIONS, budget(), CONFUSIONS, SIZES, calibration, ERRORS, curve)
    return evaluation_report({"model": "DETR, epoch 8"}, QUALITY, precision, SHEET, WORST, *tables)


def test_the_page_holds_every_part_and_stands_alone() -> None:
    page = report()
    assert page.isascii()
    assert "<b>yard" not in page
    for text in (
        "DETR, epoch 8",
        "60.0",
        "34.5",
        "n/a",
        "tower crane",
        "1,234",
        "32.1",
        "<td>tower crane</td><td>thing</td><td>60.0</td><td>81.1</td>",
        "<td>APs</td><td>0.50:0.95</td><td>small</td><td>100</td><td>n/a</td>",
        "badly placed &lt;x&gt;",
        "12.3",
        "&lt;b&gt;yard.jpg: PQ 12.0",
    ):
        assert text in page, text
    assert "Mean distance from the line: 30.0 points for boxes." in " ".join(page.split())
    assert page.count("data:image/jpeg;base64,") == 5
    assert page.count("<svg") == 3
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    captions = ["image", "ground truth", "prediction", "errors"]
    assert re.findall(r'alt="(.*)" width="60" height="90"', page) == captions
    assert "nan" not in re.sub(r"base64,[^\"]+|<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_the_best_thresholds_on_training_images_are_recommended() -> None:
    page = report()
    assert "Of things the best is 0.5, 5.0 points above the one in use, 0.7." in page
    assert "Of stuff the one in use, 0.7, is the best of those tried." in page
    assert "panoptic_evaluation.threshold=0.5,panoptic_evaluation.threshold_stuff=0.7<" in page
    assert "To take the best" not in report(things=0.5)
    assert "0.5 / 0.7" in report(things=0.5)


def test_nothing_is_said_of_a_kind_that_is_absent() -> None:
    page = report(curve=CURVE.assign(pq_stuff=NAN))
    assert "panoptic_evaluation.threshold=0.5<" in page
    assert "Of stuff" not in page
    assert "nan" not in re.sub(r"base64,[^\"]+|<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_without_predictions_there_is_a_page() -> None:
    assert "Nothing was predicted." in report(calibration=CALIBRATION.iloc[:0])
