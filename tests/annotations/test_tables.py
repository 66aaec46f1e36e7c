import numpy as np
import pandas as pd
import pytest

from construction_panoptic.annotations import tables
from construction_panoptic.annotations.tables import TableBuilder, rows_at

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


@pytest.mark.parametrize("places", [[], [3], [2, 3, 4], [4, 3, 2], [0, 2], [1, 1]])
def test_rows_are_those_at_the_places(places: list[int]) -> None:
    table = pd.concat([pd.DataFrame({"a": [n, n + 1], "b": [str(n), None]}) for n in (0, 2, 4)], ignore_index=True)
    table = table.astype({"b": "string"})
    found = rows_at(table, np.array(places, dtype=np.intp))
    pd.testing.assert_frame_equal(found, table.iloc[places])
    pd.testing.assert_series_equal(rows_at(table["b"], np.array(places, dtype=np.intp)), table["b"].iloc[places])
