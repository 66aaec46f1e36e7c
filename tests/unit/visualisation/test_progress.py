from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.models.protocol import Segmentation
from construction_panoptic.visualisation.progress import ProgressSheet
from tests.unit.evaluation.pairs import entry

CATEGORIES = [
    {"id": 1, "name": "sky", "isthing": 0, "color": [0, 0, 255]},
    {"id": 2, "name": "crane", "isthing": 1, "color": [255, 0, 0]},
]
IDS = np.repeat([1, 2], 20)[:, None].repeat(60, axis=1)  # sky above, a crane below


@pytest.fixture
def converted(tmp_path: Path) -> ConvertedImages:
    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.new("RGB", (60, 40), (128, 128, 128)).save(tmp_path / "images" / f"{i}.png")
    return ConvertedImages(image_folder=tmp_path / "images", png_folder=tmp_path / "pngs", index=tmp_path)


def truth(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in range(6)]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def panoptic(converted: ConvertedImages) -> dict[str, Any]:
    return truth([entry(i, converted.png_folder, IDS, {1: 1, 2: 2}, set()) for i in range(6)])


def seen(categories: tuple[int, int]) -> Segmentation:
    return Segmentation(IDS.astype(np.int32), [{"id": k, "category_id": c} for k, c in enumerate(categories, 1)])


def rows(sheet: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The upper half of a sheet of one row, the truth, and the lower one, the prediction."""
    pixels = np.asarray(sheet).astype(int)
    return pixels[: len(pixels) // 2], pixels[len(pixels) // 2 :]


def red_fraction(pixels: np.ndarray) -> float:
    return float((pixels[..., 0] > pixels[..., 2] + 60).mean())


def test_the_prediction_stands_below_the_truth(converted: ConvertedImages) -> None:
    sheet = ProgressSheet(panoptic(converted), converted, 2)
    for image in range(6):
        sheet.see(image, seen((1, 1)))  # sky everywhere
    picture = sheet.take(3)
    assert picture is not None
    above, below = rows(picture)
    assert red_fraction(above) > 0.2
    assert red_fraction(below) == 0
    assert picture.width == 800  # two images


def test_it_is_of_what_was_seen_since_the_last_one(converted: ConvertedImages) -> None:
    sheet = ProgressSheet(panoptic(converted), converted, 6)
    assert sheet.take(1) is None
    for image in range(6):
        sheet.see(image, seen((1, 2)))
    picture = sheet.take(2)
    assert picture is not None
    assert picture.width == 1600  # four a row
    assert sheet.take(3) is None


def test_no_images_no_picture(converted: ConvertedImages) -> None:
    sheet = ProgressSheet(panoptic(converted), converted, 0)
    sheet.see(0, seen((1, 2)))
    sheet.see(1, [])
    assert sheet.take(1) is None


def test_boxes_are_drawn_from_a_score_of_half_on(converted: ConvertedImages) -> None:
    box = {"category_id": 2, "bbox": [5, 5, 40, 30]}
    sheet = ProgressSheet(truth([{**box, "image_id": i} for i in range(6)]), converted, 1)
    fractions = []
    for score in (0.4, 0.6):
        for image in range(6):
            sheet.see(image, [{**box, "score": score}])
        picture = sheet.take(1)
        assert picture is not None
        above, below = rows(picture)
        assert red_fraction(above) > 0
        fractions.append(red_fraction(below))
    assert fractions[0] == 0
    assert fractions[1] > 0
