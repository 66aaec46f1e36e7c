"""What MLflow is to say of the project's runs, in a file that outlives the process.

Each run has a record. What MLflow has got is taken out of it; the next ``kedro run`` goes on with the records of
processes that have ended. No path in it is absolute.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from pydantic import TypeAdapter

from construction_panoptic.files import write_bytes

logger = logging.getLogger(__name__)


def now() -> int:
    """Give the time in ms, as MLflow has it."""
    return int(time.time() * 1000)


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}@{psutil.Process().create_time():.0f}"


def _is_alive(process: str) -> bool:
    """Whether the process lives; one of another machine is taken to."""
    host, _, rest = process.rpartition(":")
    pid, _, created = rest.partition("@")
    if host != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(int(pid)).create_time() - int(created)) < 2  # seconds; ids are used again
    except (psutil.NoSuchProcess, ValueError):
        return False


@dataclass
class Record:
    """A run: what it is, and what MLflow lacks of it."""

    name: str
    store: str = ""  # address of the tracking server; "" for the project's own database
    experiment_id: str = ""
    run_id: str | None = None  # None until MLflow has created it
    parent: str | None = None  # id of the run that it is nested in
    stage: str | None = None  # of a training: the first part of its metrics' names
    former: dict[str, str] | None = None  # of an interrupted training: run_id and store of the run it may go on in
    process: str = field(default_factory=_this_process)
    started: int = field(default_factory=now)  # ms
    ended: int | None = None  # ms
    status: str = "RUNNING"
    closed: bool = False  # whether MLflow knows the status
    # The tag by which a run is found whose creation MLflow could not answer any more.
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    # Not sent yet. Files have path, stamp (when written, ns), ready, and kinds (see `hook`), by catalog entry.
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    datasets: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    histories: dict[str, str] = field(default_factory=dict)  # by entry, the path of a table with a row an epoch
    outputs: list[str] = field(default_factory=list)  # the entries that exist when the training is finished

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended and MLflow has all of it."""
        return self.closed and not (self.tags or self.params or self.metrics or self.datasets or self.files)

    def end(self, status: str) -> None:
        """Note how the run ended, unless it has ended already; files of nodes that did not end are sent too."""
        if self.ended is None:
            self.status, self.ended, self.closed = status, now(), False
        for file in self.files.values():
            file["ready"] = True


_CONTENT = TypeAdapter(dict[str, Record])


class Records:
    """The records of one store that this process looks after (`own`), and their file.

    A record's key is the folder of a training's checkpoints, or `Record.key`. Hold `lock` to read or change one.
    """

    def __init__(self, path: Path, store: str) -> None:
        self.own: dict[str, Record] = {}
        self.lock = threading.RLock()
        self._path = path
        self._store = store

    def adopt(self) -> list[Record]:
        """Take over what processes that have ended have left unfinished."""
        with self.lock, self._opened() as known:
            left = {
                key: record
                for key, record in known.items()
                if record.store == self._store and not record.is_complete and not _is_alive(record.process)
            }
            for record in left.values():
                record.process = _this_process()
            self.own |= left
        return list(left.values())

    def known(self, key: str) -> Record | None:
        """Give a record, own or not."""
        return self.own.get(key) or self._read().get(key)

    def save(self) -> None:
        """Write the own records; those of commands that MLflow has wholly are forgotten."""
        with self.lock:
            try:
                with self._opened() as known:
                    known.update(self.own)
                    for key, record in self.own.items():
                        if record.is_complete and record.stage is None:
                            del known[key]
            except OSError as error:  # a full disk; the run does not depend on it
                logger.debug("%s cannot be written", self._path, exc_info=error)

    @contextmanager
    def _opened(self) -> Iterator[dict[str, Record]]:
        """Give all records, and write them back; other processes wait."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_suffix(".lock")):
            known = self._read()
            yield known
            write_bytes(self._path, _CONTENT.dump_json(known, indent=2))

    def _read(self) -> dict[str, Record]:
        try:
            return _CONTENT.validate_json(self._path.read_bytes())
        except (OSError, ValueError):  # there is none, it is damaged, or of an earlier version
            return {}
