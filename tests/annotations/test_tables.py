import pandas as pd
import pytest

from construction_panoptic.annotations import tables
from construction_panoptic.annotations.tables import TableBuilder

COLUMNS = {"key": "string", "order": "int64", "area": "float64"}


@pytest.mark.parametrize("rows", [0, 1, 9, 10, 11, 35])
def test_parts_make_one_table(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 10)
    added = [{"key": None if number % 7 == 3 else f"é{number}", "order": number, "area": 0.5} for number in range(rows)]
    builder = TableBuilder(COLUMNS)
    for row in added:
        builder.add(row)
    expected = pd.DataFrame(added, columns=list(COLUMNS)).astype(COLUMNS)
    pd.testing.assert_frame_equal(builder.table(), expected)
