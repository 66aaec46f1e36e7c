"""What MLflow is to say of the project's runs, in a file that outlives the process.

Each run has a record. What MLflow has got is taken out of it, so that a record says what is missing; the next
``kedro run`` goes on with the records of processes that have ended. No path in it is absolute.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from construction_panoptic.files import write_json
from construction_panoptic.tracking.facts import is_alive, process_name

logger = logging.getLogger(__name__)


def now() -> int:
    """Give the time in ms, as MLflow has it."""
    return int(time.time() * 1000)


@dataclass
class Record:
    """A run: what it is, and what MLflow lacks of it.

    Attributes:
        name: name of the run.
        store: address of the tracking server; "" for the project's own database.
        experiment_id: id of its experiment.
        run_id: its id; None until MLflow has created it.
        parent: id of the run that it is nested in.
        stage: of a training, the first part of its metrics' names.
        former: of a training that was interrupted, ``run_id`` and ``store`` of the run that it may go on in.
        process: the process that makes the run.
        started: when it began, ms.
        ended: when it ended, ms.
        status: MLflow's word for how it stands.
        closed: whether MLflow knows the status.
        key: tag by which a run is found whose creation MLflow could not answer any more.
        tags, params, metrics, inputs: as MLflow has them; not sent yet.
        files: by catalog entry, ``path``, ``stamp`` (when it was written, ns), ``ready``, and its kinds, see `hook`;
            not sent yet.
        histories: by catalog entry, the path of a table with a row an epoch.
        outputs: the entries that exist when the training is finished.
    """

    name: str = ""
    store: str = ""
    experiment_id: str = ""
    run_id: str | None = None
    parent: str | None = None
    stage: str | None = None
    former: dict[str, str] | None = None
    process: str = field(default_factory=process_name)
    started: int = field(default_factory=now)
    ended: int | None = None
    status: str = "RUNNING"
    closed: bool = False
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    inputs: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    histories: dict[str, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended and MLflow has all of it."""
        return self.closed and not (self.tags or self.params or self.metrics or self.inputs or self.files)

    def end(self, status: str) -> None:
        """Note how the run ended, unless it has ended already; files of nodes that did not end are sent too."""
        if self.ended is None:
            self.status, self.ended, self.closed = status, now(), False
        for file in self.files.values():
            file["ready"] = True


class Records:
    """The records of one store that this process looks after, and their file.

    Args:
        path: the file.
        store: see `Record.store`.

    Attributes:
        own: by key, the folder of a training's checkpoints or `Record.key`.
        lock: to be held while a record is read or changed.
    """

    def __init__(self, path: Path, store: str) -> None:
        self.own: dict[str, Record] = {}
        self.lock = threading.RLock()
        self._path = path
        self._store = store

    def adopt(self) -> list[Record]:
        """Take over what processes that have ended have left unfinished."""
        with self.lock, self._opened() as known:
            left = {key: record for key, record in known.items() if self._is_left(record)}
            self.own |= left
            for key, record in left.items():
                record.process = process_name()
                known[key] = record
        return list(left.values())

    def known(self, key: str) -> Record | None:
        """Give a record, own or not."""
        return self.own.get(key) or _read(self._path).get(key)

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

    def _is_left(self, record: Record) -> bool:
        return record.store == self._store and not record.is_complete and not is_alive(record.process)

    @contextmanager
    def _opened(self) -> Iterator[dict[str, Record]]:
        """Give all records, and write them back; other processes wait."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_suffix(".lock")):
            known = _read(self._path)
            yield known
            content = {key: {name: value for name, value in asdict(r).items() if value} for key, r in known.items()}
            write_json(self._path, content, indent=2)


def _read(path: Path) -> dict[str, Record]:
    names = {item.name for item in fields(Record)}
    try:
        content = json.loads(path.read_text())
        return {
            key: Record(**{name: value for name, value in entry.items() if name in names})
            for key, entry in content.items()
            if "experiment_id" in entry  # else of an earlier version
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
