import base64
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.evaluation.analysis import image_scores
from construction_panoptic.evaluation.segments import match_segments
from construction_panoptic.files import write_json
from construction_panoptic.visualisation.examples import examples_of
from construction_panoptic.visualisation.reports import THUMBNAIL_SIDE, validation_page

CATEGORIES = [
    {"id": 1, "name": "sky", "isthing": 0, "color": [0, 0, 255]},
    {"id": 2, "name": "tower_<crane>", "isthing": 1, "color": [255, 0, 0]},
]
NAMES = {7: "good.jpg", 8: "<b>missed.jpg", 9: "void.jpg"}


def _side(folder: Path, cranes: dict[int, bool]) -> list[dict[str, object]]:
    """Sky, and below it a crane or void; image 9 is void altogether."""
    folder.mkdir()
    annotations: list[dict[str, object]] = []
    for image_id in NAMES:
        ids = np.zeros((300, 500), np.int32)
        if image_id != 9:
            ids[:150] = 1
            ids[200:, 100:300] = 2 if cranes[image_id] else 0
        (folder / f"{image_id}.png").write_bytes(encode_id_map(ids))
        segments = [
            {"id": int(i), "category_id": int(i), "area": int((ids == i).sum()), "iscrowd": 0, "score": 0.9}
            for i in np.unique(ids)
            if i
        ]
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments})
    return annotations


@pytest.fixture
def page(tmp_path: Path) -> str:
    """Three images: a crane is found, one is missed, and one image is void."""
    truth = {
        "images": [{"id": i, "file_name": name, "width": 500, "height": 300} for i, name in NAMES.items()],
        "annotations": _side(tmp_path / "truth", {7: True, 8: True}),
        "categories": CATEGORIES,
    }
    predicted = {"annotations": _side(tmp_path / "predicted", {7: True, 8: False})}
    write_json(tmp_path / "predicted" / "predictions.json", predicted)
    (tmp_path / "images").mkdir()
    for name in NAMES.values():
        Image.new("RGB", (500, 300), (90, 90, 90)).save(tmp_path / "images" / name)
    segments: pd.DataFrame = match_segments(truth, tmp_path / "truth", predicted, tmp_path / "predicted")
    shown: dict[int, float | None] = {**image_scores(segments), 9: None}
    folders = tmp_path / "images", tmp_path / "truth"
    drawn = examples_of(shown, truth, folders, tmp_path / "predicted", segments, max_side=THUMBNAIL_SIDE)
    truth["images"] += [{"id": 10, "file_name": "not_shown.jpg"}]
    return validation_page({"run": "first"}, truth, segments, shown, drawn)


def test_each_image_has_a_card_the_worst_first(page: str) -> None:
    cards = re.findall(r"<h3>(.*?)</h3>\n<p>(.*?)</p>", page)
    assert cards == [
        ("&lt;b&gt;missed.jpg", "PQ 50.0; 1 missed"),
        ("good.jpg", "PQ 100.0; no error"),
        ("void.jpg", "PQ n/a; no error"),
    ]
    assert "Not shown: 1 with the highest PQ." in page
    assert "<b>run</b>: first" in page


def test_what_the_filters_look_for(page: str) -> None:
    assert re.findall(r'data-found="(.*?)"', page) == [" 1:matched 2:missed ", " 1:matched 2:matched ", "  "]
    assert '<option value="2">tower &lt;crane&gt;</option>' in page
    assert '<option value="badly-outlined">badly outlined</option>' in page
    [script] = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert "_" not in script  # kedro-viz's preview would change it


def test_the_page_stands_alone_and_its_pictures_are_small(page: str) -> None:
    assert page.isascii()
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 9
    assert {Image.open(io.BytesIO(base64.b64decode(p))).size for p in pictures} == {(THUMBNAIL_SIDE, 192)}
