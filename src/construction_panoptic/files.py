"""Writing files so that a reader never sees half of one."""

import errno
import json
import os
import re
import socket
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from construction_panoptic.errors import StorageError

# A temporary name tells whose it is: <machine>-<process>-<random>.
_MACHINE = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_TEMPORARY = re.compile(rf"\..*\.{_MACHINE}-(\d+)-[0-9a-f]{{8}}\.tmp")

_STORAGE_ADVICE = {
    errno.ENOSPC: "Make room on the disk of {folder}",
    errno.EDQUOT: "Make room within your quota for {folder}",
    errno.EROFS: "Make {folder} writable, or choose another place in the catalog",
    errno.EACCES: "Make {folder} writable, or choose another place in the catalog",
}


@contextmanager
def atomic_path(target: Path | str, *, sync: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``target`` and rename it to ``target`` when the block ends well.

    Args:
        target: the final path; its parent folders are made.
        sync: flush file and folder to disk around the rename, so that the file survives a power cut.

    Yields:
        The temporary path; it keeps the suffix of ``target``. If the block raises, it is removed.

    Raises:
        StorageError: there is no room, or no permission; ``target`` is as it was.
    """
    target = Path(target)
    try:
        with _atomic_path(target, sync) as temporary:
            yield temporary
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch says that it could not write
        if not isinstance(cause, OSError) or cause.errno not in _STORAGE_ADVICE:
            raise
        advice = _STORAGE_ADVICE[cause.errno].format(folder=target.parent)
        raise StorageError(
            f"{target} cannot be written: {cause.strerror}. {advice}, then go on with the same command and "
            "--only-missing-outputs. What was there before is untouched."
        ) from error


@contextmanager
def _atomic_path(target: Path, sync: bool) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    owner = f"{_MACHINE}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = target.with_name(f".{target.stem[:80]}.{owner}.tmp{target.suffix}")
    try:
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(target)
        if sync:
            _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path | str) -> None:
    """Remove temporary files in ``folder`` and below that processes of this machine left when they were killed."""
    for place, _, names in os.walk(folder):
        for name in names:
            owner = _TEMPORARY.match(name)
            if owner and not psutil.pid_exists(int(owner[1])):
                Path(place, name).unlink(missing_ok=True)


def write_bytes(target: Path | str, data: bytes) -> None:
    """Write ``data`` to ``target`` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_json(target: Path | str, data: Any, *, indent: int | None = None) -> None:
    """Write ``data`` as JSON to ``target`` atomically; NaN and infinity are refused since JSON has neither."""
    text = json.dumps(data, indent=indent, allow_nan=False, ensure_ascii=False)
    write_bytes(target, text.encode())
