"""Entries that are written, and read, a part at a time."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from kedro_datasets._typing import JSONPreview, TablePreview
from kedro_datasets.json import JSONDataset

from construction_panoptic.annotations.json_stream import JSONDocument, json_parts
from construction_panoptic.annotations.tables import StoredTable
from construction_panoptic.catalog.files import LocalDataset
from construction_panoptic.files import atomic_path

_PREVIEW_ROWS, _PREVIEW_ITEMS, _PREVIEW_BYTES = 5, 3, 64 * 2**20


class LongJSONDataset(JSONDataset):
    """A JSON document with long lists, of which the preview shows the first items."""

    def preview(self) -> JSONPreview:
        """Show the document with its lists cut; of a file beyond 64 MiB, its size alone."""
        path = Path(self._filepath)
        if (size := path.stat().st_size) > _PREVIEW_BYTES:
            return JSONPreview(json.dumps({"bytes": size, "preview": "the file is too large to show"}))
        content = json.loads(path.read_bytes())
        shown = {name: _cut(part) for name, part in content.items()} if isinstance(content, dict) else _cut(content)
        return JSONPreview(json.dumps(shown))


class StreamedJSONDataset(LongJSONDataset):
    """A JSON document whose lists may be iterators; they are drawn from while the file is written."""

    def save(self, data: Mapping[str, Any]) -> None:
        """Write the document; lines are not broken."""
        with self._fs.open(str(self._filepath), mode="w", encoding="utf-8") as file:
            file.writelines(json_parts(data))


def _cut(part: Any) -> Any:
    return [*part[:_PREVIEW_ITEMS], "…"] if isinstance(part, list) and len(part) > _PREVIEW_ITEMS else part


class StreamedDocumentDataset(StreamedJSONDataset):
    """A COCO file whose images and annotations are written, and read, one at a time."""

    def load(self) -> JSONDocument:
        """Give the document; of its images and annotations nothing is in memory."""
        return JSONDocument(Path(self._filepath))


class StoredTableDataset(LocalDataset):
    """A table in a Parquet file, of which only a part is ever in memory."""

    def load(self) -> StoredTable:
        """Give a handle that reads columns, or rows by and by."""
        return StoredTable(self._filepath)

    def save(self, data: StoredTable) -> None:
        """Copy the table's file, atomically."""
        with atomic_path(self._filepath) as temporary:
            data.copy_to(temporary)

    def preview(self) -> TablePreview:
        """Give the first rows."""
        first = next(self.load().blocks(), pd.DataFrame()).head(_PREVIEW_ROWS)
        return TablePreview(first.to_dict(orient="split"))
