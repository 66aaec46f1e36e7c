import base64
import json
from pathlib import Path

import numpy as np
from PIL import Image

from construction_panoptic.catalog.datasets import PredictionResultsDataset
from construction_panoptic.evaluation.predictions import ImagePrediction
from construction_panoptic.prediction.running import Picture, PredictedPicture, RejectedFile
from construction_panoptic.prediction.sources import SourceFile

CATEGORIES = [{"id": 1, "name": "crane", "isthing": 1, "color": [200, 30, 30]}]


def predicted() -> PredictedPicture:
    id_map = np.zeros((40, 60), dtype=np.int32)
    id_map[:20] = 1
    segment = {"id": 1, "category_id": 1, "isthing": True, "area": 1200, "bbox": [0, 0, 60, 20], "score": 0.9}
    box = {"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 60.0, 20.0], "score": 0.9}
    prediction = ImagePrediction(1, "a.png", 60, 40, [segment], [box], CATEGORIES, id_map)
    pixels = np.full((40, 60, 3), 128, dtype=np.uint8)
    return PredictedPicture(Picture("a.png", SourceFile(Path("a.png"), "a.png"), pixels), prediction, 0.5)


def test_results_exist_when_they_are_complete(tmp_path: Path) -> None:
    entry = PredictionResultsDataset(filepath=str(tmp_path / "results"))
    assert not entry.exists()
    entry.save([predicted(), RejectedFile("b.png", "unreadable_image", "b.png: damaged")])
    assert entry.exists()
    assert entry.load() == tmp_path / "results"
    index = json.loads((tmp_path / "results" / "index.json").read_text())
    assert index["files"] == ["boxes/a.jpg", "masks/a.jpg"]
    assert index["rejected"] == [{"file": "b.png", "reason": "unreadable_image", "detail": "b.png: damaged"}]
    assert base64.b64decode(entry.preview()).startswith(b"\x89PNG")


def test_the_masks_view_colours_the_segment(tmp_path: Path) -> None:
    PredictionResultsDataset(filepath=str(tmp_path)).save([predicted()])
    with Image.open(tmp_path / "masks" / "a.jpg") as view:
        red, green, _ = np.asarray(view)[10, 10].astype(int)
    assert red - green > 50
