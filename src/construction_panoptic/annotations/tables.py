"""Tables in files, of which a part at a time is in memory."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

_ROWS_OF_GROUP = 10_000
_ROWS_OF_BLOCK = 1000
_AFTER_ALL_KEYS = chr(sys.maxunicode)


class StoredTable:
    """A table in a Parquet file, a path or open; `OSError`, `ValueError`: there is none, or it is not Parquet."""

    def __init__(self, file: Path | BinaryIO) -> None:
        self._file = file
        self._length = int(parquet.ParquetFile(file).metadata.num_rows)

    def __len__(self) -> int:
        return self._length

    def frame(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Read these columns, or all, of all rows."""
        return parquet.ParquetFile(self._file).read(columns).to_pandas()

    def rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Read these columns, or all, row by row, of which a thousand are in memory; what is missing is None."""
        batches = parquet.ParquetFile(self._file).iter_batches(_ROWS_OF_BLOCK, columns=columns)
        return chain.from_iterable(batch.to_pylist() for batch in batches)

    def copy_to(self, path: Path) -> None:
        """Write the file to another place."""
        if isinstance(self._file, Path):
            shutil.copyfile(self._file, path)
            return
        self._file.seek(0)
        with path.open("wb") as copy:
            shutil.copyfileobj(self._file, copy, 1 << 20)


class TableWriter:
    """Writes a table of typed columns part by part into a temporary file, which is gone with the process."""

    def __init__(self, columns: dict[str, str]) -> None:
        self._columns = columns
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the table
        self._writer = parquet.ParquetWriter(self._file, self._typed([]).schema)

    def append(self, rows: pd.DataFrame | list[dict[str, Any]]) -> None:
        """Add rows: a value for each column."""
        with _closed_if_full(self._file):
            self._writer.write_table(self._typed(rows), row_group_size=_ROWS_OF_GROUP)

    def table(self) -> StoredTable:
        """Return all rows in the order in which they were added; nothing can be added then."""
        with _closed_if_full(self._file):
            self._writer.close()
            self._file.flush()
        return StoredTable(self._file)

    def _typed(self, rows: pd.DataFrame | list[dict[str, Any]]) -> pa.Table:
        frame = pd.DataFrame(rows, columns=list(self._columns)).astype(self._columns)
        return pa.Table.from_pandas(frame, preserve_index=False)


class WaitingItems:
    """Plain data in a temporary file, to be iterated over as often as one likes when all is there; tuples are lists."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the items

    def add(self, item: Any) -> None:
        """Add an item."""
        with _closed_if_full(self._file):
            self._file.write(json.dumps(item).encode() + b"\n")

    def __iter__(self) -> Iterator[Any]:
        place, end = 0, self._file.seek(0, os.SEEK_END)
        while place < end:
            self._file.seek(place)  # others may be reading, too
            line = self._file.readline()
            place += len(line)
            yield json.loads(line)


@contextmanager
def _closed_if_full(file: BinaryIO) -> Iterator[None]:
    try:
        yield
    except OSError:
        with suppress(OSError):  # what is in its buffer has no room either
            file.close()
        raise


class RowsOfKeys:
    """The rows of each key of a table that is sorted by it, of which a thousand are in memory."""

    def __init__(self, table: StoredTable, columns: list[str] | None = None) -> None:
        self._table, self._columns = table, None if columns is None else ["key", *columns]
        self._begin()

    def _begin(self) -> None:
        self._groups = groupby(self._table.rows(self._columns), itemgetter("key"))
        self._asked = self._key = ""
        self._rows: list[dict[str, Any]] = []

    def of(self, key: str) -> list[dict[str, Any]]:
        """Return the rows of a key in the order of the table. It is quick when keys are asked for in rising order."""
        if key < self._asked:
            self._begin()
        self._asked = key
        while self._key < key:
            self._key, rows = next(self._groups, (_AFTER_ALL_KEYS, ()))
            self._rows = list(rows)
        return self._rows if self._key == key else []
