import base64
import io
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from kedro.io import DatasetError
from PIL import Image

from construction_panoptic.catalog import CSVDataset, JSONDataset, PictureDataset
from construction_panoptic.catalog.files import shortened


def test_saving_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    dataset = CSVDataset(filepath=str(tmp_path / "a" / "table.csv"))
    table = pd.DataFrame({"class": ["crane", "pump"], "images": [3, 4]})
    dataset.save(table)
    pd.testing.assert_frame_equal(dataset.load(), table)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["table.csv"]
    assert dataset.exists()
    dataset.invalidate()
    assert not dataset.exists()


def test_text_of_records_comes_back_as_it_is(tmp_path: Path, repository: Path) -> None:
    catalog = yaml.safe_load((repository / "conf" / "base" / "catalog_2_annotations.yml").read_text())
    texts = ["NA", "null", "nan", "-", "007", " a, b ", 'the "third"\nline', "ü"]
    rows = {"source": texts, "image": [f"{text}/a.jpg" for text in texts], "annotation_id": ["1"] * 7 + [None]}
    table = pd.DataFrame(rows, dtype="string")
    for entry in ("rejected_while_reading", "repaired_while_reading", "rejected_records", "repaired_records"):
        dataset = CSVDataset(filepath=str(tmp_path / entry), load_args=catalog[entry]["load_args"])
        dataset.save(table)
        pd.testing.assert_frame_equal(dataset.load(), table)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    dataset = JSONDataset(filepath=str(tmp_path / "a.json"))
    dataset.save({"pq": 0.5})
    with pytest.raises(DatasetError):
        dataset.save({"pq": object()})
    assert dataset.load() == {"pq": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_preview_of_a_picture_is_a_small_png(tmp_path: Path) -> None:
    dataset = PictureDataset(filepath=str(tmp_path / "a.png"))
    dataset.save(Image.new("RGB", (3000, 1500), "orange"))
    shown = Image.open(io.BytesIO(base64.b64decode(dataset.preview())))
    assert shown.size == (1200, 600)
    assert shown.format == "PNG"


def test_the_preview_of_json_is_short_whatever_the_file(tmp_path: Path) -> None:
    dataset = JSONDataset(filepath=str(tmp_path / "a.json"))
    dataset.save({"images": [{"id": number, "sizes": list(range(10))} for number in range(100_000)]})
    shown = json.loads(dataset.preview())
    assert shown["images"][0] == {"id": 0, "sizes": [0, 1, 2, "… 7 more"]}
    assert shown["images"][3:] == ["… 99997 more"]


def test_short_lists_stay_whole() -> None:
    assert shortened({"a": [1, 2, 3, 4], "b": "x" * 300}) == {"a": [1, 2, 3, 4], "b": "x" * 200 + "…"}
