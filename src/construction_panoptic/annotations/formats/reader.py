"""The door for export formats: a reader knows its format's files and gives what is in them, item by item."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol


class AnnotationReader(Protocol):
    """One export format."""

    def sniff(self, source: Path) -> bool:
        """Tell whether a folder or archive is of this format."""
        ...

    def read(self, source: Path) -> Iterator[Any]:
        """Give images, objects and rejections as a stream."""
        ...
