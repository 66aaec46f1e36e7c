from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from construction_panoptic.annotations.formats.reading import Exports, read_exports
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.config.base import ONE_PROCESS
from construction_panoptic.config.conversion import ConversionSettings

pytest.importorskip("datumaro", reason="the extra `datumaro` is not installed")

TAXONOMY = Taxonomy.from_dict(
    {
        "stuff": [{"id": 1, "name": "sky", "color": [0, 0, 1]}],
        "things": [{"id": 2, "name": "crane", "color": [0, 0, 2]}, {"id": 3, "name": "pump", "color": [0, 0, 3]}],
    }
)
SIZE = (60, 80)


def written(folder: Path, form: str) -> Path:
    """Write an image with two things as datumaro does: a crane of two parts, and a pump."""
    from datumaro import Bbox, Dataset, DatasetItem, Image, Mask, Polygon

    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    if form in ("cvat", "label_me"):
        shapes = [
            Polygon([5, 5, 30, 5, 30, 20, 5, 20], label=1, group=1),
            Polygon([5, 30, 30, 30, 30, 40, 5, 40], label=1, group=1),
            Polygon([40, 30, 70, 30, 70, 50, 40, 50], label=2, z_order=1),
        ]
    elif form == "yolo":
        shapes = [Bbox(5, 5, 25, 15, label=1), Bbox(40, 30, 30, 20, label=2)]
    else:
        masks = np.zeros((2, *SIZE), dtype=bool)
        masks[0, 5:20, 5:30] = masks[1, 30:50, 40:70] = True
        shapes = [Mask(masks[0], label=1, id=1, group=1), Mask(masks[1], label=2, id=2, group=2)]
        shapes += [Bbox(5, 5, 25, 15, label=1, id=1, group=1)] if form == "voc" else []
    item = DatasetItem(id="gate/first", subset="train", media=Image.from_numpy(pixels), annotations=shapes)
    dataset = Dataset.from_iterable([item], categories=["background", "crane", "pump"])
    dataset.export(str(folder / "site"), form, save_media=True)
    return folder


def read(folder: Path, form: str, **options: str) -> Exports:
    settings = ConversionSettings(execution=ONE_PROCESS, **options)  # type: ignore[arg-type]
    return read_exports(written(folder, form), TAXONOMY, settings)


@pytest.mark.parametrize("form", ["cvat", "label_me", "voc", "cityscapes"])
def test_outlines(tmp_path: Path, form: str) -> None:
    exports = read(tmp_path, form)
    assert exports.rejected.empty
    assert exports.images["key"].str.contains("first").tolist() == [True]
    rows = exports.annotations.frame()
    assert rows["category"].tolist() == ["crane", "pump"]
    areas = {
        category: sum(int(coco_mask.area({"size": [*SIZE], "counts": rle})) for rle in of_it["rle"])
        for category, of_it in rows.groupby("category")
    }
    assert areas == {"crane": 25 * 15 + (25 * 10 if form in ("cvat", "label_me") else 0), "pump": 30 * 20}


def test_boxes_are_kept_where_asked_for(tmp_path: Path) -> None:
    exports = read(tmp_path, "yolo", boxes_without_polygon="keep")
    assert exports.annotations.frame()["category"].tolist() == ["crane", "pump"]
    assert exports.repaired["reason"].tolist() == ["box_as_mask", "box_as_mask"]


def test_boxes_without_outline_are_rejected(tmp_path: Path) -> None:
    exports = read(tmp_path, "yolo")
    assert exports.rejected["reason"].tolist() == ["no_segmentation", "no_segmentation"]


def test_what_is_no_region_is_a_rejected_record(tmp_path: Path) -> None:
    document = next(written(tmp_path, "cvat").rglob("*.xml"))
    text = document.read_text().replace("</image>", '<polyline label="crane" points="1,1;9,9" z_order="2"/></image>')
    document.write_text(text)
    rejected = read_exports(tmp_path, TAXONOMY).rejected
    assert rejected["detail"].tolist() == ["it is no region but a polyline"]


def test_a_damaged_export_is_a_rejected_record(tmp_path: Path) -> None:
    good = written(tmp_path, "cvat")
    bad = written(tmp_path / "other", "cvat") / "site"
    bad.rename(good / "yard")
    (tmp_path / "other").rmdir()
    document = next((good / "yard").glob("*.xml"))
    document.write_text(document.read_text().replace('width="80"', 'width="wide"'))
    exports = read_exports(good, TAXONOMY)
    assert exports.images["source"].tolist() == ["site"]
    assert exports.rejected["source"].tolist() == ["yard"]


def test_an_export_with_a_missing_image_is_a_rejected_record(tmp_path: Path) -> None:
    form = written(tmp_path, "cvat")
    good = written(tmp_path / "other", "cvat") / "site"
    good.rename(form / "yard")
    (tmp_path / "other").rmdir()
    next((form / "site").rglob("*.jpg")).unlink()
    exports = read_exports(form, TAXONOMY)
    assert exports.images["source"].tolist() == ["yard"]
    assert exports.rejected["source"].tolist() == ["site"]
    assert "first.jpg" in exports.rejected["detail"][0]
