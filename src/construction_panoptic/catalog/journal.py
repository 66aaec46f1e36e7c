"""What an interrupted node has finished: a line an item, appended when the item's files are there.

A node that is run again asks for the item under a digest of all that it is made from. Other input, or a file that has
changed since, means that the item is made anew.
"""

import json
import os
import zlib
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from construction_panoptic.files import atomic_path


class Journal:
    """The journal of the entry at a local path, hidden beside it, as it is now; what is added later is not found."""

    def __init__(self, entry: Path) -> None:
        self.path = entry.with_name(f".{entry.stem}.journal.jsonl")
        self._offsets: dict[str, int] = {}
        offset = 0
        if self.path.is_file():
            with self.path.open("rb") as lines:
                for line in lines:
                    if (found := _parse(line)) is not None:
                        self._offsets[found["key"]] = offset
                    offset += len(line)

    def find(self, key: str, digest: str) -> Any:
        """Return what was noted of an item that was made from what has this digest; None if it is not finished."""
        found = self._read(key)
        if found is None or not digest or found["digest"] != digest:
            return None
        unchanged = all(_state(self.path.parent / name) == state for name, state in found["files"].items())
        return found["data"] if unchanged else None

    def add(self, key: str, digest: str, files: Iterable[Path], data: Any) -> None:
        """Note an item whose files are written; one without a digest is not noted. The process may be killed here."""
        if not digest:
            return
        states = {os.path.relpath(path, self.path.parent): _state(path) for path in files}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as lines:
            # A line of its own, also after half a line that a killed process has left.
            lines.write(b"\n" + _line({"key": key, "digest": digest, "files": states, "data": data}))

    def keep(self, keys: Collection[str]) -> None:
        """Forget all items but these, and what was noted of them before they were made anew."""
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:
            file.writelines(_line(found) for key in keys if (found := self._read(key)) is not None)

    def _read(self, key: str) -> Any:
        if key not in self._offsets:
            return None
        with self.path.open("rb") as lines:
            lines.seek(self._offsets[key])
            return _parse(lines.readline())


def _state(path: Path) -> list[int] | None:
    """Size in bytes and time of modification in nanoseconds; None if there is no such file."""
    with suppress(OSError):
        found = path.stat()
        return [found.st_size, found.st_mtime_ns]
    return None


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, ensure_ascii=False).encode()
    return b"%s\t%08x\n" % (text, zlib.crc32(text))


def _parse(line: bytes) -> Any:
    """Return a line's entry; None for what a killed process left of one, and for one that is damaged."""
    text, _, checksum = line.partition(b"\t")
    return json.loads(text) if checksum == b"%08x\n" % zlib.crc32(text) else None
