import base64
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from kedro.io import DatasetError
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import CSVDataset, ParquetDataset
from kedro_datasets.plotly import JSONDataset as PlotlyDataset
from PIL import Image
from plotly import graph_objects

from construction_panoptic.annotations.json_stream import LongList
from construction_panoptic.annotations.tables import TableWriter
from construction_panoptic.catalog.datasets import StoredTableDataset, StreamedDocumentDataset
from construction_panoptic.catalog.files import ProjectCatalog
from construction_panoptic.catalog.previews import HTMLDataset, PictureDataset
from construction_panoptic.errors import StorageError, user_error
from construction_panoptic.files import UNCHANGED


def test_saving_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    catalog = ProjectCatalog({"table": CSVDataset(filepath=str(tmp_path / "a" / "table.csv"))})
    table = pd.DataFrame({"class": ["crane", "pump"], "images": [3, 4]})
    catalog.save("table", table)
    catalog.save("table", UNCHANGED)
    pd.testing.assert_frame_equal(catalog.load("table"), table)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["table.csv"]


def test_text_of_records_comes_back_as_it_is(tmp_path: Path, repository: Path) -> None:
    catalog = yaml.safe_load((repository / "conf" / "base" / "catalog_2_annotations.yml").read_text())
    texts = ["NA", "null", "nan", "-", "007", " a, b ", 'the "third"\nline', "ü"]
    rows = {"source": texts, "image": [f"{text}/a.jpg" for text in texts], "annotation_id": ["1"] * 7 + [None]}
    table = pd.DataFrame(rows, dtype="string")
    for entry in ("rejected_while_reading", "repaired_while_reading", "rejected_records", "repaired_records"):
        dataset = CSVDataset(filepath=str(tmp_path / entry), load_args=catalog["_records"]["load_args"])
        dataset.save(table)
        pd.testing.assert_frame_equal(dataset.load(), table)


@pytest.mark.parametrize("entry", ["split", "split_audit", "class_counts"])
def test_names_in_tables_of_the_data_set_come_back_as_they_are(tmp_path: Path, repository: Path, entry: str) -> None:
    catalog = yaml.safe_load((repository / "conf" / "base" / "catalog_2_annotations.yml").read_text())
    table = pd.DataFrame({"key": ["N/A", "None", "null"], "group": [0, 1, 1], "share": [0.5, None, 1.0]})
    dataset = CSVDataset(filepath=str(tmp_path / entry), load_args=catalog[entry].get("load_args"))
    dataset.save(table)
    pd.testing.assert_frame_equal(dataset.load(), table, check_dtype=False)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    catalog = ProjectCatalog({"a": JSONDataset(filepath=str(tmp_path / "a.json"))})
    catalog.save("a", {"pq": 0.5})
    with pytest.raises(DatasetError):
        catalog.save("a", {"pq": object()})
    assert catalog.load("a") == {"pq": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_stored_table_comes_back_as_one(tmp_path: Path) -> None:
    dataset = StoredTableDataset(filepath=str(tmp_path / "new" / "table.parquet"))
    assert not dataset.exists()
    with pytest.raises(DatasetError, match=r"table\.parquet"):
        dataset.load()
    writer = TableWriter({"key": "string"})
    writer.append(pd.DataFrame({"key": ["a", "b"]}, dtype="string"))
    dataset.save(writer.table())
    assert dataset.load().frame()["key"].tolist() == ["a", "b"]
    assert dict(dataset.preview()) == {"index": [0, 1], "columns": ["key"], "data": [["a"], ["b"]]}
    dataset.save(TableWriter({"key": "string"}).table())
    assert dict(dataset.preview())["data"] == []


def test_a_streamed_document_holds_none_of_its_images(tmp_path: Path) -> None:
    document = {"images": [{"id": number} for number in range(5)], "categories": [{"id": 1}]}
    dataset = StreamedDocumentDataset(filepath=str(tmp_path / "coco.json"))
    dataset.save({**document, "images": iter(document["images"])})
    loaded = dataset.load()
    assert isinstance(loaded["images"], LongList)
    assert {name: [*value] for name, value in loaded.items()} == document
    assert json.loads(dataset.preview())["images"][3:] == ["…"]


def every_kind() -> dict[str, tuple[type, Any]]:
    """Data that need more than 8 KiB, for each dataset."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    table = pd.DataFrame(noise)
    writer = TableWriter({"key": "string"})
    writer.append(pd.DataFrame({"key": noise.astype(str).ravel()}, dtype="string"))
    return {
        "picture.png": (PictureDataset, Image.fromarray(noise)),
        "table.csv": (CSVDataset, table),
        "table.parquet": (ParquetDataset, table.rename(columns=str)),
        "stored.parquet": (StoredTableDataset, writer.table()),
        "document.json": (JSONDataset, noise.tolist()),
        "chart.json": (PlotlyDataset, graph_objects.Figure(graph_objects.Scatter(y=noise.ravel().tolist()))),
        "page.html": (HTMLDataset, "text " * 20_000),
    }


@pytest.mark.parametrize("name", list(every_kind()))
def test_a_full_disk_is_named_whatever_is_written(small_disk: Path, name: str) -> None:
    """Libraries say it in their own ways, Pillow only that an encoder failed."""
    make, data = every_kind()[name]
    catalog = ProjectCatalog({"made": make(filepath=str(small_disk / name))})
    (small_disk / name).write_bytes(b"old")
    filler = small_disk / "filler"
    filler.write_bytes(b"")
    with contextlib.suppress(OSError):
        while True:
            filler.write_bytes(filler.read_bytes() + bytes(4096))
    filler.write_bytes(filler.read_bytes()[:-8192])
    with pytest.raises((StorageError, DatasetError)) as caught:
        catalog.save("made", data)
    error = user_error(caught.value)
    assert isinstance(error, StorageError)
    assert re.search(rf"{re.escape(name)} cannot be written: No space left .*Make room on the disk of", str(error))
    assert (small_disk / name).read_bytes() == b"old"
    assert {path.name for path in small_disk.iterdir()} == {name, "filler"}


def test_the_preview_of_a_picture_is_a_small_png(tmp_path: Path) -> None:
    dataset = PictureDataset(filepath=str(tmp_path / "a.png"))
    dataset.save(Image.new("RGB", (3000, 1500), "orange"))
    shown = Image.open(io.BytesIO(base64.b64decode(dataset.preview())))
    assert shown.size == (1200, 600)
    assert shown.format == "PNG"
