"""What an interrupted node has finished: a line an item, appended when the item's files are there.

A node that is run again asks for the item under a digest of all that it is made from. Other input, or a file that has
changed since, means that the item is made anew.
"""

import json
import os
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from kedro.io import AbstractDataset
from kedro_datasets._typing import JSONPreview

from construction_panoptic.files import atomic_path


class Journal:
    """The journal of an entry, as it is when this is made; what is appended later is not seen.

    Args:
        entry: local path of the entry, a file or folder; the journal lies beside it, hidden.
    """

    def __init__(self, entry: Path) -> None:
        self.path = journal_path(entry)
        self._offsets: dict[str, int] = {}
        offset = 0
        if self.path.is_file():
            with self.path.open("rb") as lines:
                for line in lines:
                    if (found := _parse(line)) is not None:
                        self._offsets[found["key"]] = offset
                    offset += len(line)

    def __len__(self) -> int:
        """Count the finished items."""
        return len(self._offsets)

    def find(self, key: str, digest: str) -> Any:
        """Return what was noted of an item that was made from what has this digest; None if it is not finished."""
        found = self._read(key)
        if found is None or not digest or found["digest"] != digest:
            return None
        unchanged = all(_state(self.path.parent / name) == state for name, state in found["files"].items())
        return found["data"] if unchanged else None

    def _read(self, key: str) -> Any:
        if key not in self._offsets:
            return None
        with self.path.open("rb") as lines:
            lines.seek(self._offsets[key])
            return _parse(lines.readline())

    def keep(self, keys: Collection[str]) -> None:
        """Forget all items but these, and what was noted of an item before it was made anew."""
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:
            for key in keys:
                if (found := self._read(key)) is not None:
                    file.write(_line(found))


@contextmanager
def appending(entry: Path) -> Iterator["JournalWriter"]:
    """Open the journal of an entry to note items."""
    path = journal_path(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if file.tell():
            file.write(b"\n")  # ends what a killed process may have left of a line
        yield JournalWriter(file, path.parent)


class JournalWriter:
    """Notes items as they are finished; the process may be killed at any time."""

    def __init__(self, file: BinaryIO, folder: Path) -> None:
        self._file = file
        self._folder = folder

    def add(self, key: str, digest: str, files: Iterable[Path], data: Any) -> None:
        """Note an item whose files are written; one without a digest is not noted."""
        if digest:
            states = {os.path.relpath(path, self._folder): _state(path) for path in files}
            self._file.write(_line({"key": key, "digest": digest, "files": states, "data": data}))
            self._file.flush()


class JournalDataset(AbstractDataset[Any, Any]):
    """The journal of another entry on the same path, read by the node that makes it.

    Args:
        filepath: local path of that entry.
        metadata: arbitrary metadata, for plugins.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> Journal:
        """Read what is finished, which may be nothing."""
        return Journal(self._filepath)

    def preview(self) -> JSONPreview:
        """Say how many items are finished."""
        return JSONPreview(json.dumps({"finished": len(self.load())}))

    def save(self, data: Any) -> None:
        """Refuse: the other entry writes the journal."""
        raise NotImplementedError("this entry only reads; the entry on the same path writes the journal")

    def _exists(self) -> bool:
        return True  # "nothing is finished" is a valid answer

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


def journal_path(entry: Path) -> Path:
    """Return where an entry's journal is."""
    return entry.with_name(f".{entry.stem}.journal.jsonl")


def _state(path: Path) -> list[int] | None:
    """Size in bytes and time of modification in nanoseconds; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, ensure_ascii=False).encode()
    return b"%s\t%08x\n" % (text, zlib.crc32(text))


def _parse(line: bytes) -> Any:
    """Return a line's entry; None for what a killed process left of one, and for one that is damaged."""
    text, _, checksum = line.partition(b"\t")
    return json.loads(text) if checksum == b"%08x\n" % zlib.crc32(text) else None
