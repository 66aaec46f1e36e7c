import random
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from construction_panoptic.annotations import tables
from construction_panoptic.annotations.tables import (
    RowsOfKeys,
    StoredTable,
    TableWriter,
    WaitingItems,
)
from construction_panoptic.errors import shortage

COLUMNS = {"key": "string", "order": "int64", "area": "float64"}


def table_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def stored(*parts: pd.DataFrame) -> StoredTable:
    writer = TableWriter(COLUMNS)
    for part in parts:
        writer.append(part)
    return writer.table()


@pytest.mark.parametrize("rows", [0, 1, 9, 10, 11, 35])
def test_parts_make_one_table(monkeypatch: pytest.MonkeyPatch, rows: int, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "_ROWS_OF_GROUP", 10)
    monkeypatch.setattr(tables, "_ROWS_OF_BLOCK", 3)
    added = [{"key": None if number % 7 == 3 else f"é{number}", "order": number, "area": 0.5} for number in range(rows)]
    writer = TableWriter(COLUMNS)
    writer.append(added)
    expected = table_of(added)
    pd.testing.assert_frame_equal(writer.table().frame(), expected)

    in_file = stored(expected[:4], expected[4:])
    in_file.copy_to(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), expected)
    for found in (in_file, StoredTable(tmp_path / "table.parquet")):
        assert len(found) == rows
        pd.testing.assert_frame_equal(found.frame(), expected)
        pd.testing.assert_frame_equal(found.frame(["area"]), expected[["area"]])
        assert list(found.rows()) == added
        assert list(found.rows(["area", "key"])) == [{"key": row["key"], "area": 0.5} for row in added]


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="table"):
        StoredTable(tmp_path / "table.parquet")
    (tmp_path / "table.parquet").write_bytes(b"key,order\n" * 9)
    with pytest.raises(ValueError, match="Parquet"):
        StoredTable(tmp_path / "table.parquet")


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_rows_are_those_of_the_key(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(tables, "_ROWS_OF_BLOCK", size)
    counts = {"a": 1, "a b": 3, "a/b": 2, "é": 4, "\U0001f3d7": 1}
    rows = [{"key": key, "order": n, "area": n / 2} for key, count in counts.items() for n in range(count)]
    asked = ["", *counts, "\U0001f3d8", "a b", "a b", "b", "a"]
    for wanted in (rows, []):
        table = stored(table_of(wanted))
        found, orders = RowsOfKeys(table), RowsOfKeys(table, ["order"])
        for key in asked:
            assert found.of(key) == [row for row in wanted if row["key"] == key]
            assert [row["order"] for row in orders.of(key)] == [row["order"] for row in wanted if row["key"] == key]


@pytest.mark.medium
def test_rows_of_a_long_table_take_little_memory() -> None:
    writer = TableWriter({"key": "string", "outline": "string"})
    for start in range(0, 100_000, 2000):
        keys = [f"yard/{number // 10:07d}.jpg" for number in range(start, start + 2000)]
        writer.append(pd.DataFrame({"key": keys, "outline": [f"{key} " * 20 for key in keys]}, dtype="string"))
    rows = RowsOfKeys(writer.table(), ["outline"])
    before, peak = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for number in range(10_000):
        assert len(rows.of(f"yard/{number:07d}.jpg")) == 10
        peak = max(peak, pa.total_allocated_bytes() - before)
    peak += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20, "of more than 32 MiB of text"


def test_no_room_for_annotations_is_said(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    writer = TableWriter({"outline": "string"})
    noise = random.Random(0)
    part = pd.DataFrame({"outline": [str(noise.random()) for _ in range(10_000)]}, dtype="string")
    with pytest.raises(OSError, match="No space") as caught:  # noqa: PT012  # it may be at any of them
        for _ in range(50):
            writer.append(part)
        writer.table()
    assert "There is no room for a file" in str(shortage(caught.value))


def test_items_wait_for_several_readers() -> None:
    items = WaitingItems()
    added = [{"number": number, "text": "é" * (number % 7) * 5000} for number in range(50)]
    for item in added:
        items.add(item)
    assert list(items) == added
    assert list(zip(items, items, strict=True)) == list(zip(added, added, strict=True))
    assert list(WaitingItems()) == []


def test_no_room_for_items_is_said(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    items = WaitingItems()
    with pytest.raises(OSError, match="No space") as caught:  # noqa: PT012  # it may be at any of them
        for _ in range(10_000):
            items.add("x" * 10_000)
    assert "There is no room for a file" in str(shortage(caught.value))
