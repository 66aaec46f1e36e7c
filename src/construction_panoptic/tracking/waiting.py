"""What waits for a tracking server, in a file: first in, first out, and not lost with the process.

The file has a line of JSON for each entry, and one whenever an entry is done or a run got its id; a file that belongs
to an entry is hard-linked beside it, so that it stays as it is. A process that lives has its file locked; what one that
ended has left is gone on with by the next. Only the first entry is in memory.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import time
import uuid
import weakref
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
"""Plain data. ``path`` is a file or folder that belongs to it, ``stand_in`` an id that a run has until its server
gives it one."""


class WaitingEntries:
    """The entries that wait for one server.

    Args:
        folder: where the file is kept, and those of other processes.
        uri: address of the server.

    Attributes:
        count: how many wait.
        ids: what runs are called by the server, by the ids that stand in for them.
        doubtful: whether the first entry may have reached the server in part.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.count = 0
        self.ids: dict[str, str] = {}
        self.doubtful = False
        self._folder = folder
        self._uri = uri
        self._path = folder
        self._file: FileIO | None = None
        self._done = 0  # bytes of the file up to the end of the last entry that is done
        self._first: tuple[Entry, int] | None = None  # and where it ends
        _opened.add(self)
        self.take_over()

    def take_over(self) -> None:
        """Go on with the file of a process that has ended, if there is one."""
        for path in sorted(self._folder.glob("*.jsonl")):
            try:
                file = FileIO(os.open(path, os.O_RDWR | os.O_APPEND), "r+")
            except FileNotFoundError:
                continue
            if _locked(file, path) and self._read(path, file):
                return
            file.close()

    def append(self, entry: Entry) -> None:
        """Add an entry at the end; a file that belongs to it is kept as it is now.

        Raises:
            OSError: the file cannot be written; nothing is added.
        """
        if self._file is None:
            self._create()
        if "path" in entry:
            entry = {**entry, "path": str(self._kept(Path(entry["path"])))}
        self.count += 1
        try:
            self._write(entry)
        except OSError:
            self.count -= 1
            raise

    def first(self) -> Entry | None:
        """Give the entry that has waited longest; None where none does."""
        if self._first is None and self.count and self._file is not None:
            end = self._done
            for line in _lines(self._file, end):
                end += len(line)
                if (entry := _parsed(line)) and not entry.keys() & {"sent", "real"}:
                    self._first = entry, end
                    break
            else:
                self.count = 0  # the last one was not written to its end
        return None if self._first is None else self._first[0]

    def done(self) -> None:
        """Take the first entry away; a file without any is removed."""
        assert self._first is not None
        entry, self._done = self._first
        self._first, self.doubtful = None, False
        self.count -= 1
        self._note({"sent": self._done})
        if "path" in entry and (kept := Path(entry["path"]).parent).is_relative_to(self._folder):
            shutil.rmtree(kept, ignore_errors=True)
        if not self.count:
            self.close()
            self.take_over()

    def note_id(self, stand_in: str, real: str) -> None:
        """Note what the server calls a run."""
        self.ids[stand_in] = real
        self._note({"stand_in": stand_in, "real": real})

    def close(self) -> None:
        """Leave what waits to a later run; a file in which nothing waits is removed."""
        if self._file is None:
            return
        if not self.count:
            self._path.unlink(missing_ok=True)
            shutil.rmtree(self._path.with_suffix(""), ignore_errors=True)
        self._file.close()
        self._file = self._first = None
        self.count = 0

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def _create(self) -> None:
        self._path = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}.jsonl"
        self._folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL
        self._file = FileIO(os.open(self._path, flags, 0o644), "r+")
        _locked(self._file, self._path)
        self._write({"uri": self._uri})
        self._done = self._file.tell()

    def _read(self, path: Path, file: FileIO) -> bool:
        """Take a file, unless it is for another server or nothing waits in it."""
        lines = _lines(file, 0)
        header = next(lines, b"")
        if header and _parsed(header).get("uri") != self._uri:
            return False
        self._done = end = len(header)
        ends: list[int] = []
        for line in lines:
            end += len(line)
            entry = _parsed(line)
            if "sent" in entry:
                self._done = max(self._done, entry["sent"])
            elif "real" in entry:
                self.ids[entry["stand_in"]] = entry["real"]
            elif entry:
                ends.append(end)
            else:
                logger.warning("%s: a line is damaged and left out: %s", path, line[:100].decode(errors="replace"))
        file.truncate(end)  # a process that was killed may have left half a line
        self._path, self._file = path, file
        self.count, self.doubtful = sum(entry_end > self._done for entry_end in ends), True
        if not self.count:
            self.close()
        return self.count > 0

    def _note(self, content: Entry) -> None:
        try:
            self._write(content)
        except OSError as error:  # a run that took over would send the entry again
            logger.debug("What was sent could not be noted", exc_info=error)

    def _write(self, content: Entry) -> None:
        assert self._file is not None
        line = (json.dumps(content) + "\n").encode()
        size = os.fstat(self._file.fileno()).st_size
        written = 0
        try:
            written = self._file.write(line)
        finally:
            if written != len(line):
                self._file.truncate(size)
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def _kept(self, path: Path) -> Path:
        kept = self._path.with_suffix("") / uuid.uuid4().hex[:8] / path.name
        kept.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, kept, copy_function=_link)
        else:
            _link(str(path), str(kept))
        return kept

    def _leave_to_parent(self) -> None:
        """Close the file in a process that was forked; while it is open there, it would stay locked."""
        if self._file is not None:
            self._file.close()


def _parsed(line: bytes) -> Entry:
    """Give a line's content; nothing where it is damaged."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _lines(file: FileIO, offset: int) -> Iterator[bytes]:
    """Give the whole lines from an offset."""
    rest = b""
    while chunk := os.pread(file.fileno(), 2**16, offset):
        offset += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"


def _locked(file: FileIO, path: Path) -> bool:
    """Lock a file; False if another process has it, or has just removed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _link(source: str, target: str) -> None:
    """Hard-link a file; files are replaced, not written over, so the link keeps the content. Else copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


_opened: "weakref.WeakSet[WaitingEntries]" = weakref.WeakSet()


def _forked() -> None:
    for entries in list(_opened):
        entries._leave_to_parent()


os.register_at_fork(after_in_child=_forked)
