"""JSON entries that are written item by item."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from construction_panoptic.annotations.json_stream import json_parts
from construction_panoptic.catalog.files import JSONDataset
from construction_panoptic.files import atomic_path


class StreamedJSONDataset(JSONDataset):
    """A JSON document whose lists may be iterators; they are drawn from while the file is written."""

    def save(self, data: Mapping[str, Any]) -> None:
        """Write the document, atomically; lines are not broken."""
        with atomic_path(Path(self._filepath)) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json_parts(data))
