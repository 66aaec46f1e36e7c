"""Entries that are written, and read, a part at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from kedro_datasets._typing import TablePreview

from construction_panoptic.annotations.json_stream import JSONDocument, json_parts
from construction_panoptic.annotations.tables import StoredTable
from construction_panoptic.catalog.files import JSONDataset, damaged
from construction_panoptic.catalog.folders import LocalFileDataset
from construction_panoptic.files import atomic_path

_PREVIEW_ROWS = 5


class StreamedJSONDataset(JSONDataset):
    """A JSON document whose lists may be iterators; they are drawn from while the file is written."""

    def save(self, data: Mapping[str, Any]) -> None:
        """Write the document, atomically; lines are not broken."""
        with atomic_path(Path(self._filepath)) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json_parts(data))


class StreamedDocumentDataset(StreamedJSONDataset):
    """A COCO file whose images and annotations are written, and read, one at a time."""

    def load(self) -> JSONDocument:
        """Give the document; of its images and annotations nothing is in memory.

        Raises:
            DamagedFileError: what is in the file cannot be read.
        """
        path = Path(self._filepath)
        try:
            return JSONDocument(path)
        except (ValueError, RecursionError) as error:
            raise damaged(path, error) from error


class StoredTableDataset(LocalFileDataset):
    """A table in a Parquet file, of which only a part is ever in memory."""

    def load(self) -> StoredTable:
        """Give a handle that reads columns, or rows by and by.

        Raises:
            DamagedFileError: what is in the file cannot be read.
        """
        try:
            return StoredTable(self._filepath)
        except ValueError as error:
            raise damaged(self._filepath, error) from error

    def save(self, data: StoredTable) -> None:
        """Copy the table's file, atomically."""
        with atomic_path(self._filepath) as temporary:
            data.copy_to(temporary)

    def preview(self) -> TablePreview:
        """Give the first rows."""
        first = next(self.load().blocks(), pd.DataFrame()).head(_PREVIEW_ROWS)
        return TablePreview(first.to_dict(orient="split"))
