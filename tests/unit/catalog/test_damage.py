"""Files that a fault of the disk or a power cut has damaged: named, with what to do, or made anew."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import CSVDataset, ParquetDataset

from construction_panoptic.annotations.records import ConvertedImage, ConvertedRecord, Segment
from construction_panoptic.annotations.tables import TableWriter
from construction_panoptic.catalog.datasets import ConvertedImagesDataset, StoredTableDataset, StreamedDocumentDataset
from construction_panoptic.catalog.files import ProjectCatalog
from construction_panoptic.errors import DamagedFileError, InputDataError

TABLE = pd.DataFrame({"name": ["crane", "excavator"], "count": [1, 2]})


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (JSONDataset, {"images": [1, 2]}),
        (StreamedDocumentDataset, {"images": [1, 2]}),
        (ParquetDataset, TABLE),
        (StoredTableDataset, TableWriter({"name": "string"}).table()),
        (CSVDataset, TABLE),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, kind: Any, content: Any) -> None:
    path = tmp_path / "made.file"
    catalog = ProjectCatalog({"made": kind(filepath=str(path))})
    catalog.save("made", content)
    path.write_bytes(b'"' + path.read_bytes()[:-3])
    with pytest.raises(DamagedFileError, match="remove it: going on makes it anew") as caught:
        catalog.load("made")
    assert str(caught.value).startswith(f"{path} is damaged (")


@pytest.mark.parametrize("kind", [JSONDataset, ParquetDataset, CSVDataset])
def test_an_empty_file_is_made_anew(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "made.file"
    catalog = ProjectCatalog({"made": kind(filepath=str(path))})
    assert not catalog.exists("made")
    catalog.save("made", TABLE if kind is not JSONDataset else {})
    assert catalog.exists("made")
    path.write_bytes(b"")
    assert not catalog.exists("made")


def test_a_file_that_is_not_there_is_no_damage(tmp_path: Path) -> None:
    catalog = ProjectCatalog({"made": JSONDataset(filepath=str(tmp_path / "none.json"))})
    with pytest.raises(InputDataError, match=r"made is missing .*run the pipeline that makes it first"):
        catalog.load("made")


def test_a_damaged_record_of_a_converted_image(tmp_path: Path) -> None:
    images = ConvertedImagesDataset(
        filepath=str(tmp_path / "images.jsonl"), image_folder="images", png_folder="panoptic"
    )
    segments = [Segment(1, 1, 4, (0, 0, 2, 2), "04", 0, None)]
    records = [ConvertedRecord(f"site/{n}.jpg", str(n), f"{n}.jpg", 2, 2, segments, 0, [], "00") for n in range(2)]
    images.save(lambda _: [ConvertedImage(record, b"png", b"jpg", "0") for record in records])
    path = tmp_path / "images.jsonl"
    good, bad = path.read_text().splitlines()
    for line in (bad[:-20], bad.replace('"key"', '"kez"'), json.dumps([])):
        path.write_text(f"{good}\n{line}\n")
        with pytest.raises(DamagedFileError, match=r"images\.jsonl, line 2, is damaged .* remove it"):
            list(images.load())
    path.write_bytes(b"")
    assert not ProjectCatalog({"images": images}).exists("images")
