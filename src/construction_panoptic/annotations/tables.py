"""Tables that grow row by row, and are read a few rows at a time."""

from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Rows = TypeVar("Rows", pd.DataFrame, pd.Series)

_ROWS_AT_ONCE = 10_000


class TableBuilder:
    """Collects rows; what is full goes into columns, which take a tenth of the room that Python objects do.

    Args:
        columns: the type of each column, in order.
    """

    def __init__(self, columns: dict[str, str]) -> None:
        self._columns = columns
        self._rows: list[dict[str, Any]] = []
        self._parts: list[pd.DataFrame] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add a row: a value for each column."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_AT_ONCE:
            self._pack()

    def table(self) -> pd.DataFrame:
        """Return all rows in the order in which they were added; the builder is empty then."""
        self._pack()
        table = pd.concat(self._parts, ignore_index=True)
        self._parts = []
        return table

    def _pack(self) -> None:
        self._parts.append(pd.DataFrame(self._rows, columns=list(self._columns)).astype(self._columns))
        self._rows = []


def rows_at(table: Rows, places: NDArray[np.intp]) -> Rows:
    """Return the rows of a table, or of a column, at positions.

    Those side by side are a slice, which copies nothing: to take rows one by one, Arrow first copies a column that is
    in several chunks as a whole.
    """
    if len(places) and places[-1] - places[0] + 1 == len(places) and (np.diff(places) == 1).all():
        return table.iloc[places[0] : places[-1] + 1]
    return table.iloc[places]
